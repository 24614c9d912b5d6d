"""`execute_python`: run code where it can do no harm."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from local_llm_bridge.sandbox.places import Places
from local_llm_bridge.tools.tool import TEXT, Result, Tool, arguments

if TYPE_CHECKING:
    from local_llm_bridge.config import ExecutePython
    from local_llm_bridge.sandbox.sandbox import Run, Sandbox
    from local_llm_bridge.tools.tool import Context

# The unit local-llm-sandbox.socket takes some more, as places that have just been given back may not be free there yet.
_PLACES, _EACH, _WAITING = 16, 8, 32
_LIMITS = {
    "time": "{settings.time_s:g} s are over",
    "memory": "{settings.memory_mib} MiB of memory are used up",
    "processes": "{settings.processes} processes are used up",
    "output": "{settings.output_kib} KiB of output are over",
}


def tool(sandbox: Sandbox, settings: ExecutePython) -> Tool:
    """Return the tool.

    Args:
        sandbox: where the code runs.
        settings: its limits, for texts.
    """
    places = Places(_PLACES, _EACH, _WAITING)

    async def run(context: Context, given: dict[str, Any]) -> Result:
        async with places.place(context.caller.developer, context.deadline - time.monotonic()):
            done = await sandbox.run(given["code"])
        details = {"exit_code": done.exit_code, "limit": done.limit, "duration_s": round(done.duration_s, 3)}
        return Result(_text(done, settings), details=details)

    return Tool(
        name="execute_python",
        description="Run Python (standard library) in a fresh sandbox: no network, no files. print() what you need.",
        schema=arguments({"code": TEXT}, "code"),
        run=run,
    )


def _text(done: Run, settings: ExecutePython) -> str:
    parts = [f"exit code {done.exit_code}" if done.limit is None else f"limit hit: {_limit(done.limit, settings)}"]
    parts += [f"{name}:\n{text}" for name, text in (("stdout", done.stdout), ("stderr", done.stderr)) if text]
    if not done.stdout and not done.stderr:
        parts.append("It printed nothing.")
    return "\n\n".join(parts)


def _limit(name: str, settings: ExecutePython) -> str:
    return f"{name} ({_LIMITS[name].format(settings=settings)})" if name in _LIMITS else name
