"""`code_generation`: code for a task, from the local model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from local_llm_bridge.tools.tool import MODEL, TEXT, Tool

if TYPE_CHECKING:
    from local_llm_bridge.backend import Backend, Completion

SYSTEM = (
    "You are an expert programmer. Solve the task with correct, readable code. "
    "Reply with one Markdown code block and a short explanation in the language of the task."
)


async def _run(backend: Backend, arguments: dict[str, Any]) -> Completion:
    language = arguments.get("language")
    system = f"{SYSTEM} Write the code in {language}." if language else SYSTEM
    messages = [{"role": "system", "content": system}, {"role": "user", "content": arguments["task"]}]
    return await backend.complete(messages, model=arguments.get("model") or None, temperature=0.3, max_tokens=3000)


TOOL = Tool(
    name="code_generation",
    description="Have the team's private local model write code. It sees only this task: include the code it needs.",
    schema={
        "type": "object",
        "properties": {
            "task": TEXT,
            "language": {"type": "string", "description": "Programming language, e.g. Python"},
            "model": MODEL,
        },
        "required": ["task"],
        "additionalProperties": False,
    },
    run=_run,
)
