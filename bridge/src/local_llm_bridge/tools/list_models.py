"""`list_models`: which models there are, whether they are up, and what they are good at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from local_llm_bridge.tools.tool import Result, Tool, arguments

if TYPE_CHECKING:
    from local_llm_bridge.tools.tool import Context


async def _run(context: Context, _given: dict[str, Any]) -> Result:
    states = await context.backend.states()
    details = {
        state.engine.name: {
            "ready": state.problem is None,
            "context": state.engine.context,
            "good_at": list(state.engine.good_at),
            "running": state.running,
            "queued": state.queued,
        }
        for state in states
    }
    lines = []
    for state in states:
        parts = [(state.problem or "ready").removesuffix(".")]
        if state.is_default:
            parts.append("the default")
        if state.engine.context:
            parts.append(f"context {state.engine.context} tokens")
        if state.engine.good_at:
            parts.append(f"good at {', '.join(state.engine.good_at)}")
        parts.append(f"{state.running} of {state.engine.concurrency} slots busy, {state.queued} waiting")
        lines.append(f"{state.engine.name}: {'; '.join(parts)}")
    return Result("\n".join(lines), details={"models": details})


TOOL = Tool(
    name="list_models",
    description="The local models: which are up, their context and strengths.",
    schema=arguments({}),
    run=_run,
)
