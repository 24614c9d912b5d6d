"""Developers' Claude Code after the role: it uses the local model, or runs on it, and their own files are theirs.

debian13 has the tiny model, the bridge and a stand-in of the gateway (templates/haproxy.cfg.j2) for both guests.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.claude_client.guest import Session, ask, call_tool, hold_session

PROJECT = Path(__file__).resolve().parents[3]
DEVELOPERS = ("alice", "bob", "carol", "dave")
SECRETS = {user: f"molecule-token-of-{user}" for user in DEVELOPERS}
VERSION = "2.1.330"
ENTER = "\r"
FRANCE = "What is the capital of France?"


def read_json(host: Host, path: str) -> Any:
    return json.loads(host.file(path).content_string)


def models_asked(host: Host, user: str) -> set[str]:
    """Whom a developer's Claude Code asks. Its instructions of 8 KB confuse the tiny model: it may say anything."""
    reply = json.loads(ask(host, user, FRANCE, "--tools", "", "--output-format", "json"))
    assert reply["subtype"] == "success", reply
    return set(reply["modelUsage"])


def tool_names(request: dict[str, Any]) -> set[str]:
    return {tool["name"] for tool in request.get("tools") or []}


def ask_client(host: Host, user: str) -> str:
    return str(host.check_output("su -l %s -c 'claude mcp get local-llm'", user))


@pytest.mark.parametrize("user", ["alice", "bob", "carol"])
def test_the_client_says_that_it_is_connected(host: Host, user: str) -> None:
    assert "Status: ✔ Connected" in ask_client(host, user)


def test_the_client_is_the_pinned_one_and_stays_at_it(host: Host) -> None:
    assert host.check_output("su -l alice -c 'claude --version'") == f"{VERSION} (Claude Code)"
    assert host.file("/usr/local/bin/claude").linked_to == f"/opt/claude-code/{VERSION}/claude"
    for user in DEVELOPERS:
        assert read_json(host, f"/home/{user}/.claude/settings.json")["env"]["DISABLE_AUTOUPDATER"] == "1"


# alice's client asks the bridge over https; carol's starts one, which does that. Both trust the private CA.
@pytest.mark.parametrize("user", ["alice", "carol"])
def test_the_client_calls_a_tool_without_asking_for_permission(host: Host, user: str) -> None:
    result = call_tool(host, user, "mcp__local-llm__chat", message=FRANCE)
    assert (result.text, result.is_error) == ("Paris", False)


# --- gateway mode ---


@pytest.mark.parametrize("user", ["alice", "dave"])
def test_claude_code_itself_completes_a_turn_on_the_local_model(host: Host, user: str) -> None:
    # Few words besides the question, so that the tiny model knows the answer.
    few = ["--bare", "--settings", f"/home/{user}/.claude/settings.json", "--tools", "", "--system-prompt", "Be brief."]
    assert ask(host, user, FRANCE, *few) == "Paris"


def test_it_needs_no_option_to_find_the_local_model(host: Host) -> None:
    assert models_asked(host, "dave") == {"qwen2-tiny"}


def test_all_of_claude_code_is_more_than_the_tiny_models_context(host: Host) -> None:
    with pytest.raises(AssertionError, match=r"exceeds the available context size \(32768 tokens\)"):
        ask(host, "dave", FRANCE)


@pytest.fixture(scope="module")
def session(host: Host) -> Session:
    """dave's Claude Code fetches a page, from the gateway so that there is one name, and takes the default model."""
    return hold_session(
        host,
        "dave",
        'CALL WebFetch {"url": "https://gateway.test/page", "prompt": "What does it say?"}',
        ("Do you want to allow Claude to fetch this content?", ENTER),
        ("is_error", "/model"),
        ("/model", ENTER),
        ("1. Default (recommended)", "1"),
        ("Set model to", "/context"),
        ("/context", ENTER),
        ("Auto-compact window", ""),
    )


def test_the_developer_decides_whether_a_tool_may_run_and_the_model_is_not_asked(session: Session) -> None:
    assert "manualmodeon" in session.screen
    turns = [request["body"] for request in session.requests if request["path"].startswith("/v1/messages?")]
    assert [len(turn["messages"]) for turn in turns] == sorted({len(turn["messages"]) for turn in turns})
    assert all("WebFetch" in tool_names(turn) for turn in turns)


