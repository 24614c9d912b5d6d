"""What an engine says instead of an answer reaches the reader, wherever it is put, in one line and without secrets."""

from __future__ import annotations

import email.utils
import json
import re
import threading
import time
from typing import Any

import pytest

from local_llm_bridge.config import CacheSettings, Engine, Settings
from local_llm_bridge.models.engine import GRACE_S
from local_llm_bridge.server.dispatch import Call, Dispatcher
from tests.services import FakeEngine, Listener, ScriptedEngine, answer, events, piece, request_of

pytestmark = pytest.mark.anyio

KEY = "sk-secret-of-the-engine"
GOOD = events(piece("hello", "stop"))


async def ask(url: str, key: str | None = KEY, **settings: Any) -> dict[str, Any]:  # noqa: ANN401 - of Settings
    """Ask an engine once; gives the result."""
    engine = Engine("m", url, api_key=key)
    dispatcher = Dispatcher(
        Settings(engines=(engine,), cache=CacheSettings(entries=0), **{"max_retries": 0, **settings})
    )
    try:
        return await dispatcher.run(Call("chat", {"message": "hi"}))
    finally:
        await dispatcher.close()


async def told(reply: bytes, **settings: Any) -> str:  # noqa: ANN401
    """Ask an engine that fails so; gives the failure's text."""
    with FakeEngine(reply).running() as url:
        result = await ask(url, **settings)
    assert result["isError"], result
    text = str(result["content"][0]["text"])
    assert KEY not in text
    return text


class InPackets(FakeEngine):
    """Sends its answer in packets."""

    def __init__(self, *packets: bytes, pause_s: float = 0.1, hold_s: float = 0) -> None:
        super().__init__(b"")
        self._packets = packets
        self._pause_s = pause_s
        self._hold_s = hold_s

    def _handle(self, connection: Any) -> None:  # noqa: ANN401 - a socket
        request_of(connection)
        for packet in self._packets:
            connection.sendall(packet)
            time.sleep(self._pause_s)
        time.sleep(self._hold_s)


def of_json(status: str, body: object, *headers: str) -> bytes:
    head, _, text = answer(status, "application/json", json.dumps(body)).partition(b"\r\n\r\n")
    return b"\r\n".join([head, *(header.encode() for header in headers)]) + b"\r\n\r\n" + text


# Whether the last four are errors, only the status tells.
SHAPES: list[tuple[object, str]] = [
    ({"error": {"message": "out of memory", "type": "server_error", "code": 7}}, "out of memory"),
    ({"error": "out of memory"}, "out of memory"),
    ({"error": {"type": "out_of_memory", "message": None}}, "out_of_memory"),
    ({"error": {"error": {"message": "out of memory"}}}, "out of memory"),
    ({"error": True, "message": "out of memory"}, "out of memory"),
    ({"error": ["out of memory", "no swap"]}, "out of memory; no swap"),
    ({"detail": "out of memory"}, "out of memory"),
    (
        {"detail": [{"loc": ["body", "max_tokens"], "msg": "Input should be less", "type": "x"}, {"msg": "no"}]},
        "body.max_tokens: Input should be less; no",
    ),
    ({"detail": {"error": "out of memory"}}, "out of memory"),
    ({"object": "error", "message": "out of memory", "code": 400}, "out of memory"),
    ({"message": "out of memory"}, "out of memory"),
    ({"errors": [{"message": "out of memory"}]}, "out of memory"),
    (
        {"error": {"code": 400, "message": "too long", "n_prompt_tokens": 1407, "n_ctx": 256}},
        "too long (n_prompt_tokens=1407, n_ctx=256)",
    ),
    ({"title": "Bad", "detail": "out of memory"}, "out of memory"),
    ({"error": "Bad Request", "message": ["out of memory"], "statusCode": 400}, "Bad Request: out of memory"),
    ({"Error": "out of memory"}, "out of memory"),
    ({"Message": "out of memory"}, "out of memory"),
    ({"errorMessage": "out of memory"}, "out of memory"),
    ({"errors": {"max_tokens": ["must be at most 5"]}}, '{"max_tokens": ["must be at most 5"]}'),
    ({"errors": {"max_tokens": ["must be at most 5"]}, "title": "Bad"}, '{"max_tokens": ["must be at most 5"]}'),
    ({"fault": {"faultstring": "out of memory", "detail": {"errorcode": "x"}}}, "out of memory"),
    ({"error_code": 17, "error_msg": "out of memory"}, "out of memory"),
    ({"errcode": 4, "errmsg": "out of memory"}, "out of memory"),
    ({"choices": None, "base_resp": {"status_code": 1027, "status_msg": "out of memory"}}, "out of memory"),
    ({"status": "fail", "data": {"message": "out of memory"}}, "out of memory"),
    ({"code": "Throttling.RateQuota", "message": "out of memory", "request_id": "x"}, "out of memory"),
    ({"code": 1261, "msg": "out of memory"}, "out of memory"),
    ({"success": False, "msg": "out of memory"}, "out of memory"),
    ({"error": {"message": {"text": "out of memory"}}}, "out of memory"),
    ({"error": {"type": "bad", "description": "out of memory"}}, "out of memory"),
    (
        {"error": {"message": "Provider returned error", "metadata": {"raw": '{"error": {"message": "too long"}}'}}},
        "Provider returned error: too long",
    ),
    ({"error": {"message": "no", "metadata": {"raw": {"message": "too long"}}}}, "no: too long"),
    ({"code": 500, "why": "out of memory"}, '{"code": 500, "why": "out of memory"}'),
    ({"description": "out of memory"}, "out of memory"),
    ({"max_tokens": ["must be at most 5"], "x": "é"}, '{"max_tokens": ["must be at most 5"], "x": "é"}'),
    ("out of memory", "out of memory"),
    (["out of memory"], "out of memory"),
]


