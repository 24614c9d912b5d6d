"""Tool calls in every shape that engines send, and a history that no engine refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import yaml

from local_llm_bridge.models.tool_calls import MOST_CALLS, ToolCalls, TooManyCallsError
from local_llm_bridge.server.dispatch import Call
from tests.services import ENGINE_KEY, FakeEngine, ScriptedEngine, asked, delta, events, piece, wire_texts

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

FINISHED = events(piece("done", "stop"))


def part(arguments: object = None, *, name: str = "f", **more: object) -> dict[str, Any]:
    """Return one piece of a call."""
    return {**more, "type": "function", "function": {"name": name, "arguments": arguments}}


def rest(arguments: object, **more: object) -> dict[str, Any]:
    """Return a piece that only goes on."""
    return {**more, "function": {"arguments": arguments}}


def read(*deltas: object, whole: bool = True) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Return id, name and arguments of the calls that these events make."""
    calls = ToolCalls()
    for parts in deltas:
        calls.add(parts)
    return [(call.id, call.name, call.arguments) for call in calls.done(whole=whole)]


A, B = ("a", "f", {"x": 1}), ("b", "f", {"x": 2})


@pytest.mark.parametrize(
    ("deltas", "calls"),
    [
        ([[part('{"x": 1}', index=0, id="a")]], [A]),
        ([[part('{"x"', index=0, id="a")], [rest(": 1}", index=0)]], [A]),
        ([[part("", index=0, id="a")], [rest('{"x"', index=0), rest(": 1}", index=0)]], [A]),
        ([[part('{"x": 1}', index=0, id="a")], [part('{"x": 2}', index=1, id="b")]], [A, B]),
        # parallel calls, their pieces mixed
        (
            [
                [part('{"x"', index=0, id="a"), part('{"x"', index=1, id="b")],
                [rest(": 1}", index=0), rest(": 2}", index=1)],
            ],
            [A, B],
        ),
        # the same index for all, or none
        ([[part('{"x": 1}', index=0, id="a")], [part('{"x": 2}', index=0, id="b")]], [A, B]),
        ([[part('{"x": 1}', index=0, id="a"), part('{"x": 2}', index=0, id="b")]], [A, B]),
        ([[part('{"x": 1}', id="a"), part('{"x": 2}', id="b")]], [A, B]),
        ([[part('{"x": 1}', index=None, id="a")], [part('{"x": 2}', index=None, id="b")]], [A, B]),
        ([[part('{"x"', id="a")], [rest(": 1}")], [part('{"x"', id="b")], [rest(": 2}")]], [A, B]),
        ([[part('{"x"', index=0, id="a")], [rest(": 1}")]], [A]),
        ([[part('{"x": 1}', index="0", id="a")], [part('{"x": 2}', index="0", id="b")]], [A, B]),
        # the same id and index for all
        ([[part('{"x": 1}', index=0, id="a")], [part('{"x": 2}', index=0, id="a")]], [A, ("call_1", "f", {"x": 2})]),
        ([[part('{"x": 1}', index=0, id="a")], [part('{"x": 2}', index=1, id="a")]], [A, ("call_1", "f", {"x": 2})]),
        # no id at all
        ([[part('{"x": 1}', index=0)]], [("call_0", "f", {"x": 1})]),
        ([[part('{"x": 1}'), part('{"x": 2}')]], [("call_0", "f", {"x": 1}), ("call_1", "f", {"x": 2})]),
        ([[part('{"x": 1}')], [part('{"x": 2}')]], [("call_0", "f", {"x": 1}), ("call_1", "f", {"x": 2})]),
        ([[part(), part()]], [("call_0", "f", {}), ("call_1", "f", {})]),
        ([[part('{"x": 1}', index=0, id="")]], [("call_0", "f", {"x": 1})]),
        ([[part('{"x": 1}', index=0, id=7)]], [("7", "f", {"x": 1})]),
        # the name or the id again in each piece, or in pieces
        ([[part('{"x"', index=0, id="a")], [part(": 1}", index=0, id="a")]], [A]),
        ([[part('{"x"', index=0)], [part(": 1}", index=0)]], [("call_0", "f", {"x": 1})]),
        ([[part('{"x"', index=0, id="a")], [rest(": 1}", index=0, id="other")]], [A]),
        ([[part('{"x": 1}', index=0, id="a")], [part("", index=0, id="a")]], [A]),
        ([[part('{"x": 1}', index=0, id="a")], [part('{"x": 1}', index=0, id="a")]], [A]),
        ([[part("", name="g", index=0, id="a")], [part('{"x": 1}', name="_h", index=0)]], [("a", "g_h", {"x": 1})]),
        ([[part("", name="g", index=0, id="a")], [part('{"x": 1}', name="g_h", index=0)]], [("a", "g_h", {"x": 1})]),
        # arguments that are no text
        ([[part({"x": 1}, index=0, id="a")]], [A]),
        ([[part({}, index=0, id="a")]], [("a", "f", {})]),
        ([[part(None, index=0, id="a")]], [("a", "f", {})]),
        ([[part("", index=0, id="a")]], [("a", "f", {})]),
        ([[part("null", index=0, id="a")]], [("a", "f", {})]),
        ([[part('"{\\"x\\": 1}"', index=0, id="a")]], [A]),
        # arguments so far in each piece, or none before the first
        ([[part('{"x"', index=0, id="a")], [rest('{"x": 1', index=0)], [rest('{"x": 1}', index=0)]], [A]),
        ([[part('{"x"', index=0, id="a")], [part('{"x": 1}', index=0, id="a")]], [A]),
        ([[part('{"x"', index=0, id="a")], [rest(": 1}", index=0)], [rest('{"x": 1}', index=0)]], [A]),
        ([[part("{}", index=0, id="a")], [rest('{"x"', index=0)], [rest(": 1}", index=0)]], [A]),
        ([[part({}, index=0, id="a")], [rest({"x": 1}, index=0)]], [A]),
        ([[part('{}{"x": 1}', index=0, id="a")]], [A]),
        # names
        ([[part('{"x": 1}', name=" f\n", index=0, id="a")]], [A]),
        ([[part("", name="f ", index=0, id="a")], [part('{"x": 1}', name="f", index=0)]], [A]),
        ([[part("", name="g_", index=0, id="a")], [part('{"x": 1}', name="h ", index=0)]], [("a", "g_h", {"x": 1})]),
        ([[part('{"x": 1}', name="functions.f:0", index=0, id="a")]], [A]),
        ([[part('{"x": 1}', name="functions.f", index=0, id="a")]], [A]),
        ([[part('{"x": 1}', name="f:12", index=0, id="a")]], [A]),
        ([[part('{"x": 1}', name="f<|channel|>commentary", index=0, id="a")]], [A]),
        ([[part('{"x": 1}', name="functions.", index=0, id="a")]], [("a", "functions.", {"x": 1})]),
        # other shapes
        ([part('{"x": 1}', index=0, id="a")], [A]),
        ([[{"id": "a", "name": "f", "arguments": {"x": 1}}]], [A]),
        ([[{"id": "a", "name": "f", "parameters": {"x": 1}}]], [A]),
        ([[{"id": "a", "name": "f", "input": {"x": 1}}]], [A]),
        ([{"name": "f", "arguments": '{"x"'}, {"arguments": ": 1}"}], [("call_0", "f", {"x": 1})]),
        ([[None, part('{"x": 1}', index=0, id="a"), {}]], [A]),
        ([[rest("", index=0)]], []),
        # broken
        ([[part('{"x": ', index=0, id="a")]], [("a", "f", None)]),
        ([[part("[1", index=0, id="a")]], [("a", "f", None)]),
        ([[part("[1]", index=0, id="a")]], [("a", "f", None)]),
        ([[part('{"x": NaN}', index=0, id="a")]], [("a", "f", None)]),
        ([[part("{}{}", index=0, id="a")]], [("a", "f", None)]),
        ([[part("[" * 100_000, index=0, id="a")]], [("a", "f", None)]),
    ],
)
def test_calls_are_put_together(deltas: list[object], calls: list[tuple[str, str, dict[str, Any] | None]]) -> None:
    assert read(*deltas) == calls


