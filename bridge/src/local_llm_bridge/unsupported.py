"""What of a request an engine does not take, by its own words."""

from __future__ import annotations

import re

from local_llm_bridge.context import is_too_long

RENAMED = {"max_tokens": "max_completion_tokens"}
"""What newer engines call a field, with the same meaning."""
SYSTEM = "system"
"""Stands for a message of this role, which the templates of some models refuse."""
_DISPENSABLE = ("stream_options", "temperature")
_UNSUPPORTED = re.compile(
    r"unsupported|not (?:\w+ )?(?:supported|allowed|permitted|recogni[sz]ed)|(?:not|n't) support|\bextra\b"
    r"|un(?:known|expected|recogni[sz]ed)|forbidden|deprecated|only \S+ is allowed|不支持|未知|不允许",
    re.IGNORECASE,
)
# Words about the length may name both.
_OTHER_NAME = r"\buse\W+{0}\b|\b{0}\W+instead\b"
_NO_SYSTEM = re.compile(
    r"system (?:role|prompt|message|instruction)s?\b.{0,30}\bnot (?:\w+ )?(?:supported|allowed|enabled)"
    r"|(?:not|n't) support .{0,30}\bsystem\b|roles must alternate|only user and assistant roles",
    re.IGNORECASE,
)


def unsupported_parts(said: str) -> frozenset[str]:
    """Return what a refusal says is not supported, of what a request can do without or say otherwise.

    Args:
        said: the engine's words.
    """
    named = (
        {field for field in _DISPENSABLE if re.search(rf"\b{field}\b", said)} if _UNSUPPORTED.search(said) else set()
    )
    named |= {field for field, name in RENAMED.items() if re.search(_OTHER_NAME.format(name), said, re.IGNORECASE)}
    return frozenset(named | {SYSTEM} if _NO_SYSTEM.search(said) else named)


def wants_another_request(said: str) -> bool:
    """Whether a refusal, whatever its status, says how the request has to change: the same one is refused again.

    Args:
        said: the engine's words.
    """
    return bool(unsupported_parts(said)) or is_too_long(said)
