"""What one developer sends takes nothing from the others: each attack, with the other developer's view of it.

The attacker has a valid token. Beside each attack another developer asks the bridge, and a gateway its health, in
turn; how long they wait is compared with how long another bridge makes them wait meanwhile.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import re
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.services import TOKEN, Bridge, FakeEngine, configuration, events, piece, records, serving, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = logging.getLogger(__name__)

BOBS = "bobs-token-for-tests"
DEVELOPERS = [
    {"name": name, "token_sha256": hashlib.sha256(token.encode()).hexdigest()}
    for name, token in (("alice", TOKEN), ("bob", BOBS))
]
MOST = 4 * 2**20
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "claude-code", "version": "2.1.330"},
}


def head(size: int, token: str = TOKEN, **more: str) -> bytes:
    """Return the head of a request to /mcp."""
    lines = {
        "Host": "127.0.0.1",
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "Content-Length": str(size),
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    return (
        "POST /mcp HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    ).encode() + b"\r\n"


def request(method: str, params: str, **more: str) -> bytes:
    """Return a request with parameters that are JSON already, up to its end."""
    body = f'{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}'.encode()
    assert len(body) <= MOST
    return head(len(body), **more) + body


def modern(method: str, extra: str = "") -> bytes:
    """Return a request of the protocol of 2026-07-28, with more in its `_meta`."""
    meta = json.dumps(ENVELOPE)[:-1] + extra + "}"
    params = f'{{"_meta":{meta},"notifications":{{"toolsListChanged":true}}}}'
    return request(method, params, MCP_Protocol_Version="2026-07-28", Mcp_Method=method)


def call(arguments: str) -> bytes:
    return request("tools/call", f'{{"name":"chat","arguments":{arguments}}}')


def status_of(connection: socket.socket) -> int:
    """Read the beginning of an answer; 0: the connection ended without any."""
    try:
        found = re.match(rb"HTTP/1\.1 (\d+)", connection.recv(65536))
    except ConnectionError:
        return 0
    return int(found[1]) if found else 0


def opened(bridge: Bridge, data: bytes, timeout: float = 60) -> socket.socket:
    """Open a connection, which ends with the test, and send something."""
    connection = socket.create_connection(("127.0.0.1", bridge.port), timeout=timeout)
    CONNECTIONS.append(connection)
    with suppress(ConnectionError):  # refused while it was still being sent
        connection.sendall(data)
    return connection


CONNECTIONS: list[socket.socket] = []
ELSEWHERE: list[Bridge] = []
"""The bridge that nobody attacks."""


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    close()


def close() -> None:
    """Close all connections."""
    while CONNECTIONS:
        CONNECTIONS.pop().close()


def sent(bridge: Bridge, data: bytes) -> int:
    """Send a request; gives the answer's status."""
    with opened(bridge, data) as connection:
        return status_of(connection)


def memory_mib(bridge: Bridge) -> int:
    """Return the most memory that the bridge has had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{bridge.process.pid}/status").read_text())
    assert found
    return int(found[1]) // 1024


class Neighbour:
    """Somebody else who asks the bridge all the time, and the gateway that looks whether it is healthy."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._ends = threading.Event()
        self._waits: list[float] = []
        self.statuses: set[int] = set()

    def ninth_of_ten(self) -> float:
        """Return how long most waited, in seconds: nine of ten."""
        waits = sorted(self._waits)
        return waits[(len(waits) - 1) * 9 // 10]

    @property
    def asked(self) -> int:
        return len(self._waits)

    def ask(self) -> None:
        message = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}).encode()
        headers = {"Authorization": f"Bearer {BOBS}", "Content-Type": "application/json"}
        headers["Accept"] = "application/json, text/event-stream"
        connection = http.client.HTTPConnection("127.0.0.1", self._bridge.port, timeout=30)
        while not self._ends.is_set():
            started = time.monotonic()
            for path in ("/healthz", "/mcp"):
                if path == "/mcp":
                    connection.request("POST", path, message, headers)
                else:
                    connection.request("GET", path)
                response = connection.getresponse()
                response.read()
                self.statuses.add(response.status)
            self._waits.append(time.monotonic() - started)
            self._ends.wait(0.06)  # so that bob stays within what a minute allows
        connection.close()

    @contextmanager
    def asking(self) -> Iterator[Neighbour]:
        thread = threading.Thread(target=self.ask)
        thread.start()
        try:
            yield self
        finally:
            self._ends.set()
            thread.join()