@pytest.mark.parametrize("size", [1, 2, 5])
def test_arguments_may_be_cut_anywhere(size: int) -> None:
    text = json.dumps({"code": 'print({"a": "}"})\n' * 3})
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    for repeated in ({}, {"id": "a"}, {"id": "a", "name": "f"}):
        name = str(repeated.get("name", ""))
        ident = {"id": repeated["id"]} if "id" in repeated else {}
        later = [[part(piece, name=name, index=0, **ident)] for piece in pieces]
        assert read([part("", index=0, id="a")], *later) == [("a", "f", json.loads(text))]


def test_calls_without_end_are_refused() -> None:
    calls = ToolCalls()
    for number in range(MOST_CALLS):
        calls.add([part("{}", index=number)])
    with pytest.raises(TooManyCallsError):
        calls.add([part("{}", index=MOST_CALLS)])


def test_pieces_without_end_cost_as_much_each() -> None:
    """What says its name in each piece is not read from its beginning again for each."""
    calls = ToolCalls()
    for _ in range(20_000):
        calls.add([part('{"x": "}', index=0)])
    assert len(calls.done(whole=True)) == 1
    assert calls.size == 20_000 * 9


def test_what_else_came_with_a_call_goes_back_with_it() -> None:
    signed: dict[str, Any] = {"extra_content": {"google": {"thought_signature": "SIG=="}}}
    calls = ToolCalls()
    calls.add([part('{"x"', index=0, id="a", **signed)])
    calls.add([{**rest(": 1}", index=0), "extra_content": None}])
    (call,) = calls.done(whole=True)
    function = {"name": "f", "arguments": '{"x": 1}'}
    assert call.as_history() == {**signed, "id": "a", "type": "function", "function": function}
    assert calls.size > len("SIG==")