@pytest.mark.parametrize(("body", "words"), SHAPES)
async def test_the_words_of_a_refusal_are_passed_on(body: object, words: str) -> None:
    assert f"refused the request (HTTP 400: {words})." in await told(of_json("400 Bad Request", body))
    assert f"failed (HTTP 500: {words})." in await told(of_json("500 Internal Server Error", body))


@pytest.mark.parametrize("body", [{}, [], None, ""])
async def test_a_refusal_without_words_has_none(body: object) -> None:
    assert "refused the request (HTTP 400)." in await told(of_json("400 Bad Request", body))


@pytest.mark.parametrize("body", [7.5, {"error": {}}, {"x": f"no {KEY}"}, {"x": ["long " * 99]}, {"detail": [1e999]}])
async def test_a_refusal_whose_words_are_nowhere_known_is_quoted(body: object) -> None:
    shown = json.dumps(body).replace(f"{KEY}", "[key]").replace('[key]"}', "[key]")
    shown = f"{shown[:299]}…" if len(shown) > 300 else shown
    assert f"refused the request (HTTP 400: {shown})." in await told(of_json("400 Bad Request", body))


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("text/plain", "no  memory\n\n\tleft\x1b[2J\x00", r"no memory left\x1b[2J\x00"),
        ("", "no memory", "no memory"),
        ("application/json", "no memory {", "no memory {"),
        (
            "text/html; charset=utf-8",
            "<!DOCTYPE html>\n<!--a>b--><title>502 Bad</title><style>b</style><Script>x < 1</script>nginx a &amp; b",
            "502 Bad nginx a & b",
        ),
        ("text/html", "<p>" + "long " * 10_000, " ".join(["long"] * 59) + " lon"),
        ("text/html", "<" * 60_000, "<"),
    ],
)
async def test_what_is_not_json_is_cut_to_a_line(kind: str, body: str, words: str) -> None:
    text = await told(answer("500 Internal Server Error", kind, body))
    assert f"failed (HTTP 500: {words}" in text
    assert len(text) < 450
    assert "\n" not in text


PARSER = (
    "Unable to generate parser for this template. Automatic parser generation failed: \n------------\n"
    "While executing CallExpression at line 79, column 31 in source:\n" + "{%- set x = namespace(y=z) %}\n" * 30 + "\n"
    "Error: Jinja Exception: No user query found in messages."
)
LM_STUDIO = {
    "error": "Engine protocol predict request returned 400: " + json.dumps({"error": {"code": 400, "message": PARSER}})
}
TRACEBACK = (
    "Traceback (most recent call last):\n"
    + '  File "/usr/lib/python3/site-packages/engine/worker.py", line 79, in run\n    self.step()\n' * 300
    + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.\n"
)


