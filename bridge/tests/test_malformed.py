"""Messages that are none, by the ten thousand: each is answered or refused, and nothing crashes, hangs or leaks."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
import re
import socket
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_llm_bridge.audit import UNKNOWN
from local_llm_bridge.errors import BadMessageError, RefusedRequestError
from local_llm_bridge.server import handler
from local_llm_bridge.server.fast_path import HANDSHAKE_VERSIONS, MODERN_VERSION, FastPathRequest, is_notification, read
from local_llm_bridge.server.message import checked, decode, overlong, parse, version_of
from tests.services import MODEL, PROGRAM, TOKEN, FakeEngine, events, piece, request_of, serving, wait_for
from tests.test_fast_path import CALL, ENVELOPE, HANDSHAKE, REQUESTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Message, Receive, Scope, Send

    from local_llm_bridge.server.fast_path import FastPath
    from tests.services import Bridge

MESSAGES = 10_000
WARM_UP = 1000
MOST_GROWTH_KIB = 20 * 1024
LIST = {"jsonrpc": "2.0", "id": "the list", "method": "tools/list"}
OTHERS: list[dict[str, Any]] = [
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "nobody's"}},
    {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 0.5}},
    {"jsonrpc": "2.0", "id": 1, "result": {"tools": []}},
    {"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": "nobody asked"}},
]
METHODS = [
    "tools/list",
    "tools/call",
    "initialize",
    "ping",
    "server/discover",
    "resources/list",
    "prompts/get",
    "logging/setLevel",
    "completion/complete",
    "sampling/createMessage",
    "tasks/get",
    "eth_blockNumber",
    "textDocument/hover",
    "rpc.discover",
    "notifications/initialized",
    "notifications/",
    "__init__",
    "../tools/list",
]
ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, 1e308, float("nan"), float("-inf"), 2**53 + 1, 2**64, 10**400,
    "", "x", "x" * 5000, "\0", "\ud83d", "\udead\ud83d", "\u2028", "2.0", "2026-07-28", "2025-11-25", "@deep@",
    "@wide@",
    [], {}, [[]], [None], {"": {}}, {"\ud800": "\0"}, ["@deep@"], {"_meta": {"_meta": {}}},
]  # fmt: skip
LITTER = [b"\0", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xef\xbb\xbf", b'"', b"\\", b"\\u12",
          b"{", b"}", b"]", b",", b":", b"\r", b"\t", b"//", b"1e999", b"-", b"NaN", b"\x1b[2J", b"true"]  # fmt: skip
BIG = {
    b'"@deep@"': b"[" * 5000 + b"]" * 5000,
    b'"@wide@"': b"[" + b"{}," * 5000 + b"{}]",
}


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values inside a message."""
    inside = list(value.items()) if isinstance(value, dict) else []
    return [found for key, inner in inside for found in ((*path, key), *places(inner, (*path, key)))]


def misshapen(chance: random.Random) -> object:
    """Return a valid message of either era with a few things in it missing, other, or more."""
    message: Any = copy.deepcopy(chance.choice(REQUESTS + OTHERS))
    if "id" in message:
        message["id"] = chance.choice([chance.randrange(2**31), f"id {chance.randrange(2**31)}"])
    for _ in range(chance.randrange(3)):
        path = chance.choice(places(message) or [("jsonrpc",)])
        inside = message
        for key in path[:-1]:
            inside = inside[key]
        match chance.randrange(7):
            case 0:
                inside.pop(path[-1], None)
            case 1 | 2 | 3:
                inside[path[-1]] = copy.deepcopy(chance.choice(ODD))
            case 4:
                message["method"] = chance.choice(METHODS)
            case 5:
                message["id"] = chance.randrange(2**31)
            case _:
                inside[chance.choice(["id", "params", "_meta", "result", "error", "x", ""])] = chance.choice(ODD)
    match chance.randrange(20):
        case 0:
            return [message] * chance.randrange(4)
        case 1:
            return chance.choice(ODD)
    return message


