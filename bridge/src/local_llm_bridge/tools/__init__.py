"""The tools that the bridge offers, and the check of their arguments."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from local_llm_bridge.errors import BadArgumentsError, UnknownToolError
from local_llm_bridge.tools import chat, code_generation

if TYPE_CHECKING:
    from local_llm_bridge.tools.tool import Tool

TOOLS: dict[str, Tool] = {tool.name: tool for tool in (chat.TOOL, code_generation.TOOL)}


def find(name: str) -> Tool:
    """Return the tool of this name.

    Raises:
        UnknownToolError: there is none.
    """
    try:
        return TOOLS[name]
    except KeyError:
        raise UnknownToolError(f"There is no tool {name[:100]!r}. Known: {', '.join(TOOLS)}.") from None


def check(tool: Tool, arguments: dict[str, object]) -> None:
    """Check arguments against the tool's schema.

    Raises:
        BadArgumentsError: they do not fit; the text says which, what was found and what is allowed.
    """
    import jsonschema  # noqa: PLC0415 - not needed to start

    found = [
        ".".join(str(part) for part in error.absolute_path)
        + (": " if error.absolute_path else "")
        + error.message[:200]
        for error in jsonschema.Draft202012Validator(tool.schema).iter_errors(arguments)
    ]
    try:
        json.dumps(arguments, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        found.append("half of a surrogate pair, which is not valid Unicode")
    if found:
        allowed = ", ".join(
            f"{name} ({what['type']}{', required' if name in tool.schema['required'] else ''})"
            for name, what in tool.schema["properties"].items()
        )
        raise BadArgumentsError(f"Wrong arguments for {tool.name}: {'; '.join(found)}. It takes: {allowed}.")