def test_a_call_that_was_cut_before_its_arguments_came_has_none() -> None:
    assert read([part("", index=0, id="a")], whole=False) == [("a", "f", None)]
    assert read([part('{"x": 1}', index=0, id="a")], whole=False) == [A]


def agent(folder: Path) -> dict[str, Any]:
    """Return settings with a tool `agent`, whose model may call `list_models`."""
    tool = {"name": "agent", "description": "x", "template": "hi", "tools": ["list_models"]}
    (folder / "agent.yml").write_text(yaml.safe_dump(tool))
    return {"tools_dir": folder}


AGENT = Call("agent", {"fresh": True})
BROKEN = ['{"code": "x', "{}{}", "[1", "[]", "5", '"x"', '{"x": NaN}', "\x00", "{'x': 1}"]
EMPTY: list[object] = ["{}", "", None, {}, "null", " "]


@pytest.mark.parametrize("arguments", [*BROKEN, *EMPTY, '{"x": 1}', {"x": 1}])
async def test_what_goes_back_is_valid_and_says_what_was_wrong(tmp_path: Path, arguments: object) -> None:
    calls = events(delta(tool_calls=[part(arguments, name="list_models", index=0, id="a")]), delta("tool_calls"))
    engine = ScriptedEngine(calls, FINISHED)
    (result,) = await asked(AGENT, reply=engine, **agent(tmp_path))
    assert wire_texts(result)[0] == "done"
    _, assistant, answered = engine.requests[-1]["messages"]
    (call,) = assistant["tool_calls"]
    assert isinstance(json.loads(call["function"]["arguments"]), dict)
    assert answered["tool_call_id"] == call["id"] == "a"
    if arguments in BROKEN:
        assert answered["content"].startswith("Error: The arguments are not a JSON object.")
        assert f"You wrote: {arguments}" in answered["content"]
    elif arguments in EMPTY:
        assert "slots busy" in answered["content"]
    else:
        assert "'x' was unexpected" in answered["content"] or "x" in answered["content"]


@pytest.mark.parametrize("name", ["no such tool", "tools.list_models", "", "n\x00", "名前", "x" * 1000])
async def test_a_name_that_no_engine_takes_back_is_made_one(tmp_path: Path, name: str) -> None:
    calls = events(delta(tool_calls=[part('{"x": 1}', name=name, index=0, id="a")]), delta("tool_calls"))
    engine = ScriptedEngine(calls, FINISHED)
    (result,) = await asked(AGENT, reply=engine, **agent(tmp_path))
    assert wire_texts(result)[0] == "done"
    _, assistant, answered = engine.requests[-1]["messages"]
    assert "There is no tool" in answered["content"]
    sent = assistant["tool_calls"][0]["function"]["name"]
    assert 0 < len(sent) <= 64
    assert sent.isascii()
    assert sent.replace("_", "").replace("-", "").isalnum() or set(sent) == {"_"}


