"""One POST of MCP over HTTP: to the fast path or the SDK's, back as JSON, or as events if it takes long."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from local_llm_bridge.errors import RefusedRequestError
from local_llm_bridge.models.limits import AtOnce, Rate
from local_llm_bridge.server.asgi import Response
from local_llm_bridge.server.body import SMALL_BODY, Receiver
from local_llm_bridge.server.cancels import Cancels
from local_llm_bridge.server.fast_path import (
    HANDSHAKE_VERSIONS,
    MODERN_VERSION,
    FastPath,
    FastPathRequest,
    encode,
    is_notification,
    read,
    unsupported,
)
from local_llm_bridge.server.message import checked, parse, version_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from local_llm_bridge.server.dispatch import Wire

QUIET_S = 5.0
"""How long a call may take until its answer becomes a stream with signs of life, in seconds."""
PING_S = 15.0
"""Time between two signs of life, in seconds."""
_EVENT_STREAM = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_BOTH = "application/json, text/event-stream"
_KIND = re.compile(r"application/json\s*(?:[;,]|$)", re.IGNORECASE)
_NO_QUALITY = re.compile(r"q\s*=\s*0(\.0{0,3})?")
_VERSIONS = {MODERN_VERSION, *HANDSHAKE_VERSIONS}
_REQUEST_CANCELLED = -32800
"""The SDK's: a call that is cancelled is not answered but over HTTP, where a request always is."""
ON_LOSS = "on_loss"
"""Key of a request's scope: takes what is to be called when its connection is lost; None: nothing any more."""
IS_TAKEN = "is_taken"
"""Key of a request's scope: waits until the client has read of its answer what the bridge would have to keep for it."""
_PAUSES = 2
"""How much longer than parsing a large body, some 30 ms for the largest, the pause before the next one is."""
_MOST_LARGE = 16 * 2**20
"""How many bytes one developer's bodies above SMALL_BODY may have that are under way.

Each byte can take ten in memory until the answer: Python takes four for every character of a text with an emoji.
"""
_MOST_LARGE_TOGETHER = 48 * 2**20
"""So many all may have together before whoever has a large one under way gets no other."""
_LARGE = "large_body"
"""Key of a request's scope: how many of these bytes are its."""
_LISTEN = "subscriptions/listen"
_MOST_STREAMS = 32
"""How many streams that wait for new tools one developer may have: one for each session of Claude Code."""
_LISTEN_BODY = 4 * 2**10
"""Largest request for such a stream in bytes: it is kept as long as the stream. Claude Code's has some 500."""


