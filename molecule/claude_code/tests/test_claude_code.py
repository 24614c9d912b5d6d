"""Developers' Claude Code after the role: the client says that it is connected, and their own files are theirs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from tests.claude_client.guest import call_tool  # noqa: E402

DEVELOPERS = ("alice", "bob", "carol")
SECRETS = {"alice": "molecule-token-of-alice", "bob": "molecule-token-of-bob", "carol": "molecule-engine-key"}
VERSION = "2.1.330"

pytestmark = pytest.mark.units("bridge.service")


def read_json(host: Host, path: str) -> Any:
    return json.loads(host.file(path).content_string)


def ask_client(host: Host, user: str) -> str:
    return str(host.check_output("su -l %s -c 'claude mcp get local-llm'", user))


@pytest.mark.parametrize("user", DEVELOPERS)
def test_the_client_says_that_it_is_connected(host: Host, user: str) -> None:
    assert "Status: ✔ Connected" in ask_client(host, user)


def test_the_client_is_the_pinned_one_and_stays_at_it(host: Host) -> None:
    assert host.check_output("su -l alice -c 'claude --version'") == f"{VERSION} (Claude Code)"
    assert host.file("/usr/local/bin/claude").linked_to == f"/opt/claude-code/{VERSION}/claude"
    for user in DEVELOPERS:
        assert read_json(host, f"/home/{user}/.claude/settings.json")["env"]["DISABLE_AUTOUPDATER"] == "1"


@pytest.mark.parametrize("user", ["alice", "carol"])
def test_the_client_calls_a_tool_without_asking_for_permission(host: Host, user: str) -> None:
    # There is no engine in this scenario, so the bridge's own words are the result.
    result = call_tool(host, user, "mcp__local-llm__chat", message="Hello")
    assert result.is_error
    assert "127.0.0.1:8000" in result.text


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
    assert read_json(host, "/home/bob/.claude/settings.json") == {
        "permissions": {"deny": ["WebFetch"], "allow": ["Read", "mcp__local-llm"]},
        "model": "opus",
        "env": {"EDITOR": "vi", "DISABLE_AUTOUPDATER": "1", "MOLECULE": "1"},
    }
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
    assert "Claude Code does not reach the MCP server 'local-llm'" in output
    assert "HTTP 401" in output


def test_a_server_that_is_down_fails_the_play_in_the_clients_own_words(configure: Configure) -> None:
    assert "ECONNREFUSED" in configure(MALLORY, claude_code_url="http://127.0.0.1:9/mcp")


def test_a_developer_without_a_client_is_configured_and_told_of(
    guest: Callable[..., Host], configure: Configure
) -> None:
    host = guest("debian13")
    host.check_output("mv /usr/local/bin/claude /usr/local/bin/claude.hidden")
    try:
        output = configure(MALLORY, rc=0, claude_code_client_install=False)
    finally:
        host.check_output("mv /usr/local/bin/claude.hidden /usr/local/bin/claude")
    assert "mallory is configured, but has no Claude Code on this host, so nothing was asked" in output
