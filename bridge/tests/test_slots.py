"""A model gets no more at once than it can take; who waits gets a turn, and who may not wait is told so at once."""

from __future__ import annotations

import asyncio
import re
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_llm_bridge.errors import QueueFullError, RateLimitError
from local_llm_bridge.models import limits
from local_llm_bridge.models.limits import AtOnce, Rate, Slots
from tests.services import MODEL, FakeEngine, events, piece, records, request_of, serving, text_of, wait_for

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from mcp import Client

pytestmark = pytest.mark.anyio


class Clock:
    """Stands for the time of day, so that a minute costs a test nothing."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


async def waiting(slots: Slots, developer: str) -> asyncio.Task[None]:
    """Have somebody wait; gives the task that ends with the turn."""
    before = slots.queued
    task = asyncio.create_task(slots.acquire(developer))
    await asyncio.sleep(0)
    assert slots.queued == before + 1
    return task


async def test_so_many_run_and_the_next_one_waits() -> None:
    slots = Slots("m", 2, 5)
    await slots.acquire("a")
    await slots.acquire("a")
    third = await waiting(slots, "a")
    assert (slots.running, slots.queued, third.done()) == (2, 1, False)
    slots.release(1)
    await third
    assert (slots.running, slots.queued) == (2, 0)


async def test_a_full_queue_refuses_at_once_with_the_expected_wait() -> None:
    slots = Slots("coder", 2, 2)
    await slots.acquire("a")
    slots.release(30)
    for _ in range(2):
        await slots.acquire("a")
    tasks = [await waiting(slots, "a") for _ in range(2)]
    assert slots.expected_wait_s() == 45  # the third in the queue of two slots, at 30 s a call
    with anyio.fail_after(1), pytest.raises(QueueFullError) as refused:
        await slots.acquire("a")
    assert "The model coder is busy: 2 calls run and 2 wait" in str(refused.value)
    assert "Try again in about 45 s" in str(refused.value)
    assert refused.value.model == "coder"
    assert (slots.running, slots.queued) == (2, 2)
    slots.release(30)
    slots.release(30)
    await asyncio.gather(*tasks)


async def test_whoever_fills_the_queue_makes_room_for_others() -> None:
    slots = Slots("coder", 1, 3)
    await slots.acquire("a")
    first, second, third = [await waiting(slots, "a") for _ in range(3)]
    b = asyncio.ensure_future(slots.acquire("b"))
    with pytest.raises(QueueFullError, match="1 calls run and 3 wait"):
        await third
    with pytest.raises(QueueFullError):  # b has its share now
        await slots.acquire("b")
    assert (slots.running, slots.queued) == (1, 3)
    for turn in (first, b, second):
        slots.release(1)
        await turn
    slots.release(1)
    assert (slots.running, slots.queued) == (0, 0)


async def test_room_that_was_made_as_its_caller_went_away_is_not_made_twice() -> None:
    slots = Slots("coder", 1, 2)
    await slots.acquire("a")
    first, second = [await waiting(slots, "a") for _ in range(2)]
    b = asyncio.ensure_future(slots.acquire("b"))
    await asyncio.sleep(0)  # b has made room, and the call that made it does not know yet
    second.cancel()
    with pytest.raises((asyncio.CancelledError, QueueFullError)):
        await second
    assert (slots.running, slots.queued) == (1, 2)
    for turn in (first, b):
        slots.release(1)
        await turn
    slots.release(1)
    assert (slots.running, slots.queued) == (0, 0)


async def test_without_a_queue_nobody_waits() -> None:
    slots = Slots("m", 1, 0)
    await slots.acquire("a")
    with pytest.raises(QueueFullError, match="Try again in about 1 s"):
        await slots.acquire("a")
    slots.release(1)
    await slots.acquire("a")


def test_a_free_slot_means_no_wait() -> None:
    assert Slots("m", 1, 0).expected_wait_s() == 0


async def test_whoever_asks_once_does_not_wait_for_all_of_those_who_ask_much() -> None:
    slots = Slots("m", 1, 50)
    turns: list[str] = []

    async def call(developer: str) -> None:
        await slots.acquire(developer)
        turns.append(developer)
        slots.release(1)

    await slots.acquire("z")
    callers = "A" * 10 + "B" + "CC"
    async with asyncio.TaskGroup() as group:
        for developer in callers:
            group.create_task(call(developer))
        await asyncio.sleep(0)
        slots.release(1)
    assert "".join(turns) == "ABCAC" + "A" * 8
    assert (slots.running, slots.queued) == (0, 0)


async def test_who_stops_waiting_leaves_the_queue() -> None:
    slots = Slots("m", 1, 5)
    await slots.acquire("a")
    first, second = await waiting(slots, "a"), await waiting(slots, "b")
    first.cancel()
    await asyncio.wait([first])
    assert (slots.running, slots.queued) == (1, 1)
    slots.release(1)
    await second
    slots.release(1)
    assert (slots.running, slots.queued) == (0, 0)


@pytest.mark.parametrize("cancelled_first", [True, False])
@pytest.mark.parametrize("others", [0, 1])
async def test_a_slot_that_is_handed_to_somebody_who_leaves_goes_on(others: int, *, cancelled_first: bool) -> None:
    slots = Slots("m", 1, 5)
    await slots.acquire("a")
    leaving = await waiting(slots, "a")
    staying = [await waiting(slots, "b") for _ in range(others)]
    # Both before either is noticed by the task that waits.
    if cancelled_first:
        leaving.cancel()
        slots.release(1)
    else:
        slots.release(1)
        leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    for turn in staying:
        with anyio.fail_after(2):
            await turn
        slots.release(1)
    assert (slots.running, slots.queued) == (0, 0)


schedules = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 2)),
        st.tuples(st.sampled_from(["cancel", "end", "end and cancel the next"]), st.integers(0, 7)),
        st.tuples(st.just("let run"), st.integers(1, 3)),
    ),
    max_size=30,
)
# Begins with more calls than can run, so that there is a queue to play with.
begun = st.lists(st.tuples(st.just("ask"), st.integers(0, 2)), min_size=3, max_size=6)


@settings(max_examples=200, deadline=None)
@given(begin=begun, schedule=schedules, concurrency=st.integers(1, 3), queue=st.integers(0, 6))
def test_no_schedule_leaks_a_slot(
    begin: list[tuple[str, int]], schedule: list[tuple[str, int]], concurrency: int, queue: int
) -> None:
    asyncio.run(play([*begin, ("let run", 2), *schedule], concurrency, queue))


def act(calls: list[tuple[asyncio.Task[None], asyncio.Event]], action: str, number: int) -> None:
    """End or cancel a call, or both in one go: then a slot may be handed to the one who leaves."""
    if action.startswith("end"):
        calls[number % len(calls)][1].set()
    if action.startswith("cancel"):
        calls[number % len(calls)][0].cancel()
    if action.endswith("the next"):
        calls[(number + 1) % len(calls)][0].cancel()


async def play(schedule: list[tuple[str, int]], concurrency: int, queue: int) -> None:
    """Have calls come, end and be cancelled in some order; at the end every slot must be free."""
    slots = Slots("m", concurrency, queue)
    working = 0
    calls: list[tuple[asyncio.Task[None], asyncio.Event]] = []

    async def call(developer: str, end: asyncio.Event) -> None:
        nonlocal working
        await slots.acquire(developer)
        working += 1
        try:
            assert working <= concurrency
            await end.wait()
        finally:
            working -= 1
            slots.release(0.01)

    for action, number in schedule:
        if action == "ask":
            end = asyncio.Event()
            calls.append((asyncio.create_task(call("abc"[number], end)), end))
        elif action == "let run":
            for _ in range(number):
                await asyncio.sleep(0)
        elif calls:
            act(calls, action, number)
        assert slots.running <= concurrency
        assert slots.queued <= queue
    for _, end in calls:
        end.set()
    tasks = [task for task, _ in calls]
    _, stuck = await asyncio.wait(tasks, timeout=2)
    assert not stuck
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    surprises = [o for o in outcomes if o is not None and not isinstance(o, asyncio.CancelledError | QueueFullError)]
    assert not surprises
    assert (slots.running, slots.queued, working) == (0, 0, 0)


def test_a_minutes_calls_are_the_most_and_the_wait_is_told(clock: Clock) -> None:
    rate = Rate(6)
    for _ in range(6):
        rate.spend("alice")
    with pytest.raises(RateLimitError, match=r"alice has made the 6 calls that a minute allows\. Try again in 10 s"):
        rate.spend("alice")
    clock.now += 4
    with pytest.raises(RateLimitError, match="Try again in 6 s"):
        rate.spend("alice")
    clock.now += 6
    rate.spend("alice")
    with pytest.raises(RateLimitError):
        rate.spend("alice")


def test_an_hour_of_silence_saves_up_one_minute_only(clock: Clock) -> None:
    rate = Rate(3)
    rate.spend("alice")
    clock.now += 3600
    for _ in range(3):
        rate.spend("alice")
    with pytest.raises(RateLimitError):
        rate.spend("alice")


@pytest.mark.usefixtures("clock")
def test_one_developers_calls_are_not_anothers() -> None:
    rate = Rate(1)
    rate.spend("alice")
    rate.spend("bob")
    with pytest.raises(RateLimitError, match="alice"):
        rate.spend("alice")


@pytest.mark.usefixtures("clock")
def test_zero_allows_any_number() -> None:
    rate = Rate(0)
    for _ in range(10_000):
        rate.spend("alice")


class CountingEngine(FakeEngine):
    """Keeps every answer open until it may end, and counts how many are open at once: what shows the bridge's limit."""

    lock = threading.Lock()
    open = 0
    most = 0

    def _handle(self, connection: socket.socket) -> None:
        with self.lock:
            self.open += 1
            self.most = max(self.most, self.open)
        try:
            self.requests.append(request_of(connection))
            assert self.hold is not None
            self.hold.wait(60)
        finally:
            with self.lock:
                self.open -= 1  # before the answer, after which the next request may come at once
        connection.sendall(self.reply)


