"""Whatever goes wrong, the caller gets a text to act on, in bounded time."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from mcp import Client

from local_llm_bridge.config import Engine, Settings
from local_llm_bridge.models.backend import PROBE_AGE_S
from local_llm_bridge.server.dispatch import Dispatcher
from local_llm_bridge.server.sdk import create_server
from tests.services import (
    ENGINE_KEY,
    MODEL,
    Bridge,
    FakeEngine,
    answer,
    events,
    free_port,
    llama_server,
    piece,
    records,
    relay,
    serving,
    stdio,
    text_of,
    texts_of,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from local_llm_bridge.models.answer import Completion

pytestmark = pytest.mark.anyio

TRACES = ("Traceback", "Error(", "httpx", "openai.", ".py")


async def told(url: str, tool: str = "chat", arguments: dict[str, Any] | None = None, **environment: str) -> str:
    """Make a call that fails; gives the text of the failure."""
    environment = {"LOCAL_API_URL": url, "MODEL_NAME": MODEL, "OPENAI_MAX_RETRIES": "0", **environment}
    async with stdio(**environment) as client:
        with anyio.fail_after(20):
            result = await client.call_tool(tool, {"message": "ping"} if arguments is None else arguments)
    text = text_of(result)
    assert result.is_error
    assert not any(trace in text for trace in TRACES), text
    return text


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("chatt", {"message": "hi"}, ["no tool 'chatt'", "list_models, chat, code_generation"]),
        ("chat", {}, ["'message' is a required property", "message (string, required)"]),
        ("chat", {"message": ""}, ["message: '' should be non-empty"]),
        ("chat", {"message": 5}, ["message: 5 is not of type 'string'"]),
        ("chat", {"message": "hi", "temprature": 1}, ["'temprature' was unexpected", "system (string)"]),
        ("chat", {"message": "hi", "model": "gpt-5"}, ["no model 'gpt-5'", f"Known: {MODEL}."]),
        ("code_generation", {"message": "hi"}, ["'task' is a required property", "'message' was unexpected"]),
    ],
)
async def test_wrong_calls_say_what_is_right(
    bridge: Bridge, tool: str, arguments: dict[str, Any], words: list[str]
) -> None:
    async with bridge.client() as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert all(word in text_of(result) for word in words), text_of(result)


async def test_a_megabyte_is_refused_with_both_numbers(bridge: Bridge) -> None:
    async with bridge.client() as client:
        result = await client.call_tool("chat", {"message": "word " * 200_000})
    assert result.is_error
    assert "about 250000 tokens, the context of qwen2-tiny is 4096" in text_of(result)


async def test_what_only_the_engine_can_count_is_refused_in_its_words(environment: dict[str, str]) -> None:
    url = environment["LOCAL_API_URL"]
    text = await told(url, arguments={"message": "a b c d " * 20_000}, OPENAI_API_KEY=ENGINE_KEY)
    assert "refused the request (HTTP 400" in text
    assert "context" in text


async def test_an_engine_that_is_down_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    text = await told(url)
    assert f"{url}/v1 cannot be reached: Connection refused. Is it running?" in text
    assert "LOCAL_API_URL" in text


async def test_a_host_that_does_not_exist_is_named() -> None:
    text = await told("http://no-such-host.invalid:8000")
    assert "http://no-such-host.invalid:8000/v1 cannot be reached" in text


async def test_a_wrong_key_is_the_bridges_and_is_not_repeated(engine: str) -> None:
    text = await told(engine, OPENAI_API_KEY="not-the-key-at-all")
    assert "refused the bridge's key (HTTP 401)" in text
    assert "OPENAI_API_KEY_FILE" in text
    assert "not-the-key-at-all" not in text


@pytest.mark.parametrize("size", [2000, 6000])
async def test_an_engine_that_dies_leaves_what_it_had_said(answers: dict[str, Any], size: int) -> None:
    question = "Count from 1 to 20."
    with llama_server() as (url, process), relay(url, size, process.kill) as between:
        text = await told(between, arguments={"message": question}, OPENAI_API_KEY=ENGINE_KEY)
    assert "stopped in the middle of its answer" in text
    said = text.partition("characters):\n\n")[2]
    assert answers["chat"][question].startswith(said)
    assert 0 < len(said) < len(answers["chat"][question])


async def test_an_engine_that_came_back_is_used_again(tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, f"http://127.0.0.1:{port}", max_retries=0) as bridge:
        async with bridge.client() as client:
            for _ in range(2):
                assert (await client.call_tool("chat", {"message": "ping", "fresh": True})).is_error
                with llama_server(port):
                    result = await client.call_tool("chat", {"message": "ping", "fresh": True})
                    assert text_of(result) == "pong"


async def test_a_slow_engines_answer_ends_with_the_time_for_a_call() -> None:
    with FakeEngine(events(piece("Once upon"), done=False), hold=threading.Event()).running() as url:
        started = time.monotonic()
        async with stdio(LOCAL_API_URL=url, MODEL_NAME=MODEL, OPENAI_TIMEOUT="1500") as client:
            result = await client.call_tool("chat", {"message": "ping"})
        assert time.monotonic() - started < 8
    assert not result.is_error
    text, note = texts_of(result)
    assert text == "Once upon"
    assert note.startswith("[The time for one call is over: this is what had been received until then.")


async def test_a_silent_engine_is_given_up() -> None:
    with FakeEngine(b"", hold=threading.Event()).running() as url:
        text = await told(url, OPENAI_TIMEOUT="1000", OPENAI_MAX_RETRIES="5")
    assert "wrote nothing within 1 s" in text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_bug_shows_neither_trace_nor_content(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    async def buggy(*_: object) -> Completion:
        raise RuntimeError("what the developer asked")

    dispatcher = Dispatcher(Settings(engines=(Engine("m", "http://e/v1"),)))
    dispatcher.backend.complete = buggy  # type: ignore[method-assign,assignment]
    server, _ = create_server(dispatcher)
    async with Client(server, mode=mode) as client:
        result = await client.call_tool("chat", {"message": "ping"})
    assert result.is_error
    assert text_of(result) == "The bridge itself failed. Its log says where; please report it."
    assert "RuntimeError" in caplog.text
    assert "test_faults.py" in caplog.text
    assert "what the developer asked" not in caplog.text.replace('raise RuntimeError("what the developer asked")', "")


@pytest.fixture(scope="module")
def moody() -> FakeEngine:
    """An engine that answers as each test wants it to."""
    return FakeEngine(b"")


@pytest.fixture(scope="module")
def moody_bridge(moody: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    with moody.running() as url, serving(tmp_path_factory.mktemp("moody"), url, max_retries=0) as running:
        yield running


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (answer("200 OK", "text/html", "<h1>It works!</h1>"), "answered with text/html instead of a stream"),
        (answer("200 OK", "application/json", "{}"), "answered with application/json instead of a stream"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "did not answer as an HTTP server does"),
        (b"", "hung up before it answered"),
        (events("{ no JSON"), "not a chat completion"),
        (events("42"), "not a chat completion"),
        (events("x" * 20_000_000), "not a chat completion"),
        (events({"choices": "none"}), "not a chat completion"),
        (events({"choices": [{}]}), "the stream ended without a finish reason"),
        (events({"choices": []}), "the stream ended without a finish reason"),
        (events(), "the stream ended without a finish reason"),
        (events(piece("", "stop")), "returned an empty answer"),
        (events(piece("half"), done=False), "Received until then (4 characters):\n\nhalf"),
        (events({"error": {"message": "out of memory"}}), "failed: out of memory"),
        (events(piece("half"), {"error": {"message": "out of memory"}}), "(out of memory)"),
        (events(piece("half"), "\x00\xff"), "Received until then (4 characters):\n\nhalf"),
        (answer("404 Not Found", "text/plain", "no"), "does not serve qwen2-tiny there (HTTP 404: no)"),
        (answer("429 Too Many Requests", "application/json", '{"error": {"message": "later"}}'), "busy"),
        (answer("503 Service Unavailable", "application/json", '{"error": {"message": "Loading model"}}'), "Loading"),
        (answer("500 Internal Server Error", "text/plain", "no memory"), "failed (HTTP 500: no memory)"),
    ],
)
async def test_rubbish_from_an_engine_is_told_as_such(
    moody: FakeEngine, moody_bridge: Bridge, reply: bytes, words: str
) -> None:
    moody.reply = reply
    async with moody_bridge.client() as client:
        result = await client.call_tool("chat", {"message": "ping"})
    assert result.is_error
    assert words in text_of(result)
    assert not any(trace in text_of(result) for trace in TRACES)


async def test_a_busy_engine_is_asked_again_a_few_times() -> None:
    busy = FakeEngine(answer("503 Service Unavailable", "application/json", '{"error": {"message": "Loading"}}'))
    with busy.running() as url:
        await told(url, OPENAI_MAX_RETRIES="1")
    assert len(busy.requests) == 2


async def test_an_answer_that_has_begun_is_not_asked_for_again() -> None:
    broken = FakeEngine(events(piece("half"), done=False))
    with broken.running() as url:
        await told(url, OPENAI_MAX_RETRIES="5")
    assert len(broken.requests) == 1


async def test_several_models_and_no_name_is_a_question_to_the_caller() -> None:
    listing = answer("200 OK", "application/json", '{"data": [{"id": "coder"}, {"id": "general"}]}')
    with FakeEngine(listing).running() as url:
        text = await told(url, MODEL_NAME="")
    assert "lists 2 models (coder, general)" in text
    assert "MODEL_NAME" in text


@pytest.mark.parametrize("body", ["7", '{"data": 5}', "no JSON", '{"data": [{}]}'])
async def test_a_listing_that_is_none_is_told_as_such(moody: FakeEngine, moody_bridge: Bridge, body: str) -> None:
    moody.reply = answer("200 OK", "application/json", body)
    await anyio.sleep(PROBE_AGE_S)
    status, text, _ = moody_bridge.http("/readyz")
    assert status == 503
    assert "did not answer with a list of models" in text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_client_that_goes_away_stops_the_generation(tmp_path: Path, mode: str) -> None:
    gone = threading.Event()

    class Watched(FakeEngine):
        def _handle(self, connection: Any) -> None:  # noqa: ANN401 - a socket
            super()._handle(connection)
            connection.settimeout(15)
            if connection.recv(1) == b"":
                gone.set()

    with Watched(events(piece("Once"), done=False)).running() as url, serving(tmp_path, url) as bridge:
        async with bridge.client(mode) as client:
            with anyio.move_on_after(1.5):
                await client.call_tool("chat", {"message": "Tell a long story."})
        wait_for(gone.is_set, 5)
        wait_for(lambda: any(one["outcome"] == "cancelled" for one in records(bridge.log.read_text())), 5)
