"""Hostile engines and hostile clients: what each tries, and what another developer sees meanwhile."""

from __future__ import annotations

import json
import random
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import raw
from gateway import QUESTION, RUNNING, TOKENS, Gateway, address, command, ended
from raw import CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, Frames, frame
from testinfra.host import Host

from tests.lab.waiting import until

SCENARIO = Path(__file__).resolve().parent.parent
PODMAN = SCENARIO.parent.parent / "tests/lab/bin/podman"
UNIT = "local-llm-gateway"
MIB = 2**20

pytestmark = pytest.mark.units(UNIT)

Guest = Callable[..., Host]
Records = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def ip(host: Host) -> str:
    """Address of a guest whose gateway is asked."""
    return str(address(host))


def info(host: Host, name: str) -> int:
    """A number of HAProxy's about itself."""
    return int(dict(line.split(": ", 1) for line in command(host, "show info").splitlines() if ": " in line)[name])


def server(host: Host, backend: str, name: str) -> list[str]:
    """What HAProxy says of a server: its address is the fifth, whether it is up the sixth."""
    lines = command(host, f"show servers state {backend}").splitlines()
    return next(words for words in map(str.split, lines) if words[3:4] == [name])


@contextmanager
def developer(ip: str) -> Iterator[list[float]]:
    """A developer asks all the time, over new connections and an old one; gives how long each answer took, in seconds.

    Each has to be right.
    """
    took: list[float] = []
    done = threading.Event()
    old = Gateway(ip)

    def ask() -> None:
        while not done.wait(0.1):
            for gateway in (Gateway(ip), old):
                start = time.monotonic()
                status = gateway.ask("GET", "/v1/models").status
                took.append(time.monotonic() - start)
                assert status == 200
                if gateway is not old:
                    gateway.close()

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        try:
            until(lambda: len(took) >= 6)
            yield took
        finally:
            done.set()
        asked.result()


@contextmanager
def attack(attacker: Host, ip: str, count: int, kind: str) -> Iterator[int]:
    """Connections from a guest, held by molecule/gateway/files/attack.py; gives how many were made."""
    script = (SCENARIO / "files/attack.py").read_text()
    argv = [str(PODMAN), "exec", "--interactive", attacker.backend.name, "python3", "-c", script, ip, str(count), kind]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


# --- engines ---


@pytest.mark.parametrize("status", [101, 301, 302, 303, 307, 308, 399])
def test_no_redirect_reaches_a_client(ip: str, status: int, host: Host, records: Records) -> None:
    since = host.check_output("date '+%F %T.%6N'")
    elsewhere = {"Location": "http://elsewhere/", "Upgrade": "x", "Connection": "upgrade"}
    reply = Gateway(ip).post({"model": "mirror", "status": status, "headers": elsewhere})
    assert reply.status == 502
    assert "location" not in reply.headers
    assert reply.headers["x-should-retry"] == "false"
    assert reply.json["error"]["type"] == "api_error"
    (record,) = records(host, since, count=1)
    assert (record["status"], record["outcome"], record["server"]) == (502, "failed", "here")


def test_only_headers_that_clients_need_pass(ip: str) -> None:
    needed = {
        "cache-control": "no-store",
        "content-type": "application/json",
        "mcp-session-id": "1",
        "request-id": "2",
        "retry-after": "3",
        "www-authenticate": "Bearer",
        "x-request-id": "4",
        "x-should-retry": "true",
    }
    others = ["Alt-Svc", "Clear-Site-Data", "Content-Location", "Link", "Location", "Refresh", "Server", "Set-Cookie"]
    others += ["Access-Control-Allow-Origin", "X-Accel-Redirect", "X-Secret"]
    given = needed | dict.fromkeys(others, "x")
    for status in (200, 429, 503):
        reply = Gateway(ip).post({"model": "mirror", "status": status, "headers": given})
        assert reply.status == status
        framing = {"connection", "content-length", "strict-transport-security", "transfer-encoding"}
        assert {name: value for name, value in reply.headers.items() if name not in framing} == needed


