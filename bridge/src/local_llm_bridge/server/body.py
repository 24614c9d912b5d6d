"""Receiving the body of a request from a developer who has been recognised: so large, so fast, and so many at once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from local_llm_bridge.errors import RefusedRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope

    from local_llm_bridge.models.limits import Rate

MAX_BODY = 4 * 2**20
"""Largest call of a tool in bytes: a million tokens of text, more than any model's context."""
SMALL_BODY = 64 * 2**10
"""Largest request of any other kind, in bytes. Those of real clients have 2 KiB at most."""
IS_WHOLE = "body_is_whole"
"""Key of a request's scope: all of its body has come, so that nobody need wait for it."""
_LARGE_AT_ONCE = 4
"""How many bodies above SMALL_BODY of one developer are received and parsed at the same time; others wait.

So nobody else's waits behind more of them, nor has memory to hold more.
"""
_GRACE_S = 10.0
"""How long any body may take, in seconds."""
_SLOWEST = 16 * 2**10
"""Bytes that give it one second more: a line of 128 kbit/s is fast enough."""
_LONGEST_S = 60.0
"""How long a body may take at most, in seconds."""


class Receiver:
    """Receives bodies.

    Args:
        large: counts bodies above SMALL_BODY, which are calls, before they are received.
    """

    def __init__(self, large: Rate) -> None:
        self._large = large
        self._places: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_LARGE_AT_ONCE))

    async def receive(
        self, receive: Receive, scope: Scope, headers: Mapping[str, str], developer: str
    ) -> tuple[bytes | None, asyncio.Semaphore | None]:
        """Return the body, and the place to be released once it has been parsed, if it has one.

        Args:
            receive: gives its parts.
            scope: of the request.
            headers: of the request.
            developer: who sends it.

        Returns:
            No body, if the client has gone before its end.

        Raises:
            RefusedRequestError: it is too large or too slow, or the developer has sent too many large ones.
        """
        most = MAX_BODY if headers.get("mcp-method", "tools/call") == "tools/call" else SMALL_BODY
        length = headers.get("content-length", "")
        declared = int(length) if length.isdecimal() else 0
        if declared > most:
            raise RefusedRequestError(413, f"The request has {declared} bytes, the most is {most}. Send less.")
        if scope.get(IS_WHOLE) and 0 < declared <= SMALL_BODY:  # as nearly always
            message = await receive()
            return message.get("body", b"") if message["type"] == "http.request" else None, None
        loop = asyncio.get_running_loop()
        started = loop.time()
        parts: list[bytes] = []
        size = 0
        place: asyncio.Semaphore | None = None
        body: bytes | None = None
        try:
            async with asyncio.timeout_at(started + _GRACE_S) as timeout:
                while True:
                    if max(size, declared) > SMALL_BODY and place is None:
                        self._count(developer)
                        waiting = self._places[developer]
                        await waiting.acquire()
                        place = waiting
                    message = await receive()
                    if message["type"] != "http.request":
                        return None, None
                    part = message.get("body", b"")
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        raise RefusedRequestError(
                            413, f"The request has more than {most} bytes. Send less.", {"Connection": "close"}
                        )
                    if not message.get("more_body"):
                        body = b"".join(parts)
                        return body, place
                    timeout.reschedule(started + min(_GRACE_S + size / _SLOWEST, _LONGEST_S))
        except TimeoutError:
            took = f"{loop.time() - started:.0f} s"
            waited = f"{developer} has sent so many large requests that this one has waited {took} for its turn."
            slow = f"The request's body is too slow: {size} bytes came in {took}."
            problem = slow if place or max(size, declared) <= SMALL_BODY else waited
            raise RefusedRequestError(408, f"{problem} Send it again.", {"Connection": "close"}) from None
        finally:
            if place and body is None:
                place.release()

    def _count(self, developer: str) -> None:
        if wait_s := self._large.take(developer):
            raise RefusedRequestError(
                429,
                f"{developer} has sent as many large requests as a minute allows. Try again in {wait_s} s; "
                "requests_per_minute in the bridge's settings sets the limit.",
                {"Retry-After": str(wait_s)},
            )
