"""The MCP server of the official SDK: the whole protocol, for all that `fast_path` does not answer itself.

It is imported when it is first needed: its import takes longer than all else that stdio does before its first answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from local_llm_bridge.audit import UNKNOWN
from local_llm_bridge.server.dispatch import Call
from local_llm_bridge.server.fast_path import SERVER
from local_llm_bridge.server.message import explained
from local_llm_bridge.server.progress import reporting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

    from local_llm_bridge.server.dispatch import Dispatcher


def create_server(dispatcher: Dispatcher) -> tuple[Server[Any], Callable[[], None]]:
    """Return the MCP server, for whatever transport, and what ends the streams of those who listen for new tools.

    Args:
        dispatcher: runs the tools.
    """

    async def list_tools(
        _context: ServerRequestContext[Any], _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult.model_validate({"tools": dispatcher.tools.listing})

    async def call_tool(
        context: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        # Over HTTP the caller has been recognised before the request came here; stdio has one user.
        scope: Mapping[str, Any] = context.request.scope if context.request else {"caller": UNKNOWN, "model": None}

        async def tell(tokens: int, message: str) -> None:
            await context.session.report_progress(tokens, message=message)

        async with reporting(tell) as progress:
            call = Call(params.name, params.arguments or {}, scope["caller"], progress, scope["model"])
            return types.CallToolResult.model_validate(await dispatcher.run(call))

    bus = InMemorySubscriptionBus()
    listen = ListenHandler(bus)
    server = Server(
        SERVER["name"],
        version=SERVER["version"],
        instructions=dispatcher.instructions,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_subscriptions_listen=listen,
        get_tool_input_schema=dispatcher.tools.schema,
    )
    # In place of the SDK's OpenTelemetry, on by default: work in every call, for nobody.
    server.middleware[:] = [_name_wrong_params]
    dispatcher.on_new_tools.append(lambda: bus.publish(ToolsListChanged()))
    return server, listen.close


async def _name_wrong_params(ctx: ServerRequestContext[Any], call_next: CallNext) -> HandlerResult:
    """Say which parameter is wrong, where the SDK says only that one is."""
    try:
        return await call_next(ctx)
    except ValidationError as error:
        raise MCPError(
            types.INVALID_PARAMS, explained(error.errors(include_url=False, include_context=False))
        ) from None