def malformed(chance: random.Random) -> bytes:
    """Return a message as nobody should send it; a line end is not in it."""
    text = json.dumps(misshapen(chance), ensure_ascii=chance.random() < 0.5)
    data = text.encode(errors="surrogatepass")
    for mark, big in BIG.items():
        data = data.replace(mark, big)
    where = chance.randrange(len(data) + 1)
    match chance.randrange(10):
        case 0:
            data = data[:where]
        case 1 | 2:
            data = data[:where] + chance.choice(LITTER) + data[where + chance.randrange(3) :]
        case 3:
            data = data.replace(b"{", b'{"id": 5, "method": "ping", ', 1)  # so it has keys twice
        case 4:
            data = chance.choice([data + data, data[::-1], b"GET / HTTP/1.1", chance.randbytes(30), b"{" * 9000])
        case 5 if chance.random() < 0.2:
            data = text.encode(chance.choice(["utf-16", "utf-32-be", "utf-7"]), errors="surrogatepass")
    return data.replace(b"\n", b" ")


def state(process: subprocess.Popen[Any]) -> tuple[int, int]:
    """Return how many files a process has open, and its memory in KiB."""
    proc = Path("/proc") / str(process.pid)
    resident = re.search(r"VmRSS:\s+(\d+) kB", (proc / "status").read_text())
    assert resident, "the process lives"
    return len(list((proc / "fd").iterdir())), int(resident[1])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with FakeEngine(events(piece("po"), piece("ng", "stop"))).running() as address:
        yield address


