"""Who gets in at which path: MCP at /mcp for developers with a token, health and metrics for machines."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from local_llm_bridge.audit import ANONYMOUS, Caller
from local_llm_bridge.auth import NAME_HEADER, Authenticator
from local_llm_bridge.errors import BadMessageError, RefusedRequestError
from local_llm_bridge.metrics import Metrics
from local_llm_bridge.models.limits import AtOnce, Rate
from local_llm_bridge.server.asgi import Response, text
from local_llm_bridge.server.handler import IS_TAKEN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Message, Receive, Scope, Send

    from local_llm_bridge.config import ServeSettings
    from local_llm_bridge.server.dispatch import Dispatcher
    from local_llm_bridge.server.handler import Handler

log = logging.getLogger(__name__)

ID_HEADER = "x-request-id"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_LOOPBACK_PEERS = ("127.0.0.1", "::1")
_OAUTH = re.compile(r"/register|/token|/authorize|(?:/mcp)?/\.well-known/(?:oauth-|openid-configuration).*", re.DOTALL)
"""Where clients look for OAuth once their token has been refused."""
_NO_OAUTH = {
    "error": "invalid_request",
    "error_description": "The token in the Authorization header is missing or not known here, and there is no OAuth to "
    "get one by. Send 'Authorization: Bearer <your token>' (claude mcp add --header); whoever runs this bridge gives "
    "tokens.",
}
_ORIGIN = re.compile(
    r"(?:null|file://)?|[A-Za-z][A-Za-z0-9+.-]*://(?P<host>(?:\[[0-9A-Fa-f:.]+\]|[!-.0-9;-?A-~]+)(?::\d{1,5})?)"
)
_STATUS = "status"
"""Key of a request's scope: that of its answer, once there is one. The SDK refuses requests, too."""
_MESSAGES_PER_CALL = 10
"""How many requests of any kind a developer may send for each call that a minute allows.

A session of Claude Code begins with three, and asks for the list of tools again now and then.
"""
_LEAST_MESSAGES = 600
"""So many they may send in a minute however few calls are allowed."""
_MOST_REQUESTS = 128
"""How many requests one developer may have under way: four times what a gateway lets through, unless told otherwise."""


