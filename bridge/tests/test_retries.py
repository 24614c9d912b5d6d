"""A request that may succeed later is repeated as the engine wishes; what cannot succeed, or has begun, is not."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from local_llm_bridge.config import CacheSettings, Engine, Settings
from local_llm_bridge.server.dispatch import Call, Dispatcher
from tests.services import (
    ENGINE_KEY,
    MODEL,
    FakeEngine,
    Listener,
    ScriptedEngine,
    answer,
    events,
    piece,
    piped,
    request_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

GOOD = events(piece("hello", "stop"))
HALF = events(piece("half"), done=False)


def refusal(status: str, *headers: str) -> bytes:
    """Return an engine's refusal with further headers."""
    head, _, body = answer(status, "application/json", '{"error": {"message": "no"}}').partition(b"\r\n\r\n")
    return b"\r\n".join([head, *(header.encode() for header in headers)]) + b"\r\n\r\n" + body


AT_ONCE = "retry-after-ms: 5"
BUSY = refusal("503 Service Unavailable", AT_ONCE)


async def ask(url: str, max_retries: int = 2, times: int = 1, **arguments: str) -> list[dict[str, Any]]:
    """Ask an engine some times; gives the results."""
    dispatcher = Dispatcher(
        Settings(engines=(Engine("m", url),), max_retries=max_retries, cache=CacheSettings(entries=0))
    )
    try:
        return [await dispatcher.run(Call("chat", {"message": "hi", **arguments})) for _ in range(times)]
    finally:
        await dispatcher.close()


def text(result: dict[str, Any]) -> str:
    return str(result["content"][0]["text"])


async def test_the_engines_wish_when_to_come_again_is_respected() -> None:
    engine = ScriptedEngine(refusal("503 Service Unavailable", "retry-after: 1"), GOOD)
    with engine.running() as url:
        (result,) = await ask(url)
    assert text(result) == "hello"
    first, second = engine.times
    assert 1 <= second - first < 8


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_so_many_repetitions_and_no_more(retries: int) -> None:
    engine = ScriptedEngine(BUSY)
    with engine.running() as url:
        (result,) = await ask(url, max_retries=retries)
    assert result["isError"]
    assert "busy or still loading (HTTP 503: no)" in text(result)
    assert len(engine.times) == 1 + retries


@pytest.mark.parametrize("status", ["408 Request Timeout", "429 Too Many Requests", "500 Internal Server Error"])
async def test_what_may_pass_is_asked_again(status: str) -> None:
    engine = ScriptedEngine(refusal(status, AT_ONCE), refusal(status, AT_ONCE), GOOD)
    with engine.running() as url:
        (result,) = await ask(url)
    assert text(result) == "hello"
    assert len(engine.times) == 3


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Service Unavailable", "429 Too Many Requests"])
@pytest.mark.parametrize(
    ("words", "field"),
    [
        (
            "litellm.InternalServerError: max_tokens=2000 cannot be greater than max_model_len=max_total_tokens=1024",
            "max_tokens",
        ),
        ("This model's maximum context length is 2048 tokens, but the prompt has 1000 input tokens", "max_tokens"),
        ("Request too large on tokens per minute (TPM): Limit 6000, Requested 7000.", "max_tokens"),
        ("Unsupported parameter: 'temperature' is not supported with this model.", "temperature"),
        ("Error: Jinja Exception: System role not supported", "messages"),
    ],
)
async def test_what_another_request_can_mend_is_not_repeated_as_it_is(status: str, words: str, field: str) -> None:
    body = json.dumps({"error": {"message": words}})
    engine = ScriptedEngine(answer(status, "application/json", body), GOOD)
    with engine.running() as url:
        (result,) = await ask(url, system="Be brief.")
    assert text(result) == "hello"
    first, second = engine.requests
    assert first != second
    assert {**first, field: None} == {**second, field: None}


