"""The tools answer, over both transports and in both protocol eras."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from local_llm_bridge.config import Engine, Settings
from local_llm_bridge.server.dispatch import Dispatcher
from tests.services import MODEL, Bridge, FakeEngine, events, piece, stdio, text_of, texts_of

if TYPE_CHECKING:
    from mcp import Client

pytestmark = pytest.mark.anyio

QUICKSORT = "Write a quicksort function in Python."
TOOLS = ["list_models", "chat", "code_generation", "explain_code", "review_code", "write_tests"]
ERAS = pytest.mark.parametrize(("mode", "version"), [("auto", "2026-07-28"), ("legacy", "2025-11-25")])


async def prove(client: Client, answers: dict[str, Any]) -> None:
    """Call every tool and compare with what the model knows."""
    tools = (await client.list_tools()).tools
    assert [tool.name for tool in tools] == TOOLS
    assert all(tool.annotations and tool.annotations.read_only_hint for tool in tools)
    assert all(tool.input_schema["additionalProperties"] is False for tool in tools)

    result = await client.call_tool("chat", {"message": QUICKSORT})
    assert not result.is_error
    assert text_of(result) == answers["chat"][QUICKSORT]
    assert result.meta is not None
    assert result.meta["model"] == MODEL
    assert result.meta["completion_tokens"] > 50

    result = await client.call_tool("code_generation", {"task": QUICKSORT, "language": "Python", "model": MODEL})
    assert not result.is_error
    assert text_of(result) == answers["chat"][QUICKSORT]


@ERAS
async def test_the_tools_answer_over_http(bridge: Bridge, answers: dict[str, Any], mode: str, version: str) -> None:
    async with bridge.client(mode) as client:
        assert client.protocol_version == version
        await prove(client, answers)


@ERAS
async def test_the_tools_answer_over_stdio(
    environment: dict[str, str], answers: dict[str, Any], mode: str, version: str
) -> None:
    async with stdio(mode, **environment) as client:
        assert client.protocol_version == version
        await prove(client, answers)


async def test_chinese_goes_in_and_out_unharmed(bridge: Bridge, answers: dict[str, Any]) -> None:
    async with bridge.client() as client:
        result = await client.call_tool("chat", {"message": "用 Python 写一个快速排序函数。"})
    assert text_of(result) == answers["chat"]["用 Python 写一个快速排序函数。"]


async def test_the_model_gets_exactly_the_agreed_prompts() -> None:
    engine = FakeEngine(events(piece("4"), piece("", "stop")))
    with engine.running() as url:
        async with stdio(LOCAL_API_URL=url, MODEL_NAME="m") as client:
            await client.call_tool("chat", {"message": "2 + 2?"})
            await client.call_tool("chat", {"message": "2 + 2?", "system": "Be brief."})
            await client.call_tool("code_generation", {"task": "Sort."})
            await client.call_tool("code_generation", {"task": "Sort.", "language": "Go"})
    expert = (
        "You are an expert programmer. Solve the task with correct, readable code. "
        "Reply with one Markdown code block and a short explanation in the language of the task."
    )
    asked = [(request["messages"], request["temperature"], request["max_tokens"]) for request in engine.requests]
    question, task = {"role": "user", "content": "2 + 2?"}, {"role": "user", "content": "Sort."}
    assert asked == [
        ([question], 0.7, 2000),
        ([{"role": "system", "content": "Be brief."}, question], 0.7, 2000),
        ([{"role": "system", "content": expert}, task], 0.3, 3000),
        ([{"role": "system", "content": f"{expert} Write the code in Go."}, task], 0.3, 3000),
    ]


async def test_the_only_model_that_an_engine_serves_needs_no_name(environment: dict[str, str]) -> None:
    async with stdio(**{**environment, "MODEL_NAME": ""}) as client:
        result = await client.call_tool("chat", {"message": "ping"})
    assert not result.is_error
    assert result.meta is not None
    assert result.meta["model"] == MODEL


async def test_an_answer_that_hits_its_limit_says_so() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2000}}
    with FakeEngine(events(piece("1, 2,"), piece("", "length"), usage)).running() as url:
        async with stdio(LOCAL_API_URL=url, MODEL_NAME="m") as client:
            result = await client.call_tool("chat", {"message": "Count."})
    assert not result.is_error
    text, note = texts_of(result)
    assert text == "1, 2,"
    assert note.startswith("[Cut off after 2000 tokens. For a longer answer, raise max_tokens of the model")


@pytest.mark.usefixtures("bubblewrap")
async def test_all_schemas_together_cost_little_context() -> None:
    async with stdio(LOCAL_LLM_EXECUTE_PYTHON="1") as client:
        tools = (await client.list_tools()).tools
    assert {"execute_python", "chat"} <= {tool.name for tool in tools}
    size = sum(len(tool.model_dump_json(by_alias=True, exclude_none=True)) for tool in tools)
    assert size / 3 < 1500, "JSON has at least 3 characters a token"


async def test_the_server_names_its_models_when_there_is_a_choice(bridge: Bridge, engine: str) -> None:
    several = Dispatcher(Settings(engines=(Engine("coder", engine), Engine("general", engine))))
    assert "Models: coder, general; unless one is named" in several.instructions
    async with bridge.client() as client:
        assert "Models:" not in (client.instructions or "")
