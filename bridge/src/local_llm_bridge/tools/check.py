"""Are a call's arguments those that the tool takes?

Names and lengths come first: megabytes that no tool takes are refused before a schema or a pattern is run on them,
which would hold up everybody else.
"""

from __future__ import annotations

import difflib
import json
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from local_llm_bridge.errors import BadArgumentsError
from local_llm_bridge.patterns import matcher, patterns_in
from local_llm_bridge.readings import as_meant, unsendable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from jsonschema.protocols import Validator

    from local_llm_bridge.tools.tool import Tool

MOST_VALUES = 10_000
"""Most values in all the lists and objects of a call."""
MOST_VALIDATED = 2000
"""Most of them where the schema is more than types and limits, or something is wrong."""
MOST_MATCHED = 10_000
"""Longest text that is compared with a pattern, in characters."""
_MOST_NAMED = 3
_LONGEST_NAME = 60
_COMMENTS = {"type", "description", "title", "default", "examples"}
_LIMITS = {
    "string": {"minLength", "maxLength", "enum"},
    "boolean": set[str](),
    "integer": {"minimum", "maximum"},
    "number": {"minimum", "maximum"},
    "array": {"minItems", "maxItems", "items"},
}


def check(tool: Tool, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments as the tool's schema reads them.

    Raises:
        BadArgumentsError: they do not fit; the text says which, what was found and what is allowed.
    """
    schema = tool.schema
    if not _plainly_fit(schema, arguments):
        if found := [*_wrong_names(schema, arguments)]:
            raise _refusal(tool, found)
        if _hold_more(arguments, MOST_VALUES):
            raise _refusal(tool, [f"more than {MOST_VALUES} values"])
        arguments = as_meant(schema, arguments)
        if not _plainly_fit(schema, arguments) and (
            found := [*_too_long(schema, arguments)] or _problems(schema, arguments)
        ):
            raise _refusal(tool, found)
    if problem := unsendable(arguments):
        raise _refusal(tool, [problem])
    return arguments


def _refusal(tool: Tool, found: list[str]) -> BadArgumentsError:
    properties, required = tool.schema.get("properties", {}), tool.schema.get("required", [])
    allowed = ", ".join(
        f"{name} ({_type(what)}{', required' if name in required else ''})" for name, what in properties.items()
    )
    return BadArgumentsError(
        f"Wrong arguments for {tool.name}: {'; '.join(found)}. It takes: {allowed or 'no arguments'}."
    )


def _type(schema: object) -> str:
    types = schema.get("type", "anything") if isinstance(schema, dict) else "anything"
    return " or ".join(map(str, types)) if isinstance(types, list) else str(types)


def _wrong_names(schema: dict[str, Any], arguments: dict[str, Any]) -> Iterator[str]:
    """Yield which arguments the tool does not have, and which are missing."""
    properties = schema.get("properties", {})
    if schema.get("additionalProperties") is False and "patternProperties" not in schema:
        free = [name for name in properties if name not in arguments]
        for name in islice((name for name in arguments if name not in properties), _MOST_NAMED):
            near = difflib.get_close_matches(name[:_LONGEST_NAME].lower(), free, n=1)
            yield f"{name[:_LONGEST_NAME]!r} was unexpected{f' (did you mean {near[0]!r}?)' if near else ''}"
        unknown = len(arguments) - (len(properties) - len(free))
        if unknown > _MOST_NAMED:
            yield f"and {unknown - _MOST_NAMED} more"
    for name in schema.get("required", ()):
        if name not in arguments:
            yield f"{name!r} is a required property"


def _too_long(schema: dict[str, Any], arguments: dict[str, Any]) -> Iterator[str]:
    """Yield what is longer than it may be, or than can be looked at while others wait."""
    if _hold_more(arguments, MOST_VALIDATED):
        yield f"more than {MOST_VALIDATED} values"
        return
    for name, value in arguments.items():
        limits = schema.get("properties", {}).get(name)
        if not isinstance(limits, dict) or not isinstance(value, str | list | dict):
            continue
        what, key = ("characters", "maxLength") if isinstance(value, str) else ("values", "maxItems")
        most = limits.get(key, len(value))
        if len(value) > most:
            yield f"{name}: {len(value)} {what} are too many, {most} are the most"
        elif any(patterns_in(limits)) and (longest := _longest(value)) > MOST_MATCHED:
            yield f"{name}: {longest} characters are too many for its pattern, {MOST_MATCHED} are the most"


def _hold_more(values: object, most: int) -> bool:
    """Whether there are more values in lists and objects than that."""
    containers, left = [values], most
    while containers:
        inside = _items(containers.pop())
        left -= len(inside)
        if left < 0:
            return True
        containers.extend(item for item in inside if isinstance(item, dict | list))
    return False


def _longest(value: object) -> int:
    """Return the length of the longest text in a value."""
    return len(value) if isinstance(value, str) else max(map(_longest, _items(value)), default=0)


def _items(value: object) -> Collection[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _problems(schema: dict[str, Any], arguments: dict[str, Any]) -> list[str]:
    errors = islice(_validator(json.dumps(schema)).iter_errors(arguments), _MOST_NAMED)
    return [
        ".".join(str(part) for part in error.absolute_path)
        + (": " if error.absolute_path else "")
        + error.message[:200]
        for error in errors
    ]


def _plainly_fit(schema: dict[str, Any], arguments: dict[str, Any]) -> bool:
    """Whether arguments surely fit: all required ones there, none unknown, each of its type and within its limits.

    It spares the everyday call jsonschema, whose import takes 0.1 s and whose check more than all else that the bridge
    does before it asks the engine. False says nothing.
    """
    properties = schema.get("properties", {})
    return (
        schema.keys() <= {"type", "properties", "required", "additionalProperties"}
        and all(name in arguments for name in schema.get("required", ()))
        and all(name in properties and _is_plain(properties[name], value) for name, value in arguments.items())
    )


def _is_plain(schema: object, value: object) -> bool:
    kind = schema.get("type") if isinstance(schema, dict) else None
    if (
        not isinstance(schema, dict)
        or not isinstance(kind, str)
        or schema.keys() - _COMMENTS - _LIMITS.get(kind, set())
    ):
        return False
    match value:
        case bool():
            return kind == "boolean"
        case str():
            return (
                kind == "string"
                and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
                and ("enum" not in schema or value in schema["enum"])
            )
        case int() | float():
            return (kind == "number" or (kind == "integer" and isinstance(value, int))) and schema.get(
                "minimum", value
            ) <= value <= schema.get("maximum", value)
        case list():
            return (
                kind == "array"
                and schema.get("minItems", 0) <= len(value) <= min(schema.get("maxItems", MOST_VALUES), MOST_VALUES)
                and ("items" not in schema or all(_is_plain(schema["items"], item) for item in value))
            )
        case _:
            return False


@cache
def _validator(schema: str) -> Validator:
    import jsonschema  # noqa: PLC0415 - only to explain

    def pattern(_: Validator, pattern: str, value: object, _schema: object) -> Iterator[jsonschema.ValidationError]:
        if isinstance(value, str) and not matcher(pattern)(value):
            yield jsonschema.ValidationError(f"{value[:100]!r} does not match {pattern!r}")

    # Its own runs Python's engine, which some patterns stop.
    kind = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": pattern})  # type: ignore[no-untyped-call]
    validator: Validator = kind(json.loads(schema))
    return validator