class Handler:
    """Answers POSTs from developers who have been recognised.

    Args:
        fast_path: the fast path.
        sdk: the SDK's application, for all that the fast path does not take.
        requests_per_minute: how many large requests a developer may send; 0 means any number.
    """

    def __init__(self, fast_path: FastPath, sdk: ASGIApp, requests_per_minute: int = 0) -> None:
        self._fast_path = fast_path
        self._sdk = sdk
        self._receiver = Receiver(Rate(requests_per_minute))
        self._streams = AtOnce(_MOST_STREAMS)
        self._large = AtOnce(_MOST_LARGE, _MOST_LARGE_TOGETHER)
        self._parsing = asyncio.Lock()
        self._cancels = Cancels()

    async def __call__(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        """Answer one request; `scope["caller"]` says whose, `scope["model"]` who answers if it names no model.

        Raises:
            RefusedRequestError: before anything has been sent.
        """
        try:
            await self._answer(scope, headers, receive, send)
        finally:
            if size := scope.get(_LARGE):
                self._large.leave(scope["caller"].developer, size)

    async def _answer(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        developer = scope["caller"].developer
        _check_kind(headers)
        takes_json, takes_events = _accepted(headers.get("accept") or "*/*")
        if not (takes_json or takes_events):
            raise RefusedRequestError(406, f"Answers are JSON, or events. Send 'Accept: {_BOTH}'.")
        body, place = await self._receiver.receive(receive, scope, headers, developer)
        if body is None:
            return  # the client has gone
        try:
            message = await self._parse_large(body, scope) if len(body) > SMALL_BODY else parse(body)
        finally:
            if place:
                place.release()
        method = message.get("method") if isinstance(message, dict) else None
        if len(body) > SMALL_BODY and method != "tools/call":
            raise RefusedRequestError(413, f"Only tools/call may have more than {SMALL_BODY} bytes. Send less.")
        version = _version(message, headers)
        message, request = _read(message, version, headers)
        client = (scope["caller"].client, headers.get("user-agent"), headers.get("mcp-session-id"), scope["model"])
        self._cancels.see(developer, client, message)
        reply = _Reply(send, json=takes_json, events=takes_events)
        if request is None:
            if is_notification(message):
                await Response(202).send(send)  # nothing else here goes on from one request to the next
                return
            # The SDK reads what has been read here, not the bytes, which it might read otherwise.
            size, request_id, again = len(body), message.get("id"), _replay(encode(message), receive)
            scope = {**scope, "headers": _plain(scope["headers"], version)}
            del body, message  # a stream may last for days
            if method == _LISTEN:
                await self._listen(size, scope, again, _SdkReply(send, reply))
            elif method == "tools/call" and request_id is not None:
                await self._call_by_sdk(request_id, client, scope, again, _SdkReply(send, reply))
            else:
                await self._sdk(scope, again, _SdkReply(send, reply))
        elif request.method == "tools/call":
            del body, message
            await self._call(request, client, scope, reply)
        else:
            await reply.end(self._fast_path.answer(request))

    async def _parse_large(self, body: bytes, scope: Scope) -> Any:  # noqa: ANN401 - whatever JSON holds
        """Parse a large body: one after the other, with pauses in which everybody else is served."""
        developer = scope["caller"].developer
        if not self._large.enter(developer, len(body)):
            raise RefusedRequestError(
                429,
                f"This request has {len(body)} bytes: with it, {developer} would have more than {_MOST_LARGE} bytes of "
                "large requests running, the most that one developer may have, or all together more than "
                f"{_MOST_LARGE_TOGETHER}. Wait until one of yours ends.",
                {"Retry-After": "5"},
            )
        scope[_LARGE] = len(body)
        loop = asyncio.get_running_loop()
        await self._parsing.acquire()
        started = loop.time()
        try:
            return parse(body)
        finally:
            loop.call_later(_PAUSES * (loop.time() - started), self._parsing.release)

    async def _listen(self, size: int, scope: Scope, receive: Receive, reply: _SdkReply) -> None:
        if not reply.takes_events:
            raise RefusedRequestError(406, f"{_LISTEN} is answered with events. Send 'Accept: {_BOTH}'.")
        if size > _LISTEN_BODY:
            raise RefusedRequestError(413, f"A request for {_LISTEN} may have {_LISTEN_BODY} bytes. Send less.")
        developer = scope["caller"].developer
        if not self._streams.enter(developer):
            raise RefusedRequestError(
                429,
                f"{developer} has {_MOST_STREAMS} streams of {_LISTEN} open, the most that one developer may have. "
                "End a session.",
                {"Retry-After": "60"},
            )
        try:
            await self._sdk(scope, receive, reply)
        finally:
            self._streams.leave(developer)

    async def _call_by_sdk(
        self, request_id: str | int, client: object, scope: Scope, receive: Receive, reply: _SdkReply
    ) -> None:
        """Have the SDK run a call; the client may cancel it."""
        running = self._cancels.begin(scope["caller"].developer, client, request_id)
        try:
            await self._sdk(scope, receive, reply)
        except asyncio.CancelledError:
            if not running.is_cancelled:
                raise
            await reply.end(_cancelled(request_id))
        finally:
            self._cancels.end(running)

    async def _call(self, request: FastPathRequest, client: object, scope: Scope, reply: _Reply) -> None:
        """Run a call; it ends at once when the client goes away, or cancels it."""
        has_gone = False
        signs = asyncio.get_running_loop().call_later(QUIET_S, reply.start_pinging)

        def end() -> None:
            nonlocal has_gone
            has_gone = True
            task.cancel()

        task = cast("asyncio.Task[None]", asyncio.current_task())
        scope[ON_LOSS](end)
        running = self._cancels.begin(scope["caller"].developer, client, request.id)
        try:
            try:
                answer = await self._fast_path.call(request, reply.event, scope["caller"], scope["model"])
            finally:
                self._cancels.end(running)
            await reply.end(answer)
        except asyncio.CancelledError:
            if running.is_cancelled:
                await reply.end(_cancelled(request.id))
            elif not has_gone:
                raise
        finally:
            scope[ON_LOSS](None)
            signs.cancel()
            await reply.stop_pinging()


class _Reply:
    """JSON, unless something had to be sent before the answer was there.

    Args:
        send: sends it.
        json: whether the client takes JSON; else all is events.
        events: whether it takes events; else it has no signs of life before its answer.
    """

    def __init__(self, send: Send, *, json: bool, events: bool) -> None:
        self._send = send
        self.takes_json = json
        self.takes_events = events
        self._is_stream = False
        self._has_ended = False
        self._pinging: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()  # signs of life and the answer come from two tasks

    async def event(self, message: Wire) -> None:
        await self._stream(_event(message))

    def start_pinging(self) -> None:
        self._pinging = asyncio.ensure_future(self._ping())

    async def stop_pinging(self) -> None:
        if self._pinging:
            self._pinging.cancel()
            with suppress(asyncio.CancelledError):
                await self._pinging

    async def _ping(self) -> None:
        while True:
            await self._stream(b": still working\r\n\r\n")
            await asyncio.sleep(PING_S)

    async def end(self, message: Wire) -> None:
        async with self._sending:
            self._has_ended = True
            if not self.takes_json:
                await self._begin()
            if self._is_stream:
                await self._send({"type": "http.response.body", "body": _event(message)})
            else:
                await _json(message).send(self._send)

    async def _stream(self, data: bytes) -> None:
        async with self._sending:
            if self._has_ended or not self.takes_events:
                return
            await self._begin()
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _begin(self) -> None:
        if not self._is_stream:
            self._is_stream = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _EVENT_STREAM})


