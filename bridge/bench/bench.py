"""Compares the bridge with its Node version in one interleaved run: `make bench`, or `python -m bench.bench --help`.

Both get the same calls and ask the same stand-in engine (engine.py). Prints a table of medians and ratios, and puts it
into docs/benchmarks.md. With --before, another build of the bridge takes Node's place, to see what a change costs.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bench import engine, processes, wire
from tests.services import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent
DOCS = PROJECT / "docs" / "benchmarks.md"
AT_ONCE = 32
WARM_UP = 50
TOKEN = "token-for-the-benchmark"  # noqa: S105 - of a bridge that lives for seconds
EXPECTED = engine.TEXT.strip().encode()


@dataclass(frozen=True)
class Size:
    """How often things are measured."""

    rounds: int
    """An even number: which of the two goes first changes with each. One round differs from the next by a fifth."""
    starts: int
    """Cold starts a round."""
    calls: int
    """One after the other, a round."""
    calls_at_once: int


FULL = Size(rounds=24, starts=2, calls=500, calls_at_once=1500)
QUICK = Size(rounds=2, starts=2, calls=200, calls_at_once=600)


@dataclass(frozen=True)
class Figure:
    """A row of the table."""

    key: str
    text: str
    unit: str
    target: float | None = None
    """The ratio ours/Node that was aimed at; None: the row is for information."""
    more_is_better: bool = False


FIGURES = (
    Figure("listed_cpu", "cold start until the tools are listed, CPU", "ms", 1.0),
    Figure("listed_wall", "cold start until the tools are listed, wall", "ms"),
    Figure("first_cpu", "cold start until the first call is answered, CPU", "ms", 1.0),
    Figure("first_wall", "cold start until the first call is answered, wall", "ms"),
    Figure("added_p50", "added latency, one at a time, p50", "µs"),
    Figure("added_p95", "added latency, one at a time, p95", "µs"),
    Figure("cpu_one", "CPU per call, one at a time", "µs", 0.5),
    Figure("cpu_many", f"CPU per call, {AT_ONCE} at once", "µs", 0.6),
    Figure("throughput", f"calls per second, {AT_ONCE} at once", "1/s", more_is_better=True),
    Figure("peak", "peak memory, after all that", "MiB", 1.0),
)
HTTP_THROUGHPUT = 2.0

Figures = dict[str, list[float]]
"""What was measured, by a figure's key: one number a round or a start."""


@dataclass(frozen=True)
class Contestant:
    """A bridge in one of its two forms.

    Args:
        name: `ours`, `node` or `before`.
        over: `stdio` or `http`.
        command: starts it.
        environment: all that it gets.
        port: where it listens; 0 for stdio.
        load_options: more of the command line for when there are many calls at once.
    """

    name: str
    over: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    port: int = 0
    load_options: tuple[str, ...] = ()

    @property
    def streams(self) -> bool:
        """Whether it asks the engine for a stream, as our bridge does; the guide's asks for the whole answer."""
        return self.name != "node"

    @contextmanager
    def running(self, *options: str) -> Iterator[tuple[int, wire.Wire]]:
        """Start it; gives its process id and the way to talk to it."""
        pipe = subprocess.PIPE if self.over == "stdio" else subprocess.DEVNULL
        with subprocess.Popen(
            (*self.command, *options),
            env=self.environment,
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        ) as process:
            connection: wire.Wire | None = None
            try:
                if self.over == "stdio":
                    connection = wire.Stdio(process)
                else:
                    connection = wire.Http(self.port, headers={"authorization": f"Bearer {TOKEN}"})
                yield process.pid, connection
            finally:
                if connection:
                    connection.close()
                process.kill()


class Texts:
    """Makes calls whose text was never sent before, so that no cache can answer them."""

    def __init__(self) -> None:
        self._number = 0

    def calls(self, count: int) -> list[bytes]:
        """Return so many calls."""
        first = self._number + 1
        self._number += count
        return [wire.call(number, f"What is {number} plus {number}?") for number in range(first, first + count)]


