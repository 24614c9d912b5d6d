"""Are a call's arguments those that the tool takes?"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, to_json

from local_llm_bridge.errors import BadArgumentsError

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

    from local_llm_bridge.tools.tool import Tool


def check(tool: Tool, arguments: dict[str, Any]) -> None:
    """Check arguments against the tool's schema.

    Raises:
        BadArgumentsError: they do not fit; the text says which, what was found and what is allowed.
    """
    found = []
    if not _plainly_fit(tool.schema, arguments):
        found = [
            ".".join(str(part) for part in error.absolute_path)
            + (": " if error.absolute_path else "")
            + error.message[:200]
            for error in _validator(json.dumps(tool.schema)).iter_errors(arguments)
        ]
    try:
        to_json(arguments)
    except PydanticSerializationError:
        found.append("half of a surrogate pair, which is not valid Unicode")
    if found:
        properties, required = tool.schema.get("properties", {}), tool.schema.get("required", [])
        allowed = ", ".join(
            f"{name} ({what.get('type', 'anything')}{', required' if name in required else ''})"
            for name, what in properties.items()
        )
        raise BadArgumentsError(
            f"Wrong arguments for {tool.name}: {'; '.join(found)}. It takes: {allowed or 'no arguments'}."
        )


def _plainly_fit(schema: dict[str, Any], arguments: dict[str, Any]) -> bool:
    """Whether arguments surely fit: texts and switches, all required ones there, none unknown.

    It spares the everyday call jsonschema, whose import takes 0.1 s and whose check more than all else that the bridge
    does before it asks the engine. False says nothing.
    """
    properties = schema.get("properties", {})
    return (
        schema.keys() <= {"type", "properties", "required", "additionalProperties"}
        and all(name in arguments for name in schema.get("required", ()))
        and all(name in properties and _is_plain(properties[name], value) for name, value in arguments.items())
    )


def _is_plain(schema: dict[str, Any], value: object) -> bool:
    if not schema.keys() <= {"type", "minLength", "description"}:
        return False
    if isinstance(value, str):
        return schema.get("type") == "string" and len(value) >= schema.get("minLength", 0)
    return isinstance(value, bool) and schema.get("type") == "boolean"


@cache
def _validator(schema: str) -> Validator:
    import jsonschema  # noqa: PLC0415 - only to explain

    return jsonschema.Draft202012Validator(json.loads(schema))
