"""Whether the bridge endures: `make soak`, or `python -m bench.soak --help`.

A real llama.cpp server, our bridge over HTTP, and 64 clients that ask without pause, while the engine is killed and
started again three times; one call in five goes to an engine that thinks, lies, dies or never ends. Every request has
to get a reply in time, an answer or a tool error that says what to do; in the end the bridge has to hold as much memory
and as many files as after the warm-up. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from bench import processes
from tests.services import Listener, delta, events, free_port, llama_server, piece, request_of, serving, usage

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tests.services import Bridge

CLIENTS = 64
DEVELOPERS = 8
KILLS = 3
DOWN_S = 5.0
# Long enough that calls at one time have held about as much as they ever do: malloc keeps the holes between.
WARM_UP_S = 90.0
# Longer than connections are kept idle.
CALM_S = 20.0
REPLY_LIMIT_S = 300.0
GROWTH = 1.10
RANDOM = random.Random()  # noqa: S311 - nothing here is secret


class FaultError(Exception):
    """What must not be: a hang, a lost reply, an HTTP error, an error that says nothing."""


@dataclass
class Counts:
    """What came back."""

    sent: int = 0
    answers: int = 0
    cached: int = 0
    tool_errors: Counter[str] = field(default_factory=Counter)
    """By their first sentence."""
    faults: Counter[str] = field(default_factory=Counter)
    """By their text."""
    slowest_s: float = 0.0

    @property
    def replies(self) -> int:
        """How many requests got a reply, whatever it was."""
        return self.answers + self.tool_errors.total() + self.faults.total()


@dataclass(frozen=True)
class Held:
    """What the bridge holds at one moment."""

    memory_mib: float
    files: int

    @staticmethod
    def by(pid: int) -> Held:
        """Look at a process."""
        return Held(processes.resident_mib(pid), processes.open_files(pid))


class Engine:
    """A llama.cpp server that can be killed and started again in the same place."""

    def __init__(self) -> None:
        self._port = free_port()
        self._running: AbstractContextManager[Any] | None = None

    def start(self) -> str:
        """Start it and wait until it listens; gives its URL."""
        self._running = llama_server(self._port)
        url, _ = self._running.__enter__()
        return url

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._running:
            self._running.__exit__(None, None, None)
            self._running = None


def tokens() -> list[str]:
    """Return the developers' tokens."""
    return [f"soak-token-{number}" for number in range(DEVELOPERS)]


def misbehave(connection: socket.socket) -> None:
    """Answer a request as an engine should not, each time in another way."""
    request_of(connection)
    thoughts = [delta(reasoning_content="hm ")] * 50
    match RANDOM.choice(("thinks", "only thinks", "lies", "never ends", "breaks off", "stays", "hangs up")):
        case "thinks":
            connection.sendall(events(*thoughts, piece("thought about", "stop")))
        case "only thinks":
            connection.sendall(events(*thoughts, delta("length")))
        case "lies":
            connection.sendall(events(piece("much", "stop"), usage(-5, "many")))
        case "never ends":
            connection.sendall(events(done=False))
            words = f"data: {json.dumps(piece('word '))}\n\n".encode() * 1000
            while True:
                connection.sendall(words)
        case "breaks off":
            connection.sendall(events(piece("half"), done=False))
        case "stays":
            connection.sendall(events(piece("whole", "stop")))
            connection.recv(1)


