"""MCP over streamable HTTP at /mcp for developers with a token; /healthz, /readyz and /metrics for machines."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import uvicorn
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from sse_starlette.sse import AppStatus
from starlette.responses import JSONResponse, PlainTextResponse, Response

from local_llm_bridge import systemd
from local_llm_bridge.auth import Directory
from local_llm_bridge.calls import Calls
from local_llm_bridge.errors import ListenError
from local_llm_bridge.exchange import MAX_BODY, Exchange, TooBigError
from local_llm_bridge.express import Express
from local_llm_bridge.metrics import Metrics
from local_llm_bridge.sdk import create_server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.types import Receive, Scope, Send

    from local_llm_bridge.config import ServeSettings

log = logging.getLogger(__name__)

DRAIN_S = 30
"""How long running calls may go on after SIGTERM, in seconds. The unit's TimeoutStopSec must be longer."""
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_LOOPBACK_PEERS = ("127.0.0.1", "::1")


async def run(settings: ServeSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: address, models and developers.

    Raises:
        ListenError: the address is taken or not of this host.
    """
    import openai  # noqa: F401, PLC0415 - a service is warm before it says that it is ready

    listener = _listen(settings.listen.address, settings.listen.port)
    calls = Calls(settings)
    server, end_listening = create_server(calls)
    # Not json_response: a client that goes away cancels its call. Stateless: a restart, or a second bridge behind the
    # same name, goes unnoticed.
    manager = StreamableHTTPSessionManager(server, stateless=True, max_request_body_size=MAX_BODY)
    door = Door(settings, calls, Exchange(Express(calls, announces=False), manager.handle_request))
    config = uvicorn.Config(
        door,
        http="httptools",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    # Streams of running calls are to end with their answers, not with SIGTERM.
    AppStatus.enable_automatic_graceful_drain = False
    # uvicorn raises the signal again once it has stopped; the bridge has ended as it was told, so that is exit code 0.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: None)
    background = [asyncio.ensure_future(calls.watch_tools()), asyncio.ensure_future(_report(calls))]
    try:
        async with manager.run():
            await _Server(config, settings, end_listening).serve(sockets=[listener])
    finally:
        for task in background:
            task.cancel()
        await calls.close()


async def _report(calls: Calls) -> None:
    """Tell systemd that the bridge is alive, and what it is doing; never ends."""
    interval_s = systemd.watchdog_s() / 2
    while True:
        await asyncio.sleep(interval_s)
        slots = calls.backend.slots.values()
        busy = f"{sum(slot.running for slot in slots)} calls running, {sum(slot.queued for slot in slots)} waiting"
        systemd.notify(f"WATCHDOG=1\nSTATUS=Serving: {busy}")


class _Server(uvicorn.Server):
    """uvicorn, with word to systemd."""

    def __init__(self, config: uvicorn.Config, settings: ServeSettings, end_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_listening = end_listening
        self._summary = (
            f"{_authority(settings.listen.address, settings.listen.port)}: {len(settings.engines)} model(s), "
            f"{len(settings.developers)} developer(s)"
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        systemd.notify(f"READY=1\nSTATUS=Serving on {self._summary}")
        log.info("serving on %s", self._summary)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        systemd.notify("STOPPING=1\nSTATUS=Finishing running calls")
        log.info("stopping: running calls have %d s to finish", DRAIN_S)
        self._end_listening()
        await super().shutdown(sockets)


class Door:
    """The ASGI application: lets the right requests through to MCP, says to the others what is wrong with them.

    Args:
        settings: accepted hosts and developers.
        calls: asked for readiness and metrics.
        exchange: serves MCP.
    """

    def __init__(self, settings: ServeSettings, calls: Calls, exchange: Exchange) -> None:
        self._calls = calls
        self._exchange = exchange
        self._metrics = Metrics(calls.backend)
        calls.observers.append(self._metrics)
        self._directory = Directory(settings.developers, settings.tokens_file)
        self._hosts = {*_LOOPBACK, *settings.allowed_hosts, _authority(settings.listen.address)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = _headers(scope)
        response: Response | None
        match scope["path"]:
            case "/mcp":
                response = await self._mcp(scope, headers, receive, send)
            case "/healthz" | "/readyz" | "/metrics" if scope["method"] not in {"GET", "HEAD"}:
                response = _text(405, "Only GET.", {"Allow": "GET, HEAD"})
            case "/healthz":
                response = _text(200, "ok")
            case "/readyz":
                response = await self._readiness()
            case "/metrics":
                response = self._read_metrics(scope, headers)
            case _:
                response = _text(404, "Nothing here. MCP is at /mcp, health at /healthz and /readyz.")
        if response:
            await response(scope, receive, send)

    async def _mcp(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> Response | None:
        """Answer a request to /mcp; returns what is still to be sent."""
        refusal = self._refusal(scope, headers)
        if refusal is None:
            try:
                await self._exchange(scope, headers, receive, send)
            except TooBigError:
                return _text(413, f"The request has more than {MAX_BODY} bytes. Send less.", {"Connection": "close"})
            return None
        log.warning("refused status=%d peer=%s", refusal.status_code, _peer(scope))
        return refusal

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        """Return why a request to /mcp is refused; None: it is not, and the scope holds the developer."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._accepts(host):
            return _text(421, f"This bridge does not answer to the host {host[:100]!r}. Add it to allowed_hosts.")
        if origin is not None and not self._accepts(urlsplit(origin).netloc):
            return _text(403, f"Web pages of {origin[:100]!r} may not call this bridge.")
        developer = self._directory.developer_of(headers.get("authorization"))
        if developer is None:
            return _unknown(headers)
        if scope["method"] != "POST":
            return _text(
                405, "MCP here is POST only: there are no sessions and no standing streams.", {"Allow": "POST"}
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > MAX_BODY:
            return _text(413, f"The request has {length} bytes, the most is {MAX_BODY}. Send less.")
        scope["developer"] = developer
        return None

    def _read_metrics(self, scope: Scope, headers: Mapping[str, str]) -> Response:
        """Return the metrics, which have the names of developers, to this host and to those with a token."""
        stranger = self._directory.developer_of(headers.get("authorization")) is None
        if stranger and _peer(scope) not in _LOOPBACK_PEERS:
            return _unknown(headers)
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    def _accepts(self, authority: str) -> bool:
        """Whether a Host header is ours: an entry without a port stands for every port."""
        authority = authority.lower()
        name, _, port = authority.rpartition(":")
        return authority in self._hosts or (port.isdecimal() and name in self._hosts)

    async def _readiness(self) -> Response:
        reasons = await self._calls.backend.readiness()
        ready = not any(reasons.values())
        models = {name: reason or "ready" for name, reason in reasons.items()}
        return JSONResponse({"ready": ready, "models": models}, 200 if ready else 503)


def _authority(address: str, port: int | None = None) -> str:
    host = f"[{address}]" if ":" in address else address
    return host if port is None else f"{host}:{port}"


def _headers(scope: Scope) -> dict[str, str]:
    """Return the headers by their names in lower case; those of one name are joined, as HTTP has it.

    Blanks around a value are no part of it, which httptools leaves at its end: they go from the scope, too.
    """
    scope["headers"] = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _peer(scope: Scope) -> str:
    return str(scope["client"][0]) if scope["client"] else "-"


def _unknown(headers: Mapping[str, str]) -> Response:
    problem = "is not known here" if "authorization" in headers else "is missing"
    return _text(
        401,
        f"The token {problem}. Send 'Authorization: Bearer <your token>'; whoever runs this bridge gives tokens"
        " and enters their SHA-256 under developers.",
        {"WWW-Authenticate": 'Bearer realm="local-llm-bridge"'},
    )


def _text(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(text + "\n", status, headers)


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=512)
    except OSError as error:
        raise ListenError(
            f"cannot listen on {_authority(address, port)}: {os.strerror(error.errno or 0)}. "
            "Is another program there, or is the address not this host's? Change listen.address or listen.port."
        ) from None


def serve(settings: ServeSettings) -> None:
    """Run until told to stop, on uvloop.

    Args:
        settings: address, models and developers.

    Raises:
        ListenError: the address is taken or not of this host.
    """
    import uvloop  # noqa: PLC0415 - of no use for stdio

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings))
