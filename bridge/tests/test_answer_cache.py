"""What has been asked before is not asked again, and nobody gets what was not meant for them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from local_llm_bridge.config import Engine, Settings
from local_llm_bridge.errors import EngineBusyError
from local_llm_bridge.models.backend import Backend, Request
from local_llm_bridge.models.cache import Cache
from local_llm_bridge.server.dispatch import Call, Dispatcher
from tests.services import TOKEN, FakeEngine, answer, asked, delta, events, piece, serving, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

BOBS_TOKEN = "bobs-token-for-tests"


class Source:
    """Answers with the number of times that it was asked, when it may."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.error: Exception | None = None

    async def __call__(self) -> str:
        self.asked += 1
        number = self.asked
        await self.may_answer.wait()
        if self.error:
            raise self.error
        return f"answer {number}"


def always(_: str) -> bool:
    return True


def never(_: str) -> bool:
    return False


async def test_a_kept_answer_is_not_asked_for_again() -> None:
    cache, source = Cache[str](10, 60), Source()
    assert await cache.get(b"k", source, always) == ("answer 1", False)
    assert await cache.get(b"k", source, always) == ("answer 1", True)
    assert await cache.get(b"other", source, always) == ("answer 2", False)


async def test_the_least_recently_used_answer_goes_first() -> None:
    cache, source = Cache[str](2, 60), Source()
    await cache.get(b"old", source, always)
    await cache.get(b"older", source, always)
    await cache.get(b"old", source, always)
    await cache.get(b"new", source, always)
    assert await cache.get(b"old", source, always) == ("answer 1", True)
    assert await cache.get(b"new", source, always) == ("answer 3", True)
    assert await cache.get(b"older", source, always) == ("answer 4", False)


async def test_an_answer_is_good_for_so_long() -> None:
    cache, source = Cache[str](10, 0.5), Source()
    await cache.get(b"k", source, always)
    assert await cache.get(b"k", source, always) == ("answer 1", True)
    await asyncio.sleep(0.6)
    assert await cache.get(b"k", source, always) == ("answer 2", False)


async def test_without_entries_nothing_is_kept() -> None:
    cache, source = Cache[str](0, 60), Source()
    assert await cache.get(b"k", source, always) == ("answer 1", False)
    assert await cache.get(b"k", source, always) == ("answer 2", False)


async def test_what_is_not_worth_keeping_is_not_kept() -> None:
    cache, source = Cache[str](10, 60), Source()
    assert await cache.get(b"k", source, never) == ("answer 1", False)
    assert await cache.get(b"k", source, always) == ("answer 2", False)


@pytest.mark.parametrize("entries", [0, 10])
async def test_ten_who_ask_at_once_ask_once(entries: int) -> None:
    cache, source = Cache[str](entries, 60), Source()
    source.may_answer.clear()
    calls = [asyncio.create_task(cache.get(b"k", source, always)) for _ in range(10)]
    await asyncio.sleep(0.01)
    source.may_answer.set()
    results = await asyncio.gather(*calls)
    assert source.asked == 1
    assert results == [("answer 1", False)] + [("answer 1", True)] * 9


async def test_when_the_one_who_asked_goes_away_another_one_asks() -> None:
    cache, source = Cache[str](10, 60), Source()
    source.may_answer.clear()
    calls = [asyncio.create_task(cache.get(b"k", source, always)) for _ in range(5)]
    await asyncio.sleep(0.01)
    calls[0].cancel()
    await asyncio.sleep(0.01)
    assert source.asked == 2
    source.may_answer.set()
    with anyio.fail_after(2):
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [("answer 2", False)] + [("answer 2", True)] * 3


async def test_one_who_waits_and_goes_away_does_not_stop_the_others() -> None:
    cache, source = Cache[str](10, 60), Source()
    source.may_answer.clear()
    calls = [asyncio.create_task(cache.get(b"k", source, always)) for _ in range(3)]
    await asyncio.sleep(0.01)
    calls[1].cancel()
    await asyncio.sleep(0.01)
    source.may_answer.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    assert (results[0], results[2]) == (("answer 1", False), ("answer 1", True))


async def test_an_error_goes_to_all_who_wait_and_is_not_kept() -> None:
    cache, source = Cache[str](10, 60), Source()
    source.may_answer.clear()
    source.error = EngineBusyError("busy")
    calls = [asyncio.create_task(cache.get(b"k", source, always)) for _ in range(3)]
    await asyncio.sleep(0.01)
    source.may_answer.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [EngineBusyError] * 3
    assert source.asked == 1
    source.error = None
    assert await cache.get(b"k", source, always) == ("answer 2", False)


def test_what_stands_in_which_part_makes_another_key() -> None:
    keys = [Cache.key(b"ab", b"c"), Cache.key(b"a", b"bc"), Cache.key(b"abc"), Cache.key(b"abc", b"")]
    assert len(set(keys)) == 4
    assert Cache.key(b"x" * 10**6, b"y") == Cache.key(b"x" * 10**6, b"y")


@pytest.fixture
def engine() -> FakeEngine:
    """An engine that counts how often it is asked."""
    return FakeEngine(events(piece("hello", "stop")))


@pytest.fixture
def url(engine: FakeEngine) -> Iterator[str]:
    with engine.running() as address:
        yield address


async def results_of(dispatcher: Dispatcher, *many: Call) -> list[dict[str, Any]]:
    try:
        return [await dispatcher.run(call) for call in many]
    finally:
        await dispatcher.close()