def start(contestant: Contestant, texts: Texts, figures: Figures) -> None:
    """Measure a cold start up to the first call's answer."""
    (first,) = texts.calls(1)
    began = time.perf_counter()
    with contestant.running() as (pid, bridge):
        bridge.ask(wire.encode(wire.INITIALIZE))
        bridge.tell(wire.encode(wire.INITIALIZED))
        listed = bridge.ask(wire.encode(wire.LIST))
        figures["listed_wall"].append((time.perf_counter() - began) * 1e3)
        figures["listed_cpu"].append(processes.cpu_s(pid) * 1e3)
        answer = bridge.ask(first)
        figures["first_wall"].append((time.perf_counter() - began) * 1e3)
        figures["first_cpu"].append(processes.cpu_s(pid) * 1e3)
    if b'"chat"' not in listed:
        raise wire.WireError(f"there is no tool chat: {listed[:300]!r}")
    _check([answer])


def load(contestant: Contestant, texts: Texts, size: Size, direct: Sequence[float], figures: Figures) -> None:
    """Measure a bridge that is warm: one call at a time, then many at once.

    Args:
        contestant: what to measure.
        texts: makes the calls.
        size: how many.
        direct: p50 and p95 of asking the engine without a bridge, in seconds.
        figures: where the results go.
    """
    with contestant.running(*contestant.load_options) as (pid, bridge):
        bridge.ask(wire.encode(wire.INITIALIZE))
        bridge.tell(wire.encode(wire.INITIALIZED))
        _check([bridge.ask(message) for message in texts.calls(WARM_UP)])

        messages = texts.calls(size.calls)
        used = processes.cpu_s(pid)
        durations, answers = one_at_a_time(bridge, messages)
        figures["cpu_one"].append((processes.cpu_s(pid) - used) / size.calls * 1e6)
        p50, p95 = quantiles(durations)
        figures["added_p50"].append((p50 - direct[0]) * 1e6)
        figures["added_p95"].append((p95 - direct[1]) * 1e6)
        _check(answers)

        _check(bridge.ask_all(texts.calls(WARM_UP), AT_ONCE))
        messages = texts.calls(size.calls_at_once)
        used, began = processes.cpu_s(pid), time.perf_counter()
        answers = bridge.ask_all(messages, AT_ONCE)
        figures["throughput"].append(size.calls_at_once / (time.perf_counter() - began))
        figures["cpu_many"].append((processes.cpu_s(pid) - used) / size.calls_at_once * 1e6)
        _check(answers)
        figures["peak"].append(processes.peak_mib(pid))


def ceiling(port: int, size: Size, *, stream: bool) -> tuple[list[float], float]:
    """Ask the engine without a bridge; gives p50 and p95 in seconds, and the calls per second with many at once."""
    body = {"model": engine.MODEL, "messages": [{"role": "user", "content": "What is 1 plus 1?"}], "stream": stream}
    message = wire.encode(body)
    direct = wire.Http(port, "/v1/chat/completions")
    one_at_a_time(direct, [message] * WARM_UP)
    durations, _ = one_at_a_time(direct, [message] * size.calls)
    began = time.perf_counter()
    answers = direct.ask_all([message] * size.calls_at_once, AT_ONCE)
    per_second = size.calls_at_once / (time.perf_counter() - began)
    direct.close()
    if not all((b"[DONE]" if stream else EXPECTED) in answer for answer in answers):
        raise wire.WireError(f"not the stand-in's answer: {answers[0][:300]!r}")
    return quantiles(durations), per_second


def one_at_a_time(bridge: wire.Wire, messages: Sequence[bytes]) -> tuple[list[float], list[bytes]]:
    """Send calls one after the other; gives how long each took, in seconds, and the answers."""
    durations, answers = [], []
    for message in messages:
        began = time.perf_counter()
        answers.append(bridge.ask(message))
        durations.append(time.perf_counter() - began)
    return durations, answers


def quantiles(durations: Sequence[float]) -> list[float]:
    """Return the median and the 95th percentile."""
    cuts = statistics.quantiles(durations, n=20)
    return [cuts[9], cuts[18]]