class App:
    """The ASGI application: lets the right requests through to MCP, says to the others what is wrong with them.

    Args:
        settings: accepted hosts and developers.
        dispatcher: asked for readiness and metrics.
        handler: serves MCP.
    """

    def __init__(self, settings: ServeSettings, dispatcher: Dispatcher, handler: Handler) -> None:
        self._dispatcher = dispatcher
        self._handler = handler
        self._metrics = Metrics(dispatcher.backend)
        dispatcher.observers.append(self._metrics)
        self._authenticator = Authenticator(settings.developers, settings.tokens_file, settings.gateway_keys)
        self._hosts = {*_LOOPBACK, *settings.allowed_hosts, authority(settings.listen.address)}
        calls_per_minute = settings.requests_per_minute
        self._messages = Rate(max(_LEAST_MESSAGES, _MESSAGES_PER_CALL * calls_per_minute) if calls_per_minute else 0)
        self._requests = AtOnce(_MOST_REQUESTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return

        async def send_if_there(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope[_STATUS] = message["status"]
            try:
                await send(message)
            except RuntimeError as error:
                # uvicorn does not notice that a client has gone which has sent another request after this one.
                if "closed=True" not in str(error):
                    raise

        await self._answer(scope, receive, send_if_there)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        response: Response | None
        match scope["path"]:
            case "/mcp" | "/mcp/":
                response = await self._mcp(scope, headers, receive, send)
            case "/healthz" | "/readyz" | "/metrics" if not self._is_for_machines(scope, headers):
                response = self._stranger(headers["host"])
                self._dispatcher.audit.refused(
                    _caller(scope, headers, ANONYMOUS), f"GET {scope['path']}", response.status
                )
            case "/healthz" | "/readyz" | "/metrics" if scope["method"] not in {"GET", "HEAD"}:
                response = text(405, "Only GET.", {"Allow": "GET, HEAD"})
            case "/healthz":
                response = text(200, "ok")
            case "/readyz":
                response = await self._readiness()
            case "/metrics":
                response = self._read_metrics(scope, headers)
            case path if _OAUTH.fullmatch(path):  # shown by Claude Code, which asks for no token itself
                response = Response(404, json.dumps(_NO_OAUTH).encode(), "application/json")
            case _:
                response = text(404, "Nothing here. MCP is at /mcp, health at /healthz and /readyz.")
        if response:
            await response.send(send)

    async def _mcp(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> Response | None:
        """Answer a request to /mcp; returns what is still to be sent."""
        refusal = self._refusal(scope, headers) or self._over_limit(scope["caller"].developer)
        if refusal is None:
            try:
                await self._handler(scope, headers, receive, send)
                await scope[IS_TAKEN]()
            except BadMessageError as error:
                refusal = Response(400, json.dumps(error.reply).encode(), "application/json")
            except RefusedRequestError as error:
                refusal = text(error.status, str(error), error.headers)
            finally:
                self._requests.leave(scope["caller"].developer)
        status = refusal.status if refusal else scope.get(_STATUS, 0)
        if status >= HTTPStatus.BAD_REQUEST:
            caller = scope.get("caller") or _caller(scope, headers, ANONYMOUS)
            self._dispatcher.audit.refused(caller, f"{scope['method']} /mcp", status)
        return refusal

    def _over_limit(self, developer: str) -> Response | None:
        """Return why a developer's request is too much; None: it is not, and counted."""
        if wait_s := self._messages.take(developer):
            return text(
                429,
                f"{developer} has sent all requests that a minute allows. Try again in {wait_s} s; requests_per_minute "
                "in the bridge's settings sets the limit.",
                {"Retry-After": str(wait_s)},
            )
        if not self._requests.enter(developer):
            return text(
                429,
                f"{developer} has {self._requests.most} requests running, the most that one developer may have. Wait "
                "until one ends.",
                {"Retry-After": "5"},
            )
        return None

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        """Return why a request to /mcp is refused; None: it is not.

        Then the scope holds the caller, and the model that answers calls which name none (None: the bridge chooses).
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._accepts(host):
            return self._stranger(host)
        if origin is not None:
            page = _ORIGIN.fullmatch(origin)
            if not page or not self._accepts(page["host"] or ""):
                return _foreign(origin, page)
        developer = self._authenticator.developer_of(headers.get("authorization"), headers.get(NAME_HEADER))
        if not developer:
            return _unknown(headers) if developer is None else _unnamed(headers)
        if scope["method"] != "POST":
            return text(405, "MCP here is POST only: there are no sessions and no standing streams.", {"Allow": "POST"})
        scope["caller"] = _caller(scope, headers, developer)
        query = scope["query_string"]
        scope["model"] = parse_qs(query.decode("latin-1")).get("model", [None])[0] if query else None
        return None

    def _read_metrics(self, scope: Scope, headers: Mapping[str, str]) -> Response:
        """Return the metrics, which have the names of developers, to this host and to those with a token."""
        known = self._authenticator.developer_of(headers.get("authorization"), headers.get(NAME_HEADER))
        if not known and _peer(scope) not in _LOOPBACK_PEERS:
            return _unknown(headers)
        return Response(200, self._metrics.text(), "text/plain; version=0.0.4; charset=utf-8")

    def _accepts(self, authority: str) -> bool:
        """Whether a Host header is ours: an entry without a port stands for every port."""
        authority = authority.lower()
        name, _, port = authority.rpartition(":")
        return authority in self._hosts or (port.isdecimal() and name in self._hosts)

    def _is_for_machines(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        """Whether a request for health or metrics may be answered.

        A web page whose name somebody has made lead here would read them in the browser of whoever opens it. Browsers
        always send that name. HAProxy's checks send none, and Prometheus the name of its target: that of this host,
        or the address to which the connection came.
        """
        host = headers.get("host")
        if host is None or self._accepts(host):
            return True
        name = host.lower() if host.endswith("]") or ":" not in host else host.lower().rpartition(":")[0]
        server = scope.get("server") or ("",)
        return name in {authority(server[0]), socket.gethostname().lower()}

    @staticmethod
    def _stranger(host: str) -> Response:
        return text(421, f"This bridge does not answer to the host {host[:100]!r}. Add it to allowed_hosts.")

    async def _readiness(self) -> Response:
        reasons = await self._dispatcher.backend.readiness()
        ready = not any(reasons.values())
        models = {name: reason or "ready" for name, reason in reasons.items()}
        body = json.dumps({"ready": ready, "models": models}, ensure_ascii=False).encode()
        return Response(200 if ready else 503, body, "application/json")


def authority(address: str, port: int | None = None) -> str:
    """Return an address, and perhaps a port, as they stand in a URL."""
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


def _caller(scope: Scope, headers: Mapping[str, str], developer: str) -> Caller:
    """Say who calls; a gateway in front has given the request its id."""
    given = headers.get(ID_HEADER, "")
    return Caller(developer, _peer(scope), given if re.fullmatch("[0-9A-Za-z-]{1,64}", given) else os.urandom(16).hex())


def _peer(scope: Scope) -> str:
    return str(scope["client"][0]) if scope["client"] else ANONYMOUS


def _foreign(origin: str, page: re.Match[str] | None) -> Response:
    """Say why a web page may not call, which an app with pages of its own is to the bridge, too."""
    shown, program = f"{origin[:100]!r}", "A program that is no web page sends no Origin."
    if not page:
        return text(400, f"The Origin {shown} is malformed. Send scheme, host and port of the page. {program}")
    if not page["host"]:
        return text(403, f"Web pages of {shown} may not call this bridge: such a page may be anybody's. {program}")
    allowing = f"If this page or app is to call, the operator adds {page['host'][:100]!r} to allowed_hosts."
    return text(403, f"Web pages of {shown} may not call this bridge. {program} {allowing}")


def _unknown(headers: Mapping[str, str]) -> Response:
    sent = headers.get("authorization")
    problem = "is missing" if sent is None else "came twice" if "," in sent else "is not known here"
    return text(
        401,
        f"The token {problem}. Send 'Authorization: Bearer <your token>'; whoever runs this bridge gives tokens"
        " (local-llm-bridge token new, or their SHA-256 under developers).",
        {"WWW-Authenticate": 'Bearer realm="local-llm-bridge"'},
    )


def _unnamed(headers: Mapping[str, str]) -> Response:
    found = "no name of a developer" if NAME_HEADER in headers else "missing"
    problem = f"The gateway's key came without a developer: the header X-Local-LLM-Developer is {found}."
    log.error("%s Does the gateway set it?", problem)
    return text(403, f"{problem} The gateway that holds this key has to set it; developers send their own token.")