@pytest.mark.parametrize(
    ("reply", "beginning", "end"),
    [
        (
            of_json("400 Bad Request", LM_STUDIO),
            "returned 400: Unable to generate parser for this template.",
            "Error: Jinja Exception: No user query found in messages.",
        ),
        (
            answer("500 Internal Server Error", "text/plain", TRACEBACK),
            "Traceback (most recent call last):",
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.",
        ),
        (
            of_json("500 Internal Server Error", {"detail": TRACEBACK}),
            "Traceback (most recent call last):",
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.",
        ),
        (of_json("500 Oh", {"error": "wrapped: " * 99 + "out of memory"}), "wrapped: wrapped: ", "out of memory"),
        (events(LM_STUDIO), "Engine protocol predict", "Error: Jinja Exception: No user query found in messages."),
    ],
)
async def test_a_long_error_is_cut_in_its_middle(reply: bytes, beginning: str, end: str) -> None:
    text = await told(reply)
    assert beginning in text
    assert re.search(rf"… ?.*{re.escape(end)}[).]*$", text), text
    assert '{"error"' not in text
    assert len(text) < 620


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ('Upstream said {"error": {"message": "out of memory"}}', "Upstream said out of memory"),
        ('{"error": {"message": "out of memory"}}', "out of memory"),
        ('no: {"error": {"message": "out of memory"}}. Fallbacks=None', "no: out of memory. Fallbacks=None"),
        ('no: {"error": "no: {\\"error\\": \\"out of memory\\"}"}', "no: no: out of memory"),
        ("wrong {braces} here", "wrong {braces} here"),
        ('no: {"x": 1}', 'no: {"x": 1}'),
    ],
)
async def test_json_within_words_is_unpacked(said: str, words: str) -> None:
    assert f"(HTTP 400: {words})." in await told(of_json("400 Bad Request", {"error": {"message": said}}))
    if not said.startswith("{"):
        assert f"(HTTP 400: {words})." in await told(answer("400 Bad Request", "text/plain", said))


@pytest.mark.parametrize(("body", "words"), SHAPES[:-4])
async def test_an_error_with_status_200_is_one(body: object, words: str) -> None:
    assert f" failed: {words}" in await told(of_json("200 OK", body))
    head, *_ = events().partition(b"\r\n\r\n")
    assert f" failed: {words}" in await told(head + b"\r\n\r\n" + json.dumps(body).encode())


@pytest.mark.parametrize(("body", "words"), SHAPES[:-4])
async def test_an_error_in_the_middle_of_a_stream_is_one(body: object, words: str) -> None:
    text = await told(events(piece("half"), body))
    assert f"({words})" in text
    assert text.endswith("half")
    assert f" failed: {words}" in await told(events(body))


@pytest.mark.parametrize(
    "line",
    [
        "event: error\ndata: out of memory",
        'error: {"message": "out of memory"}',
        'data: error: {"message": "out of memory"}',
    ],
)
async def test_an_error_with_a_name_of_its_own_is_one(line: str) -> None:
    assert " failed: out of memory" in await told(events(done=False) + line.encode() + b"\n\n")


