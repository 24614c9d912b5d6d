"""The bridge answers developers and nobody else, its unit has few rights, and what cannot work is refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.lab.waiting import until

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
ANSWERS = json.loads((PROJECT / "tests/tiny_model/answers.json").read_text())
UNIT = "local-llm-bridge"
ENGINE = "llama-cpp@qwen2-tiny"
URL = "http://127.0.0.1:8080"
KEY = "molecule-llama-cpp-key-1"
TOKEN = "molecule-token-of-alice"  # noqa: S105
GATEWAY_KEY = "molecule-key-of-the-gateway"

pytestmark = pytest.mark.units(UNIT, ENGINE)

Records = Callable[..., list[dict[str, Any]]]


def http(host: Host, path: str, *options: str) -> tuple[int, str]:
    """Status and body of the answer to a request."""
    words = " ".join(["%s"] * len(options))
    out = host.check_output(f"curl -sS -m 60 -w '\\n%%{{http_code}}' {words} %s", *options, URL + path)
    body, _, status = out.rpartition("\n")
    return int(status), body


def call(host: Host, tool: str, token: str = TOKEN, developer: str = "", **arguments: Any) -> tuple[int, str]:
    """HTTP status, and the text of a tool's result or of the refusal; a gateway would name the developer."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": tool,
        "X-Local-LLM-Developer": developer,
    }
    options = [option for name, value in headers.items() if value for option in ("-H", f"{name}: {value}")]
    status, answer = http(host, "/mcp", *options, "-d", body)
    if status != 200:
        return status, answer
    result = answer.rstrip().splitlines()[-1].removeprefix("data: ")  # events, if it took long
    return status, json.loads(result)["result"]["content"][0]["text"]


def journal(host: Host) -> str:
    """All that the bridge has logged since the guest booted, its records included."""
    return str(host.check_output("journalctl --boot --namespace='*' --no-pager --unit=%s", UNIT))


def wait_until_ready(host: Host) -> None:
    """Wait until the bridge says that it and its engine are ready."""
    until(lambda: host.run(f"curl -sf -m 5 -o /dev/null {URL}/readyz").succeeded)


@pytest.fixture
def without_engine(host: Host) -> Iterator[None]:
    """The engine is stopped, and is there again afterwards."""
    host.check_output("systemctl stop %s", ENGINE)
    yield
    host.check_output("systemctl start %s", ENGINE)
    wait_until_ready(host)


@pytest.mark.parametrize("message", ["Hello", "What is 2 + 2?"])
def test_chat_gives_the_models_known_answer(host: Host, message: str) -> None:
    assert call(host, "chat", message=message) == (200, ANSWERS["chat"][message])


def test_a_record_says_who_called_what_and_how_it_went_but_not_the_words(host: Host, records: Records) -> None:
    since = host.check_output("date '+%F %T.%6N'")
    call(host, "chat", message="What is the capital of France?")
    (record,) = records(host, since, count=1)
    shown = ("source", "developer", "client", "what", "model", "outcome")
    assert [record[key] for key in shown] == ["bridge", "alice", "127.0.0.1", "chat", "qwen2-tiny", "ok"]
    assert "France" not in journal(host)
    assert "Paris" not in journal(host)


@pytest.mark.parametrize("token", ["", "not-a-token-of-anybody", KEY])
def test_strangers_are_turned_away(host: Host, token: str) -> None:
    status, text = call(host, "chat", token=token, message="Hello")
    assert status == 401
    assert "token" in text


def test_the_gateway_says_whose_request_it_is_and_nobody_else_does(host: Host, records: Records) -> None:
    since = host.check_output("date '+%F %T.%6N'")
    assert call(host, "chat", token=GATEWAY_KEY, developer="bob", message="Hello") == (200, ANSWERS["chat"]["Hello"])
    (record,) = records(host, since, count=1)
    assert (record["developer"], record["what"]) == ("bob", "chat")
    assert call(host, "chat", developer="mallory", message="Hello")[0] == 200
    assert call(host, "chat", token="wrong", developer="mallory", message="Hello")[0] == 401  # noqa: S106
    assert "mallory" not in journal(host)
    status, text = call(host, "chat", token=GATEWAY_KEY, message="Hello")
    assert status == 403
    assert "X-Local-LLM-Developer is missing" in text


