"""No half answer passes for a whole one."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from local_llm_bridge.models.engine import GRACE_S
from local_llm_bridge.server.dispatch import Call
from tests.services import FakeEngine, asked, delta, events, piece, request_of, usage, wire_texts

if TYPE_CHECKING:
    import socket

pytestmark = pytest.mark.anyio

CHAT = Call("chat", {"message": "hi"})
CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "search", "arguments": "{}"}}


@pytest.mark.parametrize(
    "reason",
    ["stop", "eos", "STOP", "eos_token", "end_turn", "stop_sequence", "stop-token", "done", "FinishReason.STOP"],
)
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
        ("insufficient_system_resource", "[The engine broke off"),
        ("network_error", "[The engine broke off"),
        ("content_filter", "[The engine's content filter"),
        ("content-filter", "[The engine's content filter"),
        ("safety", "[The engine's content filter"),
        ("sensitive", "[The engine's content filter"),
        ("tool_calls", "[The engine ended the answer for the reason 'tool_calls without a call'"),
        ("function_call", "[The engine ended the answer for the reason 'tool_calls without a call'"),
        ("repetition", "[The engine ended the answer for the reason 'repetition'"),
        ("bad\n[note]", "[The engine ended the answer for the reason 'bad\\\\n[note]'"),
        ("x" * 10_000, f"[The engine ended the answer for the reason '{'x' * 40}'"),
        ({"type": "stop"}, "[The engine ended the answer for the reason 'a mapping'"),
        (7, "[The engine ended the answer for the reason '7'"),
        (True, "[The engine ended the answer for the reason 'true or false'"),
        ([1], "[The engine ended the answer for the reason 'a list'"),
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


async def test_an_answer_that_filled_the_context_says_what_makes_room() -> None:
    (result,) = await asked(CHAT, reply=events(piece("half"), delta("model_context_window_exceeded"), usage(1, 9)))
    assert wire_texts(result)[1] == (
        "[Cut off after 9 tokens. For a longer answer, send less, or give m a longer context: it is full.]"
    )


async def test_a_stop_after_the_engine_s_own_reason_changes_nothing() -> None:
    """Gateways add one."""
    (result,) = await asked(CHAT, reply=events(piece("half"), delta("length"), delta("stop")))
    assert wire_texts(result)[1].startswith("[Cut off after ")


@pytest.mark.parametrize("reason", ["", "null", "none", False, None])
async def test_what_is_no_reason_ends_nothing(reason: object) -> None:
    hold = threading.Event()
    pieces = [delta(reason, content="hel"), delta(reason, content="lo")]
    (result,) = await asked(CHAT, reply=FakeEngine(events(*pieces, done=False), hold=hold), timeout_s=0.5)
    text, note = wire_texts(result)
    assert (text, note[:33]) == ("hello", "[The time for one call is over: t")
    (result,) = await asked(CHAT, reply=events(*pieces))
    assert wire_texts(result) == ["hello"]


OTHER = {"index": 1, "delta": {"content": "HEY"}, "finish_reason": None}
OTHERS_END = {"index": 1, "delta": {}, "finish_reason": "length"}


@pytest.mark.parametrize(
    "stream",
    [
        [piece("hel"), {"choices": [OTHER]}, piece("lo"), {"choices": [OTHERS_END]}, delta("stop")],
        [piece("hel"), {"choices": [OTHERS_END]}, piece("lo"), delta("stop"), {"choices": [OTHER]}],
        [{"choices": [*piece("hello")["choices"], OTHER]}, {"choices": [OTHERS_END, *delta("stop")["choices"]]}],
        [
            {"choices": [{**choice, "index": 3}]}
            for event in (piece("hello"), delta("stop"))
            for choice in event["choices"]
        ],
        [piece("hello"), {"choices": [{"delta": {}, "finish_reason": "stop"}]}],
    ],
)
async def test_of_several_answers_the_first_counts(stream: list[dict[str, Any]]) -> None:
    (result,) = await asked(CHAT, reply=events(*stream))
    assert wire_texts(result) == ["hello"]


async def test_an_answer_that_goes_on_as_another_is_not_whole() -> None:
    for end in ({"choices": [{**OTHER, "finish_reason": "stop"}]}, {"choices": [OTHER, OTHERS_END]}):
        (result,) = await asked(CHAT, reply=events(piece("hel"), end))
        assert result["isError"]
        (text,) = wire_texts(result)
        assert "stopped in the middle of its answer" in text
        assert text.endswith("hel")


@pytest.mark.parametrize(
    "end",
    [
        {"error": {}},
        {"error": ""},
        {"error": []},
        {"id": "x", "error": {"message": ""}},
        {
            "choices": [
                {"index": 0, "delta": {"content": ""}, "finish_reason": "error", "error": {"message": "worn out"}}
            ]
        },
        {"choices": [], "error": {"code": 502, "message": "worn out"}},
    ],
)
@pytest.mark.parametrize("before", [[], [piece("half")]])
async def test_an_error_without_words_is_one(before: list[dict[str, Any]], end: dict[str, Any]) -> None:
    (result,) = await asked(CHAT, reply=events(*before, end))
    assert result["isError"]
    (text,) = wire_texts(result)
    assert "worn out" in text or "without a word" in text or '"message":""' in text
    assert text.endswith("half") == bool(before)


@pytest.mark.parametrize("lines", [b"event: error\n\n", b"event: error\ndata: {}\n\n", b"event: error\ndata: null\n\n"])
async def test_an_event_that_is_named_an_error_is_one(lines: bytes) -> None:
    reply = events(piece("half"), done=False) + lines + b"data: [DONE]\n\n"
    (result,) = await asked(CHAT, reply=reply)
    assert result["isError"]
    assert "an error, without a word of what it is" in wire_texts(result)[0]


@pytest.mark.parametrize("error", [None, False, "", {}, 0])
async def test_an_answer_whose_events_have_a_place_for_errors_is_one(error: object) -> None:
    stream: list[dict[str, Any]] = [piece("hel"), {"choices": []}, piece("lo"), delta("stop"), usage(1, 2)]
    (result,) = await asked(CHAT, reply=events(*({**event, "error": error} for event in stream)))
    assert (result["isError"], wire_texts(result)) == (False, ["hello"])


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("tool_calls", "(finish reason: tool_calls without a call). Ask in another way"),
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


async def test_the_last_token_that_an_answer_may_have_cuts_it_off_whatever_the_engine_says() -> None:
    for written, texts in ((2000, 2), (1999, 1), (2500, 1)):  # some engines know no limit
        (result,) = await asked(CHAT, reply=events(piece("half"), delta("stop"), usage(9, written)))
        assert len(wire_texts(result)) == texts
        assert ("[Cut off after 2000 tokens." in wire_texts(result)[-1]) == (written == 2000)


@pytest.mark.parametrize("answered", [[piece("half")], [piece("")], [delta(reasoning_content="hm")]])
async def test_an_answer_cut_before_its_limit_says_that_something_else_was_full(answered: list[dict[str, Any]]) -> None:
    written = 0 if answered == [piece("")] else 1000
    (result,) = await asked(CHAT, reply=events(*answered, delta("length"), usage(3096, written)))
    said = "send less, or give m a longer context: it had 2000 tokens and ended before. Else raise max_tokens"
    assert said in " ".join(wire_texts(result))
    (result,) = await asked(CHAT, reply=events(*answered, delta("length"), usage(3096, 2000)))
    assert "send less" not in " ".join(wire_texts(result))


@pytest.mark.parametrize("end", [delta("stop"), delta("stop", content="The capital of France is Paris.")])
async def test_all_of_an_answer_once_more_at_its_end_is_one(end: dict[str, Any]) -> None:
    whole = "The capital of France is Paris."
    pieces = [piece("The capital"), piece(" of France"), piece(" is Paris.")]
    again = [piece(whole)] if end == delta("stop") else []
    (result,) = await asked(CHAT, reply=events(*pieces, *again, end))
    assert wire_texts(result) == [whole]
    (result,) = await asked(CHAT, reply=events(piece("1"), piece("0"), piece("10"), delta("stop")))
    assert wire_texts(result) == ["1010"]
    (result,) = await asked(CHAT, reply=events(piece(whole), piece(whole), delta("stop")))
    assert wire_texts(result) == [whole * 2]


async def test_an_answer_that_the_engine_took_for_thoughts_is_shown_whole() -> None:
    thoughts = [delta(reasoning_content=f"line {number}\n") for number in range(999)]
    (result,) = await asked(CHAT, reply=events(*thoughts, delta("stop")))
    told, shown = wire_texts(result)
    assert "parser of reasoning has taken it for thoughts" in told
    assert "line 0\nline 1\n" in shown
    (result,) = await asked(CHAT, reply=events(*thoughts, delta("length")))
    assert "the last 2000 characters of" in wire_texts(result)[1]


async def test_an_empty_answer_of_many_tokens_was_lost_by_the_engines_parsers() -> None:
    (result,) = await asked(CHAT, reply=events(delta(content=None), delta("stop"), usage(10, 900)))
    assert (
        "It wrote 900 tokens, of which the engine passed none on: look at the engine's parsers" in wire_texts(result)[0]
    )


class Slow(FakeEngine):
    """Sends an answer's events one after the other, with pauses in which it might have ended."""

    def _handle(self, connection: socket.socket) -> None:
        self.requests.append(request_of(connection))
        head, _, body = self.reply.partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        for event in body.split(b"\n\n"):
            connection.sendall(event + b"\n\n")
            time.sleep(1.2 * GRACE_S)


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("field", ["content", "reasoning_content"])
async def test_a_finish_reason_in_each_piece_ends_nothing(field: str, *, done: bool) -> None:
    engine = Slow(
        events(delta("stop", **{field: "first "}), piece("second ", "stop"), piece("third", "stop"), done=done)
    )
    (result,) = await asked(CHAT, reply=engine)
    assert wire_texts(result) == ["first second third" if field == "content" else "second third"]


async def test_an_error_after_pieces_with_a_finish_reason_each_is_told() -> None:
    reply = events(piece("a ", "stop"), piece("half", "stop"), {"error": {"message": "out of memory"}})
    (result,) = await asked(CHAT, reply=reply)
    assert "out of memory" in wire_texts(result)[0]
    assert wire_texts(result)[0].endswith("a half")


async def test_pieces_with_a_finish_reason_each_may_break_off() -> None:
    body = events(piece("a ", "stop"), piece("half", "stop"), done=False).partition(b"\r\n\r\n")[2]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    (result,) = await asked(CHAT, reply=head + b"%x\r\n%b\r\n" % (len(body), body))
    assert "stopped in the middle of its answer" in wire_texts(result)[0]


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