def test_the_model_is_not_offered_a_web_search_that_nobody_does(session: Session) -> None:
    assert "WebSearch" not in {name for request in session.requests for name in tool_names(request["body"])}


def test_the_default_model_keeps_the_context_that_the_model_has(session: Session) -> None:
    assert "k/32.8ktokens" in session.screen


def test_no_name_but_the_gateways_is_looked_up(session: Session) -> None:
    assert session.names == ["gateway.test"]


def test_gateway_mode_alone_has_no_mcp_server_and_tools_alone_no_gateway(host: Host) -> None:
    assert not read_json(host, "/home/dave/.claude.json").get("mcpServers")
    assert set(read_json(host, "/home/bob/.claude/settings.json")["env"]) == {
        "EDITOR",
        "DISABLE_AUTOUPDATER",
        "MOLECULE",
        "NODE_EXTRA_CA_CERTS",
    }


@pytest.mark.parametrize("user", DEVELOPERS)
def test_the_token_is_in_one_private_file_of_the_developer(host: Host, user: str) -> None:
    path = f"/home/{user}/.config/local-llm-fleet/local-llm.token"
    assert host.check_output("grep -rlF %s /home /etc /opt/claude-code/*.* /tmp /var/log", SECRETS[user]) == path
    file = host.file(path)
    assert (file.user, file.group, file.mode) == (user, user, 0o600)


def test_new_files_belong_to_the_developer_alone(host: Host) -> None:
    for path in (".claude.json", ".claude/settings.json", ".config/local-llm-fleet/local-llm.json"):
        file = host.file(f"/home/alice/{path}")
        assert (file.user, file.group, file.mode) == ("alice", "alice", 0o600)
    for path in (".claude", ".config", ".config/local-llm-fleet"):
        assert (host.file(f"/home/alice/{path}").user, host.file(f"/home/alice/{path}").mode) == ("alice", 0o700)


def test_what_a_developer_had_before_stays(host: Host) -> None:
    had = json.loads((PROJECT / "molecule/claude_code/files/claude.json").read_text())
    has = read_json(host, "/home/bob/.claude.json")
    assert set(has["mcpServers"]) == {"github", "local-llm"}
    assert list(has)[: len(had)] == list(had)
    del has["mcpServers"]["local-llm"]
    assert {key: has[key] for key in had if key != "numStartups"} == {
        key: had[key] for key in had if key != "numStartups"
    }
    has = read_json(host, "/home/bob/.claude/settings.json")
    assert has["permissions"] == {"deny": ["WebFetch"], "allow": ["Read", "mcp__local-llm"]}
    assert (has["model"], has["env"]["EDITOR"], has["env"]["MOLECULE"]) == ("haiku", "vi", "1")
    settings = host.file("/home/bob/.claude/settings.json")
    assert (settings.user, settings.group, settings.mode) == ("bob", "bob", 0o640)


def test_no_log_of_the_host_has_a_token(host: Host) -> None:
    journal = host.check_output("journalctl --no-pager --output=verbose")
    assert "claude_code_config" in journal
    assert not [user for user in DEVELOPERS if SECRETS[user] in journal]


# --- what the role refuses, on one guest ---

ALICE = {"user": "alice", "token": "another-token-of-alice"}
MALLORY = {"user": "mallory", "token": "a-token-that-nobody-knows"}


Configure = Callable[..., str]


@pytest.fixture
def configure(play: Callable[..., subprocess.CompletedProcess[str]]) -> Configure:
    """Run converge.yml on debian13 with other variables and return what it said; no token may be in it."""

    def run(*developers: dict[str, str], rc: int = 2, **variables: Any) -> str:
        extra = json.dumps({"claude_code_developers": developers, **variables})
        playbook = PROJECT / "molecule/claude_code/converge.yml"
        result = play(playbook, "-vvv", "--diff", "--limit=debian13", "--extra-vars", extra)
        output = result.stdout + result.stderr
        assert result.returncode == rc, output
        assert "Traceback" not in output
        assert not [one["user"] for one in developers if one["token"] and one["token"] in output]
        return output

    return run


