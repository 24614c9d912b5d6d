"""An engine that sends without end, or what unpacks to more than there is, costs a call and nothing else."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.services import Listener, events, piece, serving, text_of

if TYPE_CHECKING:
    import socket

    from tests.services import Bridge

pytestmark = pytest.mark.anyio

MOST_GROWTH_MIB = 40
"""Of a bridge whose engine sends as much as it can: it was 5, and a gigabyte without limits."""
PATIENCE_S = 10
"""For a neighbour's call, which takes milliseconds, on a busy machine half a second; it took 23 behind blank lines."""
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
CALL = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "x" * 50}}
BOMB = gzip.compress(bytes(2**28))


def event(**delta: object) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}).encode()


def encoded(status: str, body: bytes, encoding: str = "gzip") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-encoding: {encoding}\r\n\r\n"
    return head.encode() + body


# What is sent once, what is sent for ever after it, and what the caller is told.
LIES = {
    "text": (HEAD, event(content="x" * 30), "more than 2 MiB"),
    "text in letters": (HEAD, event(content="é"), "more than 2 MiB"),
    "calls of tools": (HEAD, event(tool_calls=[CALL]), "more than 2 MiB"),
    "many calls of tools": (HEAD, event(tool_calls=[{**CALL, "index": number} for number in range(50)]), "more than"),
    "events that say nothing": (HEAD, event(), "more than 2 MiB"),
    "comments": (HEAD, b": here\n\n", "more than 2 MiB"),
    "blank lines": (HEAD, b"\n", "more than 2 MiB"),
    "a line": (HEAD + b"data: ", b"x", "not a chat completion"),
    "an event": (HEAD, b"data: x\n", "not a chat completion"),
    "a list": (HEAD + b'data: {"choices": [', b"[],", "not a chat completion"),
    "depth": (HEAD + b"data: ", b"[", "not a chat completion"),
    "a digit": (HEAD + b'data: {"usage": 1', b"0", "not a chat completion"),
    "JSON": (JSON_HEAD + b'{"choices": [', b"{},", "not a chat completion"),
    "white space": (JSON_HEAD, b" ", "instead of a stream of events"),
    "HTML": (JSON_HEAD.replace(b"application/json", b"text/html"), b"<p>", "instead of a stream of events"),
    "a refusal": (JSON_HEAD.replace(b"200 OK", b"500 Oh"), b"no ", "failed (HTTP 500: no no"),
    "a header": (b"HTTP/1.1 200 OK\r\nx: ", b"y", "did not answer as an HTTP server does"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", "did not answer as an HTTP server does"),
    "preliminary answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", "did not answer as an HTTP server does"),
    "the length of a chunk": (HEAD[:-2] + b"transfer-encoding: chunked\r\n\r\n1;", b"x", "wrote nothing within 4 s"),
    "gzip": (encoded("200 OK", BOMB), b"", "answered in 'gzip'"),
    "deflate": (encoded("200 OK", BOMB, "deflate"), b"", "answered in 'deflate'"),
    "a refusal in gzip": (encoded("500 Oh", BOMB), b"", "failed (HTTP 500)."),
}


def liar(first: bytes, then: bytes) -> Listener:
    """Return an engine that answers the first part, and goes on with the second for ever."""
    many = then * (2**16 // max(len(then), 1))

    def handle(connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        connection.sendall(first)
        while many:
            connection.sendall(many)
        connection.recv(1)

    return Listener(handle)


def peak_mib(bridge: Bridge) -> float:
    status = Path(f"/proc/{bridge.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


@pytest.mark.parametrize("lie", LIES)
async def test_an_answer_without_end_costs_a_call_and_no_more(tmp_path: Path, lie: str) -> None:
    first, then, words = LIES[lie]
    good = Listener(lambda connection: connection.sendall(events(piece("hello", "stop"))))
    lying = liar(first, then)
    # Most are ended by a limit of their own, long before the time for a call.
    timeout_s = 4 if "within 4 s" in words else 60
    try:
        with serving(tmp_path, good.url, lying.url, max_retries=0, timeout_s=timeout_s) as bridge:
            async with bridge.client() as client, bridge.client() as neighbour:
                assert text_of(await client.call_tool("chat", {"message": "hi"})) == "hello"
                before = peak_mib(bridge)
                lies = asyncio.create_task(client.call_tool("chat", {"message": "hi", "model": "model1"}))
                while not lies.done():
                    with anyio.fail_after(PATIENCE_S):
                        answer = await neighbour.call_tool("chat", {"message": "hi", "fresh": True})
                    assert text_of(answer) == "hello"
                result = await lies
                growth = peak_mib(bridge) - before
                assert result.is_error
                assert words in text_of(result)
                assert growth < MOST_GROWTH_MIB
    finally:
        good.close()
        lying.close()


LONG_LIST = "did not answer with a list of models (more than 2097152 bytes)"
LISTS = {
    "models": (
        JSON_HEAD + b'{"data": [',
        b'{"id": "m"},',
        LONG_LIST,
    ),
    "a name": (
        JSON_HEAD + b'{"data": [{"id": "',
        b"m",
        LONG_LIST,
    ),
    "white space": (JSON_HEAD, b" ", LONG_LIST),
    "a refusal": (JSON_HEAD.replace(b"200 OK", b"500 Oh"), b"no ", "failed (HTTP 500: no no"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", "did not answer as an HTTP server does"),
    "preliminary answers": (b"", b"HTTP/1.1 103 Hints\r\n\r\n", "did not answer as an HTTP server does"),
    "gzip": (encoded("200 OK", BOMB), b"", "answered in 'gzip'"),
}


@pytest.mark.parametrize("lie", LISTS)
async def test_a_list_of_models_without_end_is_none(tmp_path: Path, lie: str) -> None:
    first, then, words = LISTS[lie]
    lying = liar(first, then)
    try:
        with serving(tmp_path, lying.url) as bridge:
            before = peak_mib(bridge)
            status, text, _ = bridge.http("/readyz")
            growth = peak_mib(bridge) - before
    finally:
        lying.close()
    assert status == 503
    assert words in text
    assert growth < MOST_GROWTH_MIB