async def test_an_error_beside_a_finish_reason_is_one() -> None:
    broken = {"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"message": f"no {KEY}"}}]}
    text = await told(events(piece("half"), broken))
    assert "stopped in the middle of its answer (no [key])" in text
    assert text.endswith("half")


@pytest.mark.parametrize(
    "event",
    [
        {"object": "ping"},
        {"type": "progress", "message": "at 40 %"},
        {"type": "progress", "code": "loading", "message": "at 40 %"},
        {"choices": [], "usage": {"x": 1}},
        {"code": 0, "message": "started"},
        {"code": 102, "message": "started"},
        {"code": ["x"], "message": "started"},
        {"code": "0", "message": "started"},
        {"code": 200, "status": 200, "message": "started"},
        {"code": None, "message": "started", "id": "x"},
        {"code": "Success", "status": "ok", "message": "started"},
        {"code": 10000, "message": "Success"},
        {"status": "queued", "message": "at 40 %"},
        {"error_code": 0, "error_msg": "ready"},
        {"errcode": 0, "errmsg": "ok"},
        {"errors": [], "detail": None, "errorMessage": ""},
        {"base_resp": {"status_code": 0, "status_msg": "success"}},
    ],
)
async def test_an_event_that_only_informs_is_no_error(event: dict[str, object]) -> None:
    assert "without a finish reason" in await told(events({"choices": [], **event}))
    with FakeEngine(events(event, {**event, **piece("hello", "stop")})).running() as url:
        result = await ask(url)
    assert result["content"][0]["text"] == "hello"


@pytest.mark.parametrize("begun", [b"", b'data: {"choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n'])
@pytest.mark.parametrize(
    ("rest", "words"),
    [
        (b"Internal Server Error", "Internal Server Error"),
        (b"upstream connect error or disconnect/reset before headers\n\n", "upstream connect error or disconnect"),
        (b"<html><body>\n<h1>504 Gateway Time-out</h1>\n</body></html>\n", "504 Gateway Time-out"),
        (b'{\n "error": {\n  "message": "out of memory"\n }\n}\n', "out of memory"),
        (b'[{\n "error": {\n  "message": "out of memory"\n }\n}]', "out of memory"),
        (b'data: {\n  "error": {"message": "out of memory"}\n}\n\n', "out of memory"),
        (b'data: "out of memory"\n\n', "out of memory"),
    ],
)
async def test_words_between_events_are_told_where_a_stream_ends(begun: bytes, rest: bytes, words: str) -> None:
    text = await told(answer("200 OK", "text/event-stream", (begun + rest).decode()))
    assert words in text
    assert ("Hel" in text) is bool(begun)


async def test_lines_between_events_are_passed_over_where_the_answer_is_whole() -> None:
    stream = events(piece("hel"), piece("lo", "stop")).replace(b"\n\n", b"\nwhat is this\nretry: 3\n\n")
    with FakeEngine(stream).running() as url:
        result = await ask(url)
    assert result["content"][0]["text"] == "hello"


async def test_an_event_with_a_choice_is_no_error() -> None:
    with FakeEngine(events({"error_code": 7, "error_msg": "no", **piece("hello", "stop")})).running() as url:
        result = await ask(url)
    assert result["content"][0]["text"] == "hello"


async def test_a_page_in_the_place_of_an_answer_is_quoted() -> None:
    text = await told(answer("200 OK", "text/html", "<title>Log in</title><form>Who are you?</form>"))
    assert "answered with text/html instead of a stream of events: Log in Who are you?." in text
    text = await told(answer("200 OK", "application/json", '{"response": "hello"}'))
    assert 'answered with application/json instead of a stream of events: {"response": "hello"}.' in text


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "400 Bad Request", "500 Oh"])
@pytest.mark.parametrize("said", [KEY, f"key={KEY}!", KEY[3:15], f"{KEY[:9]}***", f"Bearer {KEY}"])
async def test_the_key_is_in_no_text(status: str, said: str) -> None:
    text = await told(of_json(status, {"error": {"message": f"Incorrect key {said} for team x"}}))
    assert "Incorrect key" in text
    assert "[key] for team x" in text
    assert KEY[3:12] not in text
    stream = await told(events({"error": {"message": f"Incorrect key {said}"}}))
    assert "Incorrect key" in stream
    assert KEY[3:12] not in stream


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("http://elsewhere:81/v1/chat/completions?token=secret", "to http://elsewhere:81/v1/chat/completions "),
        ("https://user:password@elsewhere/", "to https://elsewhere/ "),
        ("/login", "to /login "),
        ("http://[", ""),
        (None, ""),
    ],
)
@pytest.mark.parametrize(
    "status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"]
)
async def test_a_redirect_is_refused_with_where_it_goes(status: str, location: str | None, target: str) -> None:
    reply = of_json(status, {}, *([f"location: {location}"] if location else []))
    engine = ScriptedEngine(reply, GOOD)
    with engine.running() as url:
        result = await ask(url, max_retries=3)
    text = result["content"][0]["text"]
    assert f"redirects {target}(HTTP {status[:3]}), and the bridge follows no redirect" in text
    assert "secret" not in text
    assert "password" not in text
    assert len(engine.requests) == 1


