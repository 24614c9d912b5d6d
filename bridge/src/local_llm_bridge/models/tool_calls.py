"""A model's tool calls, put together from the pieces of a stream in whatever shape an engine sends them.

OpenAI gives each call an index, its id and name in the first piece, and its arguments as bits of JSON text. Others
leave out index or id, give all calls the same index, repeat the name in each piece, or send arguments as an object.
What goes back to the engine as history is always valid: engines refuse a conversation with broken arguments in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from local_llm_bridge.texts import kind

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_CALLS = 64
"""Most calls of one answer."""
_MOST_LOOKS = 100
_LONGEST_NAME = 64
_ARGUMENTS = ("arguments", "parameters", "input")  # OpenAI's name, Llama's, Anthropic's
_KNOWN = frozenset(("index", "id", "type", "function", "name", *_ARGUMENTS))
# What engines leave around a name: Kimi's `functions.f:0`, and the tags of gpt-oss.
_NAME = re.compile(r"(?:functions?[.:])?(.+?)(?::\d+)?(?:<\|.*)?", re.DOTALL)


class TooManyCallsError(Exception):
    """There are more calls than anybody means."""


@dataclass(frozen=True)
class ToolCall:
    """One call of a model.

    Args:
        id: by which its result is told from others, not empty, one of a kind in its answer.
        name: of the tool.
        written: the arguments as the model wrote them.
        arguments: what they mean; None: they are no JSON object.
        problem: why they are none; empty: they are one.
        more: what else the engine sent with it and wants back, such as Gemini's signature of its thoughts.
    """

    id: str
    name: str
    written: str
    arguments: dict[str, Any] | None
    problem: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def as_history(self) -> dict[str, Any]:
        """Return the call as it goes back to the engine."""
        name = re.sub(r"[^A-Za-z0-9_-]", "_", self.name)[:_LONGEST_NAME] or "unnamed"
        verbatim = self.arguments is not None and self.written.lstrip().startswith("{")
        arguments = self.written if verbatim else to_json(self.arguments or {}).decode()
        return {**self.more, "id": self.id, "type": "function", "function": {"name": name, "arguments": arguments}}


@dataclass
class _Growing:
    """A call of which more may come."""

    index: int | None
    id: str
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    size: int = 0
    looks: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, text: str) -> None:
        name = name.strip()
        if name.startswith(self.name):
            self.name = name  # the first piece of it, the same again, or more of it
        elif not self.pieces:
            self.name += name
        if text and not (len(text) == self.size and self.is_whole() and text == "".join(self.pieces)):
            self.pieces.append(text)
            self.size += len(text)

    def written(self) -> str:
        """Return its arguments; where more than an object came, the object that was meant."""
        written = "".join(self.pieces)
        if len(self.pieces) > 1 and _read(written)[1]:
            *others, last = self.pieces
            # Each piece may have all that came before it, or the first may have been no arguments.
            if all(last.startswith(other) for other in others) or others == ["{}"]:
                return last
        rest = written.removeprefix("{}")
        return rest if rest.startswith("{") and _read(rest)[0] else written

    def is_whole(self) -> bool:
        """Whether its arguments are a JSON object, to which nothing can be added. Looks so many times only."""
        if self.looks >= _MOST_LOOKS or not self.pieces or not self.pieces[-1].rstrip().endswith("}"):
            return False
        self.looks += 1
        return isinstance(_read("".join(self.pieces))[0], dict)


class ToolCalls:
    """The calls of one answer as they grow."""

    def __init__(self) -> None:
        self._calls: list[_Growing] = []
        self.size = 0
        """Characters so far."""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._calls)

    def add(self, parts: object) -> None:
        """Take in the calls, or pieces of calls, of one event.

        Raises:
            TooManyCallsError: there are too many.
            AttributeError, TypeError: this is something else.
        """
        here: list[_Growing] = []
        for part in [parts] if isinstance(parts, dict) else list(parts):  # type: ignore[call-overload]
            if part:
                here.append(self._add(part, here))

    def done(self, *, whole: bool) -> tuple[ToolCall, ...]:
        """Return the calls.

        Args:
            whole: whether the engine came to its end; else a call without arguments may have lost them.
        """
        calls: list[ToolCall] = []
        ids = {""}
        for number, call in enumerate(call for call in self._calls if call.name or call.pieces):
            ident = next(ident for ident in (call.id, f"call_{number}", f"call_{number}_") if ident not in ids)
            ids.add(ident)
            written = call.written()
            arguments, problem = _read(written)
            if not written.strip() and not whole:
                arguments, problem = None, "the answer was cut off before they came"
            calls.append(ToolCall(ident, _named(call.name), written, arguments, problem, call.more))
        return tuple(calls)

    def _add(self, part: dict[str, Any], here: list[_Growing]) -> _Growing:
        function = part.get("function") or part
        name = function.get("name")
        given = next((value for value in map(function.get, _ARGUMENTS) if value is not None), None)
        name = name if isinstance(name, str) else ""
        text = given if isinstance(given, str) else "" if given is None else to_json(given).decode()
        ident, index = part.get("id"), part.get("index")
        ident = str(ident) if isinstance(ident, str | int) else ""
        index = index if isinstance(index, int) else None
        more = {key: value for key, value in part.items() if key not in _KNOWN and value is not None}
        self.size += len(name) + len(text) + len(ident) + (len(to_json(more)) if more else 0)
        call = self._continued(index, ident, name, text, here)
        if call is None:
            if len(self._calls) == MOST_CALLS:
                raise TooManyCallsError
            call = _Growing(index, ident)
            self._calls.append(call)
        call.id = call.id or ident
        call.more |= more
        call.add(name, text)
        return call

    def _continued(self, index: int | None, ident: str, name: str, text: str, here: list[_Growing]) -> _Growing | None:
        """Return the call that a piece belongs to; None: it begins a new one."""
        latest = self._calls[-1] if self._calls else None
        if index is not None:
            call = next((call for call in reversed(self._calls) if call.index == index), None)
        else:
            call = next((call for call in self._calls if ident and call.id == ident), None)
            if call is None and not (name and ident):
                call = latest
        if call is None or not name:
            return call or (None if name else latest)
        if ident and call.id and ident != call.id:
            return None
        # It says its name again. Nothing can be added to whole arguments, so more of them are those of another call.
        more = bool(text.strip()) and call.is_whole()
        if ident:
            return None if more and text != "".join(call.pieces) else call
        return None if call.name and (more or any(call is other for other in here)) else call


def _named(name: str) -> str:
    """Return a tool's name without what an engine left around it."""
    found = _NAME.fullmatch(name)
    return found[1].strip() if found else name


def _read(written: str) -> tuple[dict[str, Any] | None, str]:
    """Return the arguments, or why they are none. None at all are empty ones; JSON in a JSON text is taken, too."""
    try:
        value = from_json(written, allow_inf_nan=False) if written.strip() else {}
        if isinstance(value, str):
            value = from_json(value, allow_inf_nan=False)
    except ValueError as error:
        return None, str(error)
    if value is None:
        return {}, ""
    return (value, "") if isinstance(value, dict) else (None, f"this is {kind(value)}")