class Caller:
    """A client that says whatever it is told to and keeps its connection.

    Args:
        port: the bridge's.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._open()

    def _open(self) -> None:
        self._connection = self.connect()
        self._answers = self._connection.makefile("rb")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=20)  # a hang is a TimeoutError

    def close(self) -> None:
        self._answers.close()
        self._connection.close()

    def ask(self, data: bytes, answers: int = 1) -> list[int]:
        """Send whole requests on the connection that is kept; give the statuses.

        One that ends the connection ends those after it, too.
        """
        connection = self._connection
        connection.sendall(data)
        found: list[int] = []
        while len(found) < answers and self._connection is connection:
            found.append(self._status())
        return found

    def _status(self) -> int:
        line = self._answers.readline()
        assert line, "the connection ends without an answer"
        headers = b""
        while (header := self._answers.readline()).strip():
            headers += header.lower()
        if length := re.search(rb"^content-length: (\d+)", headers, re.MULTILINE):
            assert b"pydantic" not in self._answers.read(int(length[1]))
        elif b"transfer-encoding: chunked" in headers:
            while size := int(self._answers.readline(), 16):
                self._answers.read(size + 2)
            self._answers.readline()
        else:
            self._answers.read()
        if b"connection: close" in headers or not (length or b"chunked" in headers):
            self.close()
            self._open()
        return int(line.split()[1])

    def blurt(self, data: bytes, *, wait: bool) -> list[int]:
        """Send anything on a connection of its own and end it; give the statuses of what came back.

        Args:
            data: what to send.
            wait: for the bridge to end the connection, too; else it is torn down.
        """
        with self.connect() as connection:
            try:
                connection.sendall(data)
                if not wait:
                    return []
                connection.shutdown(socket.SHUT_WR)
                came = b""
                while more := connection.recv(65536):
                    came += more
            except (BrokenPipeError, ConnectionResetError):
                return []  # refused before all was said
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", came)]


def headers_for(body: bytes, chance: random.Random) -> list[tuple[str, str]]:
    """Return the headers that a body should have, as far as one can tell from it."""
    headers = [
        ("Host", "127.0.0.1"),
        ("Authorization", f"Bearer {TOKEN}"),
        ("Content-Type", "application/json"),
        ("Accept", "application/json, text/event-stream"),
    ]
    if b"io.modelcontextprotocol" in body:
        method = re.search(rb'"method": "([\x20-\x7e]*?)"', body)
        name = re.search(rb'"name": "([\x20-\x7e]*?)"', body)
        headers.append(("MCP-Protocol-Version", "2026-07-28"))
        headers += [("Mcp-Method", method[1].decode())] if method else []
        headers += [("Mcp-Name", name[1].decode())] if name else []
    elif chance.random() < 0.5:
        headers.append(("MCP-Protocol-Version", "2025-11-25"))
    return headers


def spoilt(headers: list[tuple[str, str]], chance: random.Random) -> list[tuple[str, str]]:
    """Return headers with one of them missing, twice, other, or new."""
    values = ["", "x", "*/*", "text/plain", "application/json; charset=utf-16", "2031-01-01", "1", "tools/call", "\xff",
              "0" * 3000, "Bearer", "evil.example", "null", "gzip", "=?base64?!?=", "=?base64?4pi6?="]  # fmt: skip
    names = ["MCP-Protocol-Version", "Mcp-Method", "Mcp-Name", "Mcp-Param-X", "Mcp-Session-Id", "Last-Event-ID",
             "Origin", "Content-Encoding", "X-Forwarded-For", "Cookie", "Upgrade", "Accept"]  # fmt: skip
    number = chance.randrange(len(headers))
    name, value = headers[number]
    match chance.randrange(4):
        case 0:
            return headers[:number] + headers[number + 1 :]
        case 1:
            return [*headers, (name, chance.choice([value, *values]))]
        case 2:
            return [*headers[:number], (name, chance.choice(values)), *headers[number + 1 :]]
        case _:
            return [*headers, (chance.choice(names), chance.choice(values))]


def http_request(body: bytes, headers: list[tuple[str, str]], method: str = "POST", path: str = "/mcp") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def whole_request(chance: random.Random) -> bytes:
    """Return a request that HTTP has nothing against: it must be answered."""
    body = malformed(chance)
    headers = headers_for(body, chance)
    if chance.random() < 0.3:
        headers = spoilt(headers, chance)
    method, path = "POST", "/mcp"
    if chance.random() < 0.05:
        method = chance.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
    if chance.random() < 0.05:
        path = chance.choice(["/", "/mcp/", "//mcp", "/MCP", "/%6dcp", "/mcp?x=%ff", "/healthz", "/metrics", "*"])
    if chance.random() < 0.1:
        size = chance.randrange(1, 50)
        parts = [body[start : start + size] for start in range(0, min(len(body), 500), size)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])
        return http_request(chunks, [*headers, ("Transfer-Encoding", "chunked")], method, path)
    return http_request(body, [*headers, ("Content-Length", str(len(body)))], method, path)


def broken_request(chance: random.Random) -> bytes:
    """Return what is not, or not all of, an HTTP request."""
    whole = whole_request(chance)
    head, _, body = whole.partition(b"\r\n\r\n")
    bare = re.sub(rb"\r\n(Content-Length|Transfer-Encoding): \w+", b"", head)
    where = chance.randrange(len(whole))
    return chance.choice(
        [
            whole[:where],
            whole[:where] + chance.choice(LITTER) + whole[where:],
            chance.randbytes(chance.randrange(200)),
            malformed(chance) + b"\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(50),  # a client that wants TLS
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + chance.randbytes(20),
            bare + b"\r\n\r\n" + body,
            bare + b"\r\nContent-Length: %d\r\n\r\n" % chance.choice([-1, 0, 10**6, 10**7, 10**30]) + body,
            head + b"\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n" + body,
            bare
            + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chance.choice([b"", b"5\r\nab", b"zz\r\n", b"-1\r\n", b"1\r\n{", b"f" * 30]),
            head.replace(b"\r\n", chance.choice([b"\n", b"\r", b"\0\r\n", b"\r\n ", b"\r\n:\r\n"])) + b"\r\n\r\n",
            whole.replace(b"HTTP/1.1", chance.choice([b"HTTP/1.0", b"HTTP/9.9", b"", b"ICY"]), 1),
            whole.replace(b"POST", chance.choice([b"post", b"P\0ST", b"\xff", b"X" * 9000]), 1),
        ]
    )


def send_http(caller: Caller, count: int, chance: random.Random) -> Counter[int]:
    """Send malformed messages; give how often which status came."""
    statuses: Counter[int] = Counter()
    while count > 0:
        match chance.randrange(10):
            case 0:
                data, wait = broken_request(chance), chance.random() < 0.7
                found, sent = caller.blurt(data, wait=wait), 1
            case 1:
                # Several at once. Read to the end: uvicorn logs a traceback when they are left unread.
                sent = chance.randrange(2, 6)
                data = b"".join(whole_request(chance) for _ in range(sent))
                found = caller.ask(data, sent)
            case _:
                data, sent = whole_request(chance), 1
                found = caller.ask(data)
        assert all(status < 500 for status in found), (found, data)
        statuses.update(found)
        count -= sent
    return statuses


def test_ten_thousand_malformed_messages_over_http(url: str, tmp_path: Path) -> None:
    chance = random.Random(3)
    with serving(tmp_path, url, requests_per_minute=0) as bridge:
        caller = Caller(bridge.port)
        send_http(caller, WARM_UP, chance)
        files, memory = state(bridge.process)
        statuses = send_http(caller, MESSAGES - WARM_UP, chance)
        good = headers_for(b"", chance)
        body = json.dumps({**LIST, "method": "tools/call", "params": CALL}).encode()
        assert caller.ask(http_request(body, [*good, ("Content-Length", str(len(body)))])) == [200]
        wait_for(lambda: state(bridge.process)[0] <= files + 2)
        caller.close()
        assert state(bridge.process)[1] - memory < MOST_GROWTH_KIB
        log = bridge.log.read_text()
    assert {200, 202, 400, 401, 404, 405, 421} <= statuses.keys()
    assert "Traceback" not in log
    assert "a bug" not in log


def is_request(message: object) -> bool:
    """Whether JSON-RPC wants an answer with this message's id."""
    return (
        isinstance(message, dict)
        and message.get("jsonrpc") == "2.0"
        and isinstance(message.get("id"), str | int)
        and not isinstance(message["id"], bool)
        and isinstance(message.get("method"), str)
        and isinstance(message.get("params"), dict | None)
    )


