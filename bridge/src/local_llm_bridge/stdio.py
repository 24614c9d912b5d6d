"""MCP over standard input and output, one JSON message a line.

The SDK's own transport drops lines that are not JSON and refuses requests that come before a handshake. People pipe
`{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}` into a server to see whether it works: here both get an answer,
and what was asked before the input ended is answered before the program ends.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import anyio
import mcp_types as types
from mcp.shared.message import SessionMessage
from mcp_types.jsonrpc import jsonrpc_message_adapter
from mcp_types.version import LATEST_MODERN_VERSION
from pydantic import ValidationError

from local_llm_bridge.calls import Calls
from local_llm_bridge.sdk import create_server

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from local_llm_bridge.config import Settings


async def run(settings: Settings) -> None:
    """Serve the process's standard input and output until the input ends or SIGTERM or SIGINT comes.

    Args:
        settings: the engine and its limits.
    """
    calls = Calls(settings)
    server = create_server(calls)
    serving = asyncio.ensure_future(_serve(server))
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, serving.cancel)
    try:
        await serving
    except* (asyncio.CancelledError, BrokenPipeError):
        pass  # told to stop, or the client has gone without a word
    finally:
        await calls.close()


async def _serve(server: Any) -> None:  # noqa: ANN401 - Server[Any]
    wire = os.dup(1)
    os.dup2(2, 1)  # whatever prints goes to stderr: the wire holds nothing but messages
    lines_in, lines = anyio.create_memory_object_stream[bytes](math.inf)
    to_server, requests = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    replies, from_server = anyio.create_memory_object_stream[SessionMessage](0)
    session = _Session(wire)
    loop = asyncio.get_running_loop()
    # A thread, because files and terminals cannot be polled; a daemon, because its read cannot be interrupted.
    threading.Thread(target=_read_lines, args=(loop, lines_in), daemon=True).start()
    async with anyio.create_task_group() as group:
        group.start_soon(session.forward_lines, lines, to_server)
        group.start_soon(session.write_replies, from_server)
        await server.run(requests, replies, server.create_initialization_options())


def _read_lines(loop: asyncio.AbstractEventLoop, lines: MemoryObjectSendStream[bytes]) -> None:
    with open(0, "rb", closefd=False) as wire:
        for line in wire:
            loop.call_soon_threadsafe(lines.send_nowait, line)
    loop.call_soon_threadsafe(lines.close)


class _Session:
    """What has to be known of one conversation: how it began, and what is still owed."""

    def __init__(self, wire: int) -> None:
        self._wire = wire
        self._began_with_handshake: bool | None = None
        self._owed: set[types.RequestId] = set()
        self._settled = anyio.Event()

    async def forward_lines(
        self, lines: MemoryObjectReceiveStream[bytes], to_server: MemoryObjectSendStream[SessionMessage | Exception]
    ) -> None:
        async with to_server, lines:
            async for line in lines:
                if not line.strip():
                    continue
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValidationError as error:
                    self._write(_refusal(error))
                    continue
                if isinstance(message, types.JSONRPCRequest):
                    self._owed.add(message.id)
                    self._complete(message)
                elif isinstance(message, types.JSONRPCNotification) and message.method == "notifications/cancelled":
                    self._settle((message.params or {}).get("requestId"))
                await to_server.send(SessionMessage(message))
            # Closing the stream would cancel the calls that are running.
            while self._owed:
                self._settled = anyio.Event()
                await self._settled.wait()

    async def write_replies(self, from_server: MemoryObjectReceiveStream[SessionMessage]) -> None:
        async with from_server:
            async for reply in from_server:
                message = reply.message
                await asyncio.to_thread(self._write, message)
                if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
                    self._settle(message.id)

    def _complete(self, request: types.JSONRPCRequest) -> None:
        """Let a request without handshake and envelope through, as one of the protocol that needs no handshake."""
        meta = (request.params or {}).get("_meta")
        enveloped = isinstance(meta, dict) and types.PROTOCOL_VERSION_META_KEY in meta
        if self._began_with_handshake is None:
            self._began_with_handshake = request.method in {"initialize", "ping"}
        if not self._began_with_handshake and not enveloped and request.method != "initialize":
            envelope = {
                types.PROTOCOL_VERSION_META_KEY: LATEST_MODERN_VERSION,
                types.CLIENT_CAPABILITIES_META_KEY: {},
            }
            request.params = {**(request.params or {}), "_meta": {**(meta or {}), **envelope}}

    def _settle(self, request_id: object) -> None:
        self._owed.discard(request_id)
        self._settled.set()

    def _write(self, message: types.JSONRPCMessage) -> None:
        data = message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
        while data:
            data = data[os.write(self._wire, data) :]


def _refusal(error: ValidationError) -> types.JSONRPCError:
    """Answer a line that is no message, without repeating it."""
    if any(item["type"] == "json_invalid" for item in error.errors()):
        data = types.ErrorData(code=types.PARSE_ERROR, message="Parse error: the line is not valid JSON")
    else:
        text = 'Invalid request: wanted a JSON-RPC 2.0 message such as {"jsonrpc":"2.0","id":1,"method":"tools/list"}'
        data = types.ErrorData(code=types.INVALID_REQUEST, message=text)
    return types.JSONRPCError(jsonrpc="2.0", id=None, error=data)
