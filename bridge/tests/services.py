"""What the tests start and talk to: engines, real and misbehaving, and the bridge itself."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
import yaml
from mcp import Client, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from local_llm_bridge.config import Engine, Settings
from local_llm_bridge.server.dispatch import Call, Dispatcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from email.message import Message

    from mcp.types import CallToolResult

HERE = Path(__file__).parent
TINY_MODEL = HERE.parent.parent / "tests" / "tiny_model"
PROGRAM = str(Path(sys.executable).with_name("local-llm-bridge"))
MODEL = "qwen2-tiny"
ENGINE_KEY = "engine-key-for-tests"
TOKEN = "alices-token-for-tests"


def records(log: str) -> list[dict[str, Any]]:
    """Return the records of calls that a log holds."""
    return [json.loads(line[line.index("{") :]) for line in log.split("\n") if '"source":"bridge"' in line]


def free_port() -> int:
    """Return a port that nothing listens on, below those that the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        return port


@contextmanager
def llama_server(port: int | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a real engine; gives its base URL and its process."""
    port = port or free_port()
    gguf = TINY_MODEL / "qwen2-tiny.gguf"
    command = [sys.executable, str(HERE / "llama_server.py"), str(gguf), MODEL, str(port), ENGINE_KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "llama.cpp did not start"
            yield f"http://127.0.0.1:{port}/v1", process
        finally:
            process.kill()


class Listener:
    """Accepts connections and hands each to a function in a thread of its own."""

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        self._handle = handle
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._handle(connection)
                # close() alone waits for whoever still reads from this connection.
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other side has gone; what it made of it is what the test looks at

    def close(self) -> None:
        self._listener.close()


def request_of(connection: socket.socket) -> dict[str, Any]:
    """Read one HTTP request; gives its JSON body, or {} if it has none."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _received(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    while length and len(body) < int(length[1]):
        body += _received(connection)
    request: dict[str, Any] = json.loads(body) if body else {}
    return request


def _received(connection: socket.socket) -> bytes:
    if data := connection.recv(65536):
        return data
    raise ConnectionError("the other side has gone")


def events(*data: object, done: bool = True) -> bytes:
    """Return an HTTP answer with a stream of events, closed at its end."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    lines = [f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n".encode() for item in data]
    return head + b"".join(lines) + (b"data: [DONE]\n\n" if done else b"")


def answer(status: str, kind: str, body: str) -> bytes:
    """Return a plain HTTP answer."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body.encode())}\r\nconnection: close"
    return f"{head}\r\n\r\n{body}".encode()


def piece(text: str, finish_reason: str | None = None) -> dict[str, Any]:
    """Return one event of a chat completion."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]}


def delta(finish_reason: object = None, **content: object) -> dict[str, Any]:
    """Return one event of a chat completion with anything in it."""
    return {"choices": [{"index": 0, "delta": content, "finish_reason": finish_reason}]}


def usage(prompt: object, completion: object, **more: object) -> dict[str, Any]:
    """Return the last event of a stream: how many tokens it took."""
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **more}}


@dataclass
class FakeEngine:
    """Answers every request with the same bytes: what a real engine cannot be made to do."""

    reply: bytes
    hold: threading.Event | None = None
    """After the reply the connection stays open until this is set."""
    requests: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[str]:
        listener = Listener(self._handle)
        try:
            yield listener.url
        finally:
            listener.close()
            if self.hold:
                self.hold.set()

    def _handle(self, connection: socket.socket) -> None:
        self.requests.append(request_of(connection))
        connection.sendall(self.reply)
        if self.hold:
            self.hold.wait(60)


class ScriptedEngine(FakeEngine):
    """Answers one request after another as written, the last answer for ever."""

    def __init__(self, *replies: bytes) -> None:
        super().__init__(replies[-1])
        self._replies = replies
        self.times: list[float] = []
        """When each request came, by time.monotonic()."""

    def _handle(self, connection: socket.socket) -> None:
        self.requests.append(request_of(connection))
        self.times.append(time.monotonic())
        connection.sendall(self._replies[min(len(self.requests), len(self._replies)) - 1])


@contextmanager
def relay(url: str, size: int, then: Callable[[], object]) -> Iterator[str]:
    """Stand between bridge and engine and do something once, when the engine has sent `size` bytes."""
    port = urlsplit(url).port

    def handle(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as engine:
            threading.Thread(target=pump, args=(connection, engine), daemon=True).start()
            passed = 0
            try:
                while data := engine.recv(256):
                    connection.sendall(data)
                    if passed < size <= passed + len(data):
                        then()
                    passed += len(data)
            except ConnectionResetError:
                pass  # the engine has been killed: its end is passed on

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass

    listener = Listener(handle)
    try:
        yield listener.url
    finally:
        listener.close()


@dataclass(frozen=True)
class Bridge:
    """A running `local-llm-bridge serve`."""

    port: int
    process: subprocess.Popen[str]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def http(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, data: bytes | None = None
    ) -> tuple[int, str, Message]:
        """Send a request; gives status, text and headers."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", method=method, headers=dict(headers or {}), data=data
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read().decode(), response.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), error.headers

    @asynccontextmanager
    async def client(
        self, mode: str = "auto", token: str = TOKEN, query: str = "", headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Client]:
        headers = {"Authorization": f"Bearer {token}", **(headers or {})}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=30) as http,
            Client(streamable_http_client(self.url + query, http_client=http), mode=mode) as client,
        ):
            yield client