@contextmanager
def beside(bridge: Bridge) -> Iterator[Neighbour]:
    """Have somebody else ask meanwhile, who must notice nothing."""
    with Neighbour(bridge).asking() as bob, Neighbour(ELSEWHERE[0]).asking() as other:
        yield bob
        wait_for(lambda: min(bob.asked, other.asked) >= 10, 60)
        noticed, usual = bob.ninth_of_ten(), other.ninth_of_ten()
    log.info("bob's wait: %.0f ms, %.0f ms where nobody attacks", noticed * 1000, usual * 1000)
    assert bob.statuses == {200}
    assert noticed < 10 * usual + 1


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with serving_both(tmp_path_factory.mktemp("elsewhere")) as running:
        ELSEWHERE[:] = [running]
        yield


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    with serving_both(tmp_path) as running:
        yield running


@contextmanager
def serving_both(
    folder: Path,
    engine: FakeEngine | None = None,
    requests_per_minute: int = 120,
    starter: Sequence[str] = (),
    context: int = 4096,
) -> Iterator[Bridge]:
    engine = engine or FakeEngine(events(piece("pong"), piece("", "stop")))
    with ExitStack() as stack:
        url = stack.enter_context(engine.running())
        yield stack.enter_context(
            serving(
                folder,
                url,
                url,
                developers=DEVELOPERS,
                requests_per_minute=requests_per_minute,
                models=[{**model, "context": context} for model in configuration(0, url, url)["models"]],
                starter=starter,
            )
        )


EMPTY_LISTS = ',"x":[' + "[]," * (1_397_000) + "1]"


@pytest.mark.parametrize("method", ["subscriptions/listen", "tools/list", "server/discover", "no/such"])
def test_lists_by_the_million_take_no_memory(bridge: Bridge, method: str) -> None:
    attack = modern(method, EMPTY_LISTS)
    with beside(bridge):
        before = memory_mib(bridge)
        connections = [opened(bridge, attack) for _ in range(6)]
        assert [status_of(connection) for connection in connections] == [413] * 6
    assert memory_mib(bridge) < before + 100
    assert all(record["outcome"] == "refused" for record in records(bridge.log.read_text()))