def test_what_comes_before_an_answer_does_not_pass(host: Host, ip: str) -> None:
    early = {"model": "mirror", "interim": {"Set-Cookie": "a=b", "Link": "</x>"}}
    for version in ("--http1.1", "--http2"):
        shown = curl(host, ip, version, "--include", body=early)
        assert shown.startswith("HTTP/" + ("1.1 502" if version == "--http1.1" else "2 502"))
        assert "a=b" not in shown


def test_an_answer_that_http2_does_not_know_reaches_a_client(host: Host, ip: str) -> None:
    """Over HTTP/2 a length without a body, or a NUL, would end the connection."""
    for body in ({"status": 204, "headers": {"Content-Length": "5"}}, {"headers": {"X-Request-Id": "a\0b"}}):
        shown = curl(host, ip, "--http2", "--include", body={"model": "mirror"} | body)
        assert shown.startswith(("HTTP/2 20", "HTTP/2 502"))
        assert "\0" not in shown


def curl(host: Host, ip: str, *options: str, body: Any, path: str = QUESTION) -> str:
    """What the guest's own curl gets for a question; its client sends again what it may send again."""
    words = " ".join(options)
    line = f"curl -sk {words} -H 'Authorization: Bearer {TOKENS['alice']}' --data-binary @- https://{ip}{path}"
    return str(host.check_output("printf %%s %s | " + line.replace("%", "%%"), json.dumps(body)))


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_request_that_ends_its_engine_is_sent_once(host: Host, ip: str, version: str) -> None:
    """Over a connection that has had an answer before, too: there a client would send it again by itself."""
    reason = f"{version}-{time.monotonic()}"
    lethal = json.dumps({"model": "mirror", "dies": reason})
    shown = host.check_output(
        "curl -sk %s -H %s -d %s %s -w '%%{http_code} ' --next -sk %s -H %s -d %s %s -w ' %%{http_code}'",
        *(version, f"Authorization: Bearer {TOKENS['alice']}", '{"model": "mirror"}', f"https://{ip}{QUESTION}"),
        *(version, f"Authorization: Bearer {TOKENS['alice']}", lethal, f"https://{ip}{QUESTION}"),
    )
    assert "}200 " in shown
    assert shown.endswith(" 502")
    assert "the request may be the reason" in shown
    deaths = host.check_output("curl -si http://127.0.0.1:9000/deaths | grep Deaths:").partition(": ")[2]
    assert json.loads(deaths)[reason] == 1


# --- clients that send what they should not ---


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "mirror", "model": "qwen2-tiny"}',
        '{"model": "qwen2-tiny", "messages": [{"model": {}}], "model": "mirror"}',
        '{"model": "mirror", "mod\\u0065l": "qwen2-tiny"}',
        '{"\\u006Dodel": "qwen2-tiny", "model": "mirror"}',
        '{"model": "mirror", "model"\t:\n null}',
        '{"model": "mirror\\u0000"}',
        '{"model": "mirror\\n"}',
        '{"model": "mirror", "x": "\0"}',
    ],
)
def test_a_body_names_one_model(ip: str, body: str) -> None:
    reply = Gateway(ip).post(body)
    assert reply.status == 400
    assert "model" in reply.json["error"]["message"]


def test_a_model_inside_of_something_else_is_nobodys_business(ip: str) -> None:
    tool = {"name": "Task", "input_schema": {"properties": {"model": {"type": "string", "enum": ["model"]}}}}
    used = {"type": "tool_use", "input": {"model": "opus", "text": 'a \\"model\\": \\u006dodel {[ "model": "x"'}}
    body = {"tools": [tool], "messages": [{"content": [used, used]}, "model"], "model": "mirror"}
    assert Gateway(ip).post(body).status == 200
    assert Gateway(ip).post(json.dumps(body).replace("opus", "\\u006fpus")).status == 200


