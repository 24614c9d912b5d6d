"""The operator's regular expressions, tried in a time that grows with the text, and no faster.

They are tried on whatever developers send, in the only thread: in Python's engine `^(a+)+$` and forty characters stop
everybody for years, and it cannot be interrupted. Rust's is linear, and pydantic brings it: no further package.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pydantic_core import SchemaError, SchemaValidator, core_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@cache
def matcher(pattern: str) -> Callable[[str], bool]:
    """Return what tells whether a pattern is found in a text.

    Args:
        pattern: as https://docs.rs/regex has them.

    Raises:
        ValueError: it is none; the text says why.
    """
    try:
        schema = core_schema.str_schema(pattern=pattern, regex_engine="rust-regex", strict=True)
        return SchemaValidator(schema).isinstance_python
    except (SchemaError, UnicodeEncodeError) as error:
        reason = str(error).rpartition("rror: ")[2]
        raise ValueError(
            f"found {pattern!r:.100}, which is no regular expression of https://docs.rs/regex: {reason:.200}"
        ) from None


def patterns_in(schema: object) -> Iterator[str]:
    """Yield the patterns of a JSON Schema."""
    if isinstance(schema, dict):
        if isinstance(pattern := schema.get("pattern"), str):
            yield pattern
        for inner in schema.values():
            yield from patterns_in(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from patterns_in(inner)