class Conversation:
    """A running bridge at the other end of a pipe, and what is still to come from it.

    Args:
        process: the bridge.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.replies: Counter[str] = Counter()
        """How often which id was answered; `parse error` and `invalid` are those without one."""

    def say(self, lines: list[bytes], last: dict[str, Any]) -> dict[str, Any]:
        """Send lines, and a request; give the answer to that, and count those that come before it."""
        assert self.process.stdout is not None
        sending = threading.Thread(target=self._send, args=([*lines, json.dumps(last).encode()],))
        sending.start()
        for line in self.process.stdout:
            reply: dict[str, Any] = json.loads(line)
            if reply.get("id") == last["id"]:
                sending.join()
                return reply
            self._count(reply)
        raise AssertionError("the bridge has ended")

    def end(self) -> None:
        """End the input; count what the bridge still owes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        for line in self.process.stdout:
            self._count(json.loads(line))

    def _send(self, lines: list[bytes]) -> None:
        assert self.process.stdin is not None
        for start in range(0, len(lines), 100):
            self.process.stdin.write(b"".join(line + b"\n" for line in lines[start : start + 100]))
            self.process.stdin.flush()

    def _count(self, reply: dict[str, Any]) -> None:
        assert reply["jsonrpc"] == "2.0"
        if "id" not in reply:
            assert reply["method"] == "notifications/progress"
            return
        assert ("result" in reply) != ("error" in reply)
        if reply["id"] is not None:
            self.replies[json.dumps(reply["id"])] += 1
            return
        self.replies["parse error" if reply["error"]["code"] == -32700 else "invalid"] += 1


def expected(lines: list[bytes]) -> tuple[Counter[str], Counter[str]]:
    """Return what must be answered, and what may be, as `Conversation.replies` has it.

    What is a request and a response in one is nothing that JSON-RPC knows.
    """
    answers: Counter[str] = Counter()
    more: Counter[str] = Counter({"invalid": len(lines)})
    for line in lines:
        try:
            message = decode(line)
        except BadMessageError as error:
            is_invalid = "same key twice" in str(error)
            answers["invalid" if is_invalid else "parse error"] += bool(line.strip())
            continue
        if isinstance(message, dict) and overlong(message.get("id")):
            answers["invalid"] += 1
        elif is_request(message):
            counter = more if message.keys() & {"result", "error"} else answers
            counter[json.dumps(message["id"])] += 1
        elif isinstance(message, dict):
            more[json.dumps(message.get("id"))] += 1  # refused by its id, if it has one
        else:
            answers["invalid"] += 1
    return answers, more