@pytest.mark.parametrize("name", ["a b", "a/b", 'a"b', "a\\b", "user@host", "\x7f", "é"])
def test_a_host_is_the_name_of_one(ip: str, name: str) -> None:
    with raw.connect(ip) as plain:
        lines = ("GET /v1/models HTTP/1.1", f"Host: {name}", f"Authorization: Bearer {TOKENS['alice']}", "", "")
        plain.sendall("\r\n".join(lines).encode())
        assert plain.recv(100).startswith(b"HTTP/1.1 400 ")


def large(both: list[Host], token: str, path: str, size: int, status: int) -> None:
    """Send a large body by httpx, which sends on over HTTP/2 until it may not, and then waits, whatever is answered."""
    client = (SCENARIO / "files/large.py").read_text()
    shown = both[1].check_output("python3 -c %s %s %s %s %s %s", client, token, path, str(size), *map(address, both))
    assert Counter(shown.splitlines()) == {f"HTTP/1.1 {status}": 4, f"HTTP/2 {status}": 4}


def test_a_refusal_is_read_by_who_still_sends(guest: Guest) -> None:
    both = [guest("debian12"), guest("debian13")]
    answers = [(host, Gateway(address(host), TOKENS["bob"]).send("POST", QUESTION, RUNNING)) for host in both * 12]
    large(both, TOKENS["bob"], QUESTION, 3_900_000, 429)
    large(both, TOKENS["alice"], "/nowhere", 3_900_000, 404)
    large(both, TOKENS["alice"], "/v1/models", 3_900_000, 405)
    large(both, "nobody", QUESTION, 3_900_000, 401)
    assert all(ended(host, answer) for host, answer in answers)
    for host in both:
        command(host, "clear table addresses")


def test_who_sends_too_much_is_told_so(guest: Guest) -> None:
    """By httpx and by curl."""
    both = [guest("debian12"), guest("debian13")]
    for path in (QUESTION, "/mcp"):
        large(both, TOKENS["alice"], path, 5_000_000, 413)
    for host in both:
        for version in ("--http1.1", "--http2"):
            post = "head -c 5M /dev/zero | curl -sk %s -m 30 -w ' %%{http_code}' -H %s --data-binary @- https://%s/mcp"
            answer = host.check_output(post, version, f"Authorization: Bearer {TOKENS['bob']}", address(host))
            assert '"jsonrpc":"2.0"' in answer
            assert answer.endswith(" 413")


def odd(chance: random.Random, stream: int) -> bytes:
    """A request that is odd somewhere, as a frame of HTTP/2."""
    some = bytes(chance.choice(b'\x01\x1f "\\/{}[]%:\x7f\x80\xc3\xa9\xff-_aZ9') for _ in range(chance.randrange(1, 40)))
    fields = raw.request(b"/v1/models" + chance.choice([b"", b"?", b"/"]))
    place = chance.randrange(len(fields) + 3)
    if place < len(fields):
        fields[place] = (fields[place][0], chance.choice([b"", b"/" + some, some]))
    elif place == len(fields):
        fields.append((b"authorization", some))
    elif place == len(fields) + 1:
        fields.append((b"x-" + some.lower(), some))
    else:
        fields.append((b"content-length", chance.choice([b"-1", b"x", b"9" * 30])))
    return bytes(frame(HEADERS, END_HEADERS | END_STREAM, stream, raw.headers(fields)))