def test_machines_may_ask_how_it_is(host: Host) -> None:
    assert http(host, "/healthz")[0] == 200
    assert http(host, "/readyz")[0] == 200


@pytest.mark.usefixtures("without_engine")
def test_without_its_engine_it_lives_and_says_what_is_wrong(host: Host) -> None:
    until(lambda: http(host, "/readyz")[0] == 503)  # a readiness probe is believed for two seconds
    assert http(host, "/healthz")[0] == 200
    assert "Connection refused" in http(host, "/readyz")[1]
    status, text = call(host, "chat", message="Are you there?")  # no answer to it has been kept
    assert status == 200
    assert "cannot be reached: Connection refused. Is it running?" in text


def test_it_comes_back_after_it_was_killed(host: Host) -> None:
    before = host.check_output("systemctl show --property=MainPID --value %s", UNIT)
    host.check_output("systemctl kill --signal=KILL %s", UNIT)
    until(lambda: host.check_output("systemctl show --property=MainPID --value %s", UNIT) not in (before, "0"))
    wait_until_ready(host)


def test_the_unit_starts_at_boot_as_a_user_of_its_own(host: Host) -> None:
    service = host.service(UNIT)
    assert service.is_enabled
    assert service.is_running
    pid = host.check_output("systemctl show --property=MainPID --value %s", UNIT)
    assert host.process.get(pid=int(pid)).user == UNIT


def test_it_listens_on_loopback_unless_told_otherwise(host: Host) -> None:
    assert host.socket("tcp://127.0.0.1:8080").is_listening
    assert not host.socket("tcp://0.0.0.0:8080").is_listening


def test_the_engines_key_is_nowhere_but_in_its_file(host: Host) -> None:
    file = host.file("/etc/local-llm-bridge/credentials/engine-key")
    assert file.content_string == KEY
    assert (file.user, file.mode) == ("root", 0o600)
    assert host.file("/etc/local-llm-bridge/credentials").mode == 0o700
    assert KEY not in host.file("/etc/local-llm-bridge/config.yml").content_string
    pid = host.check_output("systemctl show --property=MainPID --value %s", UNIT)
    assert KEY not in host.check_output("cat /proc/%s/environ /proc/%s/cmdline | tr '\\0' '\\n'", pid, pid)
    assert KEY not in journal(host)


def test_no_token_is_on_the_host(host: Host) -> None:
    config = host.file("/etc/local-llm-bridge/config.yml").content_string
    for secret in (TOKEN, GATEWAY_KEY):
        assert secret not in config
        assert secret not in journal(host)


def test_python_is_run_for_a_developer(host: Host) -> None:
    status, text = call(host, "execute_python", code="print(6 * 7)")
    assert status == 200
    assert "42" in text


def test_only_what_was_set_is_in_the_configuration(host: Host) -> None:
    config = host.file("/etc/local-llm-bridge/config.yml").content_string
    keys = {line.split(":")[0] for line in config.splitlines() if line[0].isalpha()}
    assert keys == {
        *(
            "listen",
            "allowed_hosts",
            "models",
            "developers",
            "audit_socket",
            "tokens_file",
            "default_model",
            "routing",
            "cache",
        ),
        *("gateway_key_sha256", "requests_per_minute", "timeout_s", "tools_dir", "execute_python"),
    }


def test_a_tool_of_the_configuration_can_be_called(host: Host) -> None:
    status, text = call(host, "translate", text="Hello", language="French")
    assert status == 200
    assert text
    assert "Wrong arguments for translate" in call(host, "translate", text="Hello")[1]


