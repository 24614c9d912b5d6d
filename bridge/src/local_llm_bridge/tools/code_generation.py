"""`code_generation`: code for a task, from the local model, which may run it before it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from local_llm_bridge.tools.ask import MODEL_ARGUMENTS, Prompt, ask
from local_llm_bridge.tools.tool import TEXT, Tool, arguments

if TYPE_CHECKING:
    from local_llm_bridge.tools.tool import Context, Result

SYSTEM = (
    "You are an expert programmer. Solve the task with correct, readable code. "
    "Reply with one Markdown code block and a short explanation in the language of the task."
)
VERIFY = (
    " Before you reply, run your code with some tests by calling execute_python; mend it until they pass. "
    "Only what it prints comes back."
)


def tool(execute_python: Tool | None, rounds: int, max_tokens: int | None) -> Tool:
    """Return the tool.

    Args:
        execute_python: what the model runs its code with; None: it cannot.
        rounds: how often it may.
        max_tokens: longest answer as the operator has set it; None: it is not set.
    """

    async def run(context: Context, given: dict[str, Any]) -> Result:
        language = given.get("language")
        system = f"{SYSTEM} Write the code in {language}." if language else SYSTEM
        granted = (execute_python,) if execute_python and given.get("verify") else ()
        prompt = Prompt(
            given["task"],
            system + VERIFY if granted else system,
            temperature=0.3,
            max_tokens=3000,
            own_max_tokens=max_tokens,
            good_at="code",
        )
        return await ask(context, prompt, given, granted, rounds)

    properties: dict[str, Any] = {
        "task": TEXT,
        "language": {"type": "string", "description": "Programming language, e.g. Python"},
        **MODEL_ARGUMENTS,
    }
    if execute_python:
        properties["verify"] = {"type": "boolean", "description": "The model runs and mends its Python first"}
    return Tool(
        name="code_generation",
        description=(
            "Have the team's private local model write code. It sees only this task: include the code it needs."
        ),
        schema=arguments(properties, "task"),
        run=run,
        files_into="task",
    )