def in_s(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize(
    "wish", ["retry-after: 600", "retry-after-ms: 600000", "retry-after: Fri, 01 Jan 2100 00:00:00 GMT"]
)
async def test_a_wish_beyond_the_deadline_is_told_at_once(wish: str) -> None:
    engine = ScriptedEngine(of_json("503 Unavailable", {"error": "loading the weights"}, wish), GOOD)
    started = time.monotonic()
    with engine.running() as url:
        result = await ask(url, max_retries=3, timeout_s=60)
    assert time.monotonic() - started < 30
    text = result["content"][0]["text"]
    assert "busy or still loading (HTTP 503: loading the weights)" in text
    assert re.search(r"It asks to come back in \d{3,} s; this call has \d\d s left", text)
    assert len(engine.requests) == 1


async def test_no_pause_outlasts_the_deadline() -> None:
    engine = ScriptedEngine(of_json("503 Unavailable", {"error": "loading"}))
    started = time.monotonic()
    with engine.running() as url:
        result = await ask(url, max_retries=10, timeout_s=3)
    # Pauses of half a second, one second and two, less up to a quarter each.
    assert time.monotonic() - started < 10
    assert "busy or still loading (HTTP 503: loading)" in result["content"][0]["text"]
    assert 1 <= len(engine.requests) <= 4


@pytest.mark.parametrize(
    "wish",
    [
        "-5",
        "nan",
        "inf",
        "1e999",
        "1e300",
        "9" * 20,
        "soon",
        "1s",
        "",
        in_s(-60),
        "Tue, 99 Foo 2026",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "2100-01-01T00:00:00Z",
    ],
)
async def test_a_wish_that_is_none_is_not_respected(wish: str) -> None:
    engine = ScriptedEngine(of_json("503 Unavailable", {}, f"retry-after: {wish}"), GOOD)
    with engine.running() as url:
        result = await ask(url, max_retries=1, timeout_s=30)
    assert result["content"][0]["text"] == "hello"
    first, second = engine.times
    assert second - first > 0.3


@pytest.mark.parametrize(
    ("status", "wish", "times"),
    [("400 Bad Request", "true", 2), ("503 Unavailable", "false", 1), ("502 Bad Gateway", "True", 2)],
)
async def test_the_engine_has_the_last_word_on_retries(status: str, wish: str, times: int) -> None:
    headers = [f"x-should-retry: {wish}", "retry-after-ms: 5"]
    engine = ScriptedEngine(of_json(status, {}, *headers), GOOD)
    with engine.running() as url:
        await ask(url, max_retries=3)
    assert len(engine.requests) == times


async def test_a_whole_completion_in_the_place_of_a_stream_is_an_answer() -> None:
    completion = {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    kinds = ("application/json", "Application/JSON; charset=utf-8", "", "text/event-stream")
    for kind in kinds:
        with FakeEngine(answer("200 OK", kind, json.dumps(completion, indent=1))).running() as url:
            result = await ask(url)
        assert result["content"] == [{"type": "text", "text": "hello"}], kind
        assert result["_meta"]["prompt_tokens"] == 3


@pytest.mark.parametrize("kind", ["Text/Event-Stream;charset=UTF-8", "TEXT/EVENT-STREAM", "", "text/plain", "x/json"])
async def test_a_stream_is_one_whatever_it_is_called(kind: str) -> None:
    reply = GOOD.replace(b"text/event-stream", kind.encode())
    for stream in (reply, reply.replace(b"data: ", b": hi\n\ndata: ", 1), reply.replace(b"data: ", b"\n\ndata: ", 1)):
        with FakeEngine(stream).running() as url:
            result = await ask(url)
        assert result["content"][0]["text"] == "hello"


@pytest.mark.parametrize(
    "lines",
    [
        [piece("hel"), piece("lo", "stop")],
        [
            {"message": {"role": "assistant", "content": "hel"}, "done": False},
            {"message": {"content": "lo"}, "done": False},
            {"message": {"content": ""}, "done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 2},
        ],
    ],
)
@pytest.mark.parametrize("kind", ["application/x-ndjson", "Application/NDJSON; charset=utf-8"])
async def test_a_stream_of_lines_is_read(kind: str, lines: list[object]) -> None:
    for end in ("\n", ""):
        with FakeEngine(answer("200 OK", kind, "\n".join(map(json.dumps, lines)) + end)).running() as url:
            result = await ask(url)
        assert result["content"] == [{"type": "text", "text": "hello"}]
        assert result["_meta"].get("prompt_tokens") == (None if len(lines) == 2 else 3)
    text = await told(answer("200 OK", kind, json.dumps(lines[0]) + '\n{"error": "out of memory"}\n'))
    assert "stopped in the middle of its answer (out of memory)" in text
    assert text.endswith("hel")
    assert "without a finish reason" in await told(answer("200 OK", kind, json.dumps(lines[0]) + "\n"))


@pytest.mark.parametrize(
    "kind", ["application/json", "application/stream+json", "application/jsonl", "text/event-stream"]
)
async def test_lines_of_pieces_are_a_stream_whatever_it_is_called(kind: str) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n\r\n".encode()
    first, second = (json.dumps(event).encode() + b"\n" for event in (piece("hel"), piece("lo", "stop")))
    for packets in ([first + second], [first, second], [b"\n" + first[:9], first[9:-1], b"\n", second[:9], second[9:]]):
        with InPackets(head, *packets).running() as url:
            result = await ask(url)
        assert result["content"] == [{"type": "text", "text": "hello"}]
    assert "without a finish reason" in await told(head + first)


async def test_a_pause_after_the_first_line_ends_no_stream() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
    first, second = (json.dumps(event).encode() for event in (piece("hel"), piece("lo", "stop")))
    with InPackets(head + first, b"\n" + second, pause_s=1.5 * GRACE_S).running() as url:
        result = await ask(url)
    assert result["content"] == [{"type": "text", "text": "hello"}]


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_an_error_on_a_line_before_the_end_of_a_stream_is_one(kind: str) -> None:
    body = '{"error": {"message": "out of memory"}}\n\ndata: [DONE]\n\n'
    assert " failed: out of memory" in await told(answer("200 OK", kind, body))


@pytest.mark.parametrize("encoding", ["none", "utf-8", "identity, identity", "", "Chunked", "aws-chunked"])
async def test_an_encoding_that_is_none_is_none(encoding: str) -> None:
    header = f"content-encoding: {encoding}"
    with FakeEngine(GOOD.replace(b"connection:", f"{header}\r\nconnection:".encode())).running() as url:
        result = await ask(url)
    assert result["content"] == [{"type": "text", "text": "hello"}]
    assert "(HTTP 500: out of memory)" in await told(of_json("500 Oh", "out of memory", header))


@pytest.mark.parametrize(
    "encoding", ["x-gzip", "compress", "br", "identity, zstd", "identity\r\ncontent-encoding: br", "?"]
)
async def test_an_encoding_that_is_one_or_unknown_is_refused(encoding: str) -> None:
    reply = GOOD.replace(b"connection:", f"content-encoding: {encoding}\r\nconnection:".encode())
    assert "although it was told to send nothing encoded" in await told(reply)


async def test_a_whole_answer_of_ollamas_own_is_one() -> None:
    document = {"message": {"role": "assistant", "content": "hello"}, "done": True, "prompt_eval_count": 3}
    with FakeEngine(answer("200 OK", "application/json", json.dumps(document))).running() as url:
        result = await ask(url)
    assert result["content"] == [{"type": "text", "text": "hello"}]
    assert result["_meta"]["prompt_tokens"] == 3


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}


def chunk(*data: object, done: bool = False) -> bytes:
    """Return a part of a stream that may go on."""
    body = events(*data, done=done).partition(b"\r\n\r\n")[2]
    return b"%x\r\n%b\r\n" % (len(body), body)


def line_of(event: object) -> bytes:
    """Return an event as it stands in a stream."""
    return events(event, done=False).partition(b"\r\n\r\n")[2]


WHOLE = {"choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}]}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("size", [50, 10_000])
async def test_a_whole_document_does_not_wait_for_the_end_of_the_connection(
    indent: int | None, end: str, size: int
) -> None:
    body = (json.dumps(WHOLE, indent=indent) + end).encode()
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    head = HEAD.replace(b"text/event-stream", b"application/json")
    started = time.monotonic()
    with InPackets(head, *(b"%x\r\n%b\r\n" % (len(part), part) for part in parts), hold_s=30).running() as url:
        result = await ask(url, timeout_s=30)
    assert result["content"] == [{"type": "text", "text": "hello"}]
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    "reply",
    [
        HEAD + chunk(piece("hello", "stop"), done=True),
        HEAD + chunk(piece("hello", "stop"), USAGE, done=True),
        HEAD + chunk(piece("hello", "stop"), USAGE),
        HEAD + chunk(piece("hello", "stop")),
    ],
)
async def test_a_whole_answer_does_not_wait_for_the_end_of_the_connection(reply: bytes) -> None:
    gone = threading.Event()

    class Watched(FakeEngine):
        def _handle(self, connection: Any) -> None:  # noqa: ANN401 - a socket
            super()._handle(connection)
            if connection.recv(1) == b"":
                gone.set()

    engine = Watched(reply)
    started = time.monotonic()
    with engine.running() as url:
        result = await ask(url, timeout_s=300)
        assert result["content"] == [{"type": "text", "text": "hello"}]
        assert time.monotonic() - started < 60
        assert gone.wait(20)


@pytest.mark.parametrize(
    "sign", [b": ping\n\n", line_of(piece("")), line_of({"choices": []}), line_of(piece("", "stop"))]
)
async def test_signs_of_life_after_the_end_hold_nobody_up(sign: bytes) -> None:
    def handle(connection: Any) -> None:  # noqa: ANN401 - a socket
        request_of(connection)
        connection.sendall(HEAD + chunk(piece("hello", "stop")))
        while True:
            connection.sendall(b"%x\r\n%b\r\n" % (len(sign), sign))
            time.sleep(0.05)

    listener = Listener(handle)
    try:
        started = time.monotonic()
        result = await ask(listener.url, timeout_s=30)
        assert time.monotonic() - started < 15
    finally:
        listener.close()
    assert result["content"] == [{"type": "text", "text": "hello"}]


@pytest.mark.parametrize("late", [[USAGE], [{"choices": [{"index": 0, "delta": {}}]}, USAGE], [piece(" you", "stop")]])
async def test_what_follows_a_finish_reason_is_waited_for(late: list[object]) -> None:
    def handle(connection: Any) -> None:  # noqa: ANN401
        request_of(connection)
        connection.sendall(HEAD + chunk(piece("hello", "stop")))
        for event in late:
            time.sleep(0.2)
            connection.sendall(chunk(event))
        connection.recv(1)

    listener = Listener(handle)
    try:
        result = await ask(listener.url, timeout_s=300)
    finally:
        listener.close()
    assert result["content"][0]["text"] == ("hello" if USAGE in late else "hello you")
    assert result["_meta"].get("completion_tokens") == (4 if USAGE in late else 2)


@pytest.mark.parametrize("rest", [b"", b"data: { rubbish\n\n", b"x" * 100])
async def test_after_a_finish_reason_nothing_can_spoil_an_answer(rest: bytes) -> None:
    head, _, body = events(piece("hello", "stop"), done=False).partition(b"\r\n\r\n")
    reply = head + b"\r\ncontent-length: 99999\r\n\r\n" + body + rest
    with FakeEngine(reply).running() as url:
        result = await ask(url)
    assert result["content"] == [{"type": "text", "text": "hello"}]


async def test_a_whole_completion_of_which_a_proxy_says_that_it_is_longer_is_one() -> None:
    completion = {"choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}]}
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999\r\n\r\n"
    whole = json.dumps(completion).encode()
    with FakeEngine(head + whole).running() as url:
        result = await ask(url)
    assert result["content"] == [{"type": "text", "text": "hello"}]
    assert "stopped in the middle" in await told(head + whole[:-1])


async def test_an_event_that_is_not_json_is_shown_with_what_came_before_it() -> None:
    glued = b'data: {"id": "1", "chdata: {"id": "2", "key": "%b"}\n\n' % KEY.encode()
    text = await told(events(piece("half"), done=False) + glued)
    assert 'stopped in the middle of its answer (an event that is not JSON: {"id": "1", "chdata: ' in text
    assert text.endswith("half")
    assert "Is this an OpenAI-compatible server?" in await told(events(done=False) + glued)


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (
            503,
            {"code": "model_not_found", "message": "No available channel for model m"},
            "does not serve m there (HTTP 503: No",
        ),
        (
            429,
            {"code": "insufficient_quota", "message": "You exceeded your quota"},
            "The account of its key is used up.",
        ),
        (
            429,
            {"message": "You exceeded your current quota, please check your plan"},
            "The account of its key is used up.",
        ),
        (429, {"message": "用户余额不足"}, "The account of its key is used up."),
    ],
)
async def test_what_no_waiting_ends_is_not_called_busy_and_not_asked_again(
    status: int, error: dict[str, str], said: str
) -> None:
    engine = FakeEngine(of_json(f"{status} No", {"error": error}))
    with engine.running() as url:
        result = await ask(url, max_retries=2)
    assert said in result["content"][0]["text"]
    assert len(list(filter(None, engine.requests))) == 1  # besides the list of models


async def test_a_page_that_forbids_is_not_about_the_key() -> None:
    page = "<html><title>Attention Required!</title>Sorry, you have been blocked</html>"
    said = await told(answer("403 Forbidden", "text/html", page))
    assert "refused the request (HTTP 403: Attention Required! Sorry, you have been blocked). That is a page of" in said
    assert "refused the bridge's key (HTTP 403)" in await told(of_json("403 Forbidden", {"error": "no"}))


async def test_the_wait_that_an_engine_asks_for_is_passed_on() -> None:
    said = await told(of_json("429 Busy", {"error": "busy"}, "retry-after: 90"))
    assert said.endswith("Wait a little, then try again. It asks to come back in 90 s.")


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("transfer-encoding: chunked\r\ncontent-length: 5", b"5\r\nhello\r\n0\r\n\r\n"),
        ("content-length: 99999", events(piece("half"), done=False).partition(b"\r\n\r\n")[2]),
    ],
)
async def test_no_status_is_told_that_no_server_has_sent(head: str, body: bytes) -> None:
    reply = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{head}\r\n\r\n".encode() + body
    assert re.search(r"(?<!\d)400(?!\d)", await told(reply)) is None


