"""`chat`: one question to the local model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from local_llm_bridge.tools.ask import MODEL_ARGUMENTS, Prompt, ask
from local_llm_bridge.tools.tool import TEXT, Tool, arguments

if TYPE_CHECKING:
    from local_llm_bridge.tools.tool import Context, Result


async def _run(context: Context, given: dict[str, Any]) -> Result:
    return await ask(context, Prompt(given["message"], given.get("system")), given)


TOOL = Tool(
    name="chat",
    description="Ask the team's private local model. It sees only this message: include all that it needs.",
    schema=arguments(
        {
            "message": TEXT,
            "system": {"type": "string", "description": "Instructions on how to answer"},
            **MODEL_ARGUMENTS,
        },
        "message",
    ),
    run=_run,
    files_into="message",
)
