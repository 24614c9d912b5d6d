"""The MCP server: lists the tools, runs a call, turns every failure into a result that a person can act on."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from typing import TYPE_CHECKING, Any

import mcp_types as types
from mcp.server.lowlevel import Server

from local_llm_bridge import __version__, tools
from local_llm_bridge.errors import CallError

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext

    from local_llm_bridge.backend import Backend, Completion

log = logging.getLogger(__name__)

_ANNOTATIONS = types.ToolAnnotations(
    read_only_hint=True, destructive_hint=False, idempotent_hint=False, open_world_hint=False
)


def create_server(backend: Backend) -> Server[Any]:
    """Return the MCP server, for whatever transport.

    Args:
        backend: answers the tools' requests.
    """
    listing = types.ListToolsResult(
        tools=[
            types.Tool(name=tool.name, description=tool.description, input_schema=tool.schema, annotations=_ANNOTATIONS)
            for tool in tools.TOOLS.values()
        ]
    )
    schemas = {name: tool.schema for name, tool in tools.TOOLS.items()}

    async def list_tools(
        _context: ServerRequestContext[Any], _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return listing

    async def call_tool(
        context: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        # Over HTTP the caller has been recognised before the request came here; stdio has one user.
        developer = context.request.scope["developer"] if context.request else "-"
        return await _call(backend, developer, params.name, params.arguments or {})

    server = Server(
        "local-llm-bridge",
        version=__version__,
        instructions=_instructions(backend),
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        get_tool_input_schema=schemas.get,
    )
    server.middleware.clear()  # the SDK's OpenTelemetry, on by default: work in every call, for nobody
    return server


def _instructions(backend: Backend) -> str:
    text = "These tools run on the team's own models: what they are told stays in the team's network."
    names = [engine.name for engine in backend.engines if engine.name]
    return f"{text} Models: {', '.join(names)}; the first is the default." if len(names) > 1 else text


async def _call(backend: Backend, developer: str, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
    """Run one call and log it; never with content."""
    started = time.monotonic()
    outcome, completion, model = "failed", None, None
    try:
        tool = tools.find(name)
        tools.check(tool, arguments)
        completion = await tool.run(backend, arguments)
    except CallError as error:
        outcome, model = error.outcome, error.model
        return _result(str(error), is_error=True)
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    except Exception as error:  # noqa: BLE001 - the SDK would send the text of a bug to the client, content and all
        where = "".join(traceback.format_tb(error.__traceback__))
        log.error("a bug, please report it: %s\n%s", type(error).__name__, where)  # noqa: TRY400 - no text: see above
        return _result("The bridge itself failed. Its log says where; please report it.", is_error=True)
    else:
        outcome, model = "ok", completion.model
        return _answer(completion)
    finally:
        log.info(
            "call developer=%s tool=%s model=%s outcome=%s duration_ms=%d prompt_tokens=%s completion_tokens=%s",
            developer,
            name if name in tools.TOOLS else "-",  # what a stranger made up does not get into the log
            model or "-",
            outcome,
            (time.monotonic() - started) * 1000,
            completion.prompt_tokens if completion else "-",
            completion.completion_tokens if completion else "-",
        )


def _answer(completion: Completion) -> types.CallToolResult:
    result = _result(completion.text)
    if completion.finish_reason == "length":
        tokens = completion.completion_tokens or "too many"
        result.content.append(types.TextContent(text=f"[Cut off after {tokens} tokens: one answer has its limit.]"))
    result.meta = {
        "model": completion.model,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
    }
    return result


def _result(text: str, *, is_error: bool = False) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text)], is_error=is_error)