@pytest.mark.parametrize("words", ["Input was flagged", "Country, region, or territory not supported"])
@pytest.mark.parametrize("key", [KEY, None])
async def test_what_is_forbidden_for_another_reason_is_not_blamed_on_the_key(words: str, key: str | None) -> None:
    text = await told(of_json("403 Forbidden", {"error": {"message": words}}), key=key)
    assert f"refused the request (HTTP 403: {words})." in text
    assert "key" not in text


@pytest.mark.parametrize(
    "words", ["Forbidden", "Access denied", "You have no permission to use m", "This token may not ask m"]
)
async def test_what_may_be_forbidden_to_a_key_is_told_of_it(words: str) -> None:
    text = await told(of_json("403 Forbidden", {"error": {"message": words}}))
    assert f"refused the bridge's key (HTTP 403). It says: {words}." in text


async def test_what_is_forbidden_without_a_key_is_not_blamed_on_it() -> None:
    text = await told(answer("403 Forbidden", "text/plain", ""), key=None)
    assert "refused the request (HTTP 403). It may serve only some hosts or origins" in text
    assert "key" not in text
    assert "refused the bridge's key (HTTP 403)." in await told(answer("403 Forbidden", "text/plain", ""))


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_an_engine_that_wants_a_key_and_gets_none_is_said_to_want_one(status: str) -> None:
    text = await told(of_json(status, {"error": {"message": "Missing API key"}}), key=None)
    wants = "wants" if status.startswith("401") else "may want"
    assert f"(HTTP {status[:3]}): none is set, and it {wants} one. It says: Missing API key. The key is set by" in text


