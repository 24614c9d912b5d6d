"""Tools without code: what a YAML file makes of itself, what is wrong with one, and how a change arrives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import yaml
from mcp import Client, StdioServerParameters, stdio_client, types

from local_llm_bridge.config import Engine, Settings
from local_llm_bridge.errors import ConfigError
from local_llm_bridge.tools import SHIPPED, Toolbox, prompt_file
from tests.services import MODEL, PROGRAM, FakeEngine, events, piece, serving, stdio, text_of, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from mcp.types import CallToolResult

pytestmark = pytest.mark.anyio

TRANSLATE: dict[str, Any] = {
    "name": "translate",
    "description": "Translate.",
    "arguments": {
        "type": "object",
        "properties": {"text": {"type": "string"}, "to": {"type": "string", "default": "Chinese"}},
        "required": ["text"],
    },
    "system": "You translate to {{ to }}.",
    "template": "Translate:\n{{ text }}",
    "temperature": 0.1,
    "max_tokens": 99,
}


@pytest.fixture
def engine_stand_in() -> FakeEngine:
    return FakeEngine(events(piece("done", "stop")))


def toolbox(folder: Path) -> Toolbox:
    return Toolbox(Settings(engines=(Engine("m", "http://e/v1"),), tools_dir=folder))


def write(folder: Path, content: object, name: str = "tool.yml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, allow_unicode=True))
    return path


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yml")), ids=lambda path: path.stem)
def test_what_is_shipped_is_right(path: Path) -> None:
    prompt_file.read(path).check()


async def test_a_shipped_prompt_asks_for_what_it_says(engine_stand_in: FakeEngine) -> None:
    with engine_stand_in.running() as url:
        async with stdio(LOCAL_API_URL=url, MODEL_NAME="m") as client:
            await client.call_tool("review_code", {"code": "x = 1", "focus": "naming"})
            await client.call_tool("write_tests", {"code": "x = 1"})
            await client.call_tool("explain_code", {"code": "x = 1", "question": "为什么这样写"})
    asked = [request["messages"][-1]["content"] for request in engine_stand_in.requests]
    assert asked == [
        "Review this code. Look above all at: naming.\n\nx = 1",
        "Write unit tests for this code.\n\nx = 1",
        "为什么这样写\n\nx = 1",
    ]
    assert [request["temperature"] for request in engine_stand_in.requests] == [0.2, 0.3, 0.3]
    assert all("review" in request["messages"][0]["content"] for request in engine_stand_in.requests[:1])


async def test_a_file_is_a_tool(engine_stand_in: FakeEngine, tmp_path: Path) -> None:
    write(tmp_path, TRANSLATE)
    with engine_stand_in.running() as url:
        async with stdio(LOCAL_API_URL=url, MODEL_NAME="m", LOCAL_LLM_TOOLS_DIR=str(tmp_path)) as client:
            result = await client.call_tool("translate", {"text": "hello {{ to }}"})
            refused = await client.call_tool("translate", {"text": "hello", "from": "English"})
    assert text_of(result) == "done"
    assert refused.is_error
    assert "'from' was unexpected" in text_of(refused)
    (request,) = engine_stand_in.requests
    # What a caller writes is never a template.
    assert request["messages"] == [
        {"role": "system", "content": "You translate to Chinese."},
        {"role": "user", "content": "Translate:\nhello {{ to }}"},
    ]
    assert (request["temperature"], request["max_tokens"]) == (0.1, 99)


ESCAPES = (
    "{{ text.__class__.__mro__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ text.format.__globals__ }}",
    "{% for x in range(10**9) %}{% endfor %}",
    "{{ 1 / 0 }}",
    "{{ text.nothing.more }}",
)


async def test_templates_are_sandboxed_and_strict(tmp_path: Path) -> None:
    for number, template in enumerate(ESCAPES):
        write(tmp_path, {**TRANSLATE, "name": f"t{number}", "template": template}, f"{number}.yml")
    async with stdio(LOCAL_LLM_TOOLS_DIR=str(tmp_path)) as client:
        results = [await client.call_tool(f"t{number}", {"text": "x"}) for number in range(len(ESCAPES))]
    for result in results:
        assert result.is_error
        assert "cannot be filled in" in text_of(result)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nmae": "x"}, ["line 14: nmae: unknown key; did you mean 'name'?"]),
        ({"name": None}, ["line 13: name:"]),
        ({"name": "No Name"}, ["line 13: name: found 'No Name'"]),
        ({"name": "chat"}, ["line 13: name: 'chat' is a tool of the bridge itself"]),
        ({"temperature": 3}, ["temperature: found 3; input should be less than or equal to 2"]),
        ({"arguments": {"type": "text"}}, ["line 1: arguments: is not a JSON Schema: 'text' is not valid"]),
        ({"arguments": {"type": "array"}}, ["line 1: arguments: wanted 'type: object'"]),
        (
            {"arguments": {"type": "object", "properties": {"model": {}}}},
            ["arguments: model: every tool has this argument already"],
        ),
        (
            {"arguments": {"type": "object", "properties": {"text": {"pattern": "(?!a)b"}, "to": {}}}},
            ["arguments: pattern: found '(?!a)b', which is no regular", "look-around", "is not supported"],
        ),
        ({"arguments": {"type": "object", "patternProperties": {"a": {}}}}, ["patternProperties, which the bridge"]),
        ({"template": "{{ text"}, ["template: line 1 of the template: unexpected end of template"]),
        ({"template": "{{ txt }}"}, ["template: uses txt; arguments are: text, to"]),
        ({"system": "{% if %}"}, ["system: line 1 of the template: Expected an expression"]),
        ({"model": "gpt-5"}, ["model: found 'gpt-5'; known are m"]),
        ({"tools": ["nothing"]}, ["tools: found 'nothing'; the model may be given: list_models, chat"]),
        ({"tools": ["translate"]}, ["tools: found 'translate'"]),
        ({"files_into": "file"}, ["files_into: found 'file'; wanted one of the arguments: text, to"]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_told_with_file_and_line(tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
    path = write(tmp_path, {**TRANSLATE, **change})
    with pytest.raises(ConfigError) as told:
        toolbox(tmp_path)
    assert str(told.value).startswith(f"{path}: line ")
    assert all(word in str(told.value) for word in words), told.value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", "line 2: is not valid YAML"),
        ("name: x\nname2: 'y\n", "line 3: is not valid YAML"),
        ("", "line 1: found nothing"),
        ("- 1", "line 1: found a list"),
        ("name: x\n", "description: missing"),
        ("name: *no\n", "line 1: is not valid YAML"),
    ],
)
def test_what_is_no_tool_is_told_with_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as told:
        toolbox(tmp_path)
    assert str(path) in str(told.value)
    assert words in str(told.value)


def test_two_files_with_one_name_and_a_missing_folder_are_told(tmp_path: Path) -> None:
    write(tmp_path, TRANSLATE, "a.yml")
    write(tmp_path, TRANSLATE, "b.yml")
    with pytest.raises(ConfigError, match=r"b\.yml: line \d+: name: .*a\.yml has a tool 'translate', too"):
        toolbox(tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        toolbox(tmp_path / "none")


def test_a_mistake_ends_the_start(tmp_path: Path) -> None:
    path = write(tmp_path, {**TRANSLATE, "template": "{{ txt }}"})
    done = subprocess.run(
        [PROGRAM],
        input="",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": os.environ["PATH"], "LOCAL_LLM_TOOLS_DIR": str(tmp_path)},
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"local-llm-bridge: {path}: line ")


async def test_a_file_may_take_the_place_of_a_shipped_one(tmp_path: Path) -> None:
    write(tmp_path, {**TRANSLATE, "name": "review_code", "description": "Ours."})
    tools = {tool["name"]: tool["description"] for tool in toolbox(tmp_path).listing}
    assert tools["review_code"] == "Ours."
    assert len(tools) == 6


async def test_changes_arrive_without_a_restart_and_clients_are_told(tmp_path: Path) -> None:
    told = anyio.Event()

    async def heard(message: object) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            told.set()

    async def names(client: Client) -> set[str]:
        return {tool.name for tool in (await client.list_tools()).tools}

    parameters = StdioServerParameters(command=PROGRAM, env={"LOCAL_LLM_TOOLS_DIR": str(tmp_path)})
    async with Client(stdio_client(parameters), mode="legacy", message_handler=heard) as client:
        assert "translate" not in await names(client)
        write(tmp_path, TRANSLATE)
        with anyio.fail_after(10):
            await told.wait()
        assert "translate" in await names(client)


def test_while_a_file_is_wrong_the_tools_stay(tmp_path: Path) -> None:
    folder = tmp_path / "tools"
    folder.mkdir()
    write(folder, TRANSLATE)
    with serving(tmp_path / "bridge", "http://127.0.0.1:1", tools_dir=str(folder)) as bridge:
        write(folder, "name: [")
        wait_for(lambda: "tools stay as they were" in bridge.log.read_text(), 10)
        assert bridge.log.read_text().count("tools stay as they were") == 1
        write(folder, {**TRANSLATE, "name": "translate2"})
        wait_for(lambda: "tools read again" in bridge.log.read_text(), 10)
        assert "translate2" in bridge.log.read_text()
        shutil.rmtree(folder)
        wait_for(lambda: "is not a folder" in bridge.log.read_text(), 10)
        assert bridge.http("/healthz")[0] == 200


FORBIDDEN = (".env", "link", "../x", "/etc/hosts")


async def test_files_are_read_by_the_bridge_over_stdio(
    engine_stand_in: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / ".env").write_text("KEY=secret")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with engine_stand_in.running() as url:
        async with stdio(LOCAL_API_URL=url, MODEL_NAME="m", CLAUDE_PROJECT_DIR=str(tmp_path)) as client:
            tools = {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}
            answered = await client.call_tool("review_code", {"paths": ["a.py"]})
            added = await client.call_tool("chat", {"message": "What is this?", "paths": ["a.py"]})
            refused: list[CallToolResult] = [
                await client.call_tool("explain_code", {"paths": [path]})
                for path in (".env", "link", "../x", "/etc/hosts")
            ]
            nothing = await client.call_tool("review_code", {})
    assert not answered.is_error
    assert not added.is_error
    assert "required" not in tools["review_code"] or "code" not in tools["review_code"]["required"]
    assert tools["chat"]["required"] == ["message"]
    contents = [request["messages"][-1]["content"] for request in engine_stand_in.requests]
    assert len(contents) == 2
    assert all("File a.py:" in content and "x = 1" in content for content in contents)
    assert contents[1].startswith("What is this?\n\nFile a.py:")
    for result, path in zip(refused, FORBIDDEN, strict=True):
        assert result.is_error
        assert path in text_of(result)
        assert "secret" not in text_of(result).replace("secrets", "")
    assert "wants code, or files under paths" in text_of(nothing)


async def test_over_http_there_are_no_files(tmp_path: Path) -> None:
    with serving(tmp_path, "http://127.0.0.1:1") as bridge:
        async with bridge.client() as client:
            tools = (await client.list_tools()).tools
            result = await client.call_tool("chat", {"message": "x", "paths": ["/etc/passwd"]})
    assert not any("paths" in tool.input_schema["properties"] for tool in tools)
    assert result.is_error
    assert "'paths' was unexpected" in text_of(result)


async def test_a_model_that_a_file_names_is_asked(tmp_path: Path) -> None:
    folder = tmp_path / "tools"
    folder.mkdir()
    write(folder, {**TRANSLATE, "model": "model1"})
    first, second = FakeEngine(events(piece("first", "stop"))), FakeEngine(events(piece("second", "stop")))
    with (
        first.running() as one,
        second.running() as two,
        serving(tmp_path / "bridge", one, two, tools_dir=str(folder)) as bridge,
    ):
        async with bridge.client() as client:
            named = await client.call_tool("translate", {"text": "x"})
            overridden = await client.call_tool("translate", {"text": "x", "model": MODEL})
    assert text_of(named) == "second"
    assert text_of(overridden) == "first"
