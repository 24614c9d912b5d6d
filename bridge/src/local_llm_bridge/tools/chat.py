"""`chat`: one question to the local model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from local_llm_bridge.tools.ask import MODEL_ARGUMENTS, Prompt, ask
from local_llm_bridge.tools.tool import TEXT, Tool, arguments

if TYPE_CHECKING:
    from local_llm_bridge.tools.tool import Context, Result


def tool(max_tokens: int | None) -> Tool:
    """Return the tool.

    Args:
        max_tokens: longest answer as the operator has set it; None: it is not set.
    """

    async def run(context: Context, given: dict[str, Any]) -> Result:
        prompt = Prompt(given["message"], given.get("system"), own_max_tokens=max_tokens)
        return await ask(context, prompt, given)

    return Tool(
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
        run=run,
        files_into="message",
    )