def test_a_changed_tool_needs_no_restart_and_without_the_sandbox_the_bridge_goes_on(
    guest: Callable[..., Host], play: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    one = guest("debian13")

    def converge(**variables: Any) -> str:
        tags = "--tags=mcp_bridge_configure,mcp_bridge_service"
        done = play(SCENARIO / "converge.yml", "--limit=debian13", tags, f"--extra-vars={json.dumps(variables)}")
        assert done.returncode == 0, done.stdout
        return str(one.check_output("systemctl show --property=MainPID --value %s", UNIT))

    pid = one.check_output("systemctl show --property=MainPID --value %s", UNIT)
    try:
        greet = {"name": "greet", "description": "Greet.", "template": "Hello"}
        assert converge(mcp_bridge_tools=[greet]) == pid
        assert one.check_output("ls /etc/local-llm-bridge/tools") == "greet.yml"
        until(lambda: "There is no tool" not in call(one, "greet")[1])
        assert call(one, "greet") == (200, ANSWERS["chat"]["Hello"])

        converge(mcp_bridge_tools=[greet], mcp_bridge_execute_python={})
        for path in ("/run/local-llm-sandbox.sock", "/etc/systemd/system/local-llm-sandbox.socket"):
            assert not one.file(path).exists
        assert "execute_python" not in one.file("/etc/local-llm-bridge/config.yml").content_string
        assert "There is no tool" in call(one, "execute_python", code="1")[1]
        assert http(one, "/readyz")[0] == 200
    finally:
        converge()
    assert one.check_output("ls /etc/local-llm-bridge/tools") == "translate.yml"
    assert "42" in call(one, "execute_python", code="print(6 * 7)")[1]


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"mcp_bridge_models": []}, "mcp_bridge_models has 0, mcp_bridge_developers has 1"),
    ({"mcp_bridge_gateway_key": "too short"}, "mcp_bridge_gateway_key has 9 characters; wanted 20 or more"),
    ({"mcp_bridge_port": 8099}, "Port 8099 on debian13 is taken by another process"),
    ({"mcp_bridge_address": "somewhere"}, "found 'somewhere'; wanted an IP address"),
    (
        {"mcp_bridge_developers": [{"name": "alice", "token_sha256": "abc"}]},
        "found a text of 3 characters; wanted the token's SHA-256",
    ),
    ({"mcp_bridge_tools": [{"name": "../x"}]}, "each needs a name of its own"),
    ({"mcp_bridge_execute_python": {"time_s": 900}}, "takes time_s (1 to 300)"),
    ({"mcp_bridge_default_model": "other"}, "default_model: found 'other', which is not among models: qwen2-tiny"),
    ({"mcp_bridge_cache": {"size": 3}}, "mcp_bridge_cache"),
]


@pytest.fixture
def squatter(guest: Callable[..., Host]) -> Iterator[Host]:
    """Another process has port 8099."""
    one = guest("debian13")
    one.check_output("systemd-run --quiet --unit=squatter python3 -m http.server 8099")
    until(lambda: one.socket("tcp://0.0.0.0:8099").is_listening)
    yield one
    one.check_output("systemctl stop squatter")


def test_what_cannot_work_is_refused_and_nothing_changes(
    squatter: Host, play: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    state = "systemctl show --property=MainPID --value local-llm-bridge; sha256sum /etc/local-llm-bridge/config.yml"
    before = squatter.check_output(state)
    plays = [
        {
            "hosts": "debian13",
            "become": True,
            "gather_facts": number == 0,  # the other plays know them, too
            "vars_files": [str(SCENARIO / "vars/main.yml")],
            "tasks": [
                {
                    "block": [
                        {"ansible.builtin.include_role": {"name": "mcp_bridge"}, "vars": extra},
                        {"ansible.builtin.fail": {"msg": "nothing was refused"}},
                    ],
                    "rescue": [{"ansible.builtin.debug": {"msg": f"END OF {number}"}}],
                },
            ],
        }
        for number, (extra, _) in enumerate(REFUSALS)
    ]
    (tmp_path / "refusals.yml").write_text(json.dumps(plays))
    done = play(tmp_path / "refusals.yml", "--diff")
    said = " ".join(done.stdout.split())
    for number, (_, text) in enumerate(REFUSALS):
        of_this, end, said = said.partition(f"END OF {number}")
        assert end, of_this
        assert text in of_this
    assert squatter.check_output(state) == before
