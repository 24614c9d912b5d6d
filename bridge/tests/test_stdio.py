"""stdio: what people pipe in gets an answer, and the program ends as it should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

import pytest

from local_llm_bridge.server.stdio import LONGEST_LINE
from tests.services import MODEL, PROGRAM, FakeEngine, events, piece, piped, records
from tests.test_tools import TOOLS

LIST = '{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}\n'


def call(number: int, message: str) -> str:
    params = {"name": "chat", "arguments": {"message": message}}
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}) + "\n"


def test_the_guides_two_lines_work_without_a_handshake(environment: dict[str, str]) -> None:
    replies, done = piped(LIST + call(2, "ping"), **environment)
    by_id = {reply["id"]: reply["result"] for reply in replies}
    assert [tool["name"] for tool in by_id[1]["tools"]] == TOOLS
    assert by_id[2]["content"][0]["text"] == "pong"
    assert done.returncode == 0


def test_listing_the_tools_needs_no_engine() -> None:
    replies, done = piped(LIST)
    assert len(replies) == 1
    assert "tools" in replies[0]["result"]
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_handshake_in_one_go_is_answered_to_its_end(environment: dict[str, str]) -> None:
    hello = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "shell", "version": "1"},
    }
    first = json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}) + "\n"
    ready = '{"jsonrpc": "2.0", "method": "notifications/initialized"}\n'
    replies, done = piped(first + ready + call(1, "ping"), **environment)
    assert replies[0]["result"]["protocolVersion"] == "2025-11-25"
    assert replies[1]["result"]["content"][0]["text"] == "pong"
    assert done.returncode == 0


def test_lines_that_are_no_messages_are_refused_and_the_session_goes_on() -> None:
    codes = {"no JSON": -32700, "{": -32700, "\x00": -32700, "[]": -32600, "5": -32600, '{"jsonrpc": "1.0"}': -32600}
    replies, done = piped("\n\n".join(codes) + "\n" + LIST)
    assert [reply["error"]["code"] for reply in replies[:-1]] == list(codes.values())
    assert all(reply["id"] is None for reply in replies[:-1])
    assert "tools" in replies[-1]["result"]
    assert done.returncode == 0


def test_ids_and_progress_tokens_that_are_too_long_are_refused_whatever_was_asked() -> None:
    long = "\U0001f600" + "p" * 256
    chat = {"name": "chat", "arguments": {"message": "x"}}
    token = {**chat, "_meta": {"progressToken": long}}
    asked = [(long, "tools/call", chat), (long, "tools/list", {}), (long, "tools/dance", {}), (1, "tools/call", token)]
    lines = [json.dumps({"jsonrpc": "2.0", "id": i, "method": m, "params": params}) + "\n" for i, m, params in asked]
    replies, done = piped("".join(lines) + LIST)
    assert [reply["id"] for reply in replies] == [None, None, None, 1, 1]
    assert [reply["error"]["code"] for reply in replies[:-1]] == [-32600] * 4
    assert "257 characters, at most 256 are taken" in replies[0]["error"]["message"]
    assert done.returncode == 0


HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "shell", "version": "1"}}
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


def request(number: int, method: str, **params: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def enveloped(number: int, method: str = "server/discover", **more: object) -> dict[str, Any]:
    """Return a request without a handshake; `more` is of its envelope."""
    named = {f"io.modelcontextprotocol/{key}": value for key, value in more.items()}
    return request(number, method, _meta={**ENVELOPE, **named})


def spoken(*messages: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Send messages in one go; give the replies by their ids."""
    replies, done = piped("".join(json.dumps(message) + "\n" for message in messages))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(replies) == sum("id" in message for message in messages)
    return {reply["id"]: reply for reply in replies}


PROBES = {
    "a newer version": enveloped(1, protocolVersion="2027-01-01"),
    "a draft": enveloped(1, protocolVersion="DRAFT-2026-v1"),
    "no capabilities": enveloped(1, clientCapabilities=None),
    "no version of the client": enveloped(1, clientInfo={"name": "x"}),
    "no such method": request(1, "rpc.discover"),
    "a method of before": request(1, "logging/setLevel", level="debug"),
    "a list for an envelope": request(1, "server/discover", _meta=[]),
    "a wrong handshake": request(1, "initialize", **{**HELLO, "capabilities": {"sampling": True}}),
}


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
@pytest.mark.parametrize("more", [{}, {"icons": [{"src": "http://icon"}]}], ids=["quick", "SDK"])
def test_after_a_probe_that_failed_a_handshake_works(probe: dict[str, Any], more: dict[str, Any]) -> None:
    hello = {**HELLO, "clientInfo": {**HELLO["clientInfo"], **more}}  # type: ignore[dict-item]
    ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    odd = request(4, "tools/list", cursor="x")
    replies = spoken(probe, request(2, "initialize", **hello), ready, request(3, "tools/list"), odd, enveloped(5))
    assert "error" in replies[1]
    assert replies[2]["result"]["protocolVersion"] == "2025-06-18"
    assert all("resultType" not in replies[number]["result"] for number in (3, 4))
    assert replies[5]["error"]["code"] == -32600  # now the handshake holds


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_after_a_probe_that_failed_another_works(probe: dict[str, Any]) -> None:
    replies = spoken(probe, enveloped(2), request(3, "tools/list"))
    assert replies[2]["result"]["supportedVersions"] == ["2026-07-28"]
    assert replies[3]["result"]["resultType"] == "complete"