async def client(url: str, token: str, end: float, texts: Iterator[int], counts: Counts) -> None:
    """Ask one question after the other until the end, over a connection of its own; wait when told to."""
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
    timeout = aiohttp.ClientTimeout(total=REPLY_LIMIT_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        while time.monotonic() < end:
            counts.sent += 1
            began = time.monotonic()
            try:
                wait_s = judge(await ask(session, url, call(next(texts))), counts)
            except FaultError as fault:
                counts.faults[str(fault)] += 1
                wait_s = 1.0
            counts.slowest_s = max(counts.slowest_s, time.monotonic() - began)
            await asyncio.sleep(min(wait_s, max(0.0, end - time.monotonic())))


def call(number: int) -> dict[str, Any]:
    """Return a tool call."""
    # One question in ten has been asked before: the cache and joined requests are under load as well.
    text = f"Say something about {RANDOM.randrange(20) if number % 10 == 0 else number}."
    name, argument = ("code_generation", "task") if number % 4 == 0 else ("chat", "message")
    arguments = {argument: text} | ({"model": "model1"} if number % 5 == 1 else {})
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send one request; gives the call's result.

    Raises:
        FaultError: there is none.
    """
    try:
        async with session.post(url, json=body) as response:
            text = await response.text()
    except TimeoutError:
        raise FaultError(f"no reply within {REPLY_LIMIT_S:g} s") from None
    except aiohttp.ClientError as error:
        raise FaultError(f"lost reply: {type(error).__name__}: {error}") from None
    if response.status != HTTPStatus.OK:
        raise FaultError(f"HTTP {response.status}: {text[:80]!r}")
    reply = message_of(text, response.content_type)
    if reply is None or reply.get("id") != body["id"]:
        raise FaultError("an HTTP answer without the reply")
    if "result" not in reply:
        raise FaultError(f"protocol error: {str(reply.get('error'))[:80]}")
    result: dict[str, Any] = reply["result"]
    return result


def judge(result: dict[str, Any], counts: Counts) -> float:
    """Count a result; gives how long to wait before the next call, in seconds.

    Raises:
        FaultError: it is neither an answer nor a clear error.
    """
    said = " ".join(content.get("text", "") for content in result["content"]).strip()
    if not said or "Traceback" in said or "The bridge itself failed" in said:
        raise FaultError(f"unclear result: {said[:80]!r}")
    if not result.get("isError"):
        counts.answers += 1
        counts.cached += bool((result.get("_meta") or {}).get("cached"))
        return 0.0
    # The first sentence without its numbers: what kind of error it is.
    counts.tool_errors[re.sub(r"\d+", "N", re.split(r"[.:?] | [(]|\n", said)[0])[:100]] += 1
    told = re.search(r"in about (\d+) s", said)
    return float(told[1]) if told else RANDOM.uniform(0.5, 1.5)


def message_of(text: str, kind: str) -> dict[str, Any] | None:
    """Return the reply in an HTTP answer, which may be a stream of events with other messages before it."""
    lines = [line[5:] for line in text.splitlines() if line.startswith("data:")] if "event-stream" in kind else [text]
    try:
        messages = [json.loads(line) for line in lines if line.strip()]
    except ValueError:
        return None
    return next((message for message in reversed(messages) if "method" not in message), None)


async def load(url: str, seconds: float, kills: int, engine: Engine, texts: Iterator[int]) -> Counts:
    """Have all clients ask for some time, while the engine is killed now and then."""
    counts = Counts()
    began = time.monotonic()

    async def disturb() -> None:
        for number in range(1, kills + 1):
            await asyncio.sleep(began + seconds * number / (kills + 1) - time.monotonic())
            await asyncio.to_thread(engine.kill)
            print(f"  {time.monotonic() - began:.0f} s: engine killed after {counts.replies} replies", flush=True)
            await asyncio.sleep(min(DOWN_S, seconds / (kills + 1) / 2))
            await asyncio.to_thread(engine.start)

    async with asyncio.TaskGroup() as group:
        group.create_task(disturb())
        for number in range(CLIENTS):
            token = tokens()[number % DEVELOPERS]
            group.create_task(client(url, token, began + seconds, texts, counts))
    return counts


async def soak(bridge: Bridge, engine: Engine, seconds: float) -> list[str]:
    """Run warm-up, load and calm; print what was seen; give what was wrong."""
    pid, texts = bridge.process.pid, itertools.count(1)
    print(f"start: {processes.resident_mib(pid):.1f} MiB, {processes.open_files(pid)} files")
    # With one failure of the engine: what the bridge needs for that is imported at the first one.
    print(f"warm-up, {WARM_UP_S:g} s")
    await load(bridge.url, WARM_UP_S, 1, engine, texts)
    await asyncio.sleep(CALM_S)
    before = Held.by(pid)
    print(f"{CLIENTS} clients for {seconds:g} s")
    counts = await load(bridge.url, seconds, KILLS, engine, texts)
    peak = processes.peak_mib(pid)
    await asyncio.sleep(CALM_S)
    after = Held.by(pid)
    print(
        f"requests {counts.sent}, replies {counts.replies}: answers {counts.answers} (cached: {counts.cached}), errors "
        f"{counts.tool_errors.total()}, slowest reply {counts.slowest_s:.1f} s"
    )
    for text, count in counts.tool_errors.most_common():
        print(f"  {count:6}  {text}")
    print(f"memory in MiB: {before.memory_mib:.1f} before, {peak:.1f} at most, {after.memory_mib:.1f} after")
    print(f"open files: {before.files} before, {after.files} after")
    wrong = [f"{count} times: {text}" for text, count in counts.faults.most_common()]
    if counts.sent != counts.replies:
        wrong.append(f"{counts.sent - counts.replies} requests without a reply")
    if not counts.answers or not counts.tool_errors:
        wrong.append("no answer or no error at all: that was no test")
    if after.memory_mib > before.memory_mib * GROWTH:
        wrong.append(f"memory grew by {after.memory_mib / before.memory_mib - 1:.0%}")
    if after.files > before.files:
        wrong.append(f"{after.files - before.files} files were left open")
    log = bridge.log.read_text()
    if bugs := len(re.findall(r"a bug, please report it|Traceback", log)):
        wrong.append(f"the bridge's log has {bugs} bugs; the first: {log[log.find('Traceback') :][:2000]}")
    return wrong


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="soak", description="Load the bridge while its engine fails.")
    parser.add_argument("--seconds", type=float, default=300, help="how long (default: 300)")
    seconds: float = parser.parse_args().seconds
    developers = [
        {"name": f"developer{number}", "token_sha256": hashlib.sha256(token.encode()).hexdigest()}
        for number, token in enumerate(tokens())
    ]
    engine, odd = Engine(), Listener(misbehave)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            serving(Path(folder), engine.start(), odd.url, developers=developers, requests_per_minute=0) as bridge,
        ):
            wrong = asyncio.run(soak(bridge, engine, seconds))
    finally:
        engine.kill()
        odd.close()
    for text in wrong:
        print(f"WRONG: {text}")
    print("failed" if wrong else "passed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
