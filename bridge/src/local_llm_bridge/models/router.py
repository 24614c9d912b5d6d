"""Which model a request goes to when the caller names none: the first rule that its text fits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from local_llm_bridge.patterns import matcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from local_llm_bridge.config import Engine
    from local_llm_bridge.rules import Rule

_JUDGED = 16_384
"""Characters of a long question that rules are tried on, half of them from its beginning and half from its end.

What a rule costs grows with the text, and everybody waits meanwhile.
"""
_LONGEST_REASON = 80
_LATEST = ":latest"


@dataclass(frozen=True)
class Choice:
    """A model and why it was chosen."""

    engine: Engine
    reason: str


def same_name(one: str, other: str) -> bool:
    """Whether two names are the same model's: Ollama lists each with a tag and takes it without `:latest`."""
    return one == other or one.removesuffix(_LATEST) == other.removesuffix(_LATEST)


class Router:
    """Chooses among the models.

    Args:
        engines: the models; the first is the default unless `default` names another.
        rules: tried in order.
        default: name of the model for texts that no rule fits.
    """

    def __init__(self, engines: Sequence[Engine], rules: Iterable[Rule], default: str | None = None) -> None:
        self.default = next((engine for engine in engines if engine.name == default), engines[0])
        self._engines = engines
        self._rules = [
            (found, engine) for rule in rules if (engine := self._target(rule)) for found in _conditions(rule)
        ]

    def choose(self, text: str, good_at: str | None = None) -> Choice:
        """Choose a model.

        Args:
            text: what is asked.
            good_at: a strength that the tool knows it needs, whatever the text says.
        """
        if len(self._engines) == 1:
            return Choice(self.default, "the only model")
        if good_at and (engine := self._good_at(good_at)):
            return Choice(engine, f"good at {good_at}")
        if len(text) > _JUDGED:
            text = f"{text[: _JUDGED // 2]}\n{text[-_JUDGED // 2 :]}"
        for found, engine in self._rules:
            if reason := found(text):
                return Choice(engine, reason)
        return Choice(self.default, "the default")

    def _target(self, rule: Rule) -> Engine | None:
        if rule.model:
            return next(engine for engine in self._engines if engine.name == rule.model)
        return self._good_at(rule.good_at or "")

    def _good_at(self, strength: str) -> Engine | None:
        return next((engine for engine in self._engines if strength in engine.good_at), None)


def _conditions(rule: Rule) -> list[Callable[[str], str]]:
    """Return what tells why a text fits a rule; empty: it does not.

    Words of scripts that have blanks between words must stand alone ("class" is not in "classic").
    """
    words = [re.escape(word) for word in rule.keywords if word.isascii()]
    parts = [rf"(?<![A-Za-z0-9_])(?:{'|'.join(words)})(?![A-Za-z0-9_])"] if words else []
    parts += [re.escape(word) for word in rule.keywords if not word.isascii()]
    keywords = [partial(_has_keyword, re.compile("|".join(parts), re.IGNORECASE))] if parts else []
    # Each pattern stays alone: it may have flags and groups of its own.
    return [*keywords, *(partial(_has_pattern, pattern, matcher(f"(?i){pattern}")) for pattern in rule.patterns)]


def _has_keyword(keywords: re.Pattern[str], text: str) -> str:
    found = keywords.search(text)
    return f"the text has {found.group()[:_LONGEST_REASON]!r}" if found else ""


def _has_pattern(pattern: str, is_found: Callable[[str], bool], text: str) -> str:
    return f"the text has {pattern[:_LONGEST_REASON]!r}" if is_found(text) else ""