def test_who_probes_for_another_version_is_told_of_all_that_are_spoken() -> None:
    (reply,) = spoken(PROBES["a newer version"]).values()
    assert "_meta names '2027-01-01'; this bridge speaks 2026-07-28, 2025-11-25" in reply["error"]["message"]
    assert reply["error"]["code"] == -32022
    # What server/discover says: the conformance suite compares them.
    assert reply["error"]["data"] == {"supported": ["2026-07-28"], "requested": "2027-01-01"}


@pytest.mark.parametrize("first", [enveloped(1), enveloped(1, clientInfo={"name": "x", "version": "1", "icons": []})])
def test_after_a_request_without_a_handshake_there_is_none(first: dict[str, Any]) -> None:
    with subprocess.Popen([PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        replies = []
        for message in (first, request(2, "initialize", **HELLO), enveloped(3)):
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            replies.append(json.loads(process.stdout.readline()))
        process.stdin.close()
        assert process.wait(10) == 0
    assert "result" in replies[0]
    assert replies[1]["error"]["code"] == -32022
    assert "a handshake for '2025-06-18' came after a request of 2026-07-28" in replies[1]["error"]["message"]
    assert "2025-06-18" in replies[1]["error"]["message"].partition("this bridge speaks")[2]
    assert "result" in replies[2]


def test_a_look_without_a_handshake_may_come_before_one() -> None:
    replies = spoken(json.loads(LIST), request(2, "initialize", **HELLO), request(3, "tools/list"))
    assert "tools" in replies[1]["result"]
    assert "resultType" not in replies[3]["result"]


def test_null_stands_for_parameters_that_are_left_out() -> None:
    replies = spoken({**json.loads(LIST), "params": None}, request(2, "tools/list", _meta=None))
    assert all("tools" in reply["result"] for reply in replies.values())


def test_whoever_reads_late_gets_all_of_it() -> None:
    with FakeEngine(events(piece("x" * 39_000, "stop"))).running() as url:
        environment = {"PATH": os.environ["PATH"], "LOCAL_API_URL": url, "MODEL_NAME": "m"}
        pipe = subprocess.PIPE
        with subprocess.Popen([PROGRAM], stdin=pipe, stdout=pipe, text=True, env=environment) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("".join(call(number, f"{number}") for number in range(12)))
            process.stdin.close()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)  # 468 kB do not fit into a pipe
            replies = [json.loads(line) for line in process.stdout]
            assert process.wait(10) == 0
    assert sorted(reply["id"] for reply in replies) == list(range(12))


def test_a_line_without_end_ends_the_conversation_and_says_so() -> None:
    replies, done = piped(LIST + "x" * (LONGEST_LINE + 100_000))
    assert len(replies) == 1
    assert done.returncode == 0
    assert done.stderr.endswith(f"ERROR a line is longer than {LONGEST_LINE} bytes: the conversation ends\n")


def test_an_unknown_method_is_refused() -> None:
    replies, _ = piped('{"jsonrpc": "2.0", "id": 1, "method": "tools/dance"}\n')
    assert replies[0]["error"]["code"] == -32601


def test_the_log_has_the_call_and_not_its_content(environment: dict[str, str]) -> None:
    _, done = piped(call(1, "What is the capital of France?"), **environment)
    (record,) = records(done.stderr)
    assert (record["developer"], record["client"], record["what"], record["model"]) == ("-", "-", "chat", MODEL)
    assert "France" not in done.stderr
    assert "Paris" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once(number: signal.Signals) -> None:
    environment = {"PATH": os.environ["PATH"]}
    with subprocess.Popen([PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as p:
        assert p.stdin is not None
        assert p.stdout is not None
        p.stdin.write(LIST)
        p.stdin.flush()
        assert p.stdout.readline()
        p.send_signal(number)
        assert p.wait(5) == 0


def test_a_client_that_is_gone_ends_it_without_a_trace() -> None:
    environment = {"PATH": os.environ["PATH"]}
    pipe = subprocess.PIPE
    with subprocess.Popen([PROGRAM], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(LIST)
        process.stdin.flush()
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


def test_wrong_settings_end_it_with_one_line() -> None:
    _, done = piped(LIST, LOCAL_API_URL="model1:8000")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == ("local-llm-bridge: LOCAL_API_URL: found 'model1:8000'; wanted http(s)://host[:port][/v1]\n")