async def test_an_engine_gets_no_more_than_it_may_and_the_surplus_is_told_that_it_is_busy(tmp_path: Path) -> None:
    engine = CountingEngine(events(piece("done", "stop")), hold=threading.Event())
    results: list[Any] = []

    async def call(client: Client, number: int) -> None:
        results.append(await client.call_tool("chat", {"message": f"question {number}"}))

    with engine.running() as url:
        model = {"name": MODEL, "url": url, "context": 4096, "concurrency": 2, "queue": 3}
        with serving(tmp_path, models=[model]) as bridge:

            def metrics() -> str:
                return bridge.http("/metrics")[1]

            async with bridge.client() as client, anyio.create_task_group() as group:
                for number in range(8):
                    group.start_soon(call, client, number)
                await anyio.to_thread.run_sync(wait_for, lambda: len(engine.requests) == 2)
                await anyio.to_thread.run_sync(wait_for, lambda: len(results) == 3)
                refused = [text_of(result) for result in results]
                assert all(result.is_error for result in results)
                assert all("is busy: 2 calls run and 3 wait" in text for text in refused), refused
                text = await anyio.to_thread.run_sync(metrics)
                assert f'local_llm_bridge_running{{model="{MODEL}"}} 2.0' in text
                assert f'local_llm_bridge_queued{{model="{MODEL}"}} 3.0' in text
                assert len(engine.requests) == 2
                assert engine.hold is not None
                engine.hold.set()
    assert sorted(text_of(result) for result in results if not result.is_error) == ["done"] * 5
    assert len(results) == 8
    assert (len(engine.requests), engine.most) == (5, 2)