def _check(answers: Sequence[bytes]) -> None:
    for answer in answers:
        if EXPECTED not in answer or b'"isError":true' in answer:
            raise wire.WireError(f"not the engine's answer: {answer[:300]!r}")


@contextmanager
def stand_in() -> Iterator[int]:
    """Run the stand-in engine; gives its port."""
    port = free_port()
    command = [sys.executable, "-m", "bench.engine", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=HERE.parent) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield port
        finally:
            process.kill()


def contestants(folder: Path, engine_port: int, bridges: Mapping[str, Sequence[str]]) -> list[Contestant]:
    """Return what is compared, first over stdio, then over HTTP; writes what our bridge needs into a folder.

    Args:
        folder: for settings.
        engine_port: of the stand-in engine.
        bridges: the command of each, by its name.
    """
    url = f"http://127.0.0.1:{engine_port}/v1"
    # As many at once as there are calls, and no limit per developer: the Node bridge has neither.
    models = [{"name": engine.MODEL, "url": url, "context": 32768, "concurrency": 64, "queue": 64}]
    serve = {
        "models": models,
        "developers": [{"name": "bench", "token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}],
        "requests_per_minute": 0,
    }
    # JSON is YAML.
    stdio_file = folder / "stdio.yml"
    stdio_file.write_text(json.dumps({"models": models}))
    environment = {
        "LOCAL_API_URL": url,
        "MODEL_NAME": engine.MODEL,
        "OPENAI_API_KEY": "none",
        **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
    }
    over_stdio, over_http = [], []
    for name, command in bridges.items():
        port = free_port()
        if name == "node":
            over_stdio.append(Contestant(name, "stdio", tuple(command), environment))
            over_http.append(Contestant(name, "http", (*command, str(port)), environment, port))
            continue
        serve_file = folder / f"{name}.yml"
        serve_file.write_text(json.dumps({**serve, "listen": {"port": port}}))
        many = ("stdio", "--config", str(stdio_file))
        over_stdio.append(Contestant(name, "stdio", tuple(command), environment, load_options=many))
        serving = (*command, "serve", "--config", str(serve_file))
        over_http.append(Contestant(name, "http", serving, environment, port))
    return [*over_stdio, *over_http]


def compare(bridges: Mapping[str, Sequence[str]], size: Size) -> tuple[dict[tuple[str, str], Figures], list[str]]:
    """Run all rounds; gives the figures by transport and bridge, and lines about the engine alone."""
    results: dict[tuple[str, str], Figures] = defaultdict(lambda: defaultdict(list))
    alone: dict[bool, list[tuple[list[float], float]]] = {True: [], False: []}
    texts = Texts()
    with stand_in() as port, tempfile.TemporaryDirectory() as folder:
        pairs = contestants(Path(folder), port, bridges)
        for contestant in pairs:
            start(contestant, texts, defaultdict(list))  # its files are in the page cache and compiled now
        for number in range(1, size.rounds + 1):
            # What goes first takes turns, lest one of the two always finds the machine as the other left it.
            order = pairs if number % 2 else [pairs[1], pairs[0], pairs[3], pairs[2]]
            for stream in (True, False):
                alone[stream].append(ceiling(port, size, stream=stream))
            for _ in range(size.starts):
                for contestant in order:
                    start(contestant, texts, results[contestant.over, contestant.name])
            for contestant in order:
                direct = alone[contestant.streams][-1][0]
                load(contestant, texts, size, direct, results[contestant.over, contestant.name])
            print(f"round {number} of {size.rounds} done", file=sys.stderr)
    lines = []
    for stream, kind in ((True, "streamed"), (False, "whole")):
        p50 = statistics.median(quantile[0] for quantile, _ in alone[stream]) * 1e6
        per_second = statistics.median(rate for _, rate in alone[stream])
        lines.append(
            f"The stand-in engine alone, {kind} answers: p50 {p50:.0f} µs, {per_second:,.0f} calls per second."
        )
    return results, lines


def table(over: str, ours: Figures, others: Figures, name: str) -> list[str]:
    """Return one transport's figures as a Markdown table; `name` is that of the other bridge."""
    lines = [f"| | ours | {name} | ours/{name} | target |", "|---|--:|--:|--:|:--|"]
    for figure in FIGURES:
        mine, theirs = statistics.median(ours[figure.key]), statistics.median(others[figure.key])
        ratio = mine / theirs
        target = HTTP_THROUGHPUT if (over, figure.key) == ("http", "throughput") else figure.target
        verdict = ""
        if target is not None and name == "Node":
            met = ratio >= target if figure.more_is_better else ratio <= target
            sign = "≥" if figure.more_is_better else "≤"
            verdict = f"{sign} {target:.1f}: {'met' if met else '**missed**'}"
        cells = [figure.text, f"{_number(mine)} {figure.unit}", f"{_number(theirs)} {figure.unit}", f"{ratio:.2f}"]
        lines.append(f"| {' | '.join(cells)} | {verdict} |")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.1f}"  # noqa: PLR2004 - two digits are enough


def hardware() -> str:
    """Return when and on what the figures were measured."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return (
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}: {cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, "
        f"Linux {platform.release().split('-')[0]}."
    )


def machine(node: str) -> str:
    """Return what the figures were measured on, and the versions of both bridges."""
    node_version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    lock = json.loads((HERE / "node" / "package-lock.json").read_text())["packages"]
    names = ("@modelcontextprotocol/server", "openai")
    packages = ", ".join(f"{name} {lock[f'node_modules/{name}']['version']}" for name in names)
    return (
        f"{hardware()} "
        f"Ours {version('local-llm-bridge')}: Python {platform.python_version()}, "
        f"mcp {version('mcp')}, aiohttp {version('aiohttp')}. "
        f"The Node bridge: Node {node_version}, {packages}."
    )


def report(results: Mapping[tuple[str, str], Figures], alone: Sequence[str], other: str, size: Size) -> str:
    """Return the tables, ours beside `other` (`node` or `before`), and how they were measured."""
    lines = []
    for over, title in (("stdio", "stdio"), ("http", "streamable HTTP")):
        rows = table(over, results[over, "ours"], results[over, other], other.replace("node", "Node"))
        lines += [f"### Over {title}", "", *rows, ""]
    lines.append(
        f"Medians of {size.rounds} rounds; in each, {size.starts} cold starts, {size.calls} calls one at a time and "
        f"{size.calls_at_once} calls {AT_ONCE} at once. {' '.join(alone)}"
    )
    return "\n".join(lines) + "\n"


def into_docs(text: str, marker: str = "measured") -> None:
    """Put a report between its markers in docs/benchmarks.md."""
    start, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->\n"
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(start)
    _, _, after = rest.partition(end)
    DOCS.write_text(f"{before}{start}{text}{end}{after}", encoding="utf-8")


def main() -> None:
    """Run the comparison; the figures are the result, there is no pass or fail."""
    parser = argparse.ArgumentParser(prog="bench", description="Compare the bridge with its Node version.")
    parser.add_argument("--quick", action="store_true", help="a short run, which leaves docs/benchmarks.md alone")
    parser.add_argument("--node", default="node", metavar="PROGRAM", help="Node (default: the one in PATH)")
    parser.add_argument(
        "--ours",
        type=shlex.split,
        default=[str(Path(sys.executable).with_name("local-llm-bridge"))],
        metavar="COMMAND",
        help="our bridge (default: the installed one)",
    )
    parser.add_argument(
        "--before",
        type=shlex.split,
        metavar="COMMAND",
        help="compare with this other build of our bridge instead of Node; docs/benchmarks.md is left alone",
    )
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    other = "before" if arguments.before else "node"
    command = arguments.before or [arguments.node, str(HERE / "node" / "bridge.mjs")]
    results, alone = compare({"ours": arguments.ours, other: command}, size)
    text = report(results, alone, other, size)
    if other == "node":
        text = f"{machine(arguments.node)}\n\n{text}"
    print(text)
    if other == "node" and not arguments.quick:
        into_docs(text)


if __name__ == "__main__":
    main()
