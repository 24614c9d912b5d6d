"""Calls over HTTP that their clients cancel by `notifications/cancelled`, as those with a handshake do.

That comes on another connection than the call, which it names by the id alone, and all clients count from 0: two
sessions of one developer have the same ids, and there is nothing else that a session has for itself. So a call is ended
only where no other request can be meant: the developer has sent no other one with this id for an hour, in which any
call has ended, and all that is known of the client is the same.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from local_llm_bridge.server.message import cancelled

if TYPE_CHECKING:
    from local_llm_bridge.server.dispatch import Wire

_LONGEST_S = 3600
"""How long a call may take at most, in seconds: `timeout_s` allows no more."""
_MOST = 10_000
"""Of how many requests of a developer the ids are remembered; of whoever sends more in an hour nothing is cancelled."""


@dataclass(eq=False)
class Running:
    """A call that its client may cancel.

    Args:
        key: its developer and its id.
        client: all that is known of it.
        task: runs the call.
    """

    key: tuple[str, str | int]
    client: object
    task: asyncio.Task[object]
    is_cancelled: bool = False


class Cancels:
    """Knows which calls run, and ends those that their clients cancel."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str | int], list[Running]] = {}
        self._asked: dict[str, deque[tuple[float, int]]] = {}

    def see(self, developer: str, client: object, message: Wire) -> None:
        """Take note of a request, and end the call that a notification cancels.

        Args:
            developer: who has sent it.
            client: all that is known of where it comes from.
            message: any of JSON-RPC.
        """
        if (request_id := message.get("id")) is not None:
            self._ask(developer, request_id)
        elif (request_id := cancelled(message)) is not None:
            self._cancel(developer, client, request_id)

    def begin(self, developer: str, client: object, request_id: str | int) -> Running:
        """Let the call that this task runs be cancelled until its end: by CancelledError."""
        running = Running((developer, request_id), client, cast("asyncio.Task[object]", asyncio.current_task()))
        self._running.setdefault(running.key, []).append(running)
        return running

    def end(self, running: Running) -> None:
        """Take note of the end of a call."""
        calls = self._running[running.key]
        calls.remove(running)
        if not calls:
            del self._running[running.key]

    def _ask(self, developer: str, request_id: str | int) -> None:
        asked = self._asked.setdefault(developer, deque(maxlen=_MOST))
        now = time.monotonic()
        while asked and asked[0][0] < now - _LONGEST_S:
            asked.popleft()
        asked.append((now, hash(request_id)))

    def _cancel(self, developer: str, client: object, request_id: str | int) -> None:
        calls = self._running.get((developer, request_id), [])
        asked = self._asked.get(developer, ())
        if len(calls) != 1 or calls[0].client != client or len(asked) == _MOST:
            return
        if sum(hashed == hash(request_id) for _, hashed in asked) == 1:
            calls[0].is_cancelled = True
            calls[0].task.cancel()