def configuration(port: int, *urls: str, **more: object) -> dict[str, Any]:
    """Return the settings of a bridge for these engines; the first has the tiny model's name."""
    models = [
        {"name": MODEL if number == 0 else f"model{number}", "url": url, "context": 4096, "api_key_file": "engine-key"}
        for number, url in enumerate(urls)
    ]
    developers = [{"name": "alice", "token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}]
    return {"listen": {"port": port}, "models": models, "developers": developers, **more}


@contextmanager
def serving(
    folder: Path,
    *urls: str,
    environment: Mapping[str, str] | None = None,
    starter: Sequence[str] = (),
    **more: object,
) -> Iterator[Bridge]:
    """Run the bridge over HTTP as systemd would, with its credentials in a folder.

    Args:
        folder: for its files.
        urls: of the engines.
        environment: more of it.
        starter: a command that starts the program behind it.
        more: settings.
    """
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engine-key").write_text(ENGINE_KEY + "\n")
    (folder / "config.yml").write_text(yaml.safe_dump(configuration(port, *urls, **more)))
    log = folder / "log"
    # The program's own environment, not that of whoever runs the tests.
    environment = {"PATH": os.environ["PATH"], "CREDENTIALS_DIRECTORY": str(folder), **(environment or {})}
    command = [*starter, PROGRAM, "serve", "--config", str(folder / "config.yml")]
    with log.open("w") as stderr, subprocess.Popen(command, env=environment, stderr=stderr, text=True) as process:
        try:
            wait_for(lambda: "serving on" in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            yield Bridge(port, process, log)
        finally:
            process.kill()


@asynccontextmanager
async def stdio(mode: str = "auto", **environment: str) -> AsyncIterator[Client]:
    """Run the bridge over stdio, with a client at the other end."""
    parameters = StdioServerParameters(command=PROGRAM, env=environment)
    async with Client(stdio_client(parameters), mode=mode) as client:
        yield client


def piped(lines: str, **environment: str) -> tuple[list[dict[str, Any]], subprocess.CompletedProcess[str]]:
    """Pipe lines into the bridge, as people do in a shell; gives the messages that came out."""
    done = subprocess.run(
        [PROGRAM],
        input=lines,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": os.environ["PATH"], **environment},
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done


async def asked(*calls: Call, reply: bytes | FakeEngine, **settings: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - of any type
    """Make calls one after another in this process, in front of an engine that answers so; gives the results.

    Args:
        calls: of the tools.
        reply: what the engine answers, or the engine.
        settings: of the bridge; `engine` are those of its model.
    """
    engine = reply if isinstance(reply, FakeEngine) else FakeEngine(reply)
    with engine.running() as url:
        model = Engine(**{"name": "m", "url": url, **settings.pop("engine", {})})
        running = Dispatcher(Settings(engines=(model,), **{"max_retries": 0, **settings}))
        try:
            return [await running.run(call) for call in calls]
        finally:
            await running.close()


def wire_texts(result: Mapping[str, Any]) -> list[str]:
    """Return the texts of a result as it goes over the wire."""
    return [content["text"] for content in result["content"]]


def texts_of(result: CallToolResult) -> list[str]:
    """Return the texts of a result."""
    return [content.text for content in result.content if content.type == "text"]


def text_of(result: CallToolResult) -> str:
    """Return the text of a result that has just one."""
    (text,) = texts_of(result)
    return text


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)
