"""One POST of MCP over HTTP: to the quick lane or the SDK's, back as JSON, or as events if it takes long."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING

from local_llm_bridge.asgi import Response
from local_llm_bridge.express import (
    HANDSHAKE_VERSIONS,
    MODERN_VERSION,
    Everyday,
    Express,
    encode,
    is_notification,
    read,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from local_llm_bridge.calls import Wire

MAX_BODY = 4 * 1024 * 1024
"""Largest request in bytes: a million tokens of text, more than any model's context."""
QUIET_S = 5.0
"""How long a call may take until its answer becomes a stream with signs of life, in seconds."""
PING_S = 15.0
"""Time between two signs of life, in seconds."""
_EVENT_STREAM = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class TooBigError(Exception):
    """The request has more than MAX_BODY bytes."""


class Exchange:
    """Answers POSTs from developers who have been recognised.

    Args:
        express: the quick lane.
        sdk: the SDK's lane, for all that the quick one does not take.
    """

    def __init__(self, express: Express, sdk: ASGIApp) -> None:
        self._express = express
        self._sdk = sdk

    async def __call__(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        """Answer one request; `scope["caller"]` says whose, `scope["model"]` who answers if it names no model.

        Raises:
            TooBigError: before anything has been sent.
        """
        body = await _body(receive)
        if body is None:
            return  # the client has gone
        message = _parsed(body, headers)
        if is_notification(message):
            await Response(202).send(send)  # nothing here goes on from one request to the next
            return
        request = _everyday(message, headers)
        if request is None:
            await self._sdk(scope, _replay(body, receive), send)
        elif request.method == "tools/call":
            await self._call(request, scope, receive, send)
        else:
            await _json(self._express.answer(request)).send(send)

    async def _call(self, request: Everyday, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a call; it ends at once when the client goes away."""
        gone = asyncio.ensure_future(_wait_for_disconnect(receive))
        reply = _Reply(send)
        work = asyncio.ensure_future(self._work(request, scope, reply))
        try:
            wait_s = QUIET_S
            while not work.done() and not gone.done():
                done, _ = await asyncio.wait((work, gone), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    await reply.ping()
                    wait_s = PING_S
            if work.done():
                await work
        finally:
            for task in (work, gone):
                if not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task

    async def _work(self, request: Everyday, scope: Scope, reply: _Reply) -> None:
        await reply.end(await self._express.call(request, reply.event, scope["caller"], scope["model"]))


class _Reply:
    """JSON, unless something had to be sent before the answer was there."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_stream = False
        self._has_ended = False
        self._sending = asyncio.Lock()  # signs of life and the answer come from two tasks

    async def event(self, message: Wire) -> None:
        await self._stream(_event(message))

    async def ping(self) -> None:
        await self._stream(b": still working\r\n\r\n")

    async def end(self, message: Wire) -> None:
        async with self._sending:
            self._has_ended = True
            if self._is_stream:
                await self._send({"type": "http.response.body", "body": _event(message)})
            else:
                await _json(message).send(self._send)

    async def _stream(self, data: bytes) -> None:
        async with self._sending:
            if self._has_ended:
                return
            if not self._is_stream:
                self._is_stream = True
                await self._send({"type": "http.response.start", "status": 200, "headers": _EVENT_STREAM})
            await self._send({"type": "http.response.body", "body": data, "more_body": True})


def _event(message: Wire) -> bytes:
    return b"event: message\r\ndata: " + encode(message) + b"\r\n\r\n"


def _json(message: Wire) -> Response:
    return Response(200, encode(message), "application/json")


def _parsed(body: bytes, headers: Mapping[str, str]) -> object:
    """Return the message; None: something about the request is out of the ordinary."""
    accepted = headers.get("accept", "")
    if (
        headers.get("content-type", "").partition(";")[0].strip() != "application/json"
        or "application/json" not in accepted
        or "text/event-stream" not in accepted
        or "mcp-session-id" in headers
        or headers.get("mcp-protocol-version", MODERN_VERSION) not in (MODERN_VERSION, *HANDSHAKE_VERSIONS)
    ):
        return None
    try:
        return json.loads(body.decode())  # of bytes, json would guess the encoding
    except (ValueError, RecursionError):
        return None


def _everyday(message: object, headers: Mapping[str, str]) -> Everyday | None:
    """Return the request if it is one for the quick lane, headers and all."""
    request = read(message)
    if request is None:
        return None
    version = headers.get("mcp-protocol-version")
    if not request.modern:
        return request if version != MODERN_VERSION else None
    if version != MODERN_VERSION or headers.get("mcp-method") != request.method:
        return None
    if request.method == "tools/call" and headers.get("mcp-name") != request.params["name"]:
        return None
    # Parameters that a schema wants in headers, too: the SDK compares them.
    return None if any(name.startswith("mcp-param-") for name in headers) else request


async def _body(receive: Receive) -> bytes | None:
    """Read the body; None: the client has gone before its end."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            raise TooBigError
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body again that has been read."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
