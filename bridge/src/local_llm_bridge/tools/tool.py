"""What a tool is: a name, a schema for its arguments, and what it does with the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from local_llm_bridge.backend import Backend, Completion

TEXT = {"type": "string", "minLength": 1}
MODEL = {"type": "string", "description": "Which model; leave out for the default"}


@dataclass(frozen=True)
class Tool:
    """One tool.

    Args:
        name: what clients call it.
        description: what it is good for; every word of it is paid for in the context of every session.
        schema: JSON Schema of its arguments.
        run: does the work; gets the backend and arguments that fit the schema, raises CallError.
    """

    name: str
    description: str
    schema: dict[str, Any]
    run: Callable[[Backend, dict[str, Any]], Awaitable[Completion]]
