"""What a call held is free as soon as it has ended, however it ended: Python looks for garbage too rarely."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from local_llm_bridge.audit import Caller
from local_llm_bridge.config import CacheSettings, Engine, Settings
from local_llm_bridge.server.dispatch import Call, Dispatcher
from tests.services import FakeEngine, answer, delta, events, free_port, piece, wait_for, wire_texts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

pytestmark = pytest.mark.anyio

TIMEOUT_S = 0.5
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"

# What the engine answers, and the first words of what the caller is told.
ANSWERS = {
    "whole": (events(piece("done", "stop")), "done"),
    "empty": (events(piece("", "stop")), "returned an empty answer"),
    "only thoughts": (events(delta("length", reasoning="hm")), "tokens on thinking"),
    "only calls": (events(delta(tool_calls=[{"function": {"name": "f"}}]), piece("", "stop")), "instead of answering"),
    "cut off": (events(piece("half"), done=False), "stopped in the middle"),
    "without end": (HEAD + b": here\n\n" * 2**19, "more than 2 MiB"),
    "an error within": (events(piece("half"), {"error": {"message": "oh"}}), "stopped in the middle"),
    "not JSON": (events("{"), "not a chat completion"),
    "HTML": (answer("200 OK", "text/html", "<p>"), "instead of a stream"),
    "a refusal": (answer("400 No", "application/json", '{"error": "no"}'), "HTTP 400"),
    "a refusal for its length": (
        answer("400 No", "application/json", '{"error": "maximum context length is 2048 tokens"}'),
        "HTTP 400",
    ),
    "a wish to come back late": (
        b"HTTP/1.1 503 No\r\nretry-after: 99\r\ncontent-length: 0\r\n\r\n",
        "come back in 99 s",
    ),
    "nothing": (b"", "hung up"),
}


@pytest.fixture(autouse=True)
def nobody_looks_for_garbage() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def left_of(
    ask: Callable[[Dispatcher, str], Awaitable[object]],
    url: str,
    timeout_s: float = 30,
    **engine: Any,  # noqa: ANN401 - of any type
) -> Counter[str]:
    """Return how many objects of which classes of the bridge are left of some calls."""
    models, nothing_kept = (Engine("m", url, **engine),), CacheSettings(entries=0)
    dispatcher = Dispatcher(Settings(engines=models, max_retries=1, timeout_s=timeout_s, cache=nothing_kept))
    try:
        await ask(dispatcher, "What is imported with the first call, and what a bridge keeps for ever, is no matter.")
        gc.collect()
        before = objects()
        for number in range(3):
            await ask(dispatcher, f"Question {number}.")
        for _ in range(100):
            if objects() - before:
                await asyncio.sleep(0.02)  # connections are closed a little later
        return objects() - before
    finally:
        await dispatcher.close()


def objects() -> Counter[str]:
    kinds = Counter(type(thing) for thing in gc.get_objects())
    return Counter(
        {kind.__qualname__: n for kind, n in kinds.items() if kind.__module__.startswith("local_llm_bridge")}
    )


async def chat(dispatcher: Dispatcher, message: str, developer: str = "alice") -> str:
    result = await dispatcher.run(Call("chat", {"message": message}, Caller(developer)))
    return "\n".join(wire_texts(result))


@pytest.mark.parametrize("what", ANSWERS)
async def test_nothing_is_left_of_a_call_whatever_the_engine_answers(what: str) -> None:
    reply, words = ANSWERS[what]

    async def ask(dispatcher: Dispatcher, message: str) -> None:
        assert words in await chat(dispatcher, message)

    with FakeEngine(reply).running() as url:
        assert not await left_of(ask, url)


async def test_nothing_is_left_of_a_call_whose_engine_is_not_there() -> None:
    async def ask(dispatcher: Dispatcher, message: str) -> None:
        assert "cannot be reached" in await chat(dispatcher, message)

    assert not await left_of(ask, f"http://127.0.0.1:{free_port()}/v1")


async def test_nothing_is_left_of_a_call_whose_time_is_over() -> None:
    async def ask(dispatcher: Dispatcher, message: str) -> None:
        assert f"within {TIMEOUT_S:g} s" in await chat(dispatcher, message)

    with FakeEngine(HEAD, hold=threading.Event()).running() as url:
        assert not await left_of(ask, url, TIMEOUT_S)


async def test_nothing_is_left_of_a_call_that_was_cancelled() -> None:
    async def ask(dispatcher: Dispatcher, message: str) -> None:
        async with asyncio.TaskGroup() as group:
            call = group.create_task(chat(dispatcher, message))
            await asyncio.to_thread(wait_for, lambda: bool(engine.requests))
            engine.requests.clear()
            call.cancel()

    engine = FakeEngine(HEAD, hold=threading.Event())
    with engine.running() as url:
        assert not await left_of(ask, url)


async def test_nothing_is_left_of_those_who_waited_for_the_same_answer_in_vain() -> None:
    async def ask(dispatcher: Dispatcher, message: str) -> None:
        said = await asyncio.gather(*(chat(dispatcher, message) for _ in range(3)))
        assert all("stopped in the middle" in text for text in said)

    with FakeEngine(events(piece("half"), done=False)).running() as url:
        assert not await left_of(ask, url)


async def test_nothing_is_left_of_who_waited_and_made_room_for_another() -> None:
    async def ask(dispatcher: Dispatcher, message: str) -> None:
        said = await asyncio.gather(
            *(chat(dispatcher, f"{message} {number}") for number in range(3)), chat(dispatcher, message, "bob")
        )
        assert "is busy" in said[2]

    with FakeEngine(events(piece("done", "stop"))).running() as url:
        assert not await left_of(ask, url, concurrency=1, queue=2)