async def test_a_call_whose_time_was_over_before_its_turn_says_so(tmp_path: Path) -> None:
    engine = FakeEngine(b"", hold=threading.Event())
    with engine.running() as url:
        model = {"name": MODEL, "url": url, "context": 4096, "concurrency": 1}
        with serving(tmp_path, models=[model], timeout_s=3) as bridge:
            async with bridge.client() as client, anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "chat", {"message": "first"})
                await anyio.to_thread.run_sync(wait_for, lambda: len(engine.requests) == 1)
                text = text_of(await client.call_tool("chat", {"message": "second"}))
    assert re.search(r"wrote nothing within 3 s\. For [123] s of these this call waited for its turn", text), text


async def test_the_calls_of_a_minute_are_counted_over_http(tmp_path: Path) -> None:
    engine = FakeEngine(events(piece("done", "stop")))
    with engine.running() as url, serving(tmp_path, url, requests_per_minute=2) as bridge:
        async with bridge.client() as client:
            results = [await client.call_tool("chat", {"message": f"{number}"}) for number in range(3)]
        assert any(one["outcome"] == "rate_limited" for one in records(bridge.log.read_text()))
    assert len(engine.requests) == 2
    assert [result.is_error for result in results] == [False, False, True]
    assert "alice has made the 2 calls that a minute allows" in text_of(results[2])


def test_what_all_have_together_is_limited_for_those_who_have_some() -> None:
    bytes_of = AtOnce(16, together=30)
    assert [bytes_of.enter(name, 15) for name in ("alice", "bob", "carol")] == [True, True, True]
    assert not bytes_of.enter("alice", 1)
    assert not bytes_of.enter("alice", 2)
    bytes_of.leave("carol", 15)
    bytes_of.leave("bob", 15)
    assert bytes_of.enter("alice", 1)
    assert not bytes_of.enter("alice", 1)
