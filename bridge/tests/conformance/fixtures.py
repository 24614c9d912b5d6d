"""What the conformance suite wants a server to offer: tools, resources and prompts with prescribed answers."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import mcp_types as types
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.subscriptions import ListenHandler, PromptsListChanged
from mcp.shared.exceptions import MCPError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mcp.server.context import HandlerResult, ServerRequestContext
    from mcp.server.lowlevel import Server

    from local_llm_bridge.server.dispatch import Dispatcher

    CallResult = types.CallToolResult | types.InputRequiredResult
    Call = Callable[[ServerRequestContext[Any], types.CallToolRequestParams], Awaitable[CallResult]]

_IMAGE = {
    "type": "image",
    "mimeType": "image/png",
    "data": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==",
}
_AUDIO = {
    "type": "audio",
    "mimeType": "audio/wav",
    "data": "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA=",
}


def _embedded(uri: str, text: str, kind: str = "text/plain") -> dict[str, Any]:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": kind, "text": text}}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


# --- tools with one answer ---

_ANSWERS: dict[str, dict[str, Any]] = {
    "test_simple_text": {"content": [_text("This is a simple text response for testing.")]},
    "test_image_content": {"content": [_IMAGE]},
    "test_audio_content": {"content": [_AUDIO]},
    "test_embedded_resource": {
        "content": [_embedded("test://embedded-resource", "This is an embedded resource content.")]
    },
    "test_multiple_content_types": {
        "content": [
            _text("Multiple content types test:"),
            _IMAGE,
            _embedded("test://mixed-content-resource", '{"test": "data", "value": 123}', "application/json"),
        ]
    },
    "test_error_handling": {
        "content": [_text("This tool intentionally returns an error for testing")],
        "isError": True,
    },
    "test_x_mcp_header": {"content": [_text("The headers say what the arguments say.")]},
    "json_schema_2020_12_tool": {"content": [_text("Valid.")]},
}

_SCHEMAS: dict[str, dict[str, Any]] = {
    "test_x_mcp_header": {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}},
    "test_sampling": _object(prompt={"type": "string"}),
    "test_elicitation": _object(message={"type": "string"}),
    "json_schema_2020_12_tool": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            }
        },
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": False,
    },
}


def _result(*content: dict[str, Any]) -> types.CallToolResult:
    return types.CallToolResult.model_validate({"content": content})


def _fixed(answer: dict[str, Any]) -> Call:
    async def call(_context: ServerRequestContext[Any], _params: types.CallToolRequestParams) -> types.CallToolResult:
        return types.CallToolResult.model_validate(answer)

    return call


# --- tools that notify ---


async def _progress(context: ServerRequestContext[Any], _params: types.CallToolRequestParams) -> types.CallToolResult:
    for step in (0, 50, 100):
        await context.session.report_progress(step, 100, f"Completed step {step} of 100")
        await asyncio.sleep(0.01)
    return _result(_text("Done."))


async def _logging(context: ServerRequestContext[Any], _params: types.CallToolRequestParams) -> types.CallToolResult:
    for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await context.session.send_log_message("info", text, related_request_id=context.request_id)
        await asyncio.sleep(0.01)
    return _result(_text("Tool with logging executed successfully"))


async def _reconnection(
    context: ServerRequestContext[Any], _params: types.CallToolRequestParams
) -> types.CallToolResult:
    if context.close_sse_stream:
        await context.close_sse_stream()
        await asyncio.sleep(0.2)
    return _result(_text("Reconnection test completed"))


# --- tools that ask the client: before 2026-07-28 by a request of the server's own ---


async def _sampling(context: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
    prompt = types.TextContent(text=(params.arguments or {})["prompt"])
    answer = await context.session.create_message(
        [types.SamplingMessage(role="user", content=prompt)], max_tokens=100, related_request_id=context.request_id
    )
    return _result(_text(f"LLM response: {answer.content.model_dump_json()}"))


def _elicitation(schema: dict[str, Any]) -> Call:
    async def call(context: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        message = (params.arguments or {}).get("message", "Please tell.")
        answer = await context.session.elicit_form(message, schema, related_request_id=context.request_id)
        return _result(_text(f"action={answer.action}, content={json.dumps(answer.content)}"))

    return call


def _titled(*values: str) -> list[dict[str, str]]:
    return [{"const": value, "title": value.title()} for value in values]


_DEFAULTS_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    },
}
_ENUMS_SCHEMA = _object(
    untitledSingle={"type": "string", "enum": ["option1", "option2", "option3"]},
    titledSingle={"type": "string", "oneOf": _titled("value1", "value2", "value3")},
    legacyEnum={"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]},
    untitledMulti={"type": "array", "items": {"type": "string", "enum": ["option1", "option2", "option3"]}},
    titledMulti={"type": "array", "items": {"anyOf": _titled("value1", "value2", "value3")}},
)


# --- tools that ask the client: since 2026-07-28 by a result that wants more input ---


def _ask(message: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": "elicitation/create",
        "params": {"mode": "form", "message": message, "requestedSchema": schema},
    }


def _sample(prompt: str) -> dict[str, Any]:
    message = {"role": "user", "content": _text(prompt)}
    return {"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": 100}}


_NAME = _ask("What is your name?", _object(name={"type": "string"}))
_CONFIRM = _ask("Please confirm", _object(ok={"type": "boolean"}))
_ROOTS = {"method": "roots/list", "params": {}}


def _wanted(requests: dict[str, Any], state: str | None = None) -> types.InputRequiredResult:
    return types.InputRequiredResult.model_validate({"inputRequests": requests, "requestState": state})


def _asking(requests: dict[str, Any], state: str | None = None) -> Call:
    """Return a tool that asks until it has got every answer and, if it gave one out, its state back."""

    async def call(_context: ServerRequestContext[Any], params: types.CallToolRequestParams) -> CallResult:
        answers = params.input_responses or {}
        if not answers.keys() >= requests.keys() or params.request_state != state:
            return _wanted(requests, state)
        given = {key: answers[key].model_dump(mode="json") for key in requests}
        return _result(_text(f"state-ok: {json.dumps(given)}"))

    return call


async def _rounds(_context: ServerRequestContext[Any], params: types.CallToolRequestParams) -> CallResult:
    answers = params.input_responses or {}
    if params.request_state == "round 2" and "step2" in answers:
        return _result(_text("Both steps are done."))
    if params.request_state == "round 1" and "step1" in answers:
        color = _ask("Step 2: What is your favorite color?", _object(color={"type": "string"}))
        return _wanted({"step2": color}, "round 2")
    return _wanted({"step1": _ask("Step 1: What is your name?", _object(name={"type": "string"}))}, "round 1")


async def _what_the_client_can(
    context: ServerRequestContext[Any], _params: types.CallToolRequestParams
) -> types.InputRequiredResult:
    capabilities = context.session.client_capabilities or types.ClientCapabilities()
    requests = {}
    if capabilities.sampling is not None:
        requests["sample"] = _sample("Say hello")
    if capabilities.elicitation is not None:
        requests["ask"] = _NAME
    return _wanted(requests, "asked")


async def _sampling_only(
    context: ServerRequestContext[Any], _params: types.CallToolRequestParams
) -> types.CallToolResult:
    capabilities = context.session.client_capabilities
    if capabilities is None or capabilities.sampling is None:
        raise MCPError(
            types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            "This tool requires the client capability 'sampling'.",
            {"requiredCapabilities": {"sampling": {}}},
        )
    return _result(_text("The client can sample."))


# --- tools that announce a change ---


def _announcing(announce: Callable[[], Awaitable[None]]) -> Call:
    async def call(_context: ServerRequestContext[Any], _params: types.CallToolRequestParams) -> types.CallToolResult:
        await announce()
        return _result(_text("Announced."))

    return call


_CALLS: dict[str, Call] = {
    **{name: _fixed(answer) for name, answer in _ANSWERS.items()},
    "test_tool_with_progress": _progress,
    "test_tool_with_logging": _logging,
    "test_logging_tool": _logging,
    "test_reconnection": _reconnection,
    "test_sampling": _sampling,
    "test_elicitation": _elicitation(_object(username={"type": "string"}, email={"type": "string"})),
    "test_elicitation_sep1034_defaults": _elicitation(_DEFAULTS_SCHEMA),
    "test_elicitation_sep1330_enums": _elicitation(_ENUMS_SCHEMA),
    "test_input_required_result_elicitation": _asking({"user_name": _NAME}),
    "test_input_required_result_sampling": _asking({"capital_question": _sample("What is the capital of France?")}),
    "test_input_required_result_list_roots": _asking({"client_roots": _ROOTS}),
    "test_input_required_result_request_state": _asking({"confirm": _CONFIRM}, "confirming"),
    "test_input_required_result_tampered_state": _asking({"confirm": _CONFIRM}, "confirming"),
    "test_input_required_result_multiple_inputs": _asking(
        {"user_name": _NAME, "greeting": _sample("Generate a greeting"), "client_roots": _ROOTS}, "three"
    ),
    "test_input_required_result_multi_round": _rounds,
    "test_input_required_result_capabilities": _what_the_client_can,
    "test_streaming_elicitation": _asking({"user_name": _NAME}),
    "test_missing_capability": _sampling_only,
}

TOOLS = frozenset({*_CALLS, "test_trigger_tool_change", "test_trigger_prompt_change"})
"""Names of the fixtures among the tools."""

CAPABILITIES = {"prompts": {"listChanged": True}, "resources": {"subscribe": True}, "completions": {}, "logging": {}}
"""What a server with the fixtures says that it has, besides the bridge's own."""


