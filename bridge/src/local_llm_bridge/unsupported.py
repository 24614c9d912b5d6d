"""Which fields of a request an engine does not take, by its own words."""

from __future__ import annotations

import re

RENAMED = {"max_tokens": "max_completion_tokens"}
"""What newer engines call a field, with the same meaning."""
_DISPENSABLE = ("stream_options", "temperature")
_UNSUPPORTED = re.compile(
    r"unsupported|not (?:\w+ )?(?:supported|allowed|permitted|recogni[sz]ed)|(?:not|n't) support|\bextra\b"
    r"|un(?:known|expected|recogni[sz]ed)|forbidden|deprecated|only \S+ is allowed|不支持|未知|不允许",
    re.IGNORECASE,
)
# Words about the length may name both.
_OTHER_NAME = r"\buse\W+{0}\b|\b{0}\W+instead\b"


def unsupported_fields(said: str) -> frozenset[str]:
    """Return what a refusal says is not supported, of the fields that a request can do without or name otherwise.

    Args:
        said: the engine's words.
    """
    named = (
        {field for field in _DISPENSABLE if re.search(rf"\b{field}\b", said)} if _UNSUPPORTED.search(said) else set()
    )
    renamed = {field for field, name in RENAMED.items() if re.search(_OTHER_NAME.format(name), said, re.IGNORECASE)}
    return frozenset(named | renamed)
