"""The local model calls tools while it works on its answer."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from mcp import Client, StdioServerParameters, stdio_client

from tests.services import (
    ENGINE_KEY,
    MODEL,
    PROGRAM,
    FakeEngine,
    ScriptedEngine,
    delta,
    events,
    piece,
    stdio,
    text_of,
    texts_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


def calling(name: str, arguments: str, *, at: int = 0) -> list[dict[str, Any]]:
    """Return the events of a tool call, in pieces as engines send them."""
    half = len(arguments) // 2
    parts: list[dict[str, Any]] = [
        {"index": at, "id": f"call{at}", "type": "function", "function": {"name": name, "arguments": ""}},
        {"index": at, "function": {"arguments": arguments[:half]}},
        {"index": at, "function": {"arguments": arguments[half:]}},
    ]
    return [{"choices": [{"index": 0, "delta": {"tool_calls": [part]}, "finish_reason": None}]} for part in parts]


END_OF_CALLS = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}


@contextmanager
def scripted(*replies: bytes) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run a stand-in for an engine that answers as written; gives its address and what it was asked."""
    engine = ScriptedEngine(*replies)
    with engine.running() as url:
        yield url, engine.requests


def tools_folder(folder: Path, *tools: dict[str, Any]) -> str:
    for tool in tools:
        (folder / f"{tool['name']}.yml").write_text(yaml.safe_dump({"description": "For a test.", **tool}))
    return str(folder)


SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
HELPER = {"name": "helper", "arguments": SCHEMA, "template": "helper: {{ q }}"}
AGENT = {"name": "agent", "arguments": SCHEMA, "template": "{{ q }}", "tools": ["helper"]}


