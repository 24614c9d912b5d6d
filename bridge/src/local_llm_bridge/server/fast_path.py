"""The fast path: everyday messages of both protocol eras, answered without the SDK.

The SDK knows the whole protocol, and takes most of a second to import and a millisecond to carry a message. Nearly all
messages are a handful of kinds, so those are answered here, if they are well-formed to the letter and hold nothing out
of the ordinary. `read` returns None for all others, and they go to the SDK. Both paths give the same answers:
`tests/test_fast_path.py` compares them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, to_json

from local_llm_bridge import __version__
from local_llm_bridge.audit import UNKNOWN, Caller
from local_llm_bridge.errors import BadMessageError
from local_llm_bridge.readings import as_object
from local_llm_bridge.server.dispatch import Call, Dispatcher, Wire
from local_llm_bridge.server.message import VERSION_KEY, overlong
from local_llm_bridge.server.progress import reporting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HANDSHAKE_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
MODERN_VERSION = "2026-07-28"
"""The version in which every request stands for itself: its `_meta` says what the handshake said before."""
_VERSIONS = (MODERN_VERSION, *reversed(HANDSHAKE_VERSIONS))
_UNSUPPORTED = -32022
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
_CLIENT_KEY = "io.modelcontextprotocol/clientInfo"
SERVER = {"name": "local-llm-bridge", "version": __version__}
_SERVER_KEY = "io.modelcontextprotocol/serverInfo"
_NO_CACHING = {"ttlMs": 0, "cacheScope": "private"}


@dataclass(frozen=True)
class FastPathRequest:
    """A request of the fast path.

    Args:
        id: of the request.
        method: one of those below.
        params: the method's parameters.
        modern: whether it is one of the version that knows no handshake.
        progress_token: what notifications of its progress are marked with; None: nobody wants them.
    """

    id: str | int
    method: str
    params: Wire
    modern: bool
    progress_token: str | int | None = None


def read(message: object) -> FastPathRequest | None:
    """Return a message as an everyday request; None: it is none, or not well-formed."""
    if not isinstance(message, dict) or not message.keys() <= {"jsonrpc", "id", "method", "params"}:
        return None
    params = message.get("params", {})
    if message.get("jsonrpc") != "2.0" or not _is_id(message.get("id")) or not isinstance(params, dict):
        return None
    meta = {} if params.get("_meta") is None else params["_meta"]
    if not isinstance(meta, dict) or not (meta.get("progressToken") is None or _is_id(meta["progressToken"])):
        return None
    modern = VERSION_KEY in meta
    if modern and not _is_envelope(meta):
        return None
    method = message.get("method")
    fits = _METHODS.get((method, modern)) if isinstance(method, str) else None
    if fits is None or not fits({key: value for key, value in params.items() if key != "_meta" and value is not None}):
        return None
    return FastPathRequest(message["id"], str(method), params, modern, meta.get("progressToken"))


def is_notification(message: object) -> bool:
    """Whether a message is a well-formed notification."""
    return (
        isinstance(message, dict)
        and message.keys() <= {"jsonrpc", "method", "params"}
        and message.get("jsonrpc") == "2.0"
        and str(message.get("method")).startswith("notifications/")
        and isinstance(message.get("params"), dict | None)
    )


def unsupported(found: str, version: str, request_id: str | int | None) -> BadMessageError:
    """Return the error about a version that nobody here speaks.

    Args:
        found: says where the version was named, and what it is.
        version: is that version.
        request_id: of the message.
    """
    text = f"Unsupported protocol version: {found}; this bridge speaks {', '.join(_VERSIONS)}."
    data = {"supported": [MODERN_VERSION], "requested": version}  # the same as server/discover says
    error = BadMessageError(_UNSUPPORTED, text, request_id)
    error.reply = {**error.reply, "error": {"code": _UNSUPPORTED, "message": text, "data": data}}
    return error


class FastPath:
    """Answers everyday requests.

    Args:
        dispatcher: runs the tools.
        announces: whether clients with a handshake can be told of new tools.
    """

    def __init__(self, dispatcher: Dispatcher, *, announces: bool) -> None:
        self._dispatcher = dispatcher
        self._announces = announces

    def answer(self, request: FastPathRequest) -> Wire:
        """Return the reply to a request that is not `tools/call`."""
        match request.method:
            case "tools/list":
                result: Wire = {"tools": self._dispatcher.tools.listing}
            case "initialize":
                wanted = request.params["protocolVersion"]
                result = {
                    "protocolVersion": wanted if wanted in HANDSHAKE_VERSIONS else HANDSHAKE_VERSIONS[-1],
                    "capabilities": {"tools": {"listChanged": self._announces}},
                    "serverInfo": SERVER,
                    "instructions": self._dispatcher.instructions,
                }
            case "server/discover":
                result = {
                    "supportedVersions": [MODERN_VERSION],
                    "capabilities": {"tools": {"listChanged": True}},
                    "instructions": self._dispatcher.instructions,
                }
            case _:  # ping
                result = {}
        if request.modern:
            result = {**result, **_NO_CACHING}
        return _reply(request, result)

    async def call(
        self,
        request: FastPathRequest,
        send: Callable[[Wire], Awaitable[None]],
        caller: Caller = UNKNOWN,
        model: str | None = None,
    ) -> Wire:
        """Run a `tools/call`; return the reply.

        Args:
            request: the call.
            send: sends the client notifications of the call's progress, if it wants them.
            caller: who calls.
            model: answers if the call names none; None: the bridge chooses.
        """
        arguments = as_object(request.params.get("arguments")) or {}
        call = Call(request.params["name"], arguments, caller, model=model)
        if request.progress_token is None:
            return _reply(request, await self._dispatcher.run(call))

        async def tell(tokens: int, message: str) -> None:
            params = {"progressToken": request.progress_token, "progress": tokens, "message": message}
            await send({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})

        async with reporting(tell) as progress:
            result = await self._dispatcher.run(replace(call, progress=progress))
        return _reply(request, result)


def encode(message: Wire) -> bytes:
    """Return a message as it goes over the wire."""
    try:
        return to_json(message)
    except PydanticSerializationError:  # half of a surrogate pair, which JSON can hold and UTF-8 cannot
        return json.dumps(message, separators=(",", ":")).encode()


def _reply(request: FastPathRequest, result: Wire) -> Wire:
    if request.modern:
        result = {**result, "resultType": "complete", "_meta": {**result.get("_meta", {}), _SERVER_KEY: SERVER}}
    return {"jsonrpc": "2.0", "id": request.id, "result": result}


def _is_id(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and not overlong(value)


def _is_envelope(meta: Wire) -> bool:
    return (
        meta[VERSION_KEY] == MODERN_VERSION
        and _is_capabilities(meta.get(CAPABILITIES_KEY))
        and (_CLIENT_KEY not in meta or _is_implementation(meta[_CLIENT_KEY]))
    )


def _is_capabilities(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(capability, dict)
        and all(isinstance(detail, bool if name == "roots" else dict) for detail in capability.values())
        for name, capability in value.items()
    )


def _is_implementation(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and isinstance(value.get("version"), str)
        and all(isinstance(detail, str | None) for detail in value.values())
    )


def _is_initialize(params: Wire) -> bool:
    return (
        params.keys() == {"protocolVersion", "capabilities", "clientInfo"}
        and isinstance(params["protocolVersion"], str)
        and _is_capabilities(params["capabilities"])
        and _is_implementation(params["clientInfo"])
    )


def _is_call(params: Wire) -> bool:
    return (
        params.keys() <= {"name", "arguments"}
        and isinstance(params.get("name"), str)
        and as_object(params.get("arguments")) is not None
    )


def _is_empty(params: Wire) -> bool:
    return not params


_METHODS: dict[tuple[str, bool], Callable[[Wire], Any]] = {
    ("initialize", False): _is_initialize,
    ("ping", False): _is_empty,
    ("server/discover", True): _is_empty,
    ("tools/list", False): _is_empty,
    ("tools/list", True): _is_empty,
    ("tools/call", False): _is_call,
    ("tools/call", True): _is_call,
}
