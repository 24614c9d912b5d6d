"""The retry policy: which requests are sent again that an engine has not answered, and after which pause.

Sent again is what may go well the next time and can do no harm:

- the connection could not be made, so the engine has not seen the request. A certificate that is refused stays refused.
- HTTP 408, 409, 429 and 5xx, unless the engine forbids it by `x-should-retry: false`; any status if it asks for it.
  Not if its words say how the request has to change, which some engines say with such a status.

A question is not sent again after the connection broke before an answer, nor after HTTP 502 and 504, by which a proxy
says the same: the engine may have died of the question, and would die of it again. Nor is it once anything of an answer
has come. A request that changes nothing and costs nothing (a list of models) is sent again in all of these cases.

The pause is the engine's wish (`retry-after-ms`, `Retry-After` in seconds or as a date, `try again in 7.5s`), else it
grows from half a second to 8 s, less up to a quarter by chance, so that bridges do not come back in step.
"""

from __future__ import annotations

import email.utils
import random
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local_llm_bridge.errors import EngineError

_FIRST_S = 0.5
_LONGEST_S = 8.0
_JITTER = 0.25
_MOST_S = 10.0**10  # three hundred years: who wishes for more means nothing by it
_WISH = (
    r"(?i)(?:retry|again|retryDelay)\W{1,2}(?:in |after )?(?=\d)(?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?"
    r"(?:(\d{1,9}(?:\.\d{1,9})?) ?(ms|s))?"
)
_MAY_PASS = {408, 409, 429}
_MAY_HAVE_DIED = {502, 504}


@dataclass(frozen=True)
class Failure:
    """A request that got no answer.

    Args:
        error: what its caller is told if it is not sent again.
        repeatable: whether it may be sent again.
        wish_s: after how many seconds the engine wants it again; None: it did not say.
    """

    error: EngineError
    repeatable: bool
    wish_s: float | None = None

    def pause_s(self, tries: int) -> float:
        """Return how long to wait before the next try, in seconds.

        Args:
            tries: how often it has been tried.
        """
        if self.wish_s is not None:
            return self.wish_s
        return min(_FIRST_S * 2.0 ** (tries - 1), _LONGEST_S) * (1 - _JITTER * random.random())  # noqa: S311 - no secret


def status_is_repeatable(status: int, headers: Mapping[str, str], *, harmless: bool) -> bool:
    """Return whether a request may be sent again that was refused.

    Args:
        status: HTTP's.
        headers: the refusal's.
        harmless: whether the request changes nothing and costs nothing.
    """
    wish = headers.get("x-should-retry", "").strip().lower()
    if wish in {"true", "false"}:
        return wish == "true"
    if status in _MAY_HAVE_DIED:
        return harmless
    return status in _MAY_PASS or status >= 500  # noqa: PLR2004 - HTTP's own


def connection_is_repeatable(error: Exception, *, harmless: bool) -> bool:
    """Return whether a request may be sent again whose connection failed before an answer.

    Args:
        error: aiohttp's.
        harmless: whether the request changes nothing and costs nothing.
    """
    import aiohttp  # noqa: PLC0415 - not needed to start

    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ClientConnectorCertificateError):
        return False
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return True
    return harmless and isinstance(error, aiohttp.ClientConnectionError)


def wish_of(headers: Mapping[str, str], words: str = "") -> float | None:
    """Return after how many seconds an engine wants a request again; None: it does not say, or nothing sensible.

    Args:
        headers: of its refusal.
        words: where it may say so, too.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "")
        try:
            wish_s = float(text) * unit_s
        except ValueError:
            continue
        return wish_s if 0 <= wish_s <= _MOST_S else None
    try:
        wish_s = email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time()
    except (ValueError, OverflowError, OSError):
        return _wish_in(words)
    return wish_s if 0 <= wish_s <= _MOST_S else None


def _wish_in(words: str) -> float | None:
    """Return after how many seconds an engine wants a request again by its words; None: they do not say."""
    if not (found := re.search(_WISH, words)):
        return None
    hours, minutes, rest, unit = found.groups()
    rest_s = float(rest or 0) * (0.001 if unit and unit.lower() == "ms" else 1.0)
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + rest_s or None
