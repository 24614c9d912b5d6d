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
# vLLM's, LM Studio's, llama.cpp's, and those of services; what is loaded goes before what the model could have.
_LENGTHS = (
    *("max_model_len", "loaded_context_length", "n_ctx"),
    *("context_length", "context_window", "max_context_length"),
)
_NUMBER = r"(\d[\d,_]{0,9})"
_WORDS = r"[^.\d]{0,60}?"
# Patterns are texts, here and in what reads refusals besides: re compiles them when the first refusal comes, not at
# each start.
# The words of vLLM, SGLang, TGI, TensorRT-LLM, LMDeploy, llama.cpp and its Python server, LM Studio, and of the
# services that they speak like.
_CONTEXT = (
    rf"n_ctx\W+{_NUMBER}",
    rf"\d\W+\+[^+>]{{0,20}}?\d\)? > {_NUMBER}",
    rf"context (?:length|size|window)(?! by)(?: limit)?{_WORDS}{_NUMBER}",
    rf"(?:max_seq_len|max_num_tokens|session_len)\W{{1,4}}{_NUMBER}",
    rf"max_model_len{_WORDS}{_NUMBER}",
    rf"range of input length should be \[\d+, ?{_NUMBER}",
    rf"max(?:imum)? (?:allowed |model |sequence |prompt |input )?length{_WORDS}{_NUMBER}",
    rf"inputs\W+tokens \+ \W?max_new_tokens\W+must be <=? ?{_NUMBER}",
    rf"inputs\W+must have less than {_NUMBER}",
    rf"{_NUMBER} maximum",
    rf"limit\W{{1,3}}{_NUMBER}\W+requested",
    rf"token limit\W{{1,3}}{_NUMBER}",
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
_TOTAL = (
    rf"requested (?:about |a total of )?{_NUMBER} tokens",
    rf"requested tokens \({_NUMBER}\)",
    rf"limit\W{{1,3}}\d[\d,_]*\W+requested\W{{1,3}}{_NUMBER}",
)
# A limit of the answer alone: words that name its length and a limit, without what they say of the question.
_OF_ANSWER = (
    r"(?i)max(?:imum)?[ _]?(?:(?:new|output|completion)[ _]?)?tokens|(?:output|completion|generated|new) tokens"
)
_CLAUSE = r"(?:[.;]|,(?!\s*\d))(?=\s|$)|[\uff0c\uff1b\u3002]"
_OF_QUESTION = r"(?i)context|prompt|\binputs?\b(?! should| validation| request)|length|_len\b|total_tokens|messages"
_LIMITS = (
    r"(?i)[><≤≥]|exceed|maximum|at most|no more|range|between|less|larger|greater|large|small|few|low|limit|above|up to"
    r"|supports|afford|不能|不得|不可|超|最大|大于|小于|范围|至多|限"
)
_STATUS = r"(?i)(?:HTTP|code|status)\W{0,4}\d{3}\b"
_WHOLE = r"(\d{1,3}(?:[,_]\d{3})+(?!\d)|\d{1,9})"
# No part of a name, a date, an address or a fraction.
_FREE = rf"(?a)(?<![\w/$-])(?<!\d[.:]){_WHOLE}(?![\w/-]|[.:]\d)"
_RANGE = (
    r"(?ai)(?:[\[(]\s*\d+\s*,|(?<![\w/$-])\d+`?\s*(?:\(inclusive\)\s*)?(?:[-~\u2013]|\.\.+|\bto\b|\band\b|到|至))"
    rf"\s*`?{_WHOLE}(?![\w/-])"
)
_BELOW = r"(?i)(?:(?:less|lower|smaller) than|<|小于)[\s`]*$"
_EXCLUSIVE = r"(?i)\W{0,2}\s*\(exclusive"
_OVER = rf"(?i)limit\W{{1,3}}{_NUMBER}\W+requested\W{{1,3}}{_NUMBER}"
_OF_TIME = (
    r"(?i)per (?:sec|min|hour|day|week|month)|\brates?\b|\b[RT]P[SMD]\b|quota|queue|concurren|too many requests|loading"
)
_OF_CALLER = r"(?i)afford|credit|balance|\bleft\b|remain"
# vLLM counts a prompt no further than it takes to refuse it: it tells how many tokens it has at least.
_AT_LEAST = r"(?i)(?:at least|upper bound for) [\d,_]+"
_LEAST = (rf"(?:at least|upper bound for) {_NUMBER} (?:input|prompt) tokens",)
_ABOUT = (
    r"(?i)context|max_?\w*tokens|(?:output|completion) tokens|max_(?:model|seq)_len|session_len"
    r"|too (?:long|large|many)|longer than"
    r"|\b(?:input|prompt|sequence|token|request)s?\b.{0,40}(?:length|limit|exceed|maximum|supports|less than)"
)


@dataclass(frozen=True)
class Refusal:
    """What an engine says of a request that is too long for it; None: it does not say that.

    Args:
        context: how many tokens its context has.
        room: how many are left for the answer, or allowed for one.
        below: fewer are left for the answer, where it tells only how many the question has at least.
    """

    context: int | None
    room: int | None
    below: int | None = None


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


def length_told(entry: Mapping[str, Any]) -> int | None:
    """Return the length of a model's context by its entry in an engine's list, in tokens; None: it does not say."""
    meta = entry.get("meta")
    fields = {**entry, **(meta if isinstance(meta, dict) else {})}
    for name in _LENGTHS:
        length = fields.get(name)
        if isinstance(length, str) and re.fullmatch(r"[0-9]{1,9}", length):
            length = int(length)
        if type(length) is int and length > 0:
            return length
    return None


def read_refusal(text: str, asked: int) -> Refusal:
    """Return what a refusal says of the context.

    Args:
        text: the engine's words.
        asked: the `max_tokens` of the request.
    """
    cap = _cap(text, asked)
    context = _first(_CONTEXT, text)
    counted = re.sub(_AT_LEAST, "", text)
    given, total = _first(_INPUT, counted), _first(_TOTAL, counted)
    if parts := re.findall(_PARTS, text, re.IGNORECASE):
        given = sum(map(_count, parts))
    if context is not None and given is None and total is not None:
        given = total - asked
    if context is not None and given is not None and given >= 0:
        return Refusal(context, context - given)
    if context is None or (cap is not None and context - cap in (0, 1)):  # the same limit, read twice
        return Refusal(None, cap)
    least = _first(_LEAST, text)
    return Refusal(context, None, None if least is None else context - least)


def most_of_any(text: str, asked: int) -> int | None:
    """Return the most that a refusal lets any answer have, whoever asks and whatever; None: it does not say.

    Args:
        text: the engine's words.
        asked: the `max_tokens` of the request.
    """
    depends = any(re.search(pattern, text) for pattern in (_OF_QUESTION, _OF_CALLER, _OF_TIME))
    return None if depends else _cap(text, asked)


def is_too_long(text: str) -> bool:
    """Whether a refusal, whatever its status, tells a limit that this request exceeds and no waiting raises."""
    if over := re.search(_OVER, text):
        return _count(over[1]) < _count(over[2])
    return not re.search(_OF_TIME, text) and "token" in text.lower() and read_refusal(text, 0) != Refusal(None, None)


def is_about_length(text: str) -> bool:
    """Whether a refusal may be one for its length."""
    return re.search(_ABOUT, text) is not None


def _cap(text: str, asked: int) -> int | None:
    """Return the most that an engine lets any answer have, in tokens; None: it does not say.

    That is the end of a range, else the smallest number in words that name the length of an answer and a limit.
    """
    words = " ; ".join(
        clause for clause in re.split(_CLAUSE, re.sub(_STATUS, "", text)) if not re.search(_OF_QUESTION, clause)
    )
    if not re.search(_OF_ANSWER, words) or not re.search(_LIMITS, words):
        return None
    found = (_most(match, words) for match in [*re.finditer(_RANGE, words)] or re.finditer(_FREE, words))
    return min((number for number in found if number >= LEAST_ROOM and number != asked), default=None)


def _most(limit: re.Match[str], words: str) -> int:
    """Return the largest number within a limit, which may not be in it."""
    rest = words[limit.end(1) :]
    is_out = re.search(_BELOW, words[: limit.start(1)]) or re.match(_EXCLUSIVE, rest)
    return _count(limit[1]) - bool(is_out or (limit[0].startswith("[") and rest.startswith(")")))


def _count(digits: str) -> int:
    return int(re.sub(r"\D", "", digits))


def _first(patterns: tuple[str, ...], text: str) -> int | None:
    for pattern in patterns:
        if found := re.search(pattern, text, re.IGNORECASE):
            return _count(found[1]) or None
    return None
