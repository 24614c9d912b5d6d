"""Runs in the guest of gateway_fleet.yml: requests straight to an engine, through the gateway, through LiteLLM.

The same request goes all three ways before the next one does. Needs the standard library alone. Reads Settings as JSON,
prints Results as JSON. With the argument `engine` it is the stand-in engine instead.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import ssl
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TypedDict

HOST = "bench"
LOCAL = "127.0.0.1"
STAND_IN = 9000
WARM_UP = 20
UNITS = {"gateway": "local-llm-gateway", "litellm": "litellm"}
ORDERS = tuple(itertools.permutations(("direct", "gateway", "litellm")))
LARGE = 92_000  # bytes of a request of Claude Code's at the beginning of a session: its prompt, its tools

_BODY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "stand-in",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "pong"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
    }
).encode()
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


class Settings(TypedDict):
    """What is to be measured."""

    ca: str
    """PEM of the gateway's CA."""
    keys: dict[str, str]
    """What each way wants as bearer token."""
    rounds: int
    requests: int
    """A round, each way, for each kind of request."""


class Results(TypedDict):
    """What was measured; one number a round."""

    seconds: dict[str, dict[str, list[list[float]]]]
    """By kind of request and way: p50 and p95."""
    cpu_s: dict[str, dict[str, list[float]]]
    """By kind of request and service: CPU time for one request."""
    versions: dict[str, str]


class Engine(asyncio.Protocol):
    """A stand-in for an engine: reads whatever it is sent, and answers at once with the same text.

    One thread serves all, as in real engines: a thread for each connection would take longer to start than the answer.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read."""
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._data = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self._data += data
        while True:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].split()
            size = int(length[0]) if length else 0
            if not end or len(rest) < size:
                return
            self._data = rest[size:]
            self._transport.write(_ANSWER)


async def serve() -> None:
    """Run the stand-in engine."""
    server = await asyncio.get_running_loop().create_server(Engine, LOCAL, STAND_IN)
    print("ready", flush=True)
    await server.serve_forever()


class Way:
    """A connection that stays open, and requests that were made beforehand.

    Args:
        address: where to connect to.
        context: for TLS; None: without.
        key: the bearer token.
    """

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None, key: str) -> None:
        self._address, self._context = address, context
        self._connect()
        self._head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address[0]}\r\nauthorization: Bearer {key}\r\n"
            "content-type: application/json\r\n"
        )

    def request(self, body: bytes) -> bytes:
        """Return the bytes to send."""
        return f"{self._head}content-length: {len(body)}\r\n\r\n".encode() + body

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def ask(self, request: bytes) -> float:
        """Send a request and wait for the whole answer; gives the seconds that took."""
        began = time.perf_counter()
        self._socket.sendall(request)
        data, missing = b"", 1
        while missing > 0:
            piece = self._socket.recv(1 << 16)
            data += piece
            head, end, body = data.partition(b"\r\n\r\n")
            if end:
                missing = int(head.lower().partition(b"content-length:")[2].split()[0]) - len(body)
            if not piece:
                raise ConnectionError(f"hung up after {data[:300]!r}")
        took = time.perf_counter() - began
        if b" 200 " not in data[:16] or b'"choices"' not in data:
            raise ValueError(f"not an engine's answer: {data[:600]!r}")
        if b"\r\nconnection: close" in head.lower():  # llama.cpp does that every 100 requests
            self._socket.close()
            self._connect()
        return took

    def _connect(self) -> None:
        self._socket = socket.create_connection(self._address, timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context:
            self._socket = self._context.wrap_socket(self._socket, server_hostname=self._address[0])


def body(model: str, **more: Any) -> bytes:  # noqa: ANN401 - fields of JSON
    """Return a question whose answer is one token."""
    messages = [{"role": "user", "content": "ping"}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": 1, "temperature": 0, **more}).encode()


def tools() -> list[dict[str, Any]]:
    """Return definitions of tools, as large as those of Claude Code."""
    schema = {"type": "object", "properties": {"path": {"type": "string", "description": "An absolute path"}}}
    words = 'Reads a file; says "not found" if there is none.\n' * 26
    tool = {"type": "function", "function": {"name": "tool", "description": words, "parameters": schema}}
    return [tool] * (LARGE // len(json.dumps(tool)))


def cpu_s(unit: str) -> float:
    """Return the CPU time that a service has used, user and system, with all its processes."""
    command = ["/usr/bin/systemctl", "show", "--property=ControlGroup", "--value", unit]
    group = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    (used,) = (
        line for line in Path(f"/sys/fs/cgroup{group}/cpu.stat").read_text().splitlines() if "usage_usec" in line
    )
    return int(used.split()[1]) / 1e6


def measure(settings: Settings) -> Results:
    """Run all rounds."""
    context = ssl.create_default_context(cadata=settings["ca"])
    kinds = {
        "short": ((LOCAL, STAND_IN), body("stand-in")),
        "large": ((LOCAL, STAND_IN), body("stand-in", tools=tools())),
        "model": ((HOST, 8000), body("qwen2-tiny")),
    }
    seconds: dict[str, dict[str, list[list[float]]]] = {kind: {way: [] for way in ORDERS[0]} for kind in kinds}
    cpu: dict[str, dict[str, list[float]]] = {kind: {way: [] for way in UNITS} for kind in kinds}
    for number in range(settings["rounds"]):
        # What goes first takes turns, lest one way always finds the machine as the same other one left it.
        order = ORDERS[number % len(ORDERS)]
        for kind, (engine, content) in kinds.items():
            addresses = {"direct": engine, "gateway": (HOST, 443), "litellm": (LOCAL, 4000)}
            ways = {
                way: Way(address, context if way == "gateway" else None, settings["keys"][way])
                for way, address in addresses.items()
            }
            requests = {way: ways[way].request(content) for way in order}
            for way in order * WARM_UP:
                ways[way].ask(requests[way])
            used = {way: cpu_s(unit) for way, unit in UNITS.items()}
            took: dict[str, list[float]] = {way: [] for way in order}
            for way in order * settings["requests"]:
                took[way].append(ways[way].ask(requests[way]))
            for way, unit in UNITS.items():
                cpu[kind][way].append((cpu_s(unit) - used[way]) / settings["requests"])
            for way, durations in took.items():
                cuts = statistics.quantiles(durations, n=20)
                seconds[kind][way].append([cuts[9], cuts[18]])
                ways[way].close()
        print(f"round {number + 1} of {settings['rounds']} done", file=sys.stderr, flush=True)
    return {"seconds": seconds, "cpu_s": cpu, "versions": versions()}


def versions() -> dict[str, str]:
    """Return what was measured."""
    said = subprocess.run(["/usr/sbin/haproxy", "-v"], capture_output=True, text=True, check=True).stdout
    litellm = Path("/opt/litellm/current").resolve().name
    return {"HAProxy": said.split()[2].partition("-")[0], "LiteLLM": litellm.partition("-")[0]}


def main() -> None:
    """Run it."""
    if sys.argv[1:] == ["engine"]:
        asyncio.run(serve())
    with subprocess.Popen([sys.executable, __file__, "engine"], stdout=subprocess.PIPE) as engine:
        try:
            assert engine.stdout is not None
            engine.stdout.readline()
            time.sleep(3)  # until the gateway has seen that it is healthy
            print(json.dumps(measure(json.load(sys.stdin))))
        finally:
            engine.kill()


if __name__ == "__main__":
    main()
