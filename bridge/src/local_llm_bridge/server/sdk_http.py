"""The SDK's end of HTTP, begun when the first request comes that the fast path does not take."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING

from local_llm_bridge.server.body import MAX_BODY

if TYPE_CHECKING:
    from collections.abc import Callable

    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from starlette.types import Receive, Scope, Send

    from local_llm_bridge.server.dispatch import Dispatcher


class SdkHttp:
    """The ASGI application of the SDK.

    Args:
        dispatcher: runs the tools.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._beginning = asyncio.Lock()
        self._ending = asyncio.Event()
        self._manager: StreamableHTTPSessionManager | None = None
        self._serving: asyncio.Task[None] | None = None
        self._end_listening: Callable[[], None] = lambda: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        async with self._beginning:
            manager = self._manager or await self._begin()
        await manager.handle_request(scope, receive, send)

    def end_listening(self) -> None:
        """End the streams of those who wait for word of new tools, and which else would not end."""
        self._end_listening()

    async def close(self) -> None:
        """Stop."""
        self._ending.set()
        if self._serving:
            await self._serving

    async def _begin(self) -> StreamableHTTPSessionManager:
        # In a thread: running calls are not to wait for an import of most of a second.
        sdk = await asyncio.to_thread(importlib.import_module, "local_llm_bridge.server.sdk")
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager  # noqa: PLC0415
        from sse_starlette.sse import AppStatus  # noqa: PLC0415

        # Streams of running calls are to end with their answers, not with SIGTERM.
        AppStatus.enable_automatic_graceful_drain = False
        server, self._end_listening = sdk.create_server(self._dispatcher)
        # Not json_response: a client that goes away cancels its call. Stateless: a restart, or a second bridge behind
        # the same name, goes unnoticed.
        manager = StreamableHTTPSessionManager(server, stateless=True, max_request_body_size=MAX_BODY)
        begun = asyncio.Event()

        async def serve() -> None:
            async with manager.run():
                begun.set()
                await self._ending.wait()

        self._serving = asyncio.ensure_future(serve())
        await begun.wait()
        self._manager = manager
        return manager
