"""Records stay JSON, one to a line, whatever clients and models send."""

from __future__ import annotations

import http.client
import json
import logging
import random
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_llm_bridge import audit
from local_llm_bridge.audit import UNKNOWN, Record
from local_llm_bridge.models.answer import Completion
from tests.services import TOKEN, Bridge, FakeEngine, events, piece, records, serving, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

CHANCE = random.Random(14)
NUMBER = 4000
HEADERS = {
    "Authorization": f"Bearer {TOKEN}",
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
}
ODD = [
    '"\\udead"',
    '"\\ud83d\\ude00"',
    '"\\u0000\\u0007\\u001b[31m"',
    '"\\"},\\n{\\"source\\":\\"bridge\\""',
    '"\u2028\u2029\x7f\x85\ufeff"',
    '"' + "\U0001f600" * 9000 + '"',
    '"' + "\\u0001" * 9000 + '"',
    "1e999",
    "-1e999",
    "NaN",
    "-Infinity",
    "1" * 4000,
    "1" * 5000,
    "0.1e-400",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
    '{"' + "k" * 9000 + '":{"\\ud800":{"":null}}}',
    "true",
    "{}",
    '""',
]


def strict(text: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Read JSON as programs do that know no NaN and no half characters."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    value = json.loads(text, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return value


def called(arguments: str) -> str:
    return f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"chat","arguments":{arguments}}}}}'


def body() -> bytes:
    """Make up what a client might send, most of it a call."""
    odd = [CHANCE.choice(ODD) for _ in range(3)]
    return CHANCE.choice(
        [
            f'{{"jsonrpc":"2.0","id":{odd[0]},"method":"tools/call","params":{{"name":{odd[1]},"arguments":{{}}}}}}',
            called('{"message":' + odd[0] + "}"),
            called('{"message":"x","model":' + odd[0] + ',"y":' + odd[1] + "}"),
            called('{"message":"x","model":' + odd[0] + "}"),
            called(odd[0]),
            f'{{"jsonrpc":"2.0","id":1,"method":{odd[0]},"params":{odd[1]}}}',
            odd[0],
        ]
    ).encode("utf-8", "surrogatepass")


def headers() -> dict[str, str]:
    odd = {
        "Authorization": ["Bearer \u00ff", "Bearer x", ""],
        "Host": ['a"b', "\u00e9", "evil\\", "[::", "localhost"],
        "Origin": ['http://"x"', "http://[", "\u00ff", "null"],
        "X-Request-ID": ['"', "x" * 65, "a\tb", "\u00ff", "good-1"],
        "X-Local-LLM-Developer": ['mallory"', "\u00ff"],
        "Mcp-Method": ["tools/call", '"'],
        "Content-Type": ["text/plain", '"'],
    }
    name = CHANCE.choice(list(odd))
    return {**HEADERS, name: CHANCE.choice(odd[name])}


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    odd_usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    engine = FakeEngine(events(piece("\u2028\U0001f600\x00\x1b" * 3000), piece("", "stop"), odd_usage))
    with (
        engine.running() as url,
        serving(
            tmp_path_factory.mktemp("odd"), url, requests_per_minute=0, audit_content=True, cache={"entries": 0}
        ) as running,
    ):
        yield running


def test_thousands_of_odd_requests_leave_records_that_any_program_reads(bridge: Bridge) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=60)
    for number in range(NUMBER):
        path = CHANCE.choice(["/mcp", "/mcp?model=%00%22%ff", "/mcp?%22"])
        try:
            connection.request(
                CHANCE.choice(["POST"] * 9 + ["PUT"]), path, body(), headers() if number % 3 else HEADERS
            )
            connection.getresponse().read()
        except (http.client.HTTPException, ConnectionError):
            connection.close()  # what is no HTTP is answered with the end of the connection
    connection.close()
    for data in (b"\x16\x03\x01", b"GET / HTTP/9\r\n\r\n", b'"' * 100_000, b"POST /mcp HTTP/1.1\r\nX:\x00\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", bridge.port), timeout=20) as raw:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            raw.recv(1000)
    wait_for(lambda: bridge.log.read_text().endswith("\n"))
    log = bridge.log.read_bytes()
    lines = [line[line.index(b"{") :] for line in log.split(b"\n") if b'{"time"' in line]
    assert len(lines) > NUMBER / 2  # the others end before anything of MCP is known, or are no calls
    for line in lines:
        record = strict(line.decode("ascii"))
        assert record["source"] == "bridge"
        assert record["developer"] in {"alice", "-"}
        assert len(line) < 200_000
    assert b"Traceback" not in log
    assert b"a bug, please report it" not in log
    outcomes = {record["outcome"] for record in records(log.decode())}
    assert {"ok", "refused", "unknown_tool", "bad_arguments", "unknown_model"} <= outcomes
    jq = shutil.which("jq")
    if jq:
        done = subprocess.run([jq, "-c", ".outcome"], input=b"\n".join(lines), capture_output=True, check=True)
        assert done.stdout.count(b"\n") == len(lines)


def written(record: Record) -> str:
    """Return the line that a record becomes."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger(audit.__name__), Handler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        audit.Log(None, with_content=True)(record)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    (line,) = lines
    return line


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**400)
    | st.floats()
    | st.text(st.characters() | st.sampled_from("\ud800\udfff\0\n\u2028"))
    | st.builds(lambda char, number: char * number, st.sampled_from("x\u4e2d\U0001f600\0"), st.integers(0, 200_000)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(arguments=st.dictionaries(st.text(st.characters()), values, max_size=3), text=st.text(st.characters()))
def test_any_content_becomes_one_line_of_json(arguments: dict[str, Any], text: str) -> None:
    line = written(Record(UNKNOWN, "chat", "m", "ok", 1.0, None, arguments, text))
    assert "\n" not in line
    assert len(line) < 200_000
    assert strict(line)["what"] == "chat"


def test_what_is_deep_or_long_is_cut_and_says_so() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    arguments = {"message": "x" * 4_000_000, "deep": deep, "many": list(range(100_000))}
    found = strict(written(Record(UNKNOWN, "chat", "m", "ok", 1.0, None, arguments, "short")))
    assert found["text"] == "short"
    assert found["arguments"]["message"].endswith("[Cut here: 4000000 characters.]")
    assert "[Cut here: nested too deep.]" in json.dumps(found["arguments"]["deep"])
    assert found["arguments"]["many"][:3] == [0, 1, 2]


@pytest.mark.parametrize("count", [-5, "many", 10**400, float("nan"), float("inf"), True, [], 1.5])
def test_counts_that_are_none_are_left_out_of_records(count: Any) -> None:  # noqa: ANN401 - whatever an engine says
    completion = Completion("text", "m", "stop", prompt_tokens=count, completion_tokens=count)
    found = strict(written(Record(UNKNOWN, "chat", "m", "ok", 1.0, completion)))
    assert (found["prompt_tokens"], found["completion_tokens"]) == (None, None)