@pytest.mark.parametrize(
    "words",
    [
        "Rate limit reached on tokens per minute (TPM): Limit 6000, Used 5800, Requested 2100. Try again later",
        "rate limit of 60 requests per minute exceeded; max_tokens count, too",
        "limit of 100 requests",
        "queue limit of 10 requests reached, each with a context of 8192 tokens",
        "Too many requests: the maximum of 1000 tokens per second",
        "You have exceeded the limit of 1000 tokens per day",
    ],
)
@pytest.mark.parametrize("status", ["503 Service Unavailable", "429 Too Many Requests"])
async def test_a_limit_that_time_lifts_is_waited_for(status: str, words: str) -> None:
    reply = refusal(status, AT_ONCE).replace(b'"no"', json.dumps(words).encode())
    reply = re.sub(rb"content-length: \d+\r\n", b"", reply)
    engine = ScriptedEngine(reply, GOOD)
    with engine.running() as url:
        (result,) = await ask(url)
    assert text(result) == "hello"
    first, second = engine.requests
    assert first == second


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "403 Forbidden", "404 Not Found"])
async def test_what_cannot_succeed_is_not_asked_again(status: str) -> None:
    engine = ScriptedEngine(refusal(status, AT_ONCE), GOOD)
    with engine.running() as url:
        (result,) = await ask(url, max_retries=5)
    assert result["isError"]
    assert f"HTTP {status[:3]}" in text(result)
    assert len(engine.times) == 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (HALF, "half"),
        (events({"error": {"message": "out of memory"}}), "out of memory"),
        (events("{ no JSON"), "not a chat completion"),
        (events(), "without a finish reason"),
        (answer("200 OK", "text/html", "<h1>It works!</h1>"), "text/html"),
    ],
)
async def test_nothing_is_repeated_after_the_first_byte(reply: bytes, words: str) -> None:
    engine = ScriptedEngine(reply, GOOD)
    with engine.running() as url:
        (result,) = await ask(url, max_retries=5)
    assert result["isError"]
    assert words in text(result)
    assert len(engine.times) == 1


async def test_a_question_that_may_have_ended_an_engine_is_not_asked_again() -> None:
    engine = ScriptedEngine(b"", GOOD)
    with engine.running() as url:
        (result,) = await ask(url, max_retries=5)
    assert result["isError"]
    assert "hung up before it answered: Server disconnected" in text(result)
    assert "not asked again" in text(result)
    assert len(engine.times) == 1


@pytest.mark.parametrize("status", ["502 Bad Gateway", "504 Gateway Timeout"])
async def test_nor_is_it_where_a_proxy_says_so(status: str) -> None:
    engine = ScriptedEngine(refusal(status, AT_ONCE), GOOD)
    with engine.running() as url:
        (result,) = await ask(url, max_retries=5)
    assert f"HTTP {status[:3]}: no" in text(result)
    assert len(engine.times) == 1


def chunked(*data: object) -> bytes:
    """Return a stream of events after which the connection may be used again."""
    body = events(*data).partition(b"\r\n\r\n")[2]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize("closes_after_s", [0.0, 0.05, None])
async def test_a_connection_that_the_engine_has_closed_costs_no_failure(closes_after_s: float | None) -> None:
    connections = 0

    def handle(connection: socket.socket) -> None:
        nonlocal connections
        connections += 1
        while True:
            request_of(connection)
            connection.sendall(chunked(piece("hello", "stop")))
            if closes_after_s is not None:
                time.sleep(closes_after_s)
                return

    listener = Listener(handle)
    try:
        results = await ask(listener.url, max_retries=0, times=12)
    finally:
        listener.close()
    assert [text(result) for result in results] == ["hello"] * 12
    # Where it may, the bridge uses the connection again: then the other two cases are about such a connection.
    assert connections == (1 if closes_after_s is None else 12)


