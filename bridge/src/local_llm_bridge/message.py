"""Reading the JSON of a message so that it means one thing to whoever reads it, and takes no more memory than its size.

JSON can say the same key twice, and readers differ in which one they take. A few bytes of it can become a hundred in
memory: four million of `[],` are 1.4 million lists.
"""

from __future__ import annotations

import json
from typing import Any

from local_llm_bridge.errors import RefusedRequestError

MOST_VALUES = 20_000
"""How many values a message may have, texts and lists and their elements. The largest of real clients have hundreds."""
_LEAST_BYTES = 2
"""What a value takes at least in JSON, its comma included."""
_BEGINNING = 2**18
"""Bytes after which most of those that have too many values have shown it, at a tenth of the cost."""


def parse(body: bytes) -> object:
    """Return a message.

    Raises:
        RefusedRequestError: it is not JSON, has a key twice or too many values.
    """
    if len(body) > MOST_VALUES * _LEAST_BYTES:
        _refuse_many(body[:_BEGINNING])
        _refuse_many(body)
    try:
        return _DECODER.decode(body.decode())  # of bytes, json would guess the encoding
    except (ValueError, RecursionError):
        raise RefusedRequestError(400, "The body is not JSON, or nested too deep. Send one JSON-RPC message.") from None


def _refuse_many(body: bytes) -> None:
    """Count the texts, and the marks between them; nothing is made of them yet."""
    marks = (b",", b"[", b"{")
    if sum(body.count(mark) for mark in (b'"', *marks)) < MOST_VALUES:
        return  # wherever they are
    # Without these two, each quote that is left begins or ends a text.
    parts = body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"', 2 * MOST_VALUES)
    between = b"".join(parts[::2])
    if len(parts) // 2 + sum(between.count(mark) for mark in marks) >= MOST_VALUES:
        raise RefusedRequestError(
            413, f"The message has more than {MOST_VALUES} values. Send fewer; one long text is one value."
        )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RefusedRequestError(400, "The body has an object with the same key twice. Send each key once.")
    return found


def _constant(name: str) -> object:
    raise ValueError(name)


# Made once: json.loads makes a new one for every message when it has anything to look after.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
