"""How much at once: slots of a model with a fair, bounded queue, and calls of a developer per minute."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque

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
        if self.queued >= self._most_waiting:
            wait_s = max(1, math.ceil(self.expected_wait_s()))
            raise QueueFullError(
                f"The model {self._model} is busy: {self.running} calls run and {self.queued} wait, which is the most. "
                f"Try again in about {wait_s} s, or name another model.",
                self._model,
            )
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(developer, deque()).append(turn)
        self.queued += 1
        try:
            # Shielded: the slot may be handed over between the cancellation and the time that it is noticed here.
            await asyncio.shield(turn)
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # the slot had just been handed over
            else:
                self._leave(developer, turn)
            raise

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
    """Calls of each developer per minute: a bucket that fills evenly and holds a minute's worth.

    Args:
        per_minute: how many; 0 means any number.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: dict[str, tuple[float, float]] = {}

    def spend(self, developer: str) -> None:
        """Count one call.

        Raises:
            RateLimitError: the developer has none left.
        """
        if not self._per_minute:
            return
        now = time.monotonic()
        left, at = self._buckets.get(developer, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - at) * self._per_minute / 60)
        if left < 1:
            wait_s = math.ceil((1 - left) * 60 / self._per_minute)
            raise RateLimitError(
                f"{developer} has made the {self._per_minute} calls that a minute allows. Try again in {wait_s} s; "
                "requests_per_minute in the bridge's settings sets the limit."
            )
        self._buckets[developer] = (left - 1, now)
