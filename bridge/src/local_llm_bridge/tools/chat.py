"""`chat`: one question to the local model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from local_llm_bridge.tools.tool import MODEL, TEXT, Tool

if TYPE_CHECKING:
    from local_llm_bridge.backend import Backend, Completion


async def _run(backend: Backend, arguments: dict[str, Any]) -> Completion:
    messages = [{"role": "user", "content": arguments["message"]}]
    if system := arguments.get("system"):
        messages.insert(0, {"role": "system", "content": system})
    return await backend.complete(messages, model=arguments.get("model") or None, temperature=0.7, max_tokens=2000)


TOOL = Tool(
    name="chat",
    description="Ask the team's private local model. It sees only this message: include all that it needs.",
    schema={
        "type": "object",
        "properties": {
            "message": TEXT,
            "system": {"type": "string", "description": "Instructions on how to answer"},
            "model": MODEL,
        },
        "required": ["message"],
        "additionalProperties": False,
    },
    run=_run,
)