@pytest.mark.parametrize("encoding", ["gzip", "br"])
@pytest.mark.parametrize("status", ["404 Not Found", "500 Oh"])
async def test_words_that_came_compressed_are_said_to_have(status: str, encoding: str) -> None:
    text = await told(of_json(status, "out of memory", f"content-encoding: {encoding}"))
    assert f"(HTTP {status[:3]})." in text
    assert f"Its words came compressed ({encoding}): turn compression off there." in text
    assert "out of memory" not in text


@pytest.mark.parametrize(
    "kind", ["text/plain; charset=gbk", 'text/html; Charset="GBK"', "application/json;charset=gbk"]
)
async def test_words_are_read_in_the_charset_that_they_are_said_to_have(kind: str) -> None:
    words = "显存不足"
    body = json.dumps({"error": words}, ensure_ascii=False) if "json" in kind else words
    head = f"HTTP/1.1 500 Oh\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n".encode()
    assert f"(HTTP 500: {words})" in await told(head + body.encode("gbk"))
    for wrong in ("base64", "nonsense", "undefined", "utf-8"):
        head = f"HTTP/1.1 500 Oh\r\ncontent-type: text/plain; charset={wrong}\r\nconnection: close\r\n\r\n".encode()
        assert f"(HTTP 500: {words})" in await told(head + words.encode())


