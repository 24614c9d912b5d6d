"""Answers that need not be asked for again, and identical requests that need to be asked once only."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from cachetools import TTLCache

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class Cache(Generic[T]):
    """The last answers, least recently used ones dropped first.

    Args:
        entries: how many are kept; 0 keeps none, and identical requests in flight are still joined.
        ttl_s: how long an answer is good, in seconds.
    """

    def __init__(self, entries: int, ttl_s: float) -> None:
        self._kept: TTLCache[bytes, T] = TTLCache(max(entries, 1), ttl_s, timer=time.monotonic)
        self._keeps = entries > 0
        self._in_flight: dict[bytes, asyncio.Future[T | None]] = {}

    @staticmethod
    def key(*parts: bytes) -> bytes:
        """Return a key for everything that changes an answer; long requests make short keys."""
        digest = hashlib.blake2b(digest_size=32)
        for part in parts:
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.digest()

    async def get(
        self, key: bytes, ask: Callable[[], Awaitable[T]], worth_keeping: Callable[[T], bool]
    ) -> tuple[T, bool]:
        """Return the answer for a key, and whether somebody else had asked for it.

        Args:
            key: stands for the request.
            ask: gets the answer where there is none. What it raises is raised to all who wait for it.
            worth_keeping: whether an answer may be given to others later.
        """
        # No future is in a variable: its error leads to this frame, and if that led back to it, all that the call held
        # would stay until garbage is looked for.
        while True:
            if (kept := self._kept.get(key)) is not None:
                return kept, True
            if key not in self._in_flight:
                break
            if (answer := await asyncio.shield(self._in_flight[key])) is not None:
                return answer, True
            # Who asked has gone away: it is the turn of one of those who waited.
        self._in_flight[key] = asyncio.get_running_loop().create_future()
        try:
            answer = await ask()
        except Exception as error:
            self._in_flight[key].set_exception(error)
            self._in_flight[key].exception()  # nobody has to be waiting
            raise
        except BaseException:
            self._in_flight[key].set_result(None)
            raise
        else:
            if self._keeps and worth_keeping(answer):
                self._kept[key] = answer
            self._in_flight[key].set_result(answer)
            return answer, False
        finally:
            del self._in_flight[key]