async def test_the_result_tells_whether_it_came_from_the_cache(engine: FakeEngine, url: str) -> None:
    dispatcher = Dispatcher(Settings(engines=(Engine("m", url),)))
    question = {"message": "hi"}
    results = await results_of(
        dispatcher, Call("chat", question), Call("chat", question), Call("chat", {**question, "fresh": True})
    )
    assert [result["_meta"]["cached"] for result in results] == [False, True, False]
    assert [result["content"][0]["text"] for result in results] == ["hello"] * 3
    assert len(engine.requests) == 2


async def test_ten_identical_calls_at_once_reach_the_engine_once(engine: FakeEngine, url: str) -> None:
    dispatcher = Dispatcher(Settings(engines=(Engine("m", url, concurrency=1, queue=0),)))
    results = await asyncio.gather(*(dispatcher.run(Call("chat", {"message": "hi"})) for _ in range(10)))
    await dispatcher.close()
    assert len(engine.requests) == 1
    assert sorted(result["_meta"]["cached"] for result in results) == [False] + [True] * 9


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 0.1},
        {"model": "other"},
        {"max_tokens": 5},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "hi "}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
        {"developer": "bob"},
    ],
    ids=lambda changed: next(iter(changed)),
)
async def test_another_request_is_another_entry(engine: FakeEngine, url: str, changed: dict[str, Any]) -> None:
    same: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hi"}],
        "model": "m",
        "temperature": 0.7,
        "max_tokens": 100,
        "developer": "alice",
    }
    backend = Backend(Settings(engines=(Engine("m", url), Engine("other", url))))
    for request in (same, {**same, **changed}, same, {**same, **changed}):
        await backend.complete(Request(**request))
    await backend.close()
    assert len(engine.requests) == 2


@pytest.mark.parametrize("shared", [False, True])
async def test_one_developer_gets_anothers_answer_only_where_the_operator_shares_them(
    engine: FakeEngine, url: str, tmp_path: Path, *, shared: bool
) -> None:
    tokens = {"alice": TOKEN, "bob": BOBS_TOKEN}
    developers = [
        {"name": name, "token_sha256": hashlib.sha256(token.encode()).hexdigest()} for name, token in tokens.items()
    ]
    cached = []
    with serving(tmp_path, url, developers=developers, cache={"shared": shared}) as bridge:
        for token in (TOKEN, BOBS_TOKEN, TOKEN, BOBS_TOKEN):
            async with bridge.client(token=token) as client:
                result = await client.call_tool("chat", {"message": "hi"})
            assert text_of(result) == "hello"
            assert result.meta is not None
            cached.append(result.meta["cached"])
    assert cached == ([False, True, True, True] if shared else [False, False, True, True])
    assert len(engine.requests) == (1 if shared else 2)


async def test_an_answer_that_the_deadline_cut_is_not_kept() -> None:
    engine = FakeEngine(events(piece("Once upon"), done=False), hold=threading.Event())
    with engine.running() as url:
        dispatcher = Dispatcher(Settings(engines=(Engine("m", url),), timeout_s=0.6))
        results = await results_of(dispatcher, *[Call("chat", {"message": "hi"})] * 2)
    assert [result["content"][0]["text"] for result in results] == ["Once upon"] * 2
    assert [result["_meta"]["cached"] for result in results] == [False, False]
    assert len(engine.requests) == 2


async def test_an_engines_failure_is_not_kept(engine: FakeEngine, url: str) -> None:
    good = engine.reply
    engine.reply = answer("500 Internal Server Error", "text/plain", "no")
    dispatcher = Dispatcher(Settings(engines=(Engine("m", url),), max_retries=0))
    assert (await dispatcher.run(Call("chat", {"message": "hi"})))["isError"]
    engine.reply = good
    (result,) = await results_of(dispatcher, Call("chat", {"message": "hi"}))
    assert not result["isError"]
    assert not result["_meta"]["cached"]


@pytest.mark.parametrize(("length", "is_kept"), [(40_000, True), (40_001, False)])
async def test_an_answer_longer_than_a_result_is_not_kept(length: int, *, is_kept: bool) -> None:
    call = Call("chat", {"message": "hi"})
    results = await asked(call, call, reply=events(piece("x" * length, "stop")))
    assert [result["_meta"]["cached"] for result in results] == [False, is_kept]


async def test_calls_of_tools_longer_than_a_result_are_not_kept() -> None:
    arguments = json.dumps({"list": [[]] * 20_000})
    engine = FakeEngine(events(delta("tool_calls", tool_calls=[{"function": {"name": "f", "arguments": arguments}}])))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    request = Request([{"role": "user", "content": "hi"}], "m", 0.7, 100, tools=tools)
    with engine.running() as url:
        backend = Backend(Settings(engines=(Engine("m", url),)))
        completions = [await backend.complete(request) for _ in range(2)]
        await backend.close()
    assert [completion.cached for completion in completions] == [False, False]
    assert [len(completion.tool_calls) for completion in completions] == [1, 1]


async def test_an_answer_is_kept_without_its_thoughts() -> None:
    engine = FakeEngine(events(delta(reasoning="hm " * 50_000), piece("hello", "stop")))
    request = Request([{"role": "user", "content": "hi"}], "m", 0.7, 100)
    with engine.running() as url:
        backend = Backend(Settings(engines=(Engine("m", url),)))
        completions = [await backend.complete(request) for _ in range(2)]
        await backend.close()
    assert [(completion.cached, completion.text) for completion in completions] == [(False, "hello"), (True, "hello")]
    assert not any(completion.thoughts for completion in completions)
    assert all(completion.thinking_tokens for completion in completions)
