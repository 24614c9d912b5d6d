"""The SDK's end of a conversation over stdio, begun when the first message comes that the fast path does not take."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import mcp_types as types
from mcp.server.lowlevel import NotificationOptions
from mcp.shared.message import SessionMessage
from mcp_types.jsonrpc import jsonrpc_message_adapter
from pydantic import ValidationError

from local_llm_bridge.server.sdk import create_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from anyio.streams.memory import MemoryObjectReceiveStream

    from local_llm_bridge.server.dispatch import Dispatcher, Wire

_REPLAYED = "local-llm-bridge/handshake"
_EXAMPLE = '{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
_INVALID: Wire = {
    "jsonrpc": "2.0",
    "id": None,
    "error": {
        "code": types.INVALID_REQUEST,
        "message": f"Invalid request: wanted a JSON-RPC 2.0 message such as {_EXAMPLE}",
    },
}


class SdkSession:
    """The SDK's server at the end of a conversation.

    Args:
        dispatcher: runs the tools.
        send: sends a message to the client.
    """

    def __init__(self, dispatcher: Dispatcher, send: Callable[[Wire], None]) -> None:
        server, _ = create_server(dispatcher)
        self._send = send
        self._owed: set[types.RequestId] = set()
        self._settled = asyncio.Event()
        self._to_server, requests = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        replies, from_server = anyio.create_memory_object_stream[SessionMessage](0)
        # Over stdio a client with a handshake can be told of new tools: Session does.
        options = server.create_initialization_options(NotificationOptions(tools_changed=True))
        self._tasks = [
            asyncio.ensure_future(server.run(requests, replies, options)),
            asyncio.ensure_future(self._pass_on(from_server)),
        ]
        self._streams = (self._to_server, requests, replies, from_server)

    @classmethod
    async def begin(
        cls, dispatcher: Dispatcher, send: Callable[[Wire], None], handshake: Wire | None, *, is_ready: bool
    ) -> Self:
        """Return a session that is where the conversation is.

        Args:
            dispatcher: runs the tools.
            send: sends a message to the client.
            handshake: the parameters of `initialize`, if the client has sent it.
            is_ready: whether it has sent `notifications/initialized`, too.
        """
        session = cls(dispatcher, send)
        if handshake:
            await session.receive({"jsonrpc": "2.0", "id": _REPLAYED, "method": "initialize", "params": handshake})
            await session.settle()
        if is_ready:
            await session.receive({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return session

    async def receive(self, message: Any) -> None:  # noqa: ANN401 - whatever JSON holds
        """Take in one message."""
        try:
            parsed = jsonrpc_message_adapter.validate_python(message, by_name=False)
        except ValidationError:
            self._send(_INVALID)
            return
        if isinstance(parsed, types.JSONRPCRequest):
            self._owed.add(parsed.id)
        elif isinstance(parsed, types.JSONRPCNotification) and parsed.method == "notifications/cancelled":
            self._settle((parsed.params or {}).get("requestId"))
        await self._to_server.send(SessionMessage(parsed))

    async def settle(self) -> None:
        """Wait until all that was asked has been answered."""
        while self._owed:
            self._settled.clear()
            await self._settled.wait()

    async def close(self) -> None:
        """End the session."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError, Exception):
                await task
        for stream in self._streams:
            stream.close()

    async def _pass_on(self, from_server: MemoryObjectReceiveStream[SessionMessage]) -> None:
        async for reply in from_server:
            message = reply.message
            answered = message.id if isinstance(message, types.JSONRPCResponse | types.JSONRPCError) else None
            if answered != _REPLAYED:
                self._send(message.model_dump(mode="json", by_alias=True, exclude_unset=True))
            self._settle(answered)

    def _settle(self, request_id: object) -> None:
        if isinstance(request_id, str | int):
            self._owed.discard(request_id)
        self._settled.set()
