"""How much at once and per minute: a model's slots with a fair, bounded queue, and what one developer may have."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict, deque

from local_llm_bridge.errors import QueueFullError, RateLimitError

# Weight of the latest call in the mean duration from which a wait is estimated.
_SMOOTHING = 0.2


class Slots:
    """The slots of one model: so many calls run, so many wait, and developers who wait get their turns in rotation.

    Args:
        model: its name, for texts.
        concurrency: how many calls run at once.
        queue: how many calls may wait.
    """

    def __init__(self, model: str, concurrency: int, queue: int) -> None:
        self._model = model
        self._concurrency = concurrency
        self._most_waiting = queue
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._mean_s = 0.0
        self.running = 0
        self.queued = 0

    async def acquire(self, developer: str) -> None:
        """Take a slot, or wait for one in the queue.

        Args:
            developer: whose turn it will be.

        Raises:
            QueueFullError: too many are waiting; its text tells the expected wait.
        """
        if self.running < self._concurrency:
            self.running += 1
            return
        if self.queued >= self._most_waiting and not self._make_room(developer):
            raise self._full()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(developer, deque()).append(turn)
        self.queued += 1
        try:
            # Shielded: the slot may be handed over between the cancellation and the time that it is noticed here.
            await asyncio.shield(turn)
        except asyncio.CancelledError:
            if not turn.done():
                self._leave(developer, turn)
            elif turn.exception() is None:
                self._pass_on()  # the slot had just been handed over
            raise
        finally:
            del turn  # else its error would hold itself, through this frame, until garbage is looked for

    def release(self, seconds: float) -> None:
        """Give a slot back.

        Args:
            seconds: how long it was used.
        """
        self._mean_s += (seconds - self._mean_s) * (_SMOOTHING if self._mean_s else 1)
        self._pass_on()

    def expected_wait_s(self) -> float:
        """Return how long a further call would wait for a slot, in seconds, judged by the calls before."""
        if self.running < self._concurrency:
            return 0.0
        return self._mean_s * (self.queued + 1) / self._concurrency

    def _full(self) -> QueueFullError:
        wait_s = max(1, math.ceil(self.expected_wait_s()))
        return QueueFullError(
            f"The model {self._model} is busy: {self.running} calls run and {self.queued} wait, which is the most. "
            f"Try again in about {wait_s} s, or name another model.",
            self._model,
        )

    def _make_room(self, developer: str) -> bool:
        """Refuse the latest call of whoever has the most waiting, if they have more than this developer would have."""
        if not self._waiting:
            return False
        greediest, turns = max(self._waiting.items(), key=lambda entry: len(entry[1]))
        if len(turns) <= len(self._waiting.get(developer, ())) + 1:
            return False
        turn = turns[-1]
        turn.set_exception(self._full())
        self._leave(greediest, turn)
        return True

    def _pass_on(self) -> None:
        if not self._waiting:
            self.running -= 1
            return
        developer, turns = next(iter(self._waiting.items()))
        turn = turns.popleft()
        self.queued -= 1
        if turns:
            self._waiting.move_to_end(developer)
        else:
            del self._waiting[developer]
        turn.set_result(None)

    def _leave(self, developer: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting[developer]
        turns.remove(turn)
        self.queued -= 1
        if not turns:
            del self._waiting[developer]


class Rate:
    """What each developer may do per minute: a bucket that fills evenly and holds a minute's worth.

    Args:
        per_minute: how often; 0 means any number.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, developer: str) -> int:
        """Count one; returns 0, or in how many seconds there will be one again, if none is left."""
        if not self._per_minute:
            return 0
        now = time.monotonic()
        left, at = self._buckets.get(developer, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - at) * self._per_minute / 60)
        if left < 1:
            return math.ceil((1 - left) * 60 / self._per_minute)
        self._buckets[developer] = (left - 1, now)
        return 0

    def spend(self, developer: str) -> None:
        """Count one call.

        Raises:
            RateLimitError: the developer has none left.
        """
        if wait_s := self.take(developer):
            raise RateLimitError(
                f"{developer} has made the {self._per_minute} calls that a minute allows. Try again in {wait_s} s; "
                "requests_per_minute in the bridge's settings sets the limit."
            )


class AtOnce:
    """What each developer may have at the same time.

    Args:
        most: how many.
        together: how many all may have before whoever has any gets no more.
    """

    def __init__(self, most: int, together: float = math.inf) -> None:
        self.most = most
        self._together = together
        self._now: Counter[str] = Counter()

    def enter(self, developer: str, number: int = 1) -> bool:
        """Count so many more, unless that would be too many; returns whether they were counted."""
        has = self._now[developer]
        if has + number > self.most or (has and self._now.total() + number > self._together):
            return False
        self._now[developer] += number
        return True

    def leave(self, developer: str, number: int = 1) -> None:
        """Count so many less."""
        self._now[developer] -= number
        if not self._now[developer]:
            del self._now[developer]
