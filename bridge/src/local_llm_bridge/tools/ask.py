"""Asking a model on behalf of a tool, and letting the model call tools itself while it works on the answer."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from local_llm_bridge.errors import BadArgumentsError, CallError
from local_llm_bridge.models import answer
from local_llm_bridge.models.backend import Request
from local_llm_bridge.models.context import estimate
from local_llm_bridge.models.failures import MORE_TIME
from local_llm_bridge.tools.check import check
from local_llm_bridge.tools.tool import Context, Result, Tool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from local_llm_bridge.models.answer import Completion
    from local_llm_bridge.models.backend import Message
    from local_llm_bridge.models.tool_calls import ToolCall

MODEL_ARGUMENTS: dict[str, Any] = {
    "model": {"type": "string", "description": "Default: chosen by the bridge"},
    "fresh": {"type": "boolean", "description": "Not from the cache"},
}
"""Arguments of every tool that asks a model."""
_QUOTED = 2000
# A question of which so little was read has lost a part, unless it is mostly blank. In characters, and as a part.
_LEAST_READ, _READ_PART = 8000, 0.4
# How models write calls: as all of a text, or after something that they say first.
_MARKED = (
    r"<[^<>\s]{0,20}?(?:tool[_\u2581]?call|function(?:_call|=)|python_tag|invoke\b)|\[TOOL_CALLS\]"
    r"|(?:<\|start\|>[^<]{0,99})?<\|channel\|>commentary|assistantcommentary to="  # gpt-oss
)
_CALL = re.compile(rf"\s*(?:```\w*\s*)?(?:{_MARKED}|\{{\s*\"(?:name|function|tool)\"\s*:)")
_CALL_AFTER = re.compile(rf"^(?:{_MARKED})", re.MULTILINE)
# DeepSeek and Kimi refuse calls in a conversation without the thoughts that led to them.
_GIVEN_BACK = ("reasoning_content", "reasoning")


@dataclass(frozen=True)
class Prompt:
    """What a tool asks a model.

    Args:
        user: the question.
        system: how to answer.
        temperature: 0 … 2.
        max_tokens: longest answer in tokens, where neither the operator nor the model's settings say otherwise.
        own_max_tokens: what the operator's settings say for this tool; None: nothing.
        model: the model's name; None: the caller or the router chooses.
        good_at: the strength that the router looks for.
    """

    user: str
    system: str | None = None
    temperature: float = 0.7
    max_tokens: int = 2000
    own_max_tokens: int | None = None
    model: str | None = None
    good_at: str | None = None


async def ask(
    context: Context, prompt: Prompt, arguments: dict[str, Any], granted: Sequence[Tool] = (), rounds: int = 0
) -> Result:
    """Ask a model; while it calls tools that it has been granted, run them and let it go on.

    Args:
        context: of the call.
        prompt: the question.
        arguments: those of the call, of which `model` and `fresh` are meant here.
        granted: tools that the model may call.
        rounds: how often it may; then it has to answer.

    Raises:
        CallError: there is no answer.
    """
    messages: list[Message] = [{"role": "user", "content": prompt.user}]
    if prompt.system:
        messages.insert(0, {"role": "system", "content": prompt.system})
    request = Request(
        messages,
        model=arguments.get("model") or prompt.model,
        temperature=prompt.temperature,
        max_tokens=prompt.own_max_tokens or prompt.max_tokens,
        insists=prompt.own_max_tokens is not None,
        good_at=prompt.good_at,
        fresh=bool(arguments.get("fresh")),
        developer=context.caller.developer,
        request_id=context.caller.request_id,
        deadline=context.deadline,
        progress=context.progress,
    )
    if not granted:
        completion = await context.backend.complete(request)
        return Result(completion.text, completion, (*_notes(completion), *_note_on_reading(request, completion)))
    return await _converse(context, request, {tool.name: tool for tool in granted}, rounds)


async def _converse(context: Context, request: Request, granted: dict[str, Tool], rounds: int) -> Result:
    functions = [_function(tool) for tool in granted.values()]
    used_up = f"It may call tools {rounds} times (tool_rounds): raise that, or ask for less at once."
    messages = list(request.messages)
    ran: list[str] = []
    read = before = 0

    def progress(tokens: int) -> None:
        if request.progress:
            request.progress(before + tokens)

    for number in range(rounds + 1):
        # In the last round there is nothing left to call: the model has to answer.
        tools = functions if number < rounds else ()
        completion = await context.backend.complete(
            replace(request, messages=messages, tools=tools, no_calls=used_up, progress=progress)
        )
        read += completion.prompt_tokens or 0
        before += completion.completion_tokens or 0
        if not completion.tool_calls or not tools:
            break
        # Whoever has begun goes on: the rounds are one conversation with one model.
        request = replace(request, model=completion.model)
        calls = [call.as_history() for call in completion.tool_calls]
        message: dict[str, Any] = {"role": "assistant", "content": completion.text, "tool_calls": calls}
        if completion.thoughts_field in _GIVEN_BACK:
            message[completion.thoughts_field] = completion.thoughts
        messages.append(message)
        for call in completion.tool_calls:
            text = await _call(context, granted, call)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": text})
            ran.append(f"{_shown(call)}\n{text}")
    report = "\n\n".join(f"{number}. {entry}" for number, entry in enumerate(ran, 1))
    notes = (f"[What the model ran:]\n\n{report}",) if ran else (f"[The model ran nothing.{_unread(completion.text)}]",)
    completion = replace(completion, prompt_tokens=read, completion_tokens=before)
    return Result(completion.text, completion, (*_notes(completion), *notes), {"tool_calls": len(ran)})


def _unread(text: str) -> str:
    """Say that a text may be a call of a tool; empty: it does not look like one."""
    after = _CALL_AFTER.search(text)
    if _CALL.match(text) is None and (after is None or text.count("```", 0, after.start()) % 2):
        return ""
    return (
        " This looks like a call that the engine has not read as one: it needs its parser of this model's calls "
        "(vLLM: --enable-auto-tool-choice and --tool-call-parser; llama.cpp: --jinja)."
    )


def _note_on_reading(request: Request, completion: Completion) -> tuple[str, ...]:
    """Say that the engine has read much less than it was sent, as Ollama does without a word."""
    size = sum(len(message["content"]) for message in request.messages)
    if completion.prompt_tokens is None or size < _LEAST_READ:
        return ()
    sent = estimate(request.messages)
    if completion.prompt_tokens > sent * _READ_PART:
        return ()
    note = (
        f"[The engine says that it has read {completion.prompt_tokens} tokens of about {sent}: it may have dropped the "
        f"rest. Give {completion.model} a longer context (Ollama: OLLAMA_CONTEXT_LENGTH), or send less.]"
    )
    return (note,)


def _function(tool: Tool) -> dict[str, Any]:
    """Return a tool as OpenAI has it; which model answers within it is not for the model to say."""
    properties = {name: what for name, what in tool.schema["properties"].items() if name not in MODEL_ARGUMENTS}
    parameters = {**tool.schema, "properties": properties}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


async def _call(context: Context, granted: dict[str, Tool], call: ToolCall) -> str:
    """Run what the model called. What is wrong with it is told to the model, which may try again."""
    try:
        tool = granted.get(call.name)
        if tool is None:
            return f"There is no tool {call.name[:100]!r}. Known: {', '.join(granted)}."
        if call.arguments is None:
            found = f" You wrote: {call.written[:_QUOTED]}" if call.written else ""
            raise BadArgumentsError(f"The arguments are not a JSON object. They were ignored: {call.problem}.{found}")
        arguments = check(tool, call.arguments)
        return (await tool.run(replace(context, progress=None), arguments)).text
    except CallError as error:
        return f"Error: {error}"


def _shown(call: ToolCall) -> str:
    """Show a call as a person wants to read it: code as code."""
    if call.arguments is not None and isinstance(code := call.arguments.get("code"), str):
        return f"{call.name}:\n```python\n{code}\n```"
    return f"{call.name}({call.written[:_QUOTED]})"


def _notes(completion: Completion) -> tuple[str, ...]:
    """Say why an answer may not be whole, and what to do."""
    notes = []
    match completion.finish_reason:
        case answer.CALLS_LEFT:
            names = ", ".join(dict.fromkeys(repr(call.name[:100]) for call in completion.tool_calls))
            notes.append(f"[The model then called {names}, which was not run: this may not be all that it had to say.]")
        case "stop" | "tool_calls":
            pass
        case "length":
            tokens = f"{completion.completion_tokens or 'too many'} tokens"
            if completion.thinking_tokens:
                tokens += f", {completion.thinking_tokens} of them thinking"
            notes.append(f"[Cut off after {tokens}. For a longer answer, {completion.remedy}.]")
        case "overlong":
            notes.append(f"[Cut off by the bridge: the engine went on beyond {answer.MOST_CHARACTERS} characters.]")
        case "deadline":
            notes.append(
                "[The time for one call is over: this is what had been received until then. "
                f"For all of it, ask for less at once, or {MORE_TIME}.]"
            )
        case "abort":
            notes.append("[The engine broke off: this may be half an answer. Ask again for a whole one.]")
        case "content_filter":
            notes.append("[The engine's content filter ended the answer here: ask in other words, or another model.]")
        case reason:
            notes.append(f"[The engine ended the answer for the reason {reason!r}: it may not be whole.]")
    return tuple(notes)