@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    "unasked",
    [
        chunked(piece("another's answer", "stop")),
        chunked(piece("another's answer", "stop")) * 3,
        chunked(piece("another's answer", "stop"))[:-5],
        refusal("503 Service Unavailable").replace(b"close", b"keep-alive"),
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n",
        b"\r\n",
    ],
)
async def test_what_comes_without_a_question_answers_none(unasked: bytes, *, apart: bool, is_read: bool) -> None:
    questions: list[str] = []
    sent = threading.Event()

    def handle(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else the second packet waits for a word
        while True:
            questions.append(request_of(connection)["messages"][-1]["content"])
            reply = chunked(piece(questions[-1], "stop"))
            for packet in [reply, unasked] if apart else [reply + unasked]:
                connection.sendall(packet)
            sent.set()

    listener = Listener(handle)
    dispatcher = Dispatcher(
        Settings(engines=(Engine("m", listener.url),), max_retries=0, cache=CacheSettings(entries=0))
    )
    try:
        for question in ("first", "second", "third"):
            sent.clear()
            assert text(await dispatcher.run(Call("chat", {"message": question}))) == question
            assert sent.wait(10)
            if is_read:
                await asyncio.sleep(0.01)
    finally:
        await dispatcher.close()
        listener.close()
    assert questions == ["first", "second", "third"]


async def test_what_comes_without_end_after_an_answer_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local_llm_bridge.models.engine._KEPT_S", 1.0)
    more = answer("200 OK", "text/plain", "x" * 2**16).replace(b"close", b"keep-alive")
    sent = 0
    gone = threading.Event()

    def handle(connection: socket.socket) -> None:
        nonlocal sent
        request_of(connection)
        connection.sendall(chunked(piece("hello", "stop")))
        try:
            while True:
                connection.sendall(more)
                sent += len(more)
        except OSError:
            gone.set()

    listener = Listener(handle)
    dispatcher = Dispatcher(Settings(engines=(Engine("m", listener.url),), max_retries=0))
    try:
        await dispatcher.run(Call("chat", {"message": "hi"}))
        assert await asyncio.to_thread(gone.wait, 20)
    finally:
        await dispatcher.close()
        listener.close()
    assert sent < 2**25, "what fits into the buffers of the two sockets, and no more"


@pytest.mark.parametrize("beginning", [b"HTTP/1.1 200 OK\r\nx: y", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 "])
async def test_nor_is_anything_repeated_within_the_headers(beginning: bytes) -> None:
    asked = 0

    def handle(connection: socket.socket) -> None:
        nonlocal asked
        while asked < 2:
            request_of(connection)
            asked += 1
            connection.sendall(chunked(piece("hello", "stop")) if asked == 1 else beginning)

    listener = Listener(handle)
    try:
        first, second = await ask(listener.url, max_retries=3, times=2)
    finally:
        listener.close()
    assert text(first) == "hello"
    assert second["isError"]
    assert asked == 2


async def test_a_real_engine_can_be_asked_again_and_again_without_a_pause(engine: str) -> None:
    # llama.cpp keeps a connection open and closes it after the stream.
    settings = Settings(
        engines=(Engine(MODEL, engine, api_key=ENGINE_KEY),), max_retries=0, cache=CacheSettings(entries=0)
    )
    dispatcher = Dispatcher(settings)
    try:
        results = [await dispatcher.run(Call("chat", {"message": "ping"})) for _ in range(12)]
    finally:
        await dispatcher.close()
    assert [text(result) for result in results] == ["pong"] * 12


def call(number: int = 1) -> str:
    params = {"name": "chat", "arguments": {"message": "hi"}}
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}) + "\n"


LIST = '{"jsonrpc": "2.0", "id": 0, "method": "tools/list"}\n'


@pytest.mark.parametrize("retries", ["0", "2"])
def test_the_environment_sets_the_number_of_repetitions(retries: str) -> None:
    engine = ScriptedEngine(BUSY)
    with engine.running() as url:
        (reply,), _ = piped(call(), LOCAL_API_URL=url, MODEL_NAME="m", OPENAI_MAX_RETRIES=retries)
    assert reply["result"]["isError"]
    assert len(engine.times) == 1 + int(retries)


@contextmanager
def proxy() -> Iterator[tuple[str, list[str]]]:
    """Run what takes requests as a proxy and answers them itself; gives its address and the first lines it got."""
    lines: list[str] = []

    def handle(connection: socket.socket) -> None:
        data = connection.recv(65536)
        lines.append(data.partition(b"\r\n")[0].decode())
        connection.sendall(events(piece("through the proxy", "stop")))

    listener = Listener(handle)
    try:
        yield listener.url.removesuffix("/v1"), lines
    finally:
        listener.close()


def test_a_proxy_of_the_environment_is_used() -> None:
    with proxy() as (address, lines):
        (reply,), _ = piped(call(), LOCAL_API_URL="http://engine.invalid:8000", MODEL_NAME="m", http_proxy=address)
    assert text(reply["result"]) == "through the proxy"
    assert lines == ["POST http://engine.invalid:8000/v1/chat/completions HTTP/1.1"]


@pytest.mark.parametrize("exempt", ["127.0.0.1", "example.com,127.0.0.1", "*"])
def test_an_exempt_engine_is_asked_without_the_proxy(exempt: str) -> None:
    engine = FakeEngine(GOOD)
    with proxy() as (address, lines), engine.running() as url:
        (reply,), _ = piped(call(), LOCAL_API_URL=url, MODEL_NAME="m", http_proxy=address, no_proxy=exempt)
    assert text(reply["result"]) == "hello"
    assert not lines
    assert len(engine.requests) == 1


def imported(url: str) -> tuple[set[str], list[dict[str, Any]]]:
    """List the tools and ask once over stdio; gives the packages that this imported, and the replies."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "local_llm_bridge"],
        input=LIST + call(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PATH": os.environ["PATH"], "LOCAL_API_URL": url, "MODEL_NAME": "m", "OPENAI_MAX_RETRIES": "0"},
    )
    modules = re.findall(r"^import time: .*\| +(\S+)$", done.stderr, re.MULTILINE)
    return {module.partition(".")[0] for module in modules}, [json.loads(line) for line in done.stdout.splitlines()]


def test_openai_and_the_sdk_are_not_imported_for_what_goes_well() -> None:
    with FakeEngine(GOOD).running() as url:
        packages, (listing, reply) = imported(url)
    assert listing["result"]["tools"]
    assert text(reply["result"]) == "hello"
    assert "aiohttp" in packages
    assert packages & {"openai", "httpx2", "mcp", "starlette", "uvicorn", "prometheus_client"} == set()


def test_nor_for_what_fails() -> None:
    with FakeEngine(BUSY).running() as url:
        packages, (_, reply) = imported(url)
    assert reply["result"]["isError"]
    assert packages & {"openai", "httpx2", "mcp"} == set()
