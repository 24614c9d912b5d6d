"""What a client hears while a call runs."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.services import MODEL, TOKEN, FakeEngine, events, piece, serving, stdio, text_of

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from mcp import Client

pytestmark = pytest.mark.anyio

TOKENS = 30


class SlowEngine(FakeEngine):
    """Stands in for a model that writes a token every 0.1 s."""

    def _handle(self, connection: socket.socket) -> None:
        connection.recv(65536)
        head, *tokens = events(*(piece(f"{number} ") for number in range(TOKENS)), piece("", "stop")).split(b"data: ")
        connection.sendall(head)
        for token in tokens:
            connection.sendall(b"data: " + token)
            time.sleep(0.1)


async def prove(client: Client) -> None:
    heard: list[tuple[float, float, str]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        assert total is None, "nobody knows how long an answer will be"
        heard.append((time.monotonic(), progress, message or ""))

    result = await client.call_tool("chat", {"message": "Count."}, progress_callback=hear)
    assert text_of(result).split() == [str(number) for number in range(TOKENS)]
    times, tokens, messages = zip(*heard, strict=True)
    assert list(tokens) == sorted(set(tokens)), "each must be higher than the one before"
    assert tokens[-1] <= TOKENS
    assert 3 <= len(heard) <= (times[-1] - times[0]) / 0.4 + 1, "a few a second at most"
    assert messages[-1].startswith(f"{tokens[-1]:.0f} tokens in ")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_progress_is_told_over_stdio(mode: str) -> None:
    with SlowEngine(b"").running() as url:
        async with stdio(mode, LOCAL_API_URL=url, MODEL_NAME="m") as client:
            await prove(client)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_progress_is_told_over_http(tmp_path: Path, mode: str) -> None:
    with SlowEngine(b"").running() as url, serving(tmp_path, url) as bridge:
        async with bridge.client(mode) as client:
            await prove(client)


def test_a_long_silence_is_filled_with_signs_of_life(tmp_path: Path) -> None:
    hold = threading.Event()

    class Silent(FakeEngine):
        def _handle(self, connection: socket.socket) -> None:
            hold.wait(20)
            super()._handle(connection)

    call = {"name": "chat", "arguments": {"message": "Take your time."}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call})
    headers = {
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
    }
    with Silent(events(piece("at last", "stop"))).running() as url, serving(tmp_path, url) as bridge:
        connection = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=15)
        connection.request("POST", "/mcp", body, headers)
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.readline().startswith(b":"), "a comment, which is no event"
        hold.set()
        event = response.read().decode().partition("data: ")[2]
        connection.close()
    assert json.loads(event)["result"]["content"][0]["text"] == "at last"


async def test_a_long_result_is_cut_where_it_says_so() -> None:
    long = "x" * 60_000
    with FakeEngine(events(piece(long, "stop"))).running() as url:
        async with stdio(LOCAL_API_URL=url, MODEL_NAME=MODEL) as client:
            result = await client.call_tool("chat", {"message": "Write much."})
    text = text_of(result)
    assert len(text) <= 40_000
    kept, _, mark = text.partition("\n\n[Cut here: ")
    assert set(kept) == {"x"}
    assert mark == f"{60_000 - len(kept)} of 60000 characters left out, as a result may have 40000.]"