class _SdkReply:
    """Takes what the SDK sends, which is JSON or events, and sends it as the client takes it.

    Args:
        send: sends it where the client takes either.
        reply: sends the answer where it has to become the other.
    """

    def __init__(self, send: Send, reply: _Reply) -> None:
        self._send = send
        self._reply = reply
        self._is_stream: bool | None = None
        self._is_turned = False
        self._has_ended = False
        self._last = b""
        self.takes_events = reply.takes_events

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_stream = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
            takes = self._reply.takes_events if self._is_stream else self._reply.takes_json
            self._is_turned = message["status"] == 200 and not takes  # noqa: PLR2004 - else it is no answer but a refusal
        else:
            self._has_ended = not message.get("more_body")
        if not self._is_turned:
            await self._send(message)
            return
        for line in message.get("body", b"").splitlines():
            if (data := line.removeprefix(b"data: ")).startswith(b"{"):
                self._last = data  # those before it tell of progress
        if self._has_ended and self._last:
            await self._reply.end(json.loads(self._last))

    async def end(self, message: Wire) -> None:
        """Send an answer in place of the SDK's, which has stopped."""
        if self._has_ended:
            return
        if self._is_stream is None or self._is_turned:
            await self._reply.end(message)
        elif self._is_stream:
            await self._send({"type": "http.response.body", "body": _event(message)})


def _event(message: Wire) -> bytes:
    return b"event: message\r\ndata: " + encode(message) + b"\r\n\r\n"


def _cancelled(request_id: str | int) -> Wire:
    error = {"code": _REQUEST_CANCELLED, "message": "The client has cancelled this call."}
    return {"jsonrpc": "2.0", "id": request_id, "error": error}


def _json(message: Wire) -> Response:
    return Response(200, encode(message), "application/json")


