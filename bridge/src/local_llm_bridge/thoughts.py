"""Telling what a model thought from what it answered, where both came as one text.

Engines that know a model's format send thoughts in a field of their own. Others pass on the model's tags, and where the
chat template holds the opening tag (DeepSeek-R1, QwQ), only the closing one. A text that merely mentions a tag, such as
code about such models, has to stay as it is: an opening tag counts at the very beginning only, a closing one not in
code, in quotes, or within a sentence.
"""

from __future__ import annotations

import re

_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
_FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
_QUOTES = frozenset("'\"`“”«»([\\/=")
_CODE_INDENT = 4


def split(text: str, *, separate: bool = False) -> tuple[str | None, str]:
    """Return what a model thought, and what it answered.

    Args:
        text: all that it wrote, or as much as came.
        separate: whether thoughts came in a field of their own; then a closing tag without an opening one is text.

    Returns: the thoughts, None if there are none, and the answer; if there are none, the text unchanged.
    """
    rest = text.lstrip()
    if rest[:1] not in {"<", "["} and (separate or not ("</" in rest or "[/" in rest or "<|" in rest)):
        return None, text  # as nearly all are
    thoughts: list[str] = []
    while tags := next((tags for tags in _TAGS if rest.startswith(tags[0])), None):
        opening, closing = tags
        inner = rest[len(opening) :]
        at = _closed(inner, closing)
        if at is None:
            return "".join((*thoughts, inner)), ""
        thoughts.append(inner[:at])
        rest = inner[at + len(closing) :].lstrip()
    if thoughts:
        return "".join(thoughts), rest
    for opening, closing in () if separate else _TAGS:
        for at in _places(text, closing):
            if opening in text[:at]:
                break
            if not _is_mentioned(text, at, closing) and not _is_in_a_sentence(text, at, closing):
                return text[:at], text[at + len(closing) :].lstrip()
    return None, text


def _closed(inner: str, closing: str) -> int | None:
    """Return where thoughts end that began with a tag; None: they do not."""
    places = _places(inner, closing)
    return next((at for at in places if not _is_mentioned(inner, at, closing)), places[-1] if places else None)


def _places(text: str, tag: str) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(tag), text)]


def _is_mentioned(text: str, at: int, tag: str) -> bool:
    """Whether a tag stands in code or in quotes."""
    line = text[text.rfind("\n", 0, at) + 1 : at]
    around = {text[at - 1 : at] if at else "", text[at + len(tag) :][:1]}
    return bool(around & _QUOTES) or line.count("`") % 2 == 1 or len(_FENCE.findall(text[:at])) % 2 == 1


def _is_in_a_sentence(text: str, at: int, tag: str) -> bool:
    """Whether a tag that nothing opened stands between words, or in a line that is indented as code is."""
    start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
    before, after = text[start:at], text[at + len(tag) : None if end < 0 else end]
    if not before.strip():
        return len(before.expandtabs(_CODE_INDENT)) >= _CODE_INDENT
    return before[-1].isspace() and bool(after.strip())