async def test_a_model_runs_a_tool_and_goes_on(tmp_path: Path) -> None:
    script = (
        events(piece("Let me see. "), *calling("helper", '{"q": "deep"}'), END_OF_CALLS),
        events(piece("helped", "stop")),
        events(piece("the answer", "stop"), {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}),
    )
    folder = tools_folder(tmp_path, HELPER, AGENT)
    with scripted(*script) as (url, requests):
        async with stdio(LOCAL_API_URL=url, MODEL_NAME="m", LOCAL_LLM_TOOLS_DIR=folder) as client:
            result = await client.call_tool("agent", {"q": "question"})
    assert texts_of(result)[0] == "the answer"
    assert texts_of(result)[1] == '[What the model ran:]\n\n1. helper({"q": "deep"})\nhelped'
    assert result.meta is not None
    assert result.meta["tool_calls"] == 1
    first, inner, last = requests
    (function,) = (tool["function"] for tool in first["tools"])
    assert function["name"] == "helper"
    assert function["parameters"]["properties"] == SCHEMA["properties"]
    assert inner["messages"] == [{"role": "user", "content": "helper: deep"}]
    assert "tools" not in inner
    assert last["messages"][1:] == [
        {
            "role": "assistant",
            "content": "Let me see. ",
            "tool_calls": [
                {"id": "call0", "type": "function", "function": {"name": "helper", "arguments": '{"q": "deep"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call0", "content": "helped"},
    ]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_the_thoughts_that_led_to_a_call_go_back_with_it(tmp_path: Path, field: str) -> None:
    """DeepSeek and Kimi refuse what comes without them."""
    script = (
        events(delta(**{field: "I need "}), delta(**{field: "help."}), *calling("helper", '{"q": "x"}'), END_OF_CALLS),
        events(piece("helped", "stop")),
        events(piece("the answer", "stop")),
    )
    folder = tools_folder(tmp_path, HELPER, AGENT)
    with scripted(*script) as (url, requests):
        async with stdio(LOCAL_API_URL=url, MODEL_NAME="m", LOCAL_LLM_TOOLS_DIR=folder) as client:
            result = await client.call_tool("agent", {"q": "question"})
    assert texts_of(result)[0] == "the answer"
    assert "I need help." not in str(result)
    assert requests[-1]["messages"][1][field] == "I need help."


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("nothing", "{}", "There is no tool 'nothing'. Known: helper."),
        ("helper", "{", "The arguments are not a JSON object."),
        ("helper", "[]", "The arguments are not a JSON object."),
        ("helper", '{"x": 1}', "'q' is a required property. It takes: q (string, required)"),
    ],
)
async def test_what_is_wrong_with_a_call_is_told_to_the_model(
    tmp_path: Path, name: str, arguments: str, words: str
) -> None:
    folder = tools_folder(tmp_path, HELPER, AGENT)
    with scripted(events(*calling(name, arguments), END_OF_CALLS), events(piece("I see", "stop"))) as (url, requests):
        async with stdio(LOCAL_API_URL=url, MODEL_NAME="m", LOCAL_LLM_TOOLS_DIR=folder) as client:
            result = await client.call_tool("agent", {"q": "question"})
    assert texts_of(result)[0] == "I see"
    assert words in requests[-1]["messages"][-1]["content"]


async def test_a_model_that_never_stops_calling_has_to_answer(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "tools_dir": tools_folder(tmp_path, HELPER, AGENT),
        "tool_rounds": 2,
        "cache": {"entries": 0},
    }
    calls = [*calling("helper", '{"q": "1"}'), *calling("nothing", "{}", at=1), END_OF_CALLS]
    with scripted(
        events(*calls),
        events(piece("a", "stop")),
        events(*calls),
        events(piece("b", "stop")),
        events(piece("at last", "stop")),
    ) as (url, requests):
        settings["models"] = [{"name": "m", "url": url, "context": 4096}]
        (tmp_path / "settings").write_text(json.dumps(settings))
        parameters = StdioServerParameters(command=PROGRAM, args=["stdio", "--config", str(tmp_path / "settings")])
        async with Client(stdio_client(parameters)) as client:
            result = await client.call_tool("agent", {"q": "question"})
    assert texts_of(result)[0] == "at last"
    assert result.meta is not None
    assert result.meta["tool_calls"] == 4
    assert ["tools" in request for request in requests] == [True, False, True, False, False]


async def test_the_time_for_a_call_holds_for_all_rounds_together(tmp_path: Path) -> None:
    folder = tools_folder(tmp_path, HELPER, AGENT)
    hanging = events(piece("half of it"), done=False)[:-1]
    with FakeEngine(hanging, hold=threading.Event()).running() as url:
        started = time.monotonic()
        async with stdio(
            LOCAL_API_URL=url, MODEL_NAME="m", LOCAL_LLM_TOOLS_DIR=folder, OPENAI_TIMEOUT="1500"
        ) as client:
            await client.call_tool("agent", {"q": "question"})
        assert time.monotonic() - started < 8


@pytest.mark.usefixtures("bubblewrap")
async def test_generated_code_is_run_and_mended_before_it_is_given() -> None:
    wrong, right = "print(1 / 0)", "print(sum(range(5)))"
    script = (
        events(*calling("execute_python", json.dumps({"code": wrong})), END_OF_CALLS),
        events(*calling("execute_python", json.dumps({"code": right})), END_OF_CALLS),
        events(piece("```python\nprint(sum(range(5)))\n```", "stop")),
    )
    with scripted(*script) as (url, requests):
        async with stdio(LOCAL_API_URL=url, MODEL_NAME="m", LOCAL_LLM_EXECUTE_PYTHON="1") as client:
            result = await client.call_tool("code_generation", {"task": "Sum 0 to 4.", "verify": True})
    answer, ran = texts_of(result)
    assert answer == "```python\nprint(sum(range(5)))\n```"
    assert f"1. execute_python:\n```python\n{wrong}\n```\nexit code 1" in ran
    assert "ZeroDivisionError" in ran
    assert f"2. execute_python:\n```python\n{right}\n```\nexit code 0\n\nstdout:\n10" in ran
    assert "ZeroDivisionError" in requests[1]["messages"][-1]["content"]
    assert "calling execute_python" in requests[0]["messages"][0]["content"]


@pytest.mark.usefixtures("bubblewrap")
async def test_without_verify_the_model_gets_no_tool() -> None:
    with scripted(events(piece("code", "stop"))) as (url, requests):
        async with stdio(LOCAL_API_URL=url, MODEL_NAME="m", LOCAL_LLM_EXECUTE_PYTHON="1") as client:
            result = await client.call_tool("code_generation", {"task": "Sum 0 to 4."})
            printed = await client.call_tool("execute_python", {"code": "print(6 * 7)"})
    assert text_of(result) == "code"
    assert "tools" not in requests[0]
    assert text_of(printed) == "exit code 0\n\nstdout:\n42\n"
    assert printed.meta is not None
    assert printed.meta["exit_code"] == 0


async def test_a_real_model_calls_a_tool(engine: str, tmp_path: Path) -> None:
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    weather = {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "arguments": city,
        "template": "What is the capital of France?",  # which the tiny model knows
    }
    agent = {"name": "agent", "arguments": SCHEMA, "template": "{{ q }}", "tools": ["get_weather"], "temperature": 0}
    environment = {
        "LOCAL_API_URL": engine,
        "MODEL_NAME": MODEL,
        "OPENAI_API_KEY": ENGINE_KEY,
        "LOCAL_LLM_TOOLS_DIR": tools_folder(tmp_path, weather, agent),
    }
    async with stdio(**environment) as client:
        result = await client.call_tool("agent", {"q": "What is the weather in Paris?"})
    assert not result.is_error, texts_of(result)
    assert result.meta is not None
    assert result.meta["tool_calls"] >= 1
    ran = texts_of(result)[1]
    assert "get_weather(" in ran
    assert '"Paris"' in ran


@pytest.mark.parametrize(
    ("text", "looks_like_a_call"),
    [
        ('{"name": "helper", "arguments": {"q": "x"}}', True),
        ('```json\n{"name": "helper", "arguments": {}}\n```', True),
        ('<tool_call>\n{"name": "helper"}\n</tool_call>', True),
        ("<function=helper><parameter=q>x</parameter></function>", True),
        ("<\uff5ctool\u2581calls\u2581begin\uff5c>helper", True),
        ("<\uff5cDSML\uff5cfunction_calls>\n<\uff5cDSML\uff5cinvoke name=helper>", True),
        ("<|tool_calls_section_begin|><|tool_call_begin|>functions.helper:0<|tool_call_argument_begin|>{}", True),
        ('<minimax:tool_call>\n<invoke name="helper">\n</invoke>\n</minimax:tool_call>', True),
        ("<|tool_call>call:helper{q:1}<tool_call|>", True),
        ('<|python_tag|>{"name": "helper"}', True),
        ('[TOOL_CALLS][{"name": "helper"}]', True),
        ('I ask the helper.\n\n<tool_call>\n{"name": "helper"}\n</tool_call>', True),
        ("<|channel|>commentary to=functions.helper <|constrain|>json<|message|>{}<|call|>", True),
        ('<|channel|>commentary<|message|>{"path":"/"}<|end|>', True),
        ("assistantcommentary to=functions.helper json{}", True),
        ("Models write calls so:\n\n```xml\n<tool_call>\n{}\n</tool_call>\n```\n", False),
        ("<tooltip>Ask</tooltip>", False),
        ("The tag `<tool_call>` opens one.", False),
        ("The helper is named so.", False),
    ],
)
async def test_a_call_that_came_as_text_is_told(tmp_path: Path, text: str, *, looks_like_a_call: bool) -> None:
    with scripted(events(piece(text, "stop"))) as (url, _):
        folder = tools_folder(tmp_path, HELPER, AGENT)
        async with stdio(LOCAL_API_URL=url, MODEL_NAME="m", LOCAL_LLM_TOOLS_DIR=folder) as client:
            result = await client.call_tool("agent", {"q": "question"})
    assert texts_of(result)[0] == text
    assert texts_of(result)[1].startswith("[The model ran nothing.")
    assert ("the engine has not read as one" in texts_of(result)[1]) == looks_like_a_call
