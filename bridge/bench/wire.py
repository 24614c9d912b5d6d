"""A light MCP client for measuring: bytes made beforehand, blocking sockets and pipes, no event loop.

The same interface over stdio and HTTP, so that bench.py asks both in the same way.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import time
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import httptools

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence

CONNECT_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 30.0

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": "initialize",
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "bench", "version": "1"},
    },
}
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}
LIST = {"jsonrpc": "2.0", "id": "list", "method": "tools/list"}


class WireError(Exception):
    """The other side closed the connection, was silent for too long, or refused."""


class Wire(Protocol):
    """Sends messages and gives replies."""

    def ask(self, message: bytes) -> bytes:
        """Send one request and wait for its reply."""

    def tell(self, message: bytes) -> None:
        """Send one notification."""

    def ask_all(self, messages: Sequence[bytes], at_once: int) -> list[bytes]:
        """Send requests, so many at once, and wait for all replies; they come in any order."""

    def close(self) -> None:
        """Close what was opened for this."""


def encode(message: object) -> bytes:
    """Return a message as JSON on one line, without the line's end."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def call(number: int, text: str) -> bytes:
    """Return a call of the tool `chat`."""
    params = {"name": "chat", "arguments": {"message": text}}
    return encode({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params})


class Stdio:
    """A process's standard input and output, one message a line.

    Args:
        process: was started with pipes, unbuffered.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        self._rest = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)

    def ask(self, message: bytes) -> bytes:
        """Send one request and wait for its reply."""
        self._write(message + b"\n")
        while True:
            for line in self._lines():
                return line

    def tell(self, message: bytes) -> None:
        """Send one notification."""
        self._write(message + b"\n")

    def ask_all(self, messages: Sequence[bytes], at_once: int) -> list[bytes]:
        """Send requests, so many at once; give the replies as they come."""
        replies: list[bytes] = []
        sent = min(at_once, len(messages))
        self._write(b"".join(message + b"\n" for message in messages[:sent]))
        while len(replies) < len(messages):
            lines = self._lines()
            replies += lines
            following = messages[sent : sent + len(lines)]
            sent += len(following)
            if following:
                self._write(b"".join(message + b"\n" for message in following))
        return replies

    def close(self) -> None:
        """Close what was opened for this."""
        self._selector.close()

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._in, data) :]

    def _lines(self) -> list[bytes]:
        """Return the replies that have come since the last time; requests and notifications of the server are none."""
        if not self._selector.select(ANSWER_TIMEOUT_S):
            raise WireError(f"no reply within {ANSWER_TIMEOUT_S:g} s")
        data = os.read(self._out, 1 << 20)
        if not data:
            raise WireError("the bridge has closed its output")
        *lines, self._rest = (self._rest + data).split(b"\n")
        # Notifications name their method at the start, in whatever order the keys are.
        return [line for line in lines if b'"method"' not in line[:40]]


class HttpConnection:
    """One connection, kept open.

    Args:
        port: on this host.
        path: what is posted to.
        headers: beside the usual ones.
    """

    def __init__(self, port: int, path: str, headers: Mapping[str, str]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = "".join(
            f"{name}: {value}\r\n"
            for name, value in {
                "host": f"127.0.0.1:{port}",
                "content-type": "application/json",
                "accept": "application/json, text/event-stream",
                **headers,
            }.items()
        ).encode()
        self._head = f"POST {path} HTTP/1.1\r\n".encode() + self._head
        self._start()

    def fileno(self) -> int:
        """Return the socket, for a selector."""
        return self._socket.fileno()

    def send(self, body: bytes) -> None:
        """Send a request; its answer is fetched with receive()."""
        self._start()
        self._socket.sendall(b"%bcontent-length: %d\r\n\r\n%b" % (self._head, len(body), body))

    def receive(self) -> bytes | None:
        """Read what is there; gives the answer's body when it is whole."""
        try:
            data = self._socket.recv(1 << 20)
        except TimeoutError:
            raise WireError(f"no reply within {ANSWER_TIMEOUT_S:g} s") from None
        if not data:
            raise WireError("the bridge has closed the connection")
        self._parser.feed_data(data)
        if not self._complete:
            return None
        status = self._parser.get_status_code()
        if status not in {200, 202}:
            raise WireError(f"HTTP {status}: {self._body[:300]!r}")
        return self._body

    def ask(self, body: bytes) -> bytes:
        """Send one request and wait for its reply."""
        self.send(body)
        while True:
            answer = self.receive()
            if answer is not None:
                return answer

    def close(self) -> None:
        """Close what was opened for this."""
        self._socket.close()

    def _start(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body, self._complete = b"", False

    # --- called by the parser ---

    def on_body(self, body: bytes) -> None:
        """Take in a piece of the answer."""
        self._body += body

    def on_message_complete(self) -> None:
        """Note that the answer is whole."""
        self._complete = True


class Http:
    """MCP over streamable HTTP, stateless.

    Args:
        port: on this host.
        path: what is posted to.
        headers: beside the usual ones.
    """

    def __init__(self, port: int, path: str = "/mcp", headers: Mapping[str, str] | None = None) -> None:
        self._port, self._path, self._headers = port, path, dict(headers or {})
        end = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            try:
                self._connections = [self._connect()]
            except ConnectionRefusedError:
                if time.monotonic() > end:
                    raise WireError(f"nothing listens on port {port}") from None
                time.sleep(0.002)
            else:
                return

    def ask(self, message: bytes) -> bytes:
        """Send one request and wait for its reply."""
        return self._connections[0].ask(message)

    def tell(self, message: bytes) -> None:
        """Send one notification."""
        self._connections[0].ask(message)

    def ask_all(self, messages: Sequence[bytes], at_once: int) -> list[bytes]:
        """Send requests, so many at once; give the replies as they come."""
        while len(self._connections) < at_once:
            self._connections.append(self._connect())
        waiting = iter(messages)
        replies: list[bytes] = []
        with selectors.DefaultSelector() as selector:
            for free, message in zip(self._connections, islice(waiting, at_once), strict=False):
                selector.register(free, selectors.EVENT_READ, free)
                free.send(message)
            while selector.get_map():
                ready = selector.select(ANSWER_TIMEOUT_S)
                if not ready:
                    raise WireError(f"no reply within {ANSWER_TIMEOUT_S:g} s")
                for key, _ in ready:
                    connection: HttpConnection = key.data
                    reply = connection.receive()
                    if reply is None:
                        continue
                    replies.append(reply)
                    following = next(waiting, None)
                    if following is None:
                        selector.unregister(connection)
                    else:
                        connection.send(following)
        return replies

    def close(self) -> None:
        """Close what was opened for this."""
        for connection in self._connections:
            connection.close()

    def _connect(self) -> HttpConnection:
        return HttpConnection(self._port, self._path, self._headers)
