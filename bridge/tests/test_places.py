"""Code runs at so many places; no developer has all of them, and who has fewest is next."""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_llm_bridge.errors import QueueFullError
from local_llm_bridge.sandbox.places import Places
from tests.services import TOKEN, serving, texts_of

if TYPE_CHECKING:
    from pathlib import Path

    from mcp import Client

pytestmark = pytest.mark.anyio


async def test_a_developer_does_not_get_all_places_and_another_has_one_at_once() -> None:
    places = Places(4, 2, 9)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(places.place("a", 9))
        with pytest.raises(QueueFullError, match="were taken for 0 s"):
            async with places.place("a", 0.01):
                pass
        async with places.place("b", 9):
            pass


async def test_whoever_has_fewest_is_next() -> None:
    places = Places(4, 3, 9)
    got: list[str] = []

    async def run(developer: str, end: asyncio.Event) -> None:
        async with places.place(developer, 9):
            got.append(developer)
            await end.wait()

    async with asyncio.TaskGroup() as group:
        ends = [asyncio.Event() for _ in range(8)]
        for developer, end in zip("aaabaacb", ends, strict=True):
            group.create_task(run(developer, end))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert "".join(got) == "aaab"
        ends[0].set()
        await asyncio.sleep(0.01)
        assert "".join(got) == "aaabc", "c had none"
        ends[1].set()
        await asyncio.sleep(0.01)
        assert got[-1] in "ab", "both have one"
        for end in ends:
            end.set()
    assert sorted(got) == sorted("aaabaacb")


async def test_too_many_who_wait_are_told_so() -> None:
    places = Places(1, 1, 1)
    async with places.place("a", 9), asyncio.TaskGroup() as group:
        waiting = group.create_task(places.place("a", 9).__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="a runs 1 pieces of code already and 1 wait, which is the most"):
            async with places.place("a", 9):
                pass
        waiting.cancel()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), max_size=25))
async def test_places_are_never_lost_nor_given_twice(calls: list[tuple[str, int, bool]]) -> None:
    places = Places(3, 2, 99)
    held: list[str] = []

    async def run(developer: str, turns: int) -> None:
        async with places.place(developer, 9):
            held.append(developer)
            try:
                assert len(held) <= 3
                assert held.count(developer) <= 2
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                held.remove(developer)

    tasks = []
    for developer, turns, leaves in calls:
        tasks.append(asyncio.create_task(run(developer, turns)))
        await asyncio.sleep(0)
        if leaves:
            tasks[-1 - turns % len(tasks)].cancel()
    for done in await asyncio.gather(*tasks, return_exceptions=True):
        assert done is None or isinstance(done, asyncio.CancelledError), done
    async with AsyncExitStack() as stack:
        for developer in "aab":  # all are free again
            await stack.enter_async_context(places.place(developer, 0.1))


@pytest.mark.usefixtures("bubblewrap")
async def test_another_developer_runs_code_while_one_would_have_all_places(tmp_path: Path, engine: str) -> None:
    tokens = {name: f"{TOKEN}-{name}" for name in ("alice", "bob")}
    developers = [
        {"name": name, "token_sha256": hashlib.sha256(token.encode()).hexdigest()} for name, token in tokens.items()
    ]
    python = {"sandbox": "bubblewrap", "time_s": 20}
    with serving(tmp_path, engine, developers=developers, requests_per_minute=0, execute_python=python) as bridge:
        async with bridge.client(token=tokens["alice"]) as alice, bridge.client(token=tokens["bob"]) as bob:

            async def call(client: Client, code: str) -> tuple[float, str]:
                (text,) = texts_of(await client.call_tool("execute_python", {"code": code}))
                return time.monotonic(), text

            async with asyncio.TaskGroup() as group:
                hog = "import time; time.sleep(5); print('ended')"
                hogs = [group.create_task(call(alice, hog)) for _ in range(12)]
                await asyncio.sleep(0.5)
                ended, text = await call(bob, "print(6 * 7)")
                assert "42" in text
        ends = sorted(task.result()[0] for task in hogs)
        assert ended < ends[0]
        assert all("ended" in task.result()[1] for task in hogs)
        assert ends[8] - ends[0] > 3, "eight at once, and the others after them"