def _check_kind(headers: Mapping[str, str]) -> None:
    """Check that a body is JSON as far as its headers tell.

    Raises:
        RefusedRequestError: it is not, or compressed.
    """
    kind = headers.get("content-type", "")
    if _KIND.match(kind) is None:
        found = f"{kind[:100]!r}" if kind else "missing"
        raise RefusedRequestError(415, f"Content-Type is {found}. Send 'Content-Type: application/json'.")
    packing = headers.get("content-encoding", "")
    if packing and packing.lower() != "identity":
        raise RefusedRequestError(
            415,
            f"Content-Encoding is {packing[:100]!r}: the bridge takes no compressed bodies. Send it as it is.",
            {"Accept-Encoding": "identity"},
        )


@lru_cache(maxsize=16)  # clients send always the same
def _accepted(accept: str) -> tuple[bool, bool]:
    """Return whether an Accept header allows JSON, and whether it allows events."""
    kinds: dict[str, bool] = {}
    for part in accept.lower().split(","):
        kind, *parameters = [piece.strip() for piece in part.split(";")]
        kinds[kind] = not any(_NO_QUALITY.fullmatch(parameter) for parameter in parameters)

    def allows(kind: str) -> bool:
        ranges = (kind, f"{kind.partition('/')[0]}/*", "*/*")
        return next((kinds[name] for name in ranges if name in kinds), False)

    return allows("application/json"), allows("text/event-stream")


def _plain(headers: Iterable[tuple[bytes, bytes]], version: str | None) -> list[tuple[bytes, bytes]]:
    """Return headers with those that have been judged here as the SDK wants them to the letter."""
    judged = {b"accept": _BOTH, b"content-type": "application/json", b"mcp-protocol-version": version}
    others = [header for header in headers if header[0] not in judged]
    return [*others, *((name, value.encode("latin-1")) for name, value in judged.items() if value is not None)]


def _version(message: object, headers: Mapping[str, str]) -> str | None:
    """Return the version that a request's header names; None: there is none, or none that counts.

    Raises:
        BadMessageError: nobody here speaks it, or the message is none.
    """
    named = headers.get("mcp-protocol-version")
    method = message.get("method") if isinstance(message, dict) else None
    if named in _VERSIONS and method != "initialize":
        return named
    is_handshake = method == "initialize" and version_of(message) is None
    if named is None or is_handshake:
        return None  # a handshake settles the version, whatever the client speaks at best
    versions = {version.strip() for version in named.split(",")}  # clients and proxies say it twice
    version = max(versions)
    if version in _VERSIONS and (len(versions) == 1 or versions <= {*HANDSHAKE_VERSIONS}):
        return version
    if version_of(message) not in (None, named) and not is_notification(message):
        return named  # header and body differ, which is what the SDK says
    raise unsupported(f"the header MCP-Protocol-Version is {named[:60]!r}", named[:60], checked(message).get("id"))


def _read(message: object, version: str | None, headers: Mapping[str, str]) -> tuple[Wire, FastPathRequest | None]:
    """Return a message that is one of JSON-RPC, and as a request for the fast path, if it is one.

    Raises:
        BadMessageError: it is none.
    """
    request = _fast_path_request(message, version, headers)
    if request is None and not is_notification(message):
        message = checked(message)
        request = _fast_path_request(message, version, headers)
    return cast("Wire", message), request


def _fast_path_request(message: object, version: str | None, headers: Mapping[str, str]) -> FastPathRequest | None:
    """Return the request if it is one for the fast path, headers and all."""
    request = None if "mcp-session-id" in headers else read(message)
    if request is None:
        return None
    if not request.modern:
        return request if version != MODERN_VERSION else None
    if version != MODERN_VERSION or headers.get("mcp-method") != request.method:
        return None
    if request.method == "tools/call" and headers.get("mcp-name") != request.params["name"]:
        return None
    # Parameters that a schema wants in headers, too: the SDK compares them.
    return None if any(name.startswith("mcp-param-") for name in headers) else request


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body again that has been read."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return left.pop() if left else await receive()

    return receive_again
