"""What a tool is: a name, a schema for its arguments, and what it does with the models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from local_llm_bridge.audit import Caller
    from local_llm_bridge.models.answer import Completion
    from local_llm_bridge.models.backend import Backend

TEXT = {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class Context:
    """What a call may use, and on whose behalf it runs.

    Args:
        backend: the models.
        caller: who calls.
        deadline: when the call has to end, by time.monotonic(), in seconds.
        progress: is told the number of tokens that the models have written so far.
    """

    backend: Backend
    caller: Caller
    deadline: float
    progress: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Result:
    """What a call brought.

    Args:
        text: for the caller.
        completion: the model's last answer; None: no model was asked.
        notes: what the caller has to know about the text and is no part of it.
        details: what else the caller's program may want to know, as JSON.
    """

    text: str
    completion: Completion | None = None
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tool:
    """One tool.

    Args:
        name: what clients call it.
        description: what it is good for; every word of it is paid for in the context of every session.
        schema: JSON Schema of its arguments.
        run: does the work with arguments that fit the schema; raises CallError.
        files_into: name of the argument to which the text of files is added; None: it takes no files.
        files_suffice: whether that argument may be left out when there are files.
    """

    name: str
    description: str
    schema: dict[str, Any]
    run: Callable[[Context, dict[str, Any]], Awaitable[Result]]
    files_into: str | None = None
    files_suffice: bool = False


def arguments(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """Return the schema of a tool's arguments."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