async def test_a_request_that_is_not_allowed_at_an_address_is_about_the_address() -> None:
    text = await told(of_json("405 Method Not Allowed", {"detail": "Method Not Allowed"}))
    assert "(HTTP 405: Method Not Allowed). It takes no such request there. The address is set by" in text


@pytest.mark.parametrize("body", ["<html><title>413 Request Entity Too Large</title></html>", "", "body too large"])
async def test_a_request_that_is_too_large_for_a_proxy_is_about_its_limit(body: str) -> None:
    text = await told(answer("413 Too Large", "text/html", body))
    assert "refused the request (HTTP 413" in text
    assert "What stands before the engine may limit the size of a request (nginx: client_max_body_size)" in text
    said = {"error": {"message": "prompt is too long: 5000 tokens > 4096 maximum"}}
    assert "nginx" not in await told(of_json("413 Too Large", said))


async def test_googles_message_goes_before_its_details() -> None:
    error = {
        "code": 400,
        "message": "API key not valid.",
        "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
    }
    assert "(HTTP 400: API key not valid.)" in await told(of_json("400 Bad Request", {"error": error}))
    del error["message"]
    assert "(HTTP 400: API_KEY_INVALID)" in await told(of_json("400 Bad Request", {"error": error}))


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "600s"}


@pytest.mark.parametrize(
    ("error", "wish_s"),
    [
        ({"code": 429, "message": "Resource exhausted", "details": [{"reason": "RATE"}, RETRY_INFO]}, 600),
        ({"message": "Rate limit reached. Please try again in 10m0.5s. Visit the console."}, 601),
        ({"message": "Rate limit reached, please retry after 600 seconds"}, 600),
        ({"message": "You can retry in 1h2m"}, 3720),
    ],
)
async def test_a_wish_among_the_words_is_one(error: dict[str, Any], wish_s: int) -> None:
    engine = ScriptedEngine(of_json("429 Busy", {"error": error}), GOOD)
    with engine.running() as url:
        result = await ask(url, max_retries=3, timeout_s=60)
    assert f"It asks to come back in {wish_s} s; this call has" in result["content"][0]["text"]
    assert len(engine.requests) == 1


async def test_a_short_wish_among_the_words_is_respected() -> None:
    engine = ScriptedEngine(of_json("429 Busy", {"error": "Rate limit reached. Try again in 1500ms"}), GOOD)
    with engine.running() as url:
        result = await ask(url, max_retries=1)
    assert result["content"][0]["text"] == "hello"
    first, second = engine.times
    assert second - first >= 1.5
