"""Who asked what of which model: one line of the log for every call."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from local_llm_bridge.backend import Completion

log = logging.getLogger(__name__)

NOBODY = "-"
"""Stands for what there is not: a developer (stdio has one user), a model, a number."""


@dataclass(frozen=True)
class Record:
    """One call when it is over.

    Args:
        developer: who called.
        tool: the tool's name.
        model: the model that was asked.
        outcome: `ok`, `cancelled`, `failed` (a bug), or an error's `outcome`.
        duration_s: how long it took, in seconds.
        completion: the model's answer; None: there is none.
        arguments: what was asked.
        text: what was answered.
    """

    developer: str
    tool: str
    model: str
    outcome: str
    duration_s: float
    completion: Completion | None = None
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)
    text: str = field(default="", repr=False)


class Log:
    """Writes records to the log.

    Args:
        with_content: whether the line holds what was asked and answered.
    """

    def __init__(self, *, with_content: bool) -> None:
        self._with_content = with_content

    def __call__(self, record: Record) -> None:
        """Write one line."""
        completion = record.completion
        line = (
            "call developer=%s tool=%s model=%s outcome=%s duration_ms=%d "
            "prompt_tokens=%s completion_tokens=%s cached=%s"
        )
        fields: list[object] = [
            record.developer,
            record.tool,
            record.model,
            record.outcome,
            record.duration_s * 1000,
            completion.prompt_tokens if completion else NOBODY,
            completion.completion_tokens if completion else NOBODY,
            str(completion.cached).lower() if completion else NOBODY,
        ]
        if self._with_content:
            # As JSON a text stays on the line, and nobody can write a line of their own into the log.
            line += " arguments=%s text=%s"
            fields += [json.dumps(record.arguments), json.dumps(record.text)]
        log.info(line, *fields)
