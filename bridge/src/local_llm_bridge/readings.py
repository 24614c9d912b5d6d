"""Arguments as they were meant: a value of the wrong type is taken where its schema leaves exactly one reading of it.

Models and clients put numbers, switches, lists and objects into texts (`"3"`, `"true"`, `"[1, 2]"`), some twice, send a
whole number as `3.0`, one value where a list of such is wanted, and `null`, `""` or `"null"` for what they leave out.
What has two readings or none stays as it is, and is refused.
"""

from __future__ import annotations

import math
import re
from typing import Any

from pydantic_core import PydanticSerializationError, from_json, to_json

_LONGEST_JSON = 2**18
"""Longest text that is looked into for a list or an object, in characters."""
_WHOLE = re.compile(r"-?[0-9]{1,18}(\.0{1,18})?")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")
_MOST_EXACT = 2**53  # above it a float is not one whole number alone
_SWITCHES = {"true": True, "false": False}

Schema = dict[str, Any]


def as_object(value: object) -> dict[str, Any] | None:
    """Return a call's `arguments` as an object, also where they are left out, null or JSON in a text; else None."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = _json(value)
    return value if isinstance(value, dict) else None


def is_whole(value: float) -> bool:
    """Whether a float is one whole number, and no other."""
    return value.is_integer() and abs(value) <= _MOST_EXACT


def as_meant(schema: Schema, value: dict[str, Any]) -> dict[str, Any]:
    """Return an object with its values as the schema reads them.

    Args:
        schema: the object's.
        value: the object, which stays as it is.
    """
    properties, required = schema.get("properties", {}), schema.get("required", ())
    return {
        name: _read(properties.get(name), item)
        for name, item in value.items()
        if name in required or not _is_left_out(properties.get(name), item)
    }


def _read(schema: object, value: object) -> object:
    kinds = _kinds(schema)
    if not kinds:
        return value  # anything may be meant
    fitting = [inner for kind, inner in kinds if _is(kind, value)]
    if len(fitting) == 1:
        return _inside(fitting[0], value)
    if fitting:
        return value
    readings: list[object] = []
    for kind, inner in kinds:
        for reading in _readings(kind, inner, value):
            if not any(type(reading) is type(other) and reading == other for other in readings):
                readings.append(reading)
    return readings[0] if len(readings) == 1 else value


def _inside(schema: Schema, value: object) -> object:
    """Read what a list or an object holds."""
    if isinstance(value, dict):
        return as_meant(schema, value)
    if isinstance(value, list) and "items" in schema:
        return [_read(schema["items"], item) for item in value]
    return value


def _kinds(schema: object, depth: int = 0) -> list[tuple[str, Schema]]:
    """Return the types that a schema allows, each with the schema of such a value; empty: it does not say."""
    if not isinstance(schema, dict):
        return []
    types = schema.get("type")
    if isinstance(types, str):
        return [(types, schema)]
    if isinstance(types, list):
        return [(kind, schema) for kind in types]
    choices = schema.get("anyOf") or schema.get("oneOf")
    if not isinstance(choices, list) or depth:
        return []
    found = [_kinds(choice, depth + 1) for choice in choices]
    return [kind for kinds in found for kind in kinds] if all(found) else []


def _is_left_out(schema: object, value: object) -> bool:
    """Whether a value stands for none: null where nothing else can be meant, or a text where there is none to be."""
    kinds = dict(_kinds(schema))
    if not kinds or "null" in kinds:
        return False
    if value == "" and (text := kinds.get("string")):
        return "" not in text.get("enum", [""]) or text.get("minLength", 0) > 0
    return value is None or value == "" or (value == "null" and not kinds.keys() & {"string", "array"})


def _is(kind: str, value: object) -> bool:
    """Whether a value is of a type of JSON Schema; a whole number that came as 3.0 is not yet an integer."""
    match kind:
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case _:
            types: dict[str, type | tuple[type, ...]] = {"string": str, "boolean": bool, "array": list, "object": dict}
            return isinstance(value, types.get(kind, type(None)))


def _readings(kind: str, schema: Schema, value: object) -> list[object]:
    """Return what a value that is not of this type can mean as one: nothing, or one thing."""
    if kind == "array":
        found = _json(value) if isinstance(value, str) else None
        if isinstance(found, list):
            return [_inside(schema, found)]
        item = schema.get("items")
        one = _read(item, value)
        return [[one]] if value not in (None, "") and any(_is(inner, one) for inner, _ in _kinds(item)) else []
    if isinstance(value, float):
        return [int(value)] if kind == "integer" and is_whole(value) else []
    return _readings_of_text(kind, schema, value.strip()) if isinstance(value, str) else []


def _readings_of_text(kind: str, schema: Schema, text: str) -> list[object]:
    match kind:
        case "boolean" if text.lower() in _SWITCHES:
            return [_SWITCHES[text.lower()]]
        case "integer" if _NUMBER.fullmatch(text):
            is_exact = _WHOLE.fullmatch(text)
            return [int(text.partition(".")[0])] if is_exact else _readings(kind, schema, float(text))
        case "number" if _WHOLE.fullmatch(text) and "." not in text:
            return [int(text)]
        case "number" if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
            return [float(text)]
        case "object":
            found = _json(text)
            return [_inside(schema, found)] if isinstance(found, dict) else []
        case _:
            return []


def _json(text: str) -> object:
    if len(text) > _LONGEST_JSON or text.lstrip()[:1] not in {"[", "{", '"'}:
        return None
    try:
        found = from_json(text, allow_inf_nan=False)
        return from_json(found, allow_inf_nan=False) if isinstance(found, str) else found
    except ValueError:
        return None


def unsendable(value: object) -> str:
    """Return why a value cannot go on as JSON; empty: it can."""
    try:
        to_json(value)
    except PydanticSerializationError as error:
        is_text = "surrogates not allowed" in str(error)
        return "half of a surrogate pair, which is not valid Unicode" if is_text else "nested deeper than 255 levels"
    return ""
