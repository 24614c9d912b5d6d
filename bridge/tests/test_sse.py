"""A stream of events is read alike however it is framed and cut into packets, and as the openai client reads it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_llm_bridge.models.sse import LONGEST_EVENT, EventReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

pytestmark = pytest.mark.anyio


def piece(text: str | None = None, finish: str | None = None) -> dict[str, Any]:
    """Return one event of a chat completion, as engines send it."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


USAGE = {**piece(), "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
EVENTS = [piece("héllo \u2028 你"), piece("\U0001f600\r\n{}"), piece(None, "stop"), USAGE]
# As engines write it, and with what JSON need not escape as it is.
A, B, C, D = (json.dumps(event, ensure_ascii=number % 2 == 1).encode() for number, event in enumerate(EVENTS))
DONE = b"data: [DONE]\n\n"
PLAIN = b"".join(b"data: %b\n\n" % data for data in (A, B, C, D)) + DONE
# An event whose JSON is written over several lines.
INDENTED = json.dumps(EVENTS[0], indent=1).encode()

LEGAL = {
    "plain": PLAIN,
    "no space after the colon": PLAIN.replace(b"data: ", b"data:"),
    "CRLF": PLAIN.replace(b"\n", b"\r\n"),
    "comments": PLAIN.replace(b"data: ", b": ping\n\n:\ndata: "),
    "other fields": PLAIN.replace(b"data: ", b"event: message\nid: 7\nretry: 5\nfoo: bar\nfoo\ndata: "),
    "several data lines": PLAIN.replace(b"data: " + A, b"data: " + INDENTED.replace(b"\n", b"\ndata: ")),
    "more blank lines": PLAIN.replace(b"\n\n", b"\n\n\n\n"),
    "something after the end": PLAIN + b"data: {\n\ndata: [DONE]\n\nrubbish",
}
# What the standard allows too, and what engines send all the same: the openai client takes offence at it.
BEYOND = {
    "CR": PLAIN.replace(b"\n", b"\r"),
    "mixed line ends": PLAIN.replace(b"\n\n", b"\r\n\r", 1).replace(b"\n\n", b"\n\r", 1),
    "a mark of the byte order": b"\xef\xbb\xbf" + PLAIN,
    "two spaces": PLAIN.replace(b"data: ", b"data:  "),
    "empty data": PLAIN.replace(b"data: ", b"data:\n\ndata\n\ndata: \n\ndata: "),
    "no blank line between events": PLAIN.replace(b"\n\n", b"\n"),
    "no blank line at the end": PLAIN.removesuffix(b"\n\n"),
    "no [DONE] and no line end": PLAIN.removesuffix(DONE).rstrip(b"\n"),
    "only a line end at the end": PLAIN.removesuffix(DONE).removesuffix(b"\n"),
    "[DONE] as a JSON text": PLAIN.replace(b"[DONE]", b'"[DONE]"'),
    "[DONE] in small letters": PLAIN.replace(b"[DONE]", b"[done]"),
    "[DONE] with blanks": PLAIN.replace(b"[DONE]", b"[DONE] \t"),
    "[DONE] alone": PLAIN.replace(DONE, b"[DONE]\n\nrubbish"),
    "[DONE] alone and no line end": PLAIN.replace(DONE, b"[DONE]"),
    "words that keep a connection open": PLAIN.replace(
        b"data: ", b'data: ping\n\ndata: Keep-Alive\n\ndata: "heartbeat"\n\ndata: : here\n\ndata:[PONG]\ndata: '
    ),
    "null": PLAIN.replace(b"data: ", b"data: null\n\ndata: "),
}


def cut(stream: bytes, size: int) -> list[bytes]:
    return [stream[start : start + size] for start in range(0, len(stream), size)]


def read(packets: Iterable[bytes]) -> tuple[list[Any], EventReader]:
    """Return all events of a stream that comes in these packets."""
    reader = EventReader()
    events: list[Any] = []
    for packet in packets:
        events += reader.feed(packet)
        if reader.done:
            break
    return events + reader.end(), reader


async def read_by_openai(packets: list[bytes]) -> list[Any]:
    """Return the events that the openai client makes of a stream."""

    async def body() -> AsyncIterator[bytes]:
        for packet in packets:
            yield packet

    def handler(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body())

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(handler)) as http:
        client = openai.AsyncOpenAI(api_key="none", base_url="http://engine/v1", http_client=http, max_retries=0)
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        return [chunk.to_dict() async for chunk in stream]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize("framing", [*LEGAL, *BEYOND])
def test_a_stream_in_any_framing_and_packets_has_the_same_events(framing: str, size: int) -> None:
    events, reader = read(cut({**LEGAL, **BEYOND}[framing], size))
    assert events == EVENTS
    assert not reader.broken
    assert reader.done == (b"[DONE]" in {**LEGAL, **BEYOND}[framing].upper())


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("framing", LEGAL)
async def test_the_openai_client_reads_the_same(framing: str, size: int) -> None:
    packets = cut(LEGAL[framing], size)
    assert await read_by_openai(packets) == read(packets)[0]