def test_developers_who_cannot_be_configured_are_all_named_and_nobody_is_changed(
    guest: Callable[..., Host], configure: Configure
) -> None:
    checksums = "find /home -type f -exec sha256sum {} + | sort"
    before = guest("debian13").check_output(checksums)
    strangers = [{"user": user, "token": "0123456789"} for user in ("ghost", "broken", "frozen")]
    output = configure(ALICE, *strangers, {"user": "mallory", "token": ""})
    assert "ghost: no such account on this host" in output
    assert "broken: /home/broken/.claude.json: invalid JSON at line 3, column 16: Expecting ':' delimiter" in output
    assert "frozen: /home/frozen cannot be written by frozen: Read-only file system" in output
    assert "mallory: the token is missing or empty" in output
    assert guest("debian13").check_output(checksums) == before


def test_an_unknown_transport_is_refused(configure: Configure) -> None:
    output = configure({**ALICE, "transport": "carrier-pigeon"})
    assert "value of transport must be one of: http, stdio, got: carrier-pigeon" in output


def test_a_client_that_is_not_let_in_fails_the_play_in_its_own_words(configure: Configure) -> None:
    output = configure(MALLORY)
    assert "Claude Code does not reach the local model" in output
    assert "HTTP 401" in output


def test_a_server_that_is_down_fails_the_play_in_the_clients_own_words(configure: Configure) -> None:
    assert "ECONNREFUSED" in configure(MALLORY, claude_code_url="http://127.0.0.1:9/mcp")


def test_a_gateway_that_does_not_let_the_developer_in_fails_the_play(configure: Configure) -> None:
    words = "https://debian13:8443/v1/models answers 401: it does not know this developer's token"
    assert words in configure(MALLORY, claude_code_modes=["gateway"])


# --- an entry for each model ---


def test_each_entry_asks_its_own_model(guest: Callable[..., Host], configure: Configure) -> None:
    host = guest("debian13")
    servers = [{"name": "local-one", "model": "qwen2-tiny"}, {"name": "local-other", "model": "qwen2-other"}]
    alice = {"user": "alice", "token": SECRETS["alice"]}
    try:
        configure(alice, rc=0, claude_code_servers=servers)
        for name, model in (("local-one", "qwen2-tiny"), ("local-other", "qwen2-other")):
            assert call_tool(host, "alice", f"mcp__{name}__chat", message=FRANCE).text == "Paris"
            calls = host.check_output("""journalctl --unit=bridge --output=cat | grep '"what":"chat"'""").splitlines()
            assert f'"model":"{model}","outcome":"ok"' in calls[-1]
    finally:
        configure({**alice, "modes": ["tools", "gateway"]}, rc=0)


# --- for all users of the host ---


def test_managed_settings_let_claude_code_run_on_the_local_model_and_users_cannot_overrule_them(
    guest: Callable[..., Host], configure: Configure
) -> None:
    host = guest("debian13")
    dave = {"user": "dave", "token": SECRETS["dave"]}
    managed = {"claude_code_managed": True, "claude_code_managed_servers_only": True}
    try:
        configure(dave, rc=0, claude_code_modes=["tools", "gateway"], **managed)
        assert not host.file("/home/dave/.claude/settings.json").exists
        stray = host.run("su -l dave -c 'claude mcp add --scope user --transport http stray https://127.0.0.1:9/mcp'")
        assert stray.stderr == 'Cannot add MCP server "stray": not allowed by enterprise policy\n'
        host.check_output("echo %s > /home/dave/.claude/settings.json", '{"env": {"ANTHROPIC_MODEL": "gpt-4"}}')
        assert models_asked(host, "dave") == {"qwen2-tiny"}
        assert "Status: ✔ Connected" in ask_client(host, "dave")
        assert SECRETS["dave"] not in host.check_output("cat /etc/claude-code/*.pem /etc/claude-code/*/*")
    finally:
        host.run("rm -f /home/dave/.claude/settings.json")
        configure(dave, rc=0, claude_code_modes=["gateway"])
    assert not host.file("/etc/claude-code").exists


def test_a_developer_without_a_client_is_configured_and_told_of(
    guest: Callable[..., Host], configure: Configure
) -> None:
    host = guest("debian13")
    host.check_output("mv /usr/local/bin/claude /usr/local/bin/claude.hidden")
    try:
        output = configure(MALLORY, rc=0, claude_code_client_install=False)
    finally:
        host.check_output("mv /usr/local/bin/claude.hidden /usr/local/bin/claude")
    assert "mallory is configured, but has no Claude Code on this host to ask" in output