@pytest.mark.parametrize("era", ["handshake", "modern"])
def test_ten_thousand_malformed_lines_over_stdio(url: str, tmp_path: Path, era: str) -> None:
    chance = random.Random(4)
    lines = [malformed(chance) for _ in range(MESSAGES)]
    opening: list[dict[str, Any]] = [LIST]
    if era == "handshake":
        opening = [{**LIST, "method": "initialize", "params": HANDSHAKE}, OTHERS[0]]
    environment = {"PATH": os.environ["PATH"], "LOCAL_API_URL": url, "MODEL_NAME": MODEL}
    pipe = subprocess.PIPE
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen([PROGRAM], stdin=pipe, stdout=pipe, stderr=log, env=environment) as process,
    ):
        conversation = Conversation(process)
        conversation.say([json.dumps(message).encode() for message in opening], {**LIST, "id": "opened"})
        conversation.replies.clear()
        conversation.say(lines[:WARM_UP], {**LIST, "id": "warm"})
        files, memory = state(process)
        conversation.say(lines[WARM_UP:], {**LIST, "id": "done"})
        answer = conversation.say([], {**LIST, "method": "tools/call", "params": CALL, "id": "call"})
        assert answer["result"]["content"][0]["text"] == "pong"
        grown = state(process)[1] - memory
        wait_for(lambda: state(process)[0] <= files + 2)
        conversation.end()
        assert process.wait(20) == 0
    must, may = expected(lines)
    assert must - conversation.replies == Counter(), "not answered"
    assert conversation.replies - must - may == Counter(), "answered twice"
    assert grown < MOST_GROWTH_KIB
    errors = (tmp_path / "log").read_text()
    assert "Traceback" not in errors
    assert "a bug" not in errors


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*LIST, "params", "_meta", *CALL, *HANDSHAKE, *ENVELOPE]), inner)
    ),
    max_leaves=20,
)
often = settings(max_examples=300, derandomize=True, deadline=None)


@often
@given(message=json_values)
def test_any_json_is_read_or_left_to_the_sdk(message: object) -> None:
    assert isinstance(read(message), FastPathRequest | None)
    assert not (is_notification(message) and read(message))


@often
@given(
    request_=st.sampled_from(REQUESTS),
    where=st.integers(0, 50),
    value=json_values,
)
def test_any_request_with_one_thing_changed_is_read_or_left_to_the_sdk(
    request_: dict[str, Any], where: int, value: object
) -> None:
    message = copy.deepcopy(request_)
    *path, last = (found := places(message))[where % len(found)]
    inside = message
    for key in path:
        inside = inside[key]
    inside[last] = value
    everyday = read(message)
    if everyday:
        assert everyday.params is message.get("params", everyday.params)
        assert (everyday.id, everyday.method) == (message["id"], message["method"])


header_values = st.text(st.characters(max_codepoint=255), max_size=20) | st.sampled_from(
    [
        "application/json",
        "application/json, text/event-stream",
        "2026-07-28",
        "2025-11-25",
        "tools/call",
        "tools/list",
        "chat",
    ]
)


