"""How long an answer may be: what a model's context leaves, by an estimate, then by what the engine itself says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LEAST_ROOM = 16
"""An answer with less room, in tokens, is not worth asking for."""
_NUMBER = r"(\d[\d,_]{0,9})"
_WORDS = r"[^.\d]{0,60}?"
# The words of vLLM, SGLang, TGI, llama.cpp and its Python server, LM Studio, and of the services that they speak like.
_CONTEXT = (
    rf"context (?:length|size|window)(?: limit)?{_WORDS}{_NUMBER}",
    rf"max_model_len{_WORDS}{_NUMBER}",
    rf"max_new_tokens\W+must be <=? ?{_NUMBER}",
)
_INPUT = (
    rf"{_NUMBER} (?:input tokens|in (?:the|your) (?:messages|prompt)|of text input)",
    rf"{_NUMBER} tokens (?:from|in) the (?:input|prompt)",
    rf"{_NUMBER}\W+inputs\W+tokens",
    rf"\b(?:request|prompt|input|messages resulted in)\b[^.\d]{{0,30}}?{_NUMBER} (?:prompt )?tokens",
)
_TOTAL = (rf"requested (?:a total of )?{_NUMBER} tokens",)
_ANSWER = (
    rf"(?:at most|less than or equal to|no more than|<=?)\W+{_NUMBER}\W+(?:completion|output|the maximum)",
    rf"(?:max_tokens|max_completion_tokens){_WORDS}\[\d+, ?{_NUMBER}\]",
    rf"(?:max_tokens|max_completion_tokens){_WORDS}(?:less than or equal to|at most|no more than|<=?)\W+{_NUMBER}",
)


@dataclass(frozen=True)
class Refusal:
    """What an engine says of a request that is too long for it; None: it does not say that.

    Args:
        context: how many tokens its context has.
        room: how many are left for the answer, or allowed for one.
    """

    context: int | None
    room: int | None


def estimate(messages: Sequence[Mapping[str, Any]]) -> int:
    """Return about how many tokens a conversation has.

    About 4 bytes a token in English, code and Chinese alike. It errs on the low side: what only nearly fits goes to the
    engine, which counts exactly.
    """
    size = 0
    for message in messages:
        size += len(str(message["content"]).encode("utf-8", "replace"))
        if calls := message.get("tool_calls"):
            size += len(to_json(calls))
    return size // 4


def read_refusal(text: str, asked: int) -> Refusal:
    """Return what a refusal says of the context.

    Args:
        text: the engine's words.
        asked: the `max_tokens` of the request.
    """
    context, given, total = (_first(patterns, text) for patterns in (_CONTEXT, _INPUT, _TOTAL))
    if context is not None and given is None and total is not None:
        given = total - asked
    if context is not None and given is not None and given >= 0:
        return Refusal(context, context - given)
    return Refusal(context, None if context else _first(_ANSWER, text))


def is_about_length(text: str) -> bool:
    """Whether a refusal may be one for its length."""
    return re.search(r"context|max_tokens|max_completion_tokens|max_new_tokens|too long|too large", text) is not None


def _first(patterns: tuple[str, ...], text: str) -> int | None:
    for pattern in patterns:
        if found := re.search(pattern, text, re.IGNORECASE):
            return int(re.sub(r"\D", "", found[1])) or None
    return None
