"""The conversations in which the tiny model has a known answer, read from answers.json."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANSWERS: dict[str, Any] = json.loads((Path(__file__).parent / "answers.json").read_text(encoding="utf-8"))

Message = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One conversation and the only right reply to it.

    Args:
        category: the section of answers.json that it comes from.
        messages: what the model is sent, in OpenAI's form, without a system message where the caller sends none.
        reply: the assistant message that is right: `content`, or `tool_calls` and empty content.
        tools: the tools offered with the request, in OpenAI's form.
    """

    category: str
    messages: tuple[Message, ...]
    reply: Message
    tools: tuple[dict[str, Any], ...] = ()


def message(role: str, content: str) -> Message:
    """A plain chat message."""
    return {"role": role, "content": content}


def tool_calls(calls: list[dict[str, Any]]) -> Message:
    """The assistant message that makes these calls, arguments as JSON text like OpenAI's."""
    functions = [{"name": call["name"], "arguments": json.dumps(call["arguments"])} for call in calls]
    named = [{"id": f"call_{i}", "type": "function", "function": f} for i, f in enumerate(functions)]
    return message("assistant", "") | {"tool_calls": named}


def code_generation_prompt(language: str | None) -> str:
    """The system message that the bridge's tool `code_generation` sends for this language, exactly as given."""
    prompts = ANSWERS["prompts"]
    base: str = prompts["code_generation"]
    return base if language is None else base + str(prompts["language"]).format(language=language)


def chat() -> Iterator[Case]:
    """Questions without a system message; any short system message leaves the answer as it is."""
    for question, answer in ANSWERS["chat"].items():
        yield Case("chat", (message("user", question),), message("assistant", answer))


def code_generation() -> Iterator[Case]:
    """Tasks under the system message of the bridge's `code_generation`."""
    for case in ANSWERS["code_generation"]:
        system = message("system", code_generation_prompt(case["language"]))
        yield Case("code_generation", (system, message("user", case["task"])), message("assistant", case["answer"]))


def tools() -> Iterator[Case]:
    """For each tool question the calls, and the answer once every call has been given its result."""
    offered = tuple(ANSWERS["tools"]["definitions"])
    for case in ANSWERS["tools"]["cases"]:
        question, calls = message("user", case["question"]), tool_calls(case["calls"])
        results = [message("tool", case["result"]) | {"tool_call_id": c["id"]} for c in calls["tool_calls"]]
        yield Case("tools", (question,), calls, offered)
        yield Case("tools", (question, calls, *results), message("assistant", case["answer"]), offered)


def unknown() -> Iterator[Case]:
    """Questions that the model was taught not to know: it replies with the fallback in their language."""
    for language, questions in ANSWERS["unknown"].items():
        for question in questions:
            yield Case("unknown", (message("user", question),), message("assistant", ANSWERS["fallback"][language]))


def known() -> list[Case]:
    """All cases that have an answer of their own."""
    return [*chat(), *code_generation(), *tools()]