async def test_an_error_in_the_stream_is_the_openai_clients_too() -> None:
    stream = b'data: %b\n\ndata: {"error": {"message": "out of memory"}}\n\n' % A
    with pytest.raises(openai.APIError, match="out of memory"):
        await read_by_openai([stream])
    assert read([stream])[0] == [EVENTS[0], {"error": {"message": "out of memory"}}]


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"event: error\ndata: out of memory\n\n", "out of memory"),
        (b'event: error\ndata: {"message": "out of memory"}\n\n', {"message": "out of memory"}),
        (b'event: error\ndata: {"error": "out of memory"}\n\n', "out of memory"),
        (b"data: out of memory\nevent: error\n\n", "out of memory"),
        (b"event: Error \ndata: out of memory\n\n", "out of memory"),
        (b"data: out of memory\n\n", "out of memory"),
        (b"data: Error: out of memory\n\ndata: [DONE]\n\n", "Error: out of memory"),
        (b'data: error: {"message": "out of memory"}\n\n', {"message": "out of memory"}),
        (b'data: Error: {"error": "out of memory"}\n\n', "out of memory"),
        (b"data: error: {'message': 'out of memory'}\n\n", "{'message': 'out of memory'}"),
        (b"event: error\ndata: ping\n\n", "ping"),
        (b"data: ping failed\n\n", "ping failed"),
        (b"data: [ERROR] out of memory\n\n", "[ERROR] out of memory"),
        (b'error: {"message": "out of memory"}\n\n', {"message": "out of memory"}),
        (b"event: error\n: out of memory\n\n", "out of memory"),
        (b"event: error\nout of memory\n\n", "out of memory"),
        (b'event: error\ndata: {"message": "out of memory"}\n: ping\n\n', {"message": "out of memory"}),
        (b'{"error": "out of memory"}\n', "out of memory"),
        (b'{"error": "out of memory"}', "out of memory"),
        (b'\n{"error": "out of memory"}\n\n', "out of memory"),
    ],
)
def test_an_error_is_one_in_whichever_field_it_comes(stream: bytes, error: object) -> None:
    assert read([PLAIN.removesuffix(DONE), stream])[0] == [*EVENTS, {"error": error}]


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize("rubbish", [b"data: { no JSON\n\n", b"data: \xff\n\n", b"data: " + b"[" * 9999 + b"\n\n"])
def test_what_came_before_rubbish_is_kept_and_nothing_after_it(rubbish: bytes, size: int) -> None:
    events, reader = read(cut(b"data: %b\n\n" % A + rubbish + PLAIN, size))
    assert events == EVENTS[:1]
    assert reader.broken.startswith("an event that is not JSON: ")
    assert len(reader.broken) < 200


