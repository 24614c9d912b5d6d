"""Telling a client how far a call is, a few times a second at most."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

INTERVAL_S = 0.5
"""Shortest time between two notifications, in seconds."""


@asynccontextmanager
async def reporting(tell: Callable[[int, str], Awaitable[None]]) -> AsyncIterator[Callable[[int], None]]:
    """Give a function that takes the number of tokens so far, and tell the client the latest one now and then.

    Args:
        tell: sends one notification: the number of tokens so far, and the same in words. Each number is higher than the
            one before, as MCP wants it.
    """
    tokens = 0
    started = time.monotonic()
    sender: asyncio.Task[None] | None = None

    def update(so_far: int) -> None:
        nonlocal tokens, sender
        tokens = so_far
        if sender is None:
            sender = asyncio.ensure_future(send())

    async def send() -> None:
        told = 0
        while True:
            if tokens > told:
                told = tokens
                await tell(told, f"{told} tokens in {time.monotonic() - started:.1f} s")
            await asyncio.sleep(INTERVAL_S)

    try:
        yield update
    finally:
        if sender:
            sender.cancel()
            with suppress(asyncio.CancelledError):
                await sender