LONG = {
    "unknown arguments": "{" + ",".join(f'"a{number}":1' for number in range(340_000)) + "}",
    "lists": '{"message":[' + "[]," * 1_397_000 + "1]}",
    "texts": '{"message":[' + '"",' * 1_397_000 + "1]}",
    "numbers of thousands of digits": '{"message":[' + ",".join(["9" * 4290] * 970) + "]}",
    "one text of escapes": '{"message":"' + '\\"' * ((MOST - 200) // 2) + '"}',
    "one text for the router": '{"message":"' + "c+" * ((MOST - 200) // 2) + '"}',
}


@pytest.mark.parametrize("arguments", LONG.values(), ids=LONG)
def test_the_largest_calls_hold_up_nobody(bridge: Bridge, arguments: str) -> None:
    attack = call(arguments)
    with beside(bridge) as bob:
        before = bob.asked
        memory = memory_mib(bridge)
        with ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(lambda _: sent(bridge, attack), range(24)))
        wait_for(lambda: bob.asked > before, 60)
    assert set(statuses) <= {200, 400, 413}
    assert memory_mib(bridge) < memory + 200


EMOJI = '"\U0001f600' + "p" * (MOST - 1000) + '"'
"""A text of which Python keeps four bytes a character."""
HELD = {
    "an argument": call(f'{{"message":{EMOJI}}}'),
    "_meta": request("tools/call", f'{{"_meta":{{"x":{EMOJI}}},"name":"chat","arguments":{{"message":"x"}}}}'),
    "by the SDK": request("tools/call", f'{{"x":{EMOJI},"name":"chat","arguments":{{"message":"x"}}}}'),
}


@pytest.mark.parametrize("attack", HELD.values(), ids=HELD)
def test_large_calls_under_way_are_limited_by_their_size(tmp_path: Path, attack: bytes) -> None:
    hold = threading.Event()
    with serving_both(tmp_path, FakeEngine(b"", hold), 1000, context=2**22) as bridge, beside(bridge):
        before = memory_mib(bridge)
        with ThreadPoolExecutor(24) as pool:
            connections = list(pool.map(lambda _: opened(bridge, attack), range(24)))
        wait_for(lambda: len(records(bridge.log.read_text())) == 20, 60)
        refused = {(record["developer"], record["status"]) for record in records(bridge.log.read_text())}
        assert refused == {("alice", 429)}
        # Those of others are taken, and small ones, too.
        opened(bridge, attack.replace(TOKEN.encode(), BOBS.encode()))
        wait_for(lambda: metric(bridge, "local_llm_bridge_running") == 2)
        assert sent(bridge, call('{"unknown": 1}')) == 200
        assert memory_mib(bridge) < before + 400
        # What has ended is no longer counted.
        hold.set()
        assert sorted(status_of(connection) for connection in connections) == [200] * 4 + [429] * 20
        wait_for(lambda: sent(bridge, attack) == 200)


def test_large_calls_of_one_developer_do_not_make_anothers_wait(tmp_path: Path) -> None:
    large = call(LONG["one text of escapes"])
    with serving_both(tmp_path, requests_per_minute=1000) as bridge:
        before = memory_mib(bridge)
        bobs = call(json.dumps({"message": "x" * 70_000})).replace(TOKEN.encode(), BOBS.encode())
        with ThreadPoolExecutor(120) as pool:
            running = [pool.submit(sent, bridge, large) for _ in range(120)]
            wait_for(lambda: sum(done.done() for done in running) >= 4, 60)
            assert sent(bridge, bobs) == 200
            assert sum(done.done() for done in running) < 60  # most of those that came before bob's still wait
            assert {done.result() for done in running} <= {200, 408, 429}
        assert memory_mib(bridge) < before + 200


def test_what_a_minute_allows_is_counted_before_anything_is_worked_on(tmp_path: Path) -> None:
    with serving_both(tmp_path, requests_per_minute=5) as bridge:
        large = call(LONG["unknown arguments"])
        assert [sent(bridge, large) for _ in range(8)] == [413] * 5 + [429] * 3
        wrong = call('{"unknown": 1}').partition(b"\r\n\r\n")[2]
        bodies = [bridge.http("/mcp", method="POST", headers=ORDINARY, data=wrong)[1] for _ in range(6)]
        texts = [json.loads(body)["result"]["content"][0]["text"] for body in bodies]
        assert [text.partition(" ")[0] for text in texts] == ["Wrong"] * 5 + ["alice"]
        assert "has made the 5 calls that a minute allows" in texts[-1]


ORDINARY = {
    "Authorization": f"Bearer {TOKEN}",
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
}


def flood(bridge: Bridge, data: bytes, number: int) -> list[int]:
    """Send a request again and again on one connection; gives the answers' statuses."""
    statuses = []
    with socket.create_connection(("127.0.0.1", bridge.port), timeout=30) as connection:
        answers = connection.makefile("rb")
        for _ in range(number):
            connection.sendall(data)
            statuses.append(int(answers.readline().split()[1]))
            size = 0
            while (line := answers.readline().strip()) != b"":
                if line.lower().startswith(b"content-length:"):
                    size = int(line.partition(b":")[2])
            answers.read(size)
    return statuses


def test_requests_of_every_kind_are_counted_and_only_those_of_the_developer(bridge: Bridge) -> None:
    ping = request("ping", "{}")
    with beside(bridge):
        with ThreadPoolExecutor(3) as pool:
            floods = [pool.submit(flood, bridge, ping, 900) for _ in range(3)]
            statuses = [status for done in floods for status in done.result()]
        assert set(statuses) == {200, 429}
        assert 1200 <= statuses.count(200) < 1700  # ten for each call of a minute, and those that have come since
    # The next ones are allowed at the pace at which a minute's worth comes back.
    answers = [bridge.http("/mcp", method="POST", headers=ORDINARY, data=b"{}") for _ in range(500)]
    _, text, headers = next(answer for answer in answers if answer[0] == 429)
    assert "alice has sent all requests that a minute allows." in text
    assert int(headers["Retry-After"]) >= 1


def test_many_sessions_can_begin_at_once_and_none_of_it_counts_as_a_call(tmp_path: Path) -> None:
    with serving_both(tmp_path, requests_per_minute=3) as bridge:
        listen = modern("subscriptions/listen")
        for _ in range(30):
            assert status_of(opened(bridge, listen)) == 200
            assert {sent(bridge, request(method, "{}")) for method in ("tools/list", "ping")} == {200}
        for _ in range(3):
            assert sent(bridge, call('{"message":"ping"}')) == 200


def test_wrong_tokens_cost_nobody_anything(bridge: Bridge) -> None:
    wrong = head(2, "wrong") + b"{}"
    with beside(bridge), ThreadPoolExecutor(4) as pool:
        floods = [pool.submit(flood, bridge, wrong, 600) for _ in range(4)]
        assert {status for done in floods for status in done.result()} == {401}
    assert sent(bridge, request("ping", "{}")) == 200


ANSWERS = 20
LARGE_ANSWER = FakeEngine(events(piece("\1" * 40_000), piece("", "stop")))
"""240 kB of JSON. Twenty of them are more than the kernel keeps for a connection."""


def pipelined(bridge: Bridge, window: int) -> socket.socket:
    """Ask for large answers on one connection, of which the client's kernel takes little that has not been read."""
    connection = socket.socket()
    CONNECTIONS.append(connection)
    connection.settimeout(60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.connect(("127.0.0.1", bridge.port))
    connection.sendall(call('{"message":"x"}') * ANSWERS)
    return connection


def connections_of(bridge: Bridge) -> int:
    """Return how many connections to the bridge its kernel has."""
    lines = Path(f"/proc/{bridge.process.pid}/net/tcp").read_text().splitlines()[1:]
    established = [line.split()[1:4] for line in lines]
    return sum(local.endswith(f":{bridge.port:04X}") and state == "01" for local, _, state in established)


def test_who_reads_nothing_of_its_answers_is_dropped(tmp_path: Path) -> None:
    with serving_both(tmp_path, LARGE_ANSWER, requests_per_minute=1000) as bridge, beside(bridge):
        attackers = [pipelined(bridge, 4096) for _ in range(20)]
        assert connections_of(bridge) > len(attackers)
        wait_for(lambda: connections_of(bridge) <= 1, 60)  # bob's


def test_who_reads_slowly_and_steadily_gets_all_of_it(tmp_path: Path) -> None:
    with serving_both(tmp_path, LARGE_ANSWER, requests_per_minute=1000) as bridge:
        connection = pipelined(bridge, 2**16)
        size = 0
        while size < ANSWERS * 240_000:
            data = connection.recv(2**16)
            assert data, f"the connection ended after {size} bytes"
            size += len(data)
            if size < 2**20:  # which takes longer than a client may read nothing
                time.sleep(len(data) / 2**15)


def test_streams_of_one_developer_are_limited_and_leave_room_for_others(bridge: Bridge) -> None:
    listen = modern("subscriptions/listen")
    with beside(bridge):
        before = memory_mib(bridge)
        connections = [opened(bridge, listen) for _ in range(40)]
        assert sorted(status_of(connection) for connection in connections) == [200] * 32 + [429] * 8
        bobs = opened(bridge, listen.replace(TOKEN.encode(), BOBS.encode()))
        assert status_of(bobs) == 200
        for connection in connections:
            connection.close()
        wait_for(lambda: sent(bridge, listen) == 200)  # those that have ended are no longer counted
    assert memory_mib(bridge) < before + 100


def test_a_request_for_a_stream_is_small(bridge: Bridge) -> None:
    assert sent(bridge, modern("subscriptions/listen", f',"x":"{"x" * 5000}"')) == 413


def test_calls_of_one_developer_that_wait_leave_room_for_others(tmp_path: Path) -> None:
    hold = threading.Event()
    with serving_both(tmp_path, FakeEngine(b"", hold), requests_per_minute=1000) as bridge, beside(bridge):
        for number in range(60):
            opened(bridge, call(f'{{"message":"{number}"}}'))
        wait_for(lambda: metric(bridge, "local_llm_bridge_queued") == 20)
        opened(bridge, call('{"message":"bob"}').replace(TOKEN.encode(), BOBS.encode()))
        wait_for(lambda: len(refused_for_room(bridge)) == 36)
        assert {record["developer"] for record in refused_for_room(bridge)} == {"alice"}
        assert metric(bridge, "local_llm_bridge_queued") == 20
        hold.set()


def metric(bridge: Bridge, name: str) -> float:
    return sum(
        float(value) for value in re.findall(rf"^{name}\{{.*\}} (\S+)$", bridge.http("/metrics")[1], re.MULTILINE)
    )


def refused_for_room(bridge: Bridge) -> list[dict[str, Any]]:
    return [record for record in records(bridge.log.read_text()) if record["outcome"] == "queue_full"]


def test_requests_under_way_are_limited(tmp_path: Path) -> None:
    with serving_both(tmp_path, requests_per_minute=1000) as bridge, beside(bridge):
        for _ in range(140):
            opened(bridge, head(100))
        wait_for(lambda: len(records(bridge.log.read_text())) >= 12)
        found = [record["status"] for record in records(bridge.log.read_text())]
        assert found == [429] * 12
        close()


def test_slow_bodies_end(bridge: Bridge) -> None:
    with beside(bridge):
        connections = [opened(bridge, head(size) + b"{") for size in (1000, MOST) for _ in range(16)]
        dripping = threading.Event()

        def drip() -> None:
            while not dripping.wait(0.5):
                for connection in connections:
                    with suppress(OSError):  # ended, as it should
                        connection.send(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert {status_of(connection) for connection in connections} == {408}
        finally:
            dripping.set()
            thread.join()


def test_a_body_that_comes_steadily_is_waited_for(bridge: Bridge) -> None:
    data = call('{"message":"' + "x" * 300_000 + '"}')
    with socket.create_connection(("127.0.0.1", bridge.port), timeout=60) as connection:
        for start in range(0, len(data), 12_000):
            connection.sendall(data[start : start + 12_000])
            time.sleep(0.5)
        assert status_of(connection) == 200


BEGINNINGS = (
    b"",
    b"P",
    head(5)[:40],
    head(5)[:-2],
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /h",
)


def test_connections_without_a_request_end(bridge: Bridge) -> None:
    with beside(bridge):
        for connection in [opened(bridge, beginning) for beginning in BEGINNINGS for _ in range(30)]:
            with suppress(ConnectionError):
                # Until the bridge ends it; the socket's own timeout says that it did not.
                while connection.recv(65536):
                    pass


def test_a_body_that_goes_on_after_its_refusal_ends(bridge: Bridge) -> None:
    with opened(bridge, head(10**6, "wrong")) as connection:
        assert status_of(connection) == 401
        for _ in range(100):
            try:
                connection.sendall(b"x")
            except ConnectionError:
                return
            time.sleep(0.25)
    raise AssertionError


def test_connections_are_limited_and_those_that_do_nothing_make_room(tmp_path: Path) -> None:
    with serving_both(tmp_path, starter=("prlimit", "--nofile=200")) as bridge, beside(bridge) as bob:
        before = bob.asked
        for _ in range(400):
            opened(bridge, b"")
        wait_for(lambda: bob.asked > before + 5)
    assert "Too many open files" not in bridge.log.read_text()


def test_whoever_has_most_connections_makes_room_for_new_ones(tmp_path: Path) -> None:
    ping = request("ping", "{}")
    with serving_both(tmp_path, starter=("prlimit", "--nofile=200")) as bridge:
        for _ in range(120):
            assert status_of(opened(bridge, ping)) == 200
        bobs = opened(bridge, b"")
        for _ in range(20):
            assert status_of(opened(bridge, ping)) == 200
        bobs.sendall(ping.replace(TOKEN.encode(), BOBS.encode()))
        assert status_of(bobs) == 200


def test_a_connection_that_is_reset_leaves_nothing(bridge: Bridge) -> None:
    lines = "".join(f"X{number}: {'x' * 7_400}\r\n" for number in range(8))
    ask = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n".encode()
    sent(bridge, ask)
    before = memory_mib(bridge)
    for _ in range(3_000):
        with socket.create_connection(("127.0.0.1", bridge.port), timeout=60) as connection:
            connection.sendall(ask)
            assert status_of(connection) == 200
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert memory_mib(bridge) < before + 60


@pytest.mark.parametrize("token", ["wrong", TOKEN])
@pytest.mark.parametrize("chunk", [b"1\r\n \r\n", b"1;" + b"x" * 1000 + b"\r\n \r\n"])
def test_a_body_of_single_bytes_ends(bridge: Bridge, token: str, chunk: bytes) -> None:
    chunked = head(0, token).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")

    def flood(_: int) -> None:
        with opened(bridge, chunked) as connection, suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(chunk * (2**16 // len(chunk)))
            raise AssertionError("all was taken")

    with beside(bridge), ThreadPoolExecutor(20) as pool:
        list(pool.map(flood, range(200)))


HUGE = {
    "one header": b"X: " + b"x" * 2**21,
    "many headers": b"\r\n".join(b"X%d: x" % number for number in range(100_000)),
    "empty headers": b"X:\r\n" * 500_000,
    "url": b"",
    "trailers": b"",
    "chunk extension": b"",
}


@pytest.mark.parametrize("kind", HUGE)
def test_huge_heads_are_refused(bridge: Bridge, kind: str) -> None:
    start = b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    chunked = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    data = {
        "url": b"POST /" + b"x" * 2**21,
        "trailers": chunked + b"2\r\n{}\r\n0\r\n" + b"X: x\r\n" * 500_000,
        "chunk extension": chunked + b"2;" + b"x" * 2**21,
    }.get(kind, start + HUGE[kind])
    with beside(bridge):
        before = memory_mib(bridge)
        connections = [opened(bridge, data) for _ in range(20)]
        for connection in connections:
            assert status_of(connection) in {0, 400, 431}  # 0: it was reset while the client still sent
    assert memory_mib(bridge) < before + 60