@pytest.mark.parametrize("arguments", [*BROKEN, *EMPTY])
async def test_a_real_engine_takes_the_history(tmp_path: Path, engine: str, arguments: object) -> None:
    calls = events(delta(tool_calls=[part(arguments, name="list_models", index=0, id="a")]), delta("tool_calls"))
    scripted = ScriptedEngine(calls, FINISHED)
    await asked(AGENT, reply=scripted, **agent(tmp_path))
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {ENGINE_KEY}"}, timeout=60) as client:
        taken = await client.post(f"{engine}/chat/completions", json=scripted.requests[-1])
    assert taken.status_code == 200, taken.text


async def test_parallel_calls_are_all_run(tmp_path: Path) -> None:
    two = [part("{}", name="list_models", index=0, id=ident) for ident in ("a", "b")]
    engine = ScriptedEngine(events(delta(tool_calls=two), delta("stop")), FINISHED)
    (result,) = await asked(AGENT, reply=engine, **agent(tmp_path))
    assert result["_meta"]["tool_calls"] == 2
    assert [message.get("tool_call_id") for message in engine.requests[-1]["messages"]] == [None, None, "a", "b"]


async def test_what_an_engine_leaves_around_a_name_does_not_keep_its_tool_from_running(tmp_path: Path) -> None:
    kimis = part("{}", name="functions.list_models:0", index=0, id="functions.list_models:0")
    engine = ScriptedEngine(events(delta(tool_calls=[kimis]), delta("tool_calls")), FINISHED)
    (result,) = await asked(AGENT, reply=engine, **agent(tmp_path))
    assert "slots busy" in wire_texts(result)[1]
    _, assistant, answered = engine.requests[-1]["messages"]
    assert assistant["tool_calls"][0]["function"]["name"] == "list_models"
    assert answered["tool_call_id"] == "functions.list_models:0"


async def test_a_call_in_both_forms_is_one(tmp_path: Path) -> None:
    both = delta(tool_calls=[part("{}", name="list_models", index=0)], function_call=part("{}", name="list_models"))
    engine = ScriptedEngine(events(both, delta("tool_calls")), FINISHED)
    (result,) = await asked(AGENT, reply=engine, **agent(tmp_path))
    assert result["_meta"]["tool_calls"] == 1


async def test_calls_after_a_text_that_nobody_runs_have_a_note(tmp_path: Path) -> None:
    reply = events(piece("I look."), delta("tool_calls", tool_calls=[part("{}", name="list_models", index=0)]))
    words = "[The model then called 'list_models', which was not run: this may not be all that it had to say.]"
    for call, more in ((Call("chat", {"message": "hi"}), {}), (AGENT, {"tool_rounds": 1})):
        *_, result = await asked(call, call, reply=reply, **agent(tmp_path), **more)
        assert wire_texts(result)[:2] == ["I look.", words]
        assert not result["_meta"]["cached"]


async def test_the_older_function_call_is_one(tmp_path: Path) -> None:
    pieces = [delta(function_call={"name": "list_models", "arguments": "{"}), delta(function_call={"arguments": "}"})]
    engine = ScriptedEngine(events(*pieces, delta("function_call")), FINISHED)
    (result,) = await asked(AGENT, reply=engine, **agent(tmp_path))
    assert result["_meta"]["tool_calls"] == 1
    assert "slots busy" in wire_texts(result)[1]


async def test_a_model_that_still_calls_in_the_last_round_is_told_on(tmp_path: Path) -> None:
    engine = FakeEngine(events(delta(tool_calls=[part("{}", name="list_models", index=0)]), delta("tool_calls")))
    (result,) = await asked(AGENT, reply=engine, tool_rounds=2, **agent(tmp_path))
    assert result["isError"]
    (text,) = wire_texts(result)
    assert text.startswith("The model m called 'list_models' instead of answering. It may call tools 2 times (tool_rou")
    assert ["tools" in request for request in engine.requests if request] == [True, True, False]


async def test_calls_that_go_on_for_ever_are_ended(tmp_path: Path) -> None:
    long = part("x" * 100_000, name="list_models", index=0)
    for stream in ([delta(tool_calls=[long])] * 20, [delta(tool_calls=[part("{}", index=n)]) for n in range(100)]):
        (result,) = await asked(AGENT, reply=events(*stream, done=False), **agent(tmp_path))
        assert result["isError"]
        assert "more than" in wire_texts(result)[0]