def test_records_are_json_whatever_comes(host: Host, ip: str) -> None:
    """Ten thousand odd requests of HTTP/2, and a few of what is not HTTP at all."""
    since = host.check_output("date '+%F %T.%6N'")
    chance = random.Random(14)  # noqa: S311
    sent = 0
    for nonsense in (
        b"\0\0\n\n",
        b'GET /"\\\x7f HTTP/1.1\r\n\r\n',
        b"A\x01 / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ):
        with raw.connect(ip) as plain:
            plain.sendall(nonsense)
            plain.recv(100)
    while sent < 10_000:
        frames = Frames(ip)
        for first in range(1, 400, 100):  # more of them, and their answers would need more window
            batch = range(first, first + 100, 2)
            with suppress(OSError):
                frames.send(*(odd(chance, number) for number in batch))
            sent += len(batch)
            while not frames.ended.issuperset(batch) and frames.read():
                pass
        frames.close()
    journal = "journalctl -q --namespace=local-llm-audit -t local-llm-audit -p info..info -o cat --since=%s"

    def goes_on() -> bool:
        """Whether a request is recorded again: HAProxy leaves out what the journal does not take at once."""
        Gateway(ip).ask("GET", "/v1/models")
        return bool(host.run(f"{journal} | tail -1 | grep alice", since).rc == 0)

    until(goes_on)
    read = f"{journal} | python3 -c 'import json, sys; print(len([json.loads(line) for line in sys.stdin]))'"
    assert int(host.check_output(read, since)) > 1000
    command(host, "clear table addresses")


# --- clients that say nothing ---


def test_silence_from_another_address_costs_nothing(guest: Guest) -> None:
    """Four thousand connections."""
    host, attacker = guest("debian12"), guest("debian13")
    ip = address(host)
    with developer(ip) as took:
        before = max(took)
        del took[:]
        with attack(attacker, ip, 4000, "silent"):
            until(lambda: len(took) >= 20)
            assert info(host, "CurrConns") < 100
        assert max(took) < before + 5
    until(lambda: info(host, "CurrConns") < 20)


def test_silence_from_the_same_address_ends_in_seconds(guest: Guest) -> None:
    """Who is connected notices nothing, and who comes new gets in as soon as the silent ones are hung up on.

    4,096 of them once took all the places there were.
    """
    host = guest("debian12")
    ip = address(host)
    old = Gateway(ip)
    assert old.ask("GET", "/v1/models").status == 200
    argv = ["python3", str(SCENARIO / "files/attack.py"), ip, "4200", "silent"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        for _ in range(5):
            assert old.ask("GET", "/v1/models").status == 200

        def comes_in() -> bool:
            with suppress(OSError):
                return bool(Gateway(ip).ask("GET", "/v1/models").status == 200)
            return False

        until(comes_in, 60)
        process.communicate("")


def test_headers_without_an_end_take_little_memory(guest: Guest) -> None:
    """A hundred connections that each send 4 MiB of them, before any token."""
    host, attacker = guest("debian12"), guest("debian13")
    ip = address(host)

    def memory() -> int:
        pids = "pgrep --parent $(systemctl show --property=MainPID --value local-llm-gateway)"
        return int(
            host.check_output(f"cat $({pids} | sed 's,.*,/proc/&/status,') | awk '/VmRSS/ {{s += $2}} END {{print s}}'")
        )

    before = memory()
    with developer(ip) as took, attack(attacker, ip, 100, "headers"):
        del took[:]
        until(lambda: len(took) >= 10)
        assert memory() - before < 200 * 1024


BLOCK = raw.headers([(b":method", b"GET")])
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"
BOB = f"Authorization: Bearer {TOKENS['bob']}"
POST = f"POST {QUESTION} HTTP/1.1\r\nHost: x\r\n{BOB}\r\nContent-Length: 999\r\n\r\n".encode()
SLOW = {
    "no hello": (None, b"", b""),
    "half a hello": (None, HELLO, b""),
    "a hello, byte by byte": (None, HELLO, b"\x03"),
    "no request": ("http/1.1", b"", b""),
    "half a request": ("http/1.1", b"GET / HTTP/1.1\r\nHost: x\r\n", b""),
    "a request, line by line": ("http/1.1", b"GET / HTTP/1.1\r\nHost: x\r\n", b"a: b\r\n"),
    "a body that does not come": ("http/1.1", POST, b""),
    "no preface": ("h2", b"", b""),
    "a preface": ("h2", PREFACE + frame(SETTINGS), b""),
    "settings": ("h2", PREFACE + frame(SETTINGS), frame(SETTINGS)),
    "pings": ("h2", PREFACE + frame(SETTINGS), frame(PING, payload=b"12345678")),
    "half a request of HTTP/2": ("h2", PREFACE + frame(SETTINGS) + frame(HEADERS, 0, 1, BLOCK), b""),
    "continuations": (
        "h2",
        PREFACE + frame(SETTINGS) + frame(HEADERS, 0, 1, BLOCK),
        frame(CONTINUATION, 0, 1, b"\0\1a\1b"),
    ),
}


def test_whoever_takes_too_long_is_hung_up_on(guest: Guest) -> None:
    with ThreadPoolExecutor(2 * len(SLOW)) as pool:
        opened: dict[str, Future[float]] = {
            f"{what} on {name}": pool.submit(raw.open_for, address(guest(name)), *how)
            for name in ("debian12", "debian13")
            for what, how in SLOW.items()
        }
        assert {what: seconds for what, future in opened.items() if (seconds := future.result()) > 30} == {}


def test_floods_of_http2_slow_nobody(host: Host, ip: str) -> None:
    """Streams that are reset at once, settings, pings, a request that has no end, and many streams."""
    streams = range(1, 20_001, 2)
    ask = raw.headers(raw.request(b"/v1/models"))
    floods = {
        "resets": [frame(HEADERS, 5, n, ask) + frame(RST_STREAM, 0, n, b"\0\0\0\x08") for n in streams],
        "settings": [frame(SETTINGS, payload=b"\0\3\0\0\0\x64")] * 20_000,
        "pings": [frame(PING, payload=b"12345678")] * 20_000,
        "continuations": [
            frame(HEADERS, 0, 1, BLOCK),
            *[frame(CONTINUATION, 0, 1, raw.headers([(b"a", b"b" * 90)]))] * 20_000,
        ],
        "streams": [frame(HEADERS, 5, n, ask) for n in streams],
    }

    def flood(frames: list[bytes]) -> None:
        with suppress(OSError):
            connection = Frames(ip)
            for first in range(0, len(frames), 500):
                connection.send(*frames[first : first + 500])
            connection.close()

    with developer(ip) as took, ThreadPoolExecutor(len(floods)) as pool:
        del took[:]
        list(pool.map(flood, floods.values()))
        until(lambda: len(took) >= 10)
    until(lambda: info(host, "CurrConns") < 20)
    assert Counter(gateway.ask("GET", "/v1/models").status for gateway in [Gateway(ip)] * 3) == {200: 3}


def asked(ip: str, fields: list[tuple[bytes, bytes]], count: int) -> None:
    """Send so many requests of HTTP/2, two hundred over each connection, whose answers need more window beyond that.

    Args:
        ip: Address of the gateway.
        fields: Of each request.
        count: How many.
    """
    block = raw.headers(fields)
    for _ in range(count // 200):
        connection = Frames(ip)
        for first in range(1, 400, 100):
            batch = range(first, first + 100, 2)
            connection.send(*(frame(HEADERS, 5, n, block) for n in batch))
            while not connection.ended.issuperset(batch):
                assert connection.read()
        connection.close()


@pytest.mark.parametrize("who", ["nobody", "bob"])
def test_a_flood_does_not_push_the_others_records_out(host: Host, ip: str, records: Records, who: str) -> None:
    """Whatever is refused: beyond a number of requests, one record in a hundred is kept."""
    fields = raw.request(b"/v1/nope")
    if who == "bob":
        fields.append((b"authorization", f"Bearer {TOKENS[who]}".encode()))
    else:
        fields[2] = (b":authority", b"a%00")
    table, number = ("developers", 6_000) if who == "bob" else ("addresses", 20_000)

    def rate() -> int:
        return max(map(int, re.findall(r"http_req_rate\(\d+\)=(\d+)", command(host, f"show table {table}"))), default=0)

    def now() -> str:
        return str(host.check_output("date '+%F %T.%6N'"))

    def recorded(since: str) -> Counter[str]:
        """Whose records there are since then, once a request that alice sends now is among them: the journal lags."""
        assert Gateway(ip).ask("GET", "/v1/models").status == 200

        def kept() -> Counter[str]:
            return Counter(record["developer"] for record in records(host, since))

        until(lambda: kept()["alice"])
        return kept()

    try:
        while rate() <= number:
            asked(ip, fields, 2_000)
        recorded(now())
        since = now()
        asked(ip, fields, 2_000)
        found = recorded(since)
        assert found.pop("-" if who == "nobody" else who, 0) < 100
        assert found["alice"] == 1
    finally:
        command(host, "clear table addresses")
        command(host, "clear table developers")


# --- what is not there yet ---


@contextmanager
def kept_from_starting(host: Host) -> Iterator[None]:
    """A gateway without its certificate; it has to answer as soon as it has it again."""
    host.check_output("mv /etc/local-llm-gateway/gateway.pem /etc/local-llm-gateway/gateway.pem.away")
    try:
        host.run("systemctl restart %s", UNIT)
        yield
    finally:
        host.check_output("mv /etc/local-llm-gateway/gateway.pem.away /etc/local-llm-gateway/gateway.pem")

    def answers() -> bool:
        with suppress(OSError):
            return bool(Gateway(address(host)).ask("GET", "/v1/models").status == 200)
        return False

    until(answers)


def test_a_gateway_starts_without_its_address_and_its_names(guest: Guest) -> None:
    """As at a boot before the network is up. A name that nobody knows is looked up until somebody does.

    Meanwhile the other gateway cannot start, and tries until it can.
    """
    host, other = guest("debian12"), guest("debian13")
    with kept_from_starting(other):
        ip = address(host)
        interface = host.check_output("ip -4 -o route get 192.0.2.1").split(" dev ")[1].split()[0]
        prefix = host.check_output("ip -4 -o address show to %s dev %s", ip, interface).split()[3]
        route = host.check_output("ip -4 route show default")
        host.check_output("nft add table inet no_dns")
        try:
            host.check_output("nft 'add chain inet no_dns out { type filter hook output priority 0; }'")
            host.check_output("nft add rule inet no_dns out meta l4proto '{ tcp, udp }' th dport 53 reject")
            host.check_output("ip address del %s dev %s", prefix, interface)
            try:
                host.check_output("systemctl restart %s", UNIT)
            finally:
                host.check_output("ip address add %s dev %s", prefix, interface)
                host.check_output(f"ip route replace {route}")
            assert Gateway(ip).ask("GET", "/v1/models").status == 200
            assert Gateway(ip).post({"model": "mirror"}).status == 200
            assert server(host, "model-qwen2-tiny", "debian13")[4] in ("-", "0.0.0.0")  # noqa: S104
            host.check_output("systemctl reload %s", UNIT)  # one name that is not known fails no reload
            assert Gateway(ip).ask("GET", "/v1/models").status == 200
        finally:
            host.check_output("nft delete table inet no_dns")
        until(lambda: server(host, "model-qwen2-tiny", "debian13")[4] == address(guest("debian13")))
        restarts = "systemctl show --property=NRestarts --value %s"
        until(lambda: int(other.check_output(restarts, UNIT)) > 5)  # systemd's own limit is five


@pytest.mark.parametrize("unit", [UNIT, f"{UNIT}-address"])
def test_a_unit_never_gives_up(host: Host, unit: str) -> None:
    shown = host.check_output("systemctl show --property=StartLimitIntervalUSec,Restart,RestartUSec %s", unit)
    assert sorted(shown.splitlines()) == ["Restart=always", "RestartUSec=2s", "StartLimitIntervalUSec=0"]


def test_the_gateway_has_a_limit_of_memory(host: Host) -> None:
    assert host.check_output("systemctl show --property=MemoryMax --value %s", UNIT) != "infinity"