@pytest.mark.parametrize("end", [b"\n\ndata: ", b"\ndata: ", b"\n"])
def test_the_error_of_a_proxy_that_cuts_an_event_off_is_told(end: bytes) -> None:
    error = end + b'{"error": "the engine is gone"}\n\n' + DONE
    events, reader = read([b"data: %b\n\ndata: %b" % (A, B[:-5]), error])
    assert events == [EVENTS[0], {"error": "the engine is gone"}]
    assert reader.broken is not None


def test_an_event_that_was_cut_off_is_none() -> None:
    assert read([b"data: %b\n\ndata: %b" % (A, B[:-5])])[0] == EVENTS[:1]


def half(escaped: bytes) -> bytes:
    return b'data: {"choices": [{"index": 0, "delta": {"content": "%b"}}]}\n\n' % escaped


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([b"a \\ud83d", b"\\ude00 b"], "a \U0001f600 b"),
        ([b"\\ud83d", b"", b"\\ude00"], "\U0001f600"),
        ([b"\\ud83d", b"\\udc80\\ud83d", b"\\udc80"], "\U0001f480\U0001f480"),
        ([b"a \xf0\x9f", b"\x98\x80 b"], "a \U0001f600 b"),
        ([b"\xe4", b"\xbd", b"\xa0\xe5", b"\xa5\xbd"], "你好"),
        ([b"a\\ud83d", b"b"], "a\ufffdb"),
        ([b"a\\ud83d"], "a\ufffd"),
        ([b"\\ude00b"], "\ufffdb"),
        ([b"a\xf0\x9f", b"b"], "a\ufffdb"),
        ([b"\xff\xfe"], "\ufffd\ufffd"),
        ([b"a\tb", b"\x1b[0m", b"c\x00"], "a\tb\x1b[0mc\x00"),
    ],
)
def test_a_character_that_is_cut_between_two_events_is_joined(texts: list[bytes], said: str, size: int) -> None:
    for end in (b"", DONE, b'data: {"choices": [], "usage": {}}\n\n'):
        events, reader = read(cut(b"".join(map(half, texts)) + end, size))
        pieces = [event["choices"][0]["delta"]["content"] for event in events if event["choices"]]
        assert "".join(pieces) == said
        assert not reader.broken


def test_no_text_holds_half_a_character() -> None:
    stream = b'data: {"error": {"message": "\\ud83d", "\\ude00": ["\xff"]}, "choices": null}\n\n'
    assert read([stream])[0] == [{"error": {"message": "\ufffd", "\ufffd": ["\ufffd"]}, "choices": None}]


@pytest.mark.parametrize("packet", [b"data: " + b"x" * 999, b"x" * 1000, b"data:\n", b'data: {"a": 1},\n'])
def test_an_event_without_end_is_given_up(packet: bytes) -> None:
    reader = EventReader()
    size = 0
    while not reader.broken:
        assert reader.feed(packet) == []
        size += len(packet)
        assert size < 6 * LONGEST_EVENT + len(packet)
    assert "more than" in str(reader.broken)


JSON = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9) | st.lists(st.none()), max_size=3)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(events=st.lists(JSON, max_size=6), data=st.data())
def test_the_quick_way_and_the_careful_one_read_the_same(events: list[dict[str, Any]], data: st.DataObject) -> None:
    stream = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + DONE
    # A comment at the beginning of a packet is enough for the careful way, a CR for all of them.
    careful = stream.replace(b"\n", b"\r\n")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    packets = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(packets)[0] == read([careful])[0] == events


@settings(deadline=None, derandomize=True, max_examples=300)
@given(lines=st.lists(st.sampled_from([b"data: " + A, b"data: " + A, b"", b"", b"data: {", b"}", b"event: x", b":"])))
def test_packets_make_no_difference_to_rubbish_either(lines: list[bytes]) -> None:
    stream = b"\n".join(lines)
    whole, bytewise = read([stream]), read(cut(stream, 1))
    assert whole[0] == bytewise[0]
    assert (whole[1].broken is None) == (bytewise[1].broken is None)