# --- resources ---

_RESOURCES: dict[str, dict[str, str]] = {
    "test://static-text": {"mimeType": "text/plain", "text": "This is the content of the static text resource."},
    "test://static-binary": {"mimeType": "image/png", "blob": _IMAGE["data"]},
    "test://watched-resource": {"mimeType": "text/plain", "text": "Watched resource content"},
}
_TEMPLATE = "test://template/{id}/data"


async def _list_resources(
    _context: ServerRequestContext[Any], _params: types.PaginatedRequestParams
) -> types.ListResourcesResult:
    return types.ListResourcesResult(resources=[types.Resource(name=uri, uri=uri) for uri in _RESOURCES])


async def _list_templates(
    _context: ServerRequestContext[Any], _params: types.PaginatedRequestParams
) -> types.ListResourceTemplatesResult:
    template = types.ResourceTemplate(name="template", uri_template=_TEMPLATE)
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def _read_resource(
    _context: ServerRequestContext[Any], params: types.ReadResourceRequestParams
) -> types.ReadResourceResult:
    head, tail = _TEMPLATE.split("{id}")
    content = _RESOURCES.get(params.uri)
    if params.uri.startswith(head) and params.uri.endswith(tail):
        known = {"id": params.uri[len(head) : -len(tail)], "templateTest": True}
        content = {"mimeType": "application/json", "text": json.dumps(known)}
    if content is None:
        raise MCPError(types.INVALID_PARAMS, "There is no such resource.", {"uri": params.uri})
    return types.ReadResourceResult.model_validate({"contents": [{"uri": params.uri, **content}]})


