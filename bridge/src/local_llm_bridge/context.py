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
_CAP = r"max_(?:new_|output_|completion_)?tokens\b\W*(?:\d+\W+)?"
# The words of vLLM, SGLang, TGI, TensorRT-LLM, LMDeploy, llama.cpp and its Python server, LM Studio, and of the
# services that they speak like.
_CONTEXT = (
    rf"n_ctx\W+{_NUMBER}",
    rf"context limit: \d+ \+ \d+ > {_NUMBER}",
    rf"context (?:length|size|window)(?! by)(?: limit)?{_WORDS}{_NUMBER}",
    rf"(?:max_seq_len|max_num_tokens|session_len)\W{{1,4}}{_NUMBER}",
    rf"max_model_len{_WORDS}{_NUMBER}",
    rf"range of input length should be \[\d+, ?{_NUMBER}",
    rf"max(?:imum)? (?:allowed |model |sequence |prompt |input )?length{_WORDS}{_NUMBER}",
    rf"inputs\W+tokens \+ \W?max_new_tokens\W+must be <=? ?{_NUMBER}",
    rf"inputs\W+must have less than {_NUMBER}",
    rf"{_NUMBER} maximum",
    rf"(?:maximum number of tokens allowed|only supports? up to|limit of|limit for this model is)\W+{_NUMBER}(?! char)",
)
_INPUT = (
    rf"{_NUMBER} (?:input tokens|of text input)",
    rf"{_NUMBER} tokens (?:from|in) the (?:input|prompt)",
    rf"{_NUMBER}\W+inputs\W+tokens",
    rf"(?<!maximum )(?:input|prompt|sequence)[ _](?:length|len|tokens?(?: count)?)(?: is)?\W{{1,3}}{_NUMBER}",
    rf"prompt \((?:total )?length {_NUMBER}",
    rf"tokens in the prompt \({_NUMBER}",
    rf"(?:n_keep|given)\W+{_NUMBER}",
    rf"(?:context limit:|the first) {_NUMBER} (?:\+|tokens)",
    rf"\b(?:request|prompt|input|messages resulted in)\b(?! length of)[^.\d]{{0,30}}?{_NUMBER} (?:prompt )?tokens",
)
_PARTS = rf"{_NUMBER} in (?:the|your) (?:messages|prompt|functions|tools)"
_TOTAL = (rf"requested (?:about |a total of )?{_NUMBER} tokens", rf"requested tokens \({_NUMBER}\)")
_ANSWER = (
    rf"(?:at most|less than or equal to|no more than|<=?)\W+{_NUMBER}\W+(?:completion|output|the maximum)",
    rf"{_CAP}{_WORDS}\[\d+, ?{_NUMBER}\]",
    rf"{_CAP}{_WORDS}(?:less than or equal to|at most|no more than|limit of|<=?)\W+{_NUMBER}",
    rf"{_CAP}integer above maximum value\. Expected a value <= {_NUMBER}",
)
# vLLM counts a prompt no further than it takes to refuse it, which says nothing of how long it is.
_AT_LEAST = re.compile(r"at least [\d,_]+", re.IGNORECASE)
_ABOUT = re.compile(
    r"context|max_\w*tokens|max_(?:model|seq)_len|session_len|too (?:long|large|many)|longer than"
    r"|\b(?:input|prompt|sequence|token|request)s?\b.{0,40}(?:length|limit|exceed|maximum|supports|less than)",
    re.IGNORECASE,
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
    cap = _first(_ANSWER, text)
    context = _first(_CONTEXT, text)
    counted = _AT_LEAST.sub("", text)
    given, total = _first(_INPUT, counted), _first(_TOTAL, counted)
    if parts := re.findall(_PARTS, text, re.IGNORECASE):
        given = sum(int(re.sub(r"\D", "", part)) for part in parts)
    if context is not None and given is None and total is not None:
        given = total - asked
    if context is not None and given is not None and given >= 0:
        return Refusal(context, context - given)
    return Refusal(context, None) if context is not None and context != cap else Refusal(None, cap)


def is_about_length(text: str) -> bool:
    """Whether a refusal may be one for its length."""
    return _ABOUT.search(text) is not None


def _first(patterns: tuple[str, ...], text: str) -> int | None:
    for pattern in patterns:
        if found := re.search(pattern, text, re.IGNORECASE):
            return int(re.sub(r"\D", "", found[1])) or None
    return None
