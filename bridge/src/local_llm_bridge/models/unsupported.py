"""What of a request an engine does not take, by its own words, and what is remembered of it for the next."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from local_llm_bridge.models.context import is_too_long

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_KEPT_S = 3600.0
"""For how long it is remembered what an engine does not take, in seconds."""

RENAMED = {"max_tokens": "max_completion_tokens"}
"""What newer engines call a field, with the same meaning."""
SYSTEM = "system"
"""Stands for a message of this role, which the templates of some models refuse."""
_DISPENSABLE = ("stream_options", "temperature")
_UNSUPPORTED = (
    r"(?i)unsupported|not (?:\w+ )?(?:supported|allowed|permitted|recogni[sz]ed)|(?:not|n't) support|\bextra\b"
    r"|un(?:known|expected|recogni[sz]ed)|forbidden|deprecated|only \S+ is allowed|不支持|未知|不允许"
)
# Words about the length may name both.
_OTHER_NAME = r"\buse\W+{0}\b|\b{0}\W+instead\b"
_NO_SYSTEM = (
    r"(?i)(?:system|developer) (?:role|prompt|message|instruction)s?\b.{0,30}\bnot (?:\w+ )?"
    r"(?:supported|allowed|enabled)|(?:not|n't) support .{0,30}\bsystem\b|roles must alternate"
    r"|only user and assistant roles|\brole:? \W?system\b"
    r"|(?<!system\W, )\Wuser\W(?:,| and| or) \Wassistant\W(?!.{0,20}\bsystem\b)"
)


def unsupported_parts(said: str) -> frozenset[str]:
    """Return what a refusal says is not supported, of what a request can do without or say otherwise.

    Args:
        said: the engine's words.
    """
    named = (
        {field for field in _DISPENSABLE if re.search(rf"\b{field}\b", said)}
        if re.search(_UNSUPPORTED, said)
        else set()
    )
    named |= {field for field, name in RENAMED.items() if re.search(_OTHER_NAME.format(name), said, re.IGNORECASE)}
    return frozenset(named | {SYSTEM} if re.search(_NO_SYSTEM, said) else named)


def wants_another_request(said: str) -> bool:
    """Whether a refusal, whatever its status, says how the request has to change: the same one is refused again.

    Args:
        said: the engine's words.
    """
    return bool(unsupported_parts(said)) or is_too_long(said)


class Habits(NamedTuple):
    """What an engine takes of no request."""

    unsupported: frozenset[str] = frozenset()
    most: int | None = None
    """Longest answer that it gives, in tokens; None: it has not said."""

    def are_named_in(self, said: str) -> bool:
        """Whether a refusal of a request that respects them is about one of them: the engine may be another by now."""
        return not is_too_long(said) and any(
            field in said or RENAMED.get(field, field) in said for field in self.unsupported
        )


class Memory:
    """The habits of engines, for a while. A request that they make another one has been answered once."""

    def __init__(self) -> None:
        self._habits: dict[tuple[str, str | None], tuple[Habits, float]] = {}

    def of(self, url: str, model: str | None) -> Habits:
        """Return the habits of the engine that serves a model at an address."""
        habits, until = self._habits.get((url, model), (Habits(), 0.0))
        return habits if time.monotonic() < until else Habits()

    def keep(self, url: str, model: str | None, habits: Habits, messages: Sequence[Mapping[str, Any]]) -> None:
        """Remember habits, but for what may be words of the question, which some engines repeat.

        Args:
            url: the engine's address.
            model: that it serves.
            habits: by its words.
            messages: the question.
        """
        known = self.of(url, model)
        asked = " ".join(str(message["content"]) for message in messages)
        numbers = {int(digits) for digits in re.findall(r"\d{1,18}", re.sub(r"(?<=\d)[,_](?=\d)", "", asked))}
        unsupported = known.unsupported | {part for part in habits.unsupported if part not in asked.lower()}
        is_own = habits.most is not None and numbers.isdisjoint((habits.most, habits.most + 1))
        learned = Habits(unsupported, habits.most if is_own else known.most)
        if learned != known:
            self._habits[url, model] = (learned, time.monotonic() + _KEPT_S)

    def forget(self, url: str) -> None:
        """Forget the habits of what was at an address."""
        self._habits = {key: value for key, value in self._habits.items() if key[0] != url}