@often
@given(
    headers=st.dictionaries(
        st.sampled_from(
            [
                "content-type",
                "accept",
                "mcp-session-id",
                "mcp-protocol-version",
                "mcp-method",
                "mcp-name",
                "mcp-param-x",
            ]
        ),
        header_values,
    ),
    message=st.sampled_from(REQUESTS) | json_values,
    cut=st.integers(0, 9),
)
def test_any_headers_decide_the_path(headers: dict[str, str], message: object, cut: int) -> None:
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream", **headers}
    paths = Paths()
    body = json.dumps(message).encode()[cut // 8 :]
    paths.take(headers, body)
    (path,) = paths.taken
    if path == "fast":
        everyday = read(message)
        assert everyday
        assert "mcp-session-id" not in headers
        if everyday.method != "initialize":  # whose header counts for nothing
            assert (headers.get("mcp-protocol-version") == "2026-07-28") == everyday.modern
        if everyday.modern:
            assert headers["mcp-method"] == everyday.method
            assert "mcp-param-x" not in headers
    is_plain = (headers["content-type"], headers["accept"]) == (
        "application/json",
        "application/json, text/event-stream",
    )
    if is_plain or path != "refused":
        assert (path == "refused") == (not is_message(body) or not is_spoken(headers, message))


def is_spoken(headers: dict[str, str], message: object) -> bool:
    """Whether the header of a message names a version that is known, or one that its body contradicts."""
    header = headers.get("mcp-protocol-version")
    if header is None or (isinstance(message, dict) and message.get("method") == "initialize"):
        return True
    return header in {*HANDSHAKE_VERSIONS, MODERN_VERSION} or version_of(message) not in (None, header)


def is_message(body: bytes) -> bool:
    try:
        checked(parse(body))
    except BadMessageError:
        return False
    return True


class Paths:
    """Stands in for both paths of HTTP, and writes down which of them is taken."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def take(self, headers: dict[str, str], body: bytes) -> None:
        """Let an handler decide about a request."""
        parts = iter([body])

        async def receive() -> Message:
            for part in parts:
                return {"type": "http.request", "body": part}
            await asyncio.Event().wait()  # the client stays
            raise AssertionError

        async def send(message: Message) -> None:
            if message.get("status") == 202:
                self.taken.append("none")

        async def sdk(_scope: Scope, _receive: Receive, _send: Send) -> None:
            self.taken.append("sdk")

        decide = handler.Handler(cast("FastPath", self), sdk)
        scope: dict[str, Any] = {"caller": UNKNOWN, "model": None, "headers": [], handler.ON_LOSS: lambda _: None}
        try:
            asyncio.run(decide(scope, headers, receive, send))
        except RefusedRequestError:
            self.taken.append("refused")

    def answer(self, _request: FastPathRequest) -> dict[str, Any]:
        self.taken.append("fast")
        return {}

    async def call(self, request: FastPathRequest, *_more: object) -> dict[str, Any]:
        return self.answer(request)


class Echo(FakeEngine):
    """Answers with what it was asked."""

    def _handle(self, connection: socket.socket) -> None:
        prompt = request_of(connection)["messages"][-1]["content"]
        connection.sendall(events(piece(prompt), piece("", "stop")))


@pytest.fixture(scope="module")
def echoing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bridge, Conversation]]:
    """A bridge of each transport, in front of an engine that echoes."""
    with (
        Echo(b"").running() as url,
        serving(tmp_path_factory.mktemp("echoing"), url, requests_per_minute=0) as bridge,
        subprocess.Popen(
            [PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "LOCAL_API_URL": url, "MODEL_NAME": MODEL},
        ) as process,
    ):
        yield bridge, Conversation(process)
        process.kill()


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    message=st.text(st.characters(exclude_categories=["Cs"]), max_size=300).filter(str.strip),
    escaped=st.booleans(),
    times=st.sampled_from([1, 100]),
)
def test_any_text_comes_back_unharmed_over_both_transports(
    echoing: tuple[Bridge, Conversation], message: str, times: int, *, escaped: bool
) -> None:
    bridge, conversation = echoing
    message *= times
    call = {**LIST, "method": "tools/call", "params": {"name": "chat", "arguments": {"message": message}}}
    body = json.dumps(call, ensure_ascii=escaped).encode()
    status, text, _ = bridge.http("/mcp", method="POST", headers=dict(headers_for(b"", random.Random(1))), data=body)
    assert status == 200
    for reply in (json.loads(text), conversation.say([], call)):
        assert reply["result"]["content"] == [{"type": "text", "text": message}]
        assert not reply["result"]["isError"]
