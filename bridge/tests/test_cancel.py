"""A cancelled call stops the generation in the engine: its own metrics say so."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from local_llm_bridge.server.cancels import Cancels
from tests.services import ENGINE_KEY, MODEL, PROGRAM, TOKEN, llama_server, records, serving, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUESTION = "Count from 1 to 200."
WHOLE_ANSWER = 692
"""Tokens of the answer to it."""


class Engine:
    """A real engine of this module's own, so that nobody else's requests are in its metrics."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self._process = process

    def metric(self, name: str) -> float:
        request = urllib.request.Request(
            self.url.removesuffix("/v1") + "/metrics", headers={"Authorization": f"Bearer {ENGINE_KEY}"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            found = re.search(rf"^llamacpp:{name} (\S+)$", response.read().decode(), re.MULTILINE)
        assert found, name
        return float(found[1])

    @property
    def is_busy(self) -> bool:
        return self.metric("requests_processing") > 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait until it answers, and have it go on when it has been told to stop: it may be quicker than that."""
        wait_for(lambda: self.is_busy)
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
            time.sleep(0.3)  # until the bridge has passed it on
        finally:
            self._process.send_signal(signal.SIGCONT)

    def prove_stopped(self, tokens_before: float) -> None:
        """See that the request ends within a second, and with it the answer, which is far from whole."""
        cancelled = time.monotonic()
        wait_for(lambda: not self.is_busy, 5)
        assert time.monotonic() - cancelled < 1
        assert self.metric("tokens_predicted_total") - tokens_before < WHOLE_ANSWER - 50


@pytest.fixture(scope="module")
def own_engine() -> Iterator[Engine]:
    with llama_server() as (url, process):
        yield Engine(url, process)


def message(method: str, params: dict[str, Any], number: int | None = None) -> dict[str, Any]:
    request: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
    return request if number is None else {**request, "id": number}


ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
CALL = {"name": "chat", "arguments": {"message": QUESTION, "fresh": True}}


@pytest.mark.parametrize("modern", [True, False], ids=["2026-07-28", "2025-11-25"])
def test_a_notification_over_stdio_stops_the_engine(own_engine: Engine, *, modern: bool) -> None:
    environment = {"PATH": os.environ["PATH"], "LOCAL_API_URL": own_engine.url, "MODEL_NAME": MODEL}
    environment["OPENAI_API_KEY"] = ENGINE_KEY
    pipe = subprocess.PIPE
    before = own_engine.metric("tokens_predicted_total")
    with subprocess.Popen([PROGRAM], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None

        def send(*messages: dict[str, Any]) -> None:
            assert process.stdin is not None
            process.stdin.writelines(json.dumps(item) + "\n" for item in messages)
            process.stdin.flush()

        if modern:
            send(message("tools/call", {**CALL, "_meta": ENVELOPE}, 7))
        else:
            send(message("initialize", HELLO, 1), message("notifications/initialized", {}))
            send(message("tools/call", CALL, 7))
        with own_engine.held():
            send(message("notifications/cancelled", {"requestId": 7, "reason": "the user pressed Esc"}))
        own_engine.prove_stopped(before)
        # A request that was cancelled is not answered, and the next one is.
        send(message("tools/list", {"_meta": ENVELOPE} if modern else {}, 8))
        replies = [json.loads(process.stdout.readline()) for _ in range(1 if modern else 2)]
        assert [reply["id"] for reply in replies] == ([8] if modern else [1, 8])
        process.stdin.close()
        assert process.wait(10) == 0
        assert records(process.stderr.read())[-1]["outcome"] == "cancelled"


@pytest.mark.parametrize(
    ("streamed", "followed"),
    [(True, False), (False, False), (False, True)],
    ids=["with progress", "without", "another request behind it"],
)
def test_a_closed_connection_stops_the_engine(
    own_engine: Engine, tmp_path: Path, *, streamed: bool, followed: bool
) -> None:
    meta = {**ENVELOPE, "progressToken": 1} if streamed else ENVELOPE
    headers = {
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": "chat",
    }
    before = own_engine.metric("tokens_predicted_total")
    with serving(tmp_path, own_engine.url) as bridge:
        connection = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=10)
        connection.request("POST", "/mcp", json.dumps(message("tools/call", {**CALL, "_meta": meta}, 7)), headers)
        if streamed:
            response = connection.getresponse()
            assert response.headers["Content-Type"] == "text/event-stream"
            assert b"notifications/progress" in response.readline() + response.readline()
        if followed:
            connection.sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with own_engine.held():
            connection.close()
            if streamed:
                response.close()
        own_engine.prove_stopped(before)
        wait_for(lambda: any(one["outcome"] == "cancelled" for one in records(bridge.log.read_text())), 5)
        assert "ERROR" not in bridge.log.read_text()


@pytest.mark.parametrize(
    ("meta", "headers"),
    [({}, {}), ({"progressToken": 1}, {}), ({}, {"Mcp-Session-Id": "s"}), ({}, {"Accept": "application/json"})],
    ids=["quick", "with progress", "SDK", "JSON alone"],
)
def test_a_notification_over_http_stops_the_engine(
    own_engine: Engine, tmp_path: Path, meta: dict[str, Any], headers: dict[str, str]
) -> None:
    headers = {
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2025-11-25",
        "User-Agent": "test/1",
        **headers,
    }
    before = own_engine.metric("tokens_predicted_total")
    cancelling = json.dumps(message("notifications/cancelled", {"requestId": 7.0 if meta else 7})).encode()
    with serving(tmp_path, own_engine.url) as bridge:
        connection = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=10)
        call = json.dumps(message("tools/call", {**CALL, "_meta": meta}, 7))
        connection.request("POST", "/mcp", call, headers)
        with own_engine.held():
            assert bridge.http("/mcp", method="POST", headers=headers, data=cancelling)[0] == 202
        own_engine.prove_stopped(before)
        text = connection.getresponse().read().decode()
        assert text.count('"error":{"code":-32800,"message":"The client has cancelled this call."') == 1
        connection.request("POST", "/mcp", json.dumps(message("ping", {}, 8)), headers)
        assert connection.getresponse().status == 200
        connection.close()
        log = bridge.log.read_text()
        assert records(log)[-1]["outcome"] == "cancelled"
        assert "ERROR" not in log


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("others", "developer", "client", "request_id", "is_meant"),
    [
        ([], "alice", "here", 7, True),
        ([("alice", 8), ("alice", "7"), ("bob", 7)], "alice", "here", 7, True),
        ([], "bob", "here", 7, False),
        ([], "alice", "there", 7, False),
        ([], "alice", "here", "7", False),
        ([], "alice", "here", True, False),
        ([], "alice", "here", None, False),
        ([("alice", 7)], "alice", "here", 7, False),
        ([("alice", 8)] * 10_000, "alice", "here", 7, False),
    ],
)
async def test_a_call_is_cancelled_only_where_no_other_can_be_meant(
    others: list[tuple[str, object]], developer: str, client: str, request_id: object, *, is_meant: bool
) -> None:
    cancels = Cancels()

    async def call() -> None:
        running = cancels.begin("alice", "here", 7)
        try:
            await asyncio.Event().wait()
        finally:
            cancels.end(running)

    for other, number in others:
        cancels.see(other, "here", {"id": number})
    cancels.see("alice", "here", {"id": 7})
    task = asyncio.ensure_future(call())
    await asyncio.sleep(0)
    cancels.see(developer, client, message("notifications/cancelled", {"requestId": request_id}))
    await asyncio.wait([task], timeout=0.01)
    assert task.cancelled() == is_meant
    task.cancel()


@pytest.mark.anyio
async def test_of_two_calls_with_the_same_id_neither_is_cancelled() -> None:
    cancels = Cancels()

    async def call(client: str) -> None:
        cancels.see("alice", client, {"id": 7})
        running = cancels.begin("alice", client, 7)
        try:
            await asyncio.Event().wait()
        finally:
            cancels.end(running)

    tasks = [asyncio.ensure_future(call(client)) for client in ("here", "there")]
    await asyncio.sleep(0)
    cancels.see("alice", "here", message("notifications/cancelled", {"requestId": 7}))
    await asyncio.wait(tasks, timeout=0.01)
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