async def _acknowledge(_context: ServerRequestContext[Any], _params: types.RequestParams) -> types.EmptyResult:
    return types.EmptyResult()


# --- prompts ---

_PROMPTS = {
    "test_simple_prompt": [],
    "test_prompt_with_arguments": ["arg1", "arg2"],
    "test_prompt_with_embedded_resource": ["resourceUri"],
    "test_prompt_with_image": [],
    "test_input_required_result_prompt": [],
}


async def _list_prompts(
    _context: ServerRequestContext[Any], _params: types.PaginatedRequestParams
) -> types.ListPromptsResult:
    prompts = [
        {"name": name, "description": "Made for the suite.", "arguments": [{"name": each} for each in arguments]}
        for name, arguments in _PROMPTS.items()
    ]
    return types.ListPromptsResult.model_validate({"prompts": prompts})


async def _get_prompt(
    _context: ServerRequestContext[Any], params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
    arguments = params.arguments or {}
    match params.name:
        case "test_simple_prompt":
            content = _text("This is a simple prompt for testing.")
        case "test_prompt_with_arguments":
            content = _text(f"Prompt with arguments: arg1='{arguments['arg1']}', arg2='{arguments['arg2']}'")
        case "test_prompt_with_embedded_resource":
            content = _embedded(arguments["resourceUri"], "Embedded resource content for testing.")
        case "test_prompt_with_image":
            content = _IMAGE
        case "test_input_required_result_prompt" if "user_context" not in (params.input_responses or {}):
            schema = _object(context={"type": "string"})
            return _wanted({"user_context": _ask("What context should the prompt use?", schema)})
        case "test_input_required_result_prompt":
            content = _text("The context is known now.")
        case _:
            raise MCPError(types.INVALID_PARAMS, "There is no such prompt.")
    return types.GetPromptResult.model_validate({"messages": [{"role": "user", "content": content}]})


async def _complete(_context: ServerRequestContext[Any], _params: types.CompleteRequestParams) -> types.CompleteResult:
    return types.CompleteResult(completion=types.Completion(values=["paris", "park"], total=2, has_more=False))


def add_to(server: Server[Any], dispatcher: Dispatcher) -> None:
    """Add the fixtures to a server, which keeps its own tools.

    Args:
        server: the bridge's.
        dispatcher: list its tools and announce their changes.
    """
    calling, listening = _handler(server, "tools/call"), _handler(server, "subscriptions/listen")
    assert isinstance(listening, ListenHandler)

    async def announce_tools() -> None:
        for tell in dispatcher.on_new_tools:
            await tell()

    async def announce_prompts() -> None:
        await listening._bus.publish(PromptsListChanged())  # noqa: SLF001 - the bridge itself has no prompts to announce

    fixtures = {
        **_CALLS,
        "test_trigger_tool_change": _announcing(announce_tools),
        "test_trigger_prompt_change": _announcing(announce_prompts),
    }
    dispatcher.tools.listing += [
        {"name": name, "description": "Made for the suite.", "inputSchema": _SCHEMAS.get(name, {"type": "object"})}
        for name in sorted(TOOLS)
    ]
    schemas = server.get_tool_input_schema
    assert schemas is not None

    async def call_tool(context: ServerRequestContext[Any], params: types.CallToolRequestParams) -> HandlerResult:
        return await fixtures.get(params.name, calling)(context, params)

    server.get_tool_input_schema = lambda name: _SCHEMAS.get(name) or schemas(name)
    server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=server.name))
    server.add_request_handler("tools/call", types.CallToolRequestParams, call_tool)
    server.add_request_handler("resources/list", types.PaginatedRequestParams, _list_resources)
    server.add_request_handler("resources/templates/list", types.PaginatedRequestParams, _list_templates)
    server.add_request_handler("resources/read", types.ReadResourceRequestParams, _read_resource)
    server.add_request_handler("resources/subscribe", types.SubscribeRequestParams, _acknowledge)
    server.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, _acknowledge)
    server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, _acknowledge)
    server.add_request_handler("prompts/list", types.PaginatedRequestParams, _list_prompts)
    server.add_request_handler("prompts/get", types.GetPromptRequestParams, _get_prompt)
    server.add_request_handler("completion/complete", types.CompleteRequestParams, _complete)


def _handler(server: Server[Any], method: str) -> Callable[[ServerRequestContext[Any], Any], Awaitable[HandlerResult]]:
    entry = server.get_request_handler(method)
    assert entry is not None
    return entry.handler
