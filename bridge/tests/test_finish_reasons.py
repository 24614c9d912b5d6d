"""No half answer passes for a whole one."""

from __future__ import annotations

from typing import Any

import pytest

from local_llm_bridge.calls import Call
from tests.services import FakeEngine, asked, delta, events, piece, usage, wire_texts

pytestmark = pytest.mark.anyio

CHAT = Call("chat", {"message": "hi"})
CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "search", "arguments": "{}"}}


@pytest.mark.parametrize("reason", ["stop", "eos", "STOP", "end_turn", "stop_sequence", "tool_calls", "function_call"])
async def test_a_whole_answer_has_no_note_and_is_kept(reason: str) -> None:
    engine = FakeEngine(events(piece("whole"), delta(reason)))
    first, second = await asked(CHAT, CHAT, reply=engine)
    assert wire_texts(first) == wire_texts(second) == ["whole"]
    assert second["_meta"]["cached"]
    assert len(engine.requests) == 1


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("length", "[Cut off after "),
        ("max_tokens", "[Cut off after "),
        ("MAX_TOKENS", "[Cut off after "),
        ("abort", "[The engine broke off"),
        ("cancelled", "[The engine broke off"),
        ("error", "[The engine broke off"),
        ("content_filter", "[The engine's content filter"),
        ("safety", "[The engine's content filter"),
        ("repetition", "[The engine ended the answer for the reason 'repetition'"),
        ("bad\n[note]", "[The engine ended the answer for the reason 'bad\\\\n[note]'"),
        ("x" * 10_000, f"[The engine ended the answer for the reason '{'x' * 40}'"),
        ({"type": "stop"}, "[The engine ended the answer for the reason 'a mapping'"),
        (7, "[The engine ended the answer for the reason '7'"),
    ],
)
async def test_half_an_answer_says_so_and_is_not_kept(reason: object, words: str) -> None:
    engine = FakeEngine(events(piece("half"), delta(reason)))
    results = await asked(CHAT, CHAT, reply=engine)
    for result in results:
        text, note = wire_texts(result)
        assert text == "half"
        assert note.startswith(words)
        assert not result["isError"]
        assert not result["_meta"]["cached"]
    assert len(engine.requests) == 2


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("stop", "(finish reason: stop). Ask in another way"),
        ("length", "(finish reason: length). To let it write more, raise max_tokens"),
        ("abort", "(finish reason: abort). The engine gave it up"),
        ("content_filter", "(finish reason: content_filter). The engine's content filter held it back"),
        ("odd", "(finish reason: odd). Ask in another way"),
    ],
)
async def test_an_empty_answer_is_an_error_with_what_to_do(reason: str, words: str) -> None:
    engine = FakeEngine(events(piece(" \n"), delta(reason)))
    results = await asked(CHAT, CHAT, reply=engine)
    for result in results:
        (text,) = wire_texts(result)
        assert result["isError"]
        assert words in text
    assert len(engine.requests) == 2


async def test_a_stream_without_any_end_is_an_error_with_what_came() -> None:
    (result,) = await asked(CHAT, reply=events(piece("half"), done=False))
    assert result["isError"]
    (text,) = wire_texts(result)
    assert "stopped in the middle of its answer" in text
    assert text.endswith("Received until then (4 characters):\n\nhalf")


async def test_done_is_an_end() -> None:
    (result,) = await asked(CHAT, reply=events(piece("whole")))
    assert wire_texts(result) == ["whole"]
    assert not result["isError"]


@pytest.mark.parametrize("broken", ["{ no JSON", {"error": {"message": "late"}}, "42"])
async def test_what_comes_after_the_end_changes_nothing(broken: object) -> None:
    (result,) = await asked(CHAT, reply=events(piece("whole", "stop"), broken, done=False))
    assert wire_texts(result) == ["whole"]


@pytest.mark.parametrize(
    ("tool", "argument"), [("chat", "message"), ("code_generation", "task"), ("review_code", "code")]
)
@pytest.mark.parametrize("reason", ["tool_calls", "stop", "function_call"])
async def test_calls_of_tools_that_nobody_offered_are_no_answer(tool: str, argument: str, reason: str) -> None:
    engine = FakeEngine(events(delta(tool_calls=[CALL]), delta(reason)))
    results = await asked(*[Call(tool, {argument: "hi"})] * 2, reply=engine)
    for result in results:
        assert result["isError"]
        (text,) = wire_texts(result)
        assert text.startswith("The model m called 'search' instead of answering. It has been given none: ask in ")
    assert len(engine.requests) == 2


async def test_a_call_besides_a_text_leaves_the_text() -> None:
    (result,) = await asked(CHAT, reply=events(piece("42"), delta("stop", tool_calls=[CALL])))
    assert wire_texts(result) == ["42"]


@pytest.mark.parametrize(
    "event",
    [
        {"id": "x", "object": "ping"},
        {"choices": None},
        {"choices": []},
        {"choices": [None]},
        {"choices": [{}]},
        {"choices": [{"index": 0, "delta": None}]},
        {"choices": [{"index": 0, "content_filter_offsets": {}}]},
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]},
        {"choices": [{"index": 0, "delta": {"content": None, "tool_calls": None, "function_call": None}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": []}}]},
        {"choices": [], "usage": None},
        "null",
        {},
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
async def test_events_that_add_nothing_are_skipped(event: object, place: int) -> None:
    stream: list[Any] = [piece("hel"), piece("lo"), delta("stop")]
    stream.insert(place, event)
    (result,) = await asked(CHAT, reply=events(*stream))
    assert (result["isError"], wire_texts(result)) == (False, ["hello"])


@pytest.mark.parametrize(
    "stream",
    [
        [{"choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}]}],
        [{"choices": [{"message": {"content": "hel"}}]}, {"choices": [{"message": {"content": "lo"}}]}, delta("stop")],
        [piece("hel"), piece("lo"), {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}],
        [piece("hello"), {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}],
        [piece("hello"), {"choices": [{"index": 0, "finish_reason": "stop"}]}],
        [delta(content=[{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]), delta("stop")],
        [delta(content={"type": "text", "text": "hello"}), delta("stop")],
        [delta(content=["hel", "lo"]), delta("stop")],
        [delta(content=[{"type": "image_url"}, {"type": "output_text", "text": "hello"}, None]), delta("stop")],
        [delta(refusal="hello"), delta("stop")],
    ],
)
async def test_a_text_comes_in_many_shapes(stream: list[dict[str, Any]]) -> None:
    (result,) = await asked(CHAT, reply=events(*stream))
    assert (result["isError"], wire_texts(result)) == (False, ["hello"])


async def test_an_engine_that_goes_on_for_ever_is_ended() -> None:
    long = "x" * 100_000
    (result,) = await asked(CHAT, reply=events(*[piece(long)] * 20, done=False))
    _, note = wire_texts(result)
    assert note == "[Cut off by the bridge: the engine went on beyond 1048576 characters.]"
    assert not result["_meta"]["cached"]


async def test_an_engine_that_thinks_for_ever_is_ended() -> None:
    long = "x" * 100_000
    (result,) = await asked(CHAT, reply=events(*[delta(reasoning=long)] * 20, usage(1, 5), done=False))
    assert "wrote more than 1048576 characters of thoughts or calls of tools, and no answer" in wire_texts(result)[0]
