"""Who may run code now: so many at once, no developer all of them, and of those who wait whoever has fewest is next."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from local_llm_bridge.errors import QueueFullError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Places:
    """Places that developers share.

    Args:
        places: how many there are.
        each: how many of them a developer may have.
        waiting: how many calls of a developer may wait.
    """

    def __init__(self, places: int, each: int, waiting: int) -> None:
        self._places = places
        self._each = each
        self._most_waiting = waiting
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def place(self, developer: str, seconds: float) -> AsyncIterator[None]:
        """Hold a place, once there is one.

        Args:
            developer: for whom.
            seconds: how long to wait for it.

        Raises:
            QueueFullError: there is none in time, or too many calls of the developer are waiting.
        """
        turns = self._waiting.setdefault(developer, deque())
        if len(turns) >= self._most_waiting:
            raise QueueFullError(
                f"{developer} runs {self._held[developer]} pieces of code already and {len(turns)} wait, which is the "
                "most. Try again when some have ended."
            )
        turn = asyncio.get_running_loop().create_future()
        turns.append(turn)
        self._hand_out()
        try:
            async with asyncio.timeout(seconds):
                # Shielded: a turn may come between the cancellation and the time that it is noticed here.
                await asyncio.shield(turn)
        except BaseException as error:
            if turn.done():
                self._give_back(developer)
            else:
                self._waiting[developer].remove(turn)
                self._forget(developer)
            if isinstance(error, TimeoutError):
                text = f"All places for running code were taken for {seconds:.0f} s. Try again a little later."
                raise QueueFullError(text) from None
            raise
        try:
            yield
        finally:
            self._give_back(developer)

    def _give_back(self, developer: str) -> None:
        self._held[developer] -= 1
        self._forget(developer)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._held.total() < self._places:
            able = [one for one, turns in self._waiting.items() if turns and self._held[one] < self._each]
            if not able:
                return
            developer = min(able, key=self._held.__getitem__)
            self._waiting.move_to_end(developer)
            self._held[developer] += 1
            self._waiting[developer].popleft().set_result(None)

    def _forget(self, developer: str) -> None:
        """Keep nothing about a developer who has no place and waits for none."""
        if not self._held[developer]:
            del self._held[developer]
            if not self._waiting.get(developer):
                self._waiting.pop(developer, None)
