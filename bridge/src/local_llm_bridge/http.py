"""MCP over streamable HTTP at /mcp for developers with a token, /healthz and /readyz for machines."""

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
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse, Response

from local_llm_bridge import systemd
from local_llm_bridge.auth import developer_of
from local_llm_bridge.calls import Calls
from local_llm_bridge.errors import ListenError
from local_llm_bridge.sdk import create_server

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from local_llm_bridge.config import ServeSettings

log = logging.getLogger(__name__)

MAX_BODY = 4 * 1024 * 1024
"""Largest request in bytes: a million tokens of text, more than any model's context."""
DRAIN_S = 30
"""How long running calls may go on after SIGTERM, in seconds. The unit's TimeoutStopSec must be longer."""
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


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
    # Not json_response: quick answers are JSON all the same, slow ones get keep-alives, and a client that goes away
    # cancels its call. Stateless: a restart, or a second bridge behind the same name, goes unnoticed.
    manager = StreamableHTTPSessionManager(create_server(calls), stateless=True, max_request_body_size=MAX_BODY)
    config = uvicorn.Config(
        Door(settings, calls, manager),
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
    try:
        async with manager.run():
            await _Server(config, settings).serve(sockets=[listener])
    finally:
        await calls.close()


class _Server(uvicorn.Server):
    """uvicorn, with word to systemd."""

    def __init__(self, config: uvicorn.Config, settings: ServeSettings) -> None:
        super().__init__(config)
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
        await super().shutdown(sockets)


class Door:
    """The ASGI application: lets the right requests through to MCP, says to the others what is wrong with them.

    Args:
        settings: accepted hosts and developers.
        calls: runs the tools.
        manager: serves MCP.
    """

    def __init__(self, settings: ServeSettings, calls: Calls, manager: StreamableHTTPSessionManager) -> None:
        self._calls = calls
        self._manager = manager
        self._developers = settings.developers
        self._hosts = {*_LOOPBACK, *settings.allowed_hosts, _authority(settings.listen.address)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        match scope["path"]:
            case "/mcp":
                refusal = self._refusal(scope)
                if refusal is None:
                    await self._manager.handle_request(scope, receive, send)
                    return
                peer = scope["client"][0] if scope["client"] else "-"
                log.warning("refused status=%d peer=%s", refusal.status_code, peer)
                response = refusal
            case "/healthz" | "/readyz" if scope["method"] not in {"GET", "HEAD"}:
                response = _text(405, "Only GET.", {"Allow": "GET, HEAD"})
            case "/healthz":
                response = _text(200, "ok")
            case "/readyz":
                response = await self._readiness()
            case _:
                response = _text(404, "Nothing here. MCP is at /mcp, health at /healthz and /readyz.")
        await response(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return why a request to /mcp is refused; None: it is not, and the scope holds the developer."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._accepts(host):
            return _text(421, f"This bridge does not answer to the host {host[:100]!r}. Add it to allowed_hosts.")
        if origin is not None and not self._accepts(urlsplit(origin).netloc):
            return _text(403, f"Web pages of {origin[:100]!r} may not call this bridge.")
        developer = developer_of(headers.get("authorization"), self._developers)
        if developer is None:
            problem = "is not known here" if "authorization" in headers else "is missing"
            return _text(
                401,
                f"The token {problem}. Send 'Authorization: Bearer <your token>'; whoever runs this bridge gives tokens"
                " and enters their SHA-256 under developers.",
                {"WWW-Authenticate": 'Bearer realm="local-llm-bridge"'},
            )
        if scope["method"] != "POST":
            return _text(
                405, "MCP here is POST only: there are no sessions and no standing streams.", {"Allow": "POST"}
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > MAX_BODY:
            return _text(413, f"The request has {length} bytes, the most is {MAX_BODY}. Send less.")
        scope["developer"] = developer
        return None

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
