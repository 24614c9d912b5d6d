"""HTTP: who gets in, what machines may ask, and how the service starts and stops."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import pytest
import yaml

from tests.services import (
    ENGINE_KEY,
    MODEL,
    PROGRAM,
    TOKEN,
    Bridge,
    FakeEngine,
    configuration,
    events,
    free_port,
    llama_server,
    piece,
    records,
    serving,
    text_of,
    wait_for,
)

if TYPE_CHECKING:
    from email.message import Message
    from pathlib import Path

LIST = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'
HEADERS = {
    "Authorization": f"Bearer {TOKEN}",
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
}


@pytest.mark.parametrize(
    ("authorization", "words"),
    [
        (None, "The token is missing."),
        ("Bearer wrong", "The token is not known here."),
        (f"Basic {TOKEN}", "The token is not known here."),
        (f"Bearer {TOKEN}x", "The token is not known here."),
        ("Bearer ", "The token is not known here."),
        (f"Bearer {TOKEN}, Bearer {TOKEN}", "The token came twice."),
    ],
)
def test_without_a_known_token_nobody_gets_in(bridge: Bridge, authorization: str | None, words: str) -> None:
    headers = {**HEADERS, "Authorization": authorization} if authorization else {**HEADERS}
    if authorization is None:
        del headers["Authorization"]
    status, text, answered = bridge.http("/mcp", method="POST", headers=headers, data=LIST)
    assert status == 401
    assert text.startswith(words)
    assert "Authorization: Bearer <your token>" in text
    assert answered["WWW-Authenticate"].startswith("Bearer")
    assert TOKEN not in text
    record = records(bridge.log.read_text())[-1]
    assert (record["outcome"], record["status"], record["client"]) == ("refused", 401, "127.0.0.1")


def test_a_token_of_any_bytes_is_just_wrong(bridge: Bridge) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", bridge.port)
    connection.request("POST", "/mcp", LIST, {**HEADERS, "Authorization": "Bearer \u00e9\u00ff"})
    assert connection.getresponse().status == 401
    connection.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("LOCALHOST:8080", 200),
        ("[::1]:8080", 200),
        ("gateway1", 200),
        ("gateway1:8443", 200),
        ("only:8080", 200),
        ("only:8081", 421),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("gateway1:", 421),
        ("", 421),
    ],
)
def test_only_our_own_names_are_answered_to(named_bridge: Bridge, host: str, status: int) -> None:
    found, text, _ = named_bridge.http("/mcp", method="POST", headers={**HEADERS, "Host": host}, data=LIST)
    assert found == status
    if status == 421:
        assert "allowed_hosts" in text


@pytest.fixture(scope="module")
def named_bridge(engine: str, tmp_path_factory: pytest.TempPathFactory) -> object:
    with serving(tmp_path_factory.mktemp("named"), engine, allowed_hosts=["gateway1", "only:8080"]) as running:
        yield running


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        *((origin, "such a page may be anybody's") for origin in ("null", "", "file://")),
        ("http://evil.example", "adds 'evil.example' to allowed_hosts"),
        ("http://127.0.0.1.evil.example", "adds '127.0.0.1.evil.example' to allowed_hosts"),
        ("app://obsidian.md", "adds 'obsidian.md' to allowed_hosts"),
        ("vscode-file://vscode-app", "adds 'vscode-app' to allowed_hosts"),
    ],
)
def test_web_pages_of_others_are_refused(bridge: Bridge, origin: str, said: str) -> None:
    status, text, _ = bridge.http("/mcp", method="POST", headers={**HEADERS, "Origin": origin}, data=LIST)
    assert status == 403
    assert text.startswith(f"Web pages of {origin!r} may not call this bridge")
    assert "A program that is no web page sends no Origin." in text
    assert said in text


def test_an_app_whose_host_is_allowed_may_call(engine: str, tmp_path: Path) -> None:
    with serving(tmp_path, engine, allowed_hosts=["obsidian.md"]) as bridge:
        headers = {**HEADERS, "Origin": "app://obsidian.md"}
        assert bridge.http("/mcp", method="POST", headers=headers, data=LIST)[0] == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/register"),
        ("POST", "/token"),
        ("GET", "/authorize?client_id=x"),
        ("GET", "/.well-known/oauth-protected-resource/mcp"),
        ("GET", "/.well-known/oauth-authorization-server"),
        ("GET", "/.well-known/openid-configuration/mcp"),
        ("GET", "/mcp/.well-known/openid-configuration"),
    ],
)
def test_who_looks_for_oauth_is_told_of_the_token(bridge: Bridge, method: str, path: str) -> None:
    """Claude Code does once its token has been refused, and shows what RFC 6749 has for it, and nothing else."""
    status, text, headers = bridge.http(path, method=method, data=b"{}" if method == "POST" else None)
    reply = json.loads(text)
    assert (status, headers["Content-Type"], reply["error"]) == (404, "application/json", "invalid_request")
    assert reply["error_description"].startswith("The token in the Authorization header is missing or not known here")


@pytest.mark.parametrize(
    "origin",
    [
        "http://[::1",
        "http://[::1]x",
        "http://localhost:999999",
        "http://localhost:x",
        "http://127.0.0.1/path",
        "http://you@localhost",
        "http://",
        "localhost",
        "no origin",
        "http://a, http://localhost",
        "http://\u00e9\u00ff",
        "http://\u212a.example".encode().decode("latin-1"),
    ],
)
def test_a_malformed_origin_is_the_callers_fault_and_recorded(bridge: Bridge, origin: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=10)
    connection.request("POST", "/mcp", LIST, {**HEADERS, "Origin": origin})
    response = connection.getresponse()
    assert response.status == 400
    assert b"is malformed. Send scheme, host and port of the page." in response.read()
    connection.close()
    record = records(bridge.log.read_text())[-1]
    assert (record["what"], record["outcome"], record["status"]) == ("POST /mcp", "refused", 400)


@pytest.mark.parametrize("origin", ["http://localhost:6274", "http://[::1]:5173", "https://127.0.0.1"])
def test_web_pages_of_this_machine_may_call(bridge: Bridge, origin: str) -> None:
    assert bridge.http("/mcp", method="POST", headers={**HEADERS, "Origin": origin}, data=LIST)[0] == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_machines_are_answered_under_the_names_that_they_use(named_bridge: Bridge, path: str) -> None:
    for host in ("127.0.0.1:1", "localhost", "[::1]:8080", "gateway1:8443", "only:8080", socket.gethostname()):
        assert named_bridge.http(path, headers={"Host": host})[0] == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "only:8081", "10.0.0.1", "localhost:x", ""):
        status, text, _ = named_bridge.http(path, headers={"Host": host})
        assert (status, "allowed_hosts" in text) == (421, True), host
        record = records(named_bridge.log.read_text())[-1]
        assert (record["what"], record["outcome"], record["status"]) == (f"GET {path}", "refused", 421)
    # HAProxy's check of Debian 12, byte by byte.
    assert raw(named_bridge, f"GET {path} HTTP/1.0\r\n\r\n".encode()).startswith(b"HTTP/1.1 200 ")


def test_machines_are_answered_under_the_address_that_they_come_to(engine: str, tmp_path: Path) -> None:
    with serving(tmp_path, engine, listen={"port": (port := free_port()), "address": "0.0.0.0"}):
        for address in ("127.0.0.1", "127.0.0.5"):
            with socket.create_connection((address, port), timeout=10) as connection:
                connection.sendall(f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.5:{port}\r\n\r\n".encode())
                status = connection.recv(100).split()[1]
            assert status == (b"200" if address == "127.0.0.5" else b"421")


def raw(bridge: Bridge, data: bytes) -> bytes:
    """Send bytes; gives all that comes until the bridge ends the connection."""
    with socket.create_connection(("127.0.0.1", bridge.port), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").read()


PING = b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}'
INITIALIZE = b'"initialize", "params": {"protocolVersion": "2025-11-25", "capabilities": {}'
START = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items()).encode() + b"Connection: close\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(PING)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(PING), PING)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (LENGTH + CHUNKED, CHUNK),
        (CHUNKED + LENGTH, CHUNK),
        (LENGTH + LENGTH, PING),
        (LENGTH + b"Content-Length: 0\r\n", PING),
        (b"Content-Length: %d, %d\r\n" % (len(PING), len(PING)), PING),
        (b"Content-Length: +%d\r\n" % len(PING), PING),
        (b"Content-Length: -1\r\n", PING),
        (b"Content-Length: 99999999999999999999999\r\n", PING),
        (b"Content-Length: \xb2\r\n", PING),
        (b"Content-Length : %d\r\n" % len(PING), PING),
        (b"Transfer-Encoding: xchunked\r\n", CHUNK),
        (b"Transfer-Encoding: chunked, identity\r\n", CHUNK),
        (CHUNKED + CHUNKED, CHUNK),
        (b"Transfer-Encoding:\x0bchunked\r\n", CHUNK),
        (b"X: a\r\n b\r\n" + LENGTH, PING),
        (b"X: a\r\n\tTransfer-Encoding: chunked\r\n" + LENGTH, PING),
        (b"X: a\n" + LENGTH, PING),
        (b"X: a\r" + LENGTH, PING),
        (b"X: a\0b\r\n" + LENGTH, PING),
        (CHUNKED, CHUNK.replace(b"\r\n", b"\n", 1)),
        (CHUNKED, b"0x" + CHUNK),
        (CHUNKED, b"fffffffffffffffff" + CHUNK),
        (CHUNKED, CHUNK.replace(b"}\r\n", b"}XX")),
    ],
)
def test_what_two_servers_could_read_as_different_requests_is_refused(
    bridge: Bridge, headers: bytes, body: bytes
) -> None:
    hidden = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = raw(bridge, b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n" + START + headers + b"\r\n" + body + hidden)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("line", "host", "status"),
    [
        (b"POST http://localhost/mcp HTTP/1.1", b"Host: localhost\r\n", 200),
        (b"POST http://localhost/mcp HTTP/1.1", b"Host: evil.example\r\n", 200),
        (b"POST http://evil.example/mcp HTTP/1.1", b"Host: localhost\r\n", 421),
        (b"GET http://evil.example/readyz HTTP/1.1", b"Host: localhost\r\n", 421),
        (b"GET http://localhost@evil.example/readyz HTTP/1.1", b"Host: localhost\r\n", 421),
        (b"GET /mcp?x=http://localhost HTTP/1.1", b"Host: evil.example\r\n", 421),
        (b"POST /mcp HTTP/1.1", b"Host: localhost\r\nHost: evil.example\r\n", 421),
        (b"POST /mcp HTTP/1.1", b"", 421),
        (b"CONNECT localhost:80 HTTP/1.1", b"Host: localhost\r\n", 400),
        (b"POST /mcp HTTP/1.2", b"Host: localhost\r\n", 400),
        (b"post /mcp HTTP/1.1", b"Host: localhost\r\n", 400),
        (b"POST /mcp\xff HTTP/1.1", b"Host: localhost\r\n", 400),
        (b"POST /mcp%00 HTTP/1.1", b"Host: localhost\r\n", 404),
    ],
)
def test_the_target_and_the_host_say_who_is_meant(bridge: Bridge, line: bytes, host: bytes, status: int) -> None:
    answer = raw(bridge, line + b"\r\n" + host + START + LENGTH + b"\r\n" + PING)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer


@pytest.mark.parametrize("wish", [b"h2c", b"websocket", b"TLS/1.0", b"foo/2, h2c"])
@pytest.mark.parametrize("body", [LENGTH + b"\r\n" + PING, CHUNKED + b"\r\n" + CHUNK], ids=["length", "chunked"])
def test_a_wish_for_another_protocol_is_passed_over(bridge: Bridge, wish: bytes, body: bytes) -> None:
    """So curl --http2 and Java's client wish for h2c; the answer is that of HTTP/1.1."""
    wishing = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\nUpgrade: " + wish + b"\r\n"
    start = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n" + START.replace(b"Connection: close\r\n", b"") + wishing
    last = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n" + START + LENGTH + b"\r\n" + PING
    for parts in ([start + body + start + body + last], [start, body[:9], body[9:] + start + body, last]):
        with socket.create_connection(("127.0.0.1", bridge.port), timeout=20) as connection:
            for part in parts:
                connection.sendall(part)
            answers = connection.makefile("rb").read()
        assert answers.count(b"HTTP/1.1 200 OK") == answers.count(b'"result":{}') == 3, answers


@pytest.mark.parametrize(
    "trailer", [b"Host: evil.example", b"Authorization: Bearer wrong", b"Origin: http://a.example"]
)
def test_what_comes_after_a_body_is_no_header(bridge: Bridge, trailer: bytes) -> None:
    chunks = CHUNK.removesuffix(b"\r\n") + trailer + b"\r\n\r\n"
    answer = raw(bridge, b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n" + START + CHUNKED + b"\r\n" + chunks)
    assert answer.startswith(b"HTTP/1.1 200 "), answer


def test_who_waits_to_be_told_to_go_on_is_told_so(bridge: Bridge) -> None:
    head = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n" + START
    with socket.create_connection(("127.0.0.1", bridge.port), timeout=20) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(PING))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(PING)
        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 200 OK\r\n")


def test_requests_sent_one_behind_the_other_are_answered_in_order(bridge: Bridge) -> None:
    start = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n" + START.replace(b"Connection: close\r\n", b"")
    bodies = [PING.replace(b'"id": 1', b'"id": %d' % number) for number in range(10, 30)]
    requests = [start + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in bodies]
    requests[-1] = requests[-1].replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    with socket.create_connection(("127.0.0.1", bridge.port), timeout=20) as connection:
        connection.sendall(b"".join(requests))
        answers = connection.makefile("rb").read()
    assert re.findall(rb'"id":(\d+)', answers) == [b"%d" % number for number in range(10, 30)]


@pytest.mark.parametrize("first", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_an_answer_without_its_body_is_sent_too(bridge: Bridge, first: bytes) -> None:
    head = b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    *before, answer = raw(bridge, first + head).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert len(before) == bool(first)
    assert b"\r\ncontent-length: 3\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


TWICE = {
    "method": '{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/list"}',
    "id": '{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}',
    "name": '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"chat","name":"list_models"}}',
    "escaped": '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"chat","n\\u0061me":"list_models"}}',
    "model": '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{"model":"a","model":"b"}}}',
    "odd path": '{"jsonrpc":"2.0","id":1,"method":"resources/list","params":{},"params":{"_meta":{}}}',
    "nested": '{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":{"x":[[{"y":1,"y":2}]]}}}',
}


@pytest.mark.parametrize("method", ["tools/list", "resources/list"])
def test_what_the_sdk_refuses_has_one_record_too(bridge: Bridge, method: str) -> None:
    before = len(records(bridge.log.read_text()))
    data = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method}).encode()  # without the envelope of this version
    headers = {**HEADERS, "MCP-Protocol-Version": "2026-07-28", "X-Request-ID": "of-the-sdk"}
    assert bridge.http("/mcp", method="POST", headers=headers, data=data)[0] == 400
    wait_for(lambda: len(records(bridge.log.read_text())) > before)
    assert bridge.http("/mcp", method="POST", headers=HEADERS, data=LIST)[0] == 200
    (record,) = records(bridge.log.read_text())[before:]
    assert {name: record[name] for name in record if name != "time"} == {
        "source": "bridge",
        "request_id": "of-the-sdk",
        "developer": "alice",
        "client": "127.0.0.1",
        "what": "POST /mcp",
        "model": "-",
        "outcome": "refused",
        "status": 400,
    }


@pytest.mark.parametrize("body", TWICE.values(), ids=TWICE)
def test_a_key_twice_is_refused_and_recorded(bridge: Bridge, body: str) -> None:
    status, text, _ = bridge.http("/mcp", method="POST", headers=HEADERS, data=body.encode())
    assert (status, "the same key twice" in text) == (400, True)
    assert records(bridge.log.read_text())[-1]["status"] == 400


@pytest.mark.parametrize("name", ["ch\0at", "chat\0", "chat\n", "chat\x7f", "chat\u2028", "ch\ud800at", "x" * 60_000])
def test_names_that_hold_anything_else_than_letters_lead_nowhere(bridge: Bridge, name: str) -> None:
    before = len(records(bridge.log.read_text()))
    for params, outcome in (
        ({"name": name, "arguments": {"message": "ping"}}, "unknown_tool"),
        ({"name": "chat", "arguments": {"message": "ping", "model": name}}, "unknown_model"),
    ):
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        status, text, _ = bridge.http("/mcp", method="POST", headers=HEADERS, data=body)
        result = json.loads(text)["result"]
        assert (status, result["isError"]) == (200, True)
        assert len(text) < 2000
        assert result["content"][0]["text"].isprintable()
        record = records(bridge.log.read_text())[-1]
        assert record["outcome"] in {outcome, "bad_arguments"}
        assert record["model"] == "-"
    assert len(records(bridge.log.read_text())) == before + 2


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
def test_other_methods_are_refused_and_do_not_hang(bridge: Bridge, method: str) -> None:
    status, text, headers = bridge.http("/mcp", method=method, headers=HEADERS)
    assert status == 405
    assert headers["Allow"] == "POST"
    assert "POST only" in text


def test_what_is_too_big_is_refused_before_it_is_read(bridge: Bridge) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=10)
    connection.request("POST", "/mcp", b"{", {**HEADERS, "Content-Length": "5000000"})
    response = connection.getresponse()
    assert response.status == 413
    assert response.read() == b"The request has 5000000 bytes, the most is 4194304. Send less.\n"
    connection.close()


def test_what_is_too_big_and_does_not_say_so_is_refused(bridge: Bridge) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=10)
    chunks = (b"x" * 65536 for _ in range(80))
    try:
        connection.request("POST", "/mcp", chunks, HEADERS, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused while it was still being sent
    finally:
        connection.close()
    assert bridge.http("/healthz")[0] == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff\xfe", b'{"jsonrpc": "2.0"}', b'"x"', b"[" * 100_000, b'{"id": 1e999}']
)
@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
def test_bodies_that_are_no_messages_are_the_callers_fault(bridge: Bridge, body: bytes, version: str) -> None:
    headers = {**HEADERS, "MCP-Protocol-Version": version, "Mcp-Method": "tools/list"}
    status, text, _ = bridge.http("/mcp", method="POST", headers=headers, data=body)
    assert 400 <= status < 500 or (status == 202 and "id" not in text), (status, text)
    assert "Traceback" not in bridge.log.read_text()


@pytest.mark.parametrize(
    ("body", "request_id", "said"),
    [
        *((PING.replace(b"1", value), None, "the id is") for value in (b"null", b"1.5", b"true", b"{}", b"1e999")),
        (b"[" + PING + b"]", None, "MCP has no batches since 2025-06-18"),
        (b"5", None, "found 5; wanted a message such as"),
        (b'"' + "\u4f60".encode() * 999 + b'"', None, "found"),
        (b"", None, "it is empty"),
        (PING[:-1], None, "Expecting ',' delimiter at character "),
        (PING.replace(b"ping", b"caf\xe9"), None, "it is not UTF-8 text: byte "),
        (PING.replace(b"1", b"NaN"), None, "it has no NaN"),
        (b'{"id": "a", "method": "ping"}', "a", "jsonrpc is missing"),
        (PING.replace(b"2.0", b"1.0"), 1, 'jsonrpc is "1.0"; wanted "2.0"'),
        (PING.replace(b'"ping"', b"5"), 1, "method is 5"),
        (PING.replace(b'"ping"', b'"ping", "params": []'), 1, "params is a list; wanted an object"),
        (PING.replace(b"method", b"metod"), 1, "there is no method"),
        (PING.replace(b"ping", b"p\\ud83d"), 1, "half of a surrogate pair"),
        (PING.replace(b"ping", b"tools/call"), 1, "name is missing; wanted params such as"),
        (PING.replace(b"ping", b"initialize"), 1, "protocolVersion is missing; wanted params such as"),
        (PING.replace(b"ping", b'initialize", "params": {"protocolVersion": "1", "capabilities": []}, "x": "'), 1,
         "capabilities is a list"),
        (PING.replace(b'"ping"', INITIALIZE + b', "clientInfo": {"name": "x"}}'), 1, "clientInfo.version is missing"),
        (PING.replace(b'"ping"', INITIALIZE + b', "clientInfo": {"name": 5}}'), 1, "clientInfo.name is 5"),
        (PING.replace(b'"ping"', b'"x", "params": {"_meta": []}'), 1, "_meta is a list; wanted an object, or none"),
        (PING.replace(b"ping", b'tools/call", "params": {"name": "chat", "arguments": []}, "x": "'), 1, "a list"),
        (PING.replace(b"ping", b'x", "params": {"x": ' + b"[" * 300 + b"]" * 300 + b'},"":"'), 1, "deeper than 255"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_message_is_told_as_json_rpc_has_it(
    bridge: Bridge, body: bytes, request_id: object, said: str
) -> None:
    status, text, headers = bridge.http("/mcp", method="POST", headers=HEADERS, data=body)
    reply = json.loads(text)
    assert (status, headers["Content-Type"]) == (400, "application/json")
    assert (reply["jsonrpc"], reply["id"]) == ("2.0", request_id)
    assert said in reply["error"]["message"]
    assert len(text) < 500


LONG = "\U0001f600" + "p" * 255
CALL = {"name": "chat", "arguments": {"message": "ping"}}


@pytest.mark.parametrize("extra", ["", "p"])
@pytest.mark.parametrize("method", ["ping", "tools/call", "tools/dance"])
def test_an_id_has_256_characters_at_most(bridge: Bridge, method: str, extra: str) -> None:
    message = {"jsonrpc": "2.0", "id": LONG + extra, "method": method, "params": CALL if method == "tools/call" else {}}
    status, text, _ = bridge.http("/mcp", method="POST", headers=HEADERS, data=json.dumps(message).encode())
    reply = json.loads(text.removeprefix("event: message\r\ndata: "))
    assert reply["id"] == (None if extra else LONG)
    if extra:
        assert (status, reply["error"]["code"]) == (400, -32600)
        assert reply["error"]["message"] == "Invalid request: the id has 257 characters, at most 256 are taken."


@pytest.mark.parametrize("name", ["chat", "no such tool"])
def test_a_progress_token_has_256_characters_at_most(bridge: Bridge, name: str) -> None:
    for token, is_taken in ((LONG, True), (LONG + "p", False)):
        params = {**CALL, "name": name, "_meta": {"progressToken": token}}
        message = {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": params}
        status, text, _ = bridge.http("/mcp", method="POST", headers=HEADERS, data=json.dumps(message).encode())
        assert (status == 200) == is_taken
        if not is_taken:
            error = json.loads(text)["error"]
            assert error["message"] == "Invalid request: the progressToken has 257 characters, at most 256 are taken."


def test_a_notification_may_say_that_it_has_no_id(bridge: Bridge) -> None:
    body = PING.replace(b"1,", b"null,").replace(b"ping", b"notifications/initialized")
    assert bridge.http("/mcp", method="POST", headers=HEADERS, data=body)[0] == 202


def test_an_id_that_came_as_a_float_and_a_byte_order_mark_are_taken(bridge: Bridge) -> None:
    for body in (PING.replace(b"1", b"1.0"), b"\xef\xbb\xbf" + PING):
        status, text, _ = bridge.http("/mcp", method="POST", headers=HEADERS, data=body)
        assert (status, '"id":1,' in text, '"result":{}' in text) == (200, True, True)


JSON, EVENTS = "application/json", "text/event-stream"


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        *(("Content-Type", value, 200) for value in ("Application/JSON", f"{JSON} ; charset=UTF-8", f"{JSON}, {JSON}")),
        *(("Content-Type", value, 415) for value in ("text/plain", "", "application/json-seq", "multipart/form-data")),
        *(("Content-Encoding", value, 415) for value in ("gzip", "GZIP", "br", "deflate", "zstd", "gzip, identity")),
        *(("Content-Encoding", value, 200) for value in ("", "identity")),
        *(("Accept", value, 200) for value in ("", "*/*", JSON, "application/*", f"{JSON};q=0.1, text/*;q=1")),
        *(
            ("Accept", value, 200)
            for value in (
                EVENTS,
                f"{JSON};q=0, */*",
                f"{JSON.upper()},{EVENTS.upper()}",
                f"{EVENTS};q=0, */*",
                "a;;,,*/*",
            )
        ),
        *(("Accept", value, 406) for value in ("text/html", f"{JSON};q=0", "*/*; q=0.000", "json")),
    ],
)
def test_what_a_body_is_and_what_its_answer_may_be(bridge: Bridge, name: str, value: str, status: int) -> None:
    found, text, headers = bridge.http("/mcp", method="POST", headers={**HEADERS, name: value}, data=PING)
    assert found == status
    said = {200: '"result":{}', 406: "Send 'Accept: application/json, text/event-stream'", 415: f"{name} is "}
    assert said[status] in text
    if (name, status) == ("Accept", 200):
        assert headers["Content-Type"] == (EVENTS if value in {EVENTS, f"{JSON};q=0, */*"} else JSON)


@pytest.mark.parametrize("method", ["ping", "resources/list"], ids=["quick", "SDK"])
@pytest.mark.parametrize(
    ("version", "is_spoken"),
    [
        *((version, True) for version in ("2025-11-25, 2025-11-25", "2025-11-25,2025-06-18", "2024-11-05")),
        *((version, False) for version in ("", "undefined", "2025-06-17", "2099-01-01", "2025-11-25, 2026-07-28", ",")),
        ("2099-01-01" * 100, False),
    ],
)
def test_a_version_may_be_named_twice_and_one_that_nobody_speaks_is_told(
    bridge: Bridge, method: str, version: str, *, is_spoken: bool
) -> None:
    body = PING.replace(b"ping", method.encode())
    headers = {**HEADERS, "MCP-Protocol-Version": version, "Accept": JSON}
    status, text, _ = bridge.http("/mcp", method="POST", headers=headers, data=body)
    reply = json.loads(text)
    if is_spoken:
        assert (status, reply.get("error", {}).get("code")) == (200, None if method == "ping" else -32601)
        return
    assert (status, reply["id"], reply["error"]["code"], len(text) < 600) == (400, 1, -32022, True)
    assert f"the header MCP-Protocol-Version is {version[:60]!r};" in reply["error"]["message"]
    spoken = ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"]
    assert reply["error"]["data"] == {"supported": ["2026-07-28"], "requested": version[:60]}
    assert all(spoke in reply["error"]["message"] for spoke in spoken)


def test_the_modern_version_may_be_named_twice(bridge: Bridge) -> None:
    for method in ("tools/list", "resources/list"):
        status, text, _ = modern(bridge, method, version="2026-07-28, 2026-07-28")
        assert (status, "does not match" in text) == (200 if method == "tools/list" else 404, False), text
    assert "-32020" in modern(bridge, "tools/list", version="2099-01-01")[1]  # header and body differ


@pytest.mark.parametrize("version", ["2026-07-28", "2099-01-01", "undefined"])
@pytest.mark.parametrize("more", [b"", b', "icons": [{"src": "http://icon"}]'], ids=["quick", "SDK"])
def test_a_handshake_settles_the_version_whatever_its_header_says(bridge: Bridge, version: str, more: bytes) -> None:
    body = PING.replace(b'"ping"', INITIALIZE + b', "clientInfo": {"name": "x", "version": "1"%s}}' % more)
    headers = {**HEADERS, "MCP-Protocol-Version": version}
    status, text, _ = bridge.http("/mcp", method="POST", headers=headers, data=body)
    assert (status, '"protocolVersion":"2025-11-25"' in text) == (200, True)


ODD = {
    "initialize": INITIALIZE
    + b', "clientInfo": {"name": "x", "version": "1", "title": null, "icons": [{"src": "i"}]}}',
    "params": b'"tools/list", "params": null',
    "cursor": b'"tools/list", "params": {"cursor": "x"}',
    "method": b'"prompts/list"',
    "key": b'"ping", "x": 1',
    "params wrong": b'"tools/list", "params": {"cursor": 5}',
    "call": b'"tools/call", "params": {"name": "list_models", "_meta": {"progressToken": true}}',
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("kind", [JSON, EVENTS])
@pytest.mark.parametrize("session", [{}, {"Mcp-Session-Id": "s"}], ids=["", "session"])
def test_who_takes_one_kind_of_answer_gets_it_from_both_lanes(
    bridge: Bridge, odd: bytes, kind: str, session: dict[str, str]
) -> None:
    headers = {**HEADERS, **session, "Accept": kind}
    status, text, answered = bridge.http("/mcp", method="POST", headers=headers, data=PING.replace(b'"ping"', odd))
    assert (status, answered["Content-Type"]) == (200, kind)
    *_, data = (line.removeprefix("data: ") for line in text.splitlines() if line.startswith(("data: ", "{")))
    assert json.loads(data)["id"] == 1


def test_a_modern_client_gets_the_one_kind_that_it_takes_and_is_told_where_there_is_none(bridge: Bridge) -> None:
    for kind in (JSON, EVENTS):
        status, text, headers = modern(bridge, "tools/list", accept=kind, cursor="x")
        assert (status, headers["Content-Type"], '"tools":' in text) == (200, kind, True)
    status, text, _ = modern(bridge, "subscriptions/listen", accept=JSON, notifications={})
    assert (status, text.startswith("subscriptions/listen is answered with events. Send 'Accept: ")) == (406, True)


def test_a_notification_may_have_null_for_its_parameters(bridge: Bridge) -> None:
    body = b'{"jsonrpc": "2.0", "method": "notifications/initialized", "params": null}'
    assert bridge.http("/mcp", method="POST", headers={**HEADERS, "Accept": JSON}, data=body)[0] == 202


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (b'"tools/list", "params": {"cursor": 5}', "cursor is 5; wanted a valid string."),
        (b'"tools/list", "params": {"_meta": {"progressToken": {}}}', "_meta.progressToken is an object; wanted"),
        (b'"tools/list", "params": {"_meta": {"progressToken": []}}', "_meta.progressToken is a list; wanted"),
        (b'"tools/list", "params": {"_meta": {"progressToken": 1.5}}', "_meta.progressToken is 1.5; wanted"),
        *(
            (INITIALIZE.replace(b"{}", found) + b', "clientInfo": {"name": "x", "version": "1"}}', said)
            for found, said in (
                (b'{"sampling": true}', "capabilities.sampling is true; wanted a valid object."),
                (b'{"experimental": {"x": true}}', "capabilities.experimental.x is true; wanted a valid object."),
            )
        ),
    ],
)
def test_which_parameter_the_sdk_takes_for_wrong_is_told(bridge: Bridge, method: bytes, said: str) -> None:
    body = PING.replace(b'"ping"', method)
    _, text, _ = bridge.http("/mcp", method="POST", headers={**HEADERS, "Accept": JSON}, data=body)
    error = json.loads(text)["error"]
    assert error["code"] == -32602
    assert error["message"].startswith(f"Invalid params: {said}")


@dataclass
class Late(FakeEngine):
    """Answers after so many seconds."""

    seconds: float = 0

    def _handle(self, connection: socket.socket) -> None:
        time.sleep(self.seconds)
        super()._handle(connection)


def test_who_takes_no_events_gets_json_however_long_it_takes(tmp_path: Path) -> None:
    late = Late(events(piece("at last", "stop")), seconds=6)  # later than a quiet call becomes a stream
    call = {"name": "chat", "arguments": {"message": "hi"}, "_meta": {"progressToken": 1}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}).encode()
    with late.running() as url, serving(tmp_path, url) as bridge:
        status, text, headers = bridge.http("/mcp", method="POST", headers={**HEADERS, "Accept": JSON}, data=body)
    assert (status, headers["Content-Type"]) == (200, JSON)
    assert json.loads(text)["result"]["content"][0]["text"] == "at last"


def test_who_sends_no_more_still_gets_its_answers(tmp_path: Path) -> None:
    """Some clients end their side once they have asked, as nc -N does."""
    late = Late(events(piece("at last", "stop")), seconds=1)
    params = {"name": "chat", "arguments": {"message": "hi"}}
    call = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    start = (b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n" + START).replace(b"Connection: close\r\n", b"")
    with late.running() as url, serving(tmp_path, url) as bridge:
        for requests in (1, 2):
            with socket.create_connection(("127.0.0.1", bridge.port), timeout=20) as connection:
                connection.sendall((start + b"Content-Length: %d\r\n\r\n" % len(call) + call) * requests)
                connection.shutdown(socket.SHUT_WR)
                answers = connection.makefile("rb").read()
            assert answers.count(b"HTTP/1.1 200 OK") == answers.count(b'"text":"at last"') == requests, answers


def test_a_slash_at_the_end_leads_to_the_same_place(bridge: Bridge) -> None:
    assert bridge.http("/mcp/", method="POST", headers=HEADERS, data=PING)[0] == 200


def test_a_client_that_goes_with_several_requests_under_way_leaves_no_traceback(bridge: Bridge) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    request = f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}Content-Length: 1\r\n\r\n{{".encode()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", bridge.port)) as connection:
            connection.sendall(request * 3)
    assert bridge.http("/healthz")[0] == 200
    time.sleep(0.5)
    assert "Traceback" not in bridge.log.read_text()


def modern(
    bridge: Bridge, method: str, *, version: str = "2026-07-28", accept: str = HEADERS["Accept"], **params: object
) -> tuple[int, str, Message]:
    """Send one request of the protocol of 2026-07-28, byte by byte as it goes over the wire.

    Args:
        bridge: takes it.
        method: what is asked.
        version: is in the header.
        accept: kinds of answers.
        params: of the request.
    """
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    headers = {**HEADERS, "MCP-Protocol-Version": version, "Mcp-Method": method, "Accept": accept}
    if "name" in params:
        headers["Mcp-Name"] = str(params["name"])
    return bridge.http("/mcp", method="POST", headers=headers, data=json.dumps(body).encode())


def test_half_a_character_is_the_callers_fault(bridge: Bridge) -> None:
    status, text, _ = modern(bridge, "tools/call", name="chat", arguments={"message": "\udead"})
    assert status == 200
    assert "not valid Unicode" in json.loads(text)["result"]["content"][0]["text"]


def test_quick_answers_are_plain_json(bridge: Bridge) -> None:
    status, text, headers = modern(bridge, "tools/list")
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert len(json.loads(text)["result"]["tools"]) == 6


def test_it_lives_whatever_the_engine_does(bridge: Bridge) -> None:
    assert bridge.http("/healthz")[:2] == (200, "ok\n")
    assert bridge.http("/healthz", method="POST", data=b"")[0] == 405
    assert bridge.http("/")[0] == 404


def test_it_is_ready_when_every_engine_serves_its_model(bridge: Bridge) -> None:
    status, text, _ = bridge.http("/readyz")
    assert status == 200
    assert json.loads(text) == {"ready": True, "models": {MODEL: "ready"}}


def test_it_is_not_ready_when_an_engine_is_not_and_says_why(engine: str, tmp_path: Path) -> None:
    down = f"http://127.0.0.1:{free_port()}"
    with serving(tmp_path, engine, engine, down) as bridge:
        status, text, _ = bridge.http("/readyz")
    assert status == 503
    found = json.loads(text)
    assert found["ready"] is False
    assert found["models"][MODEL] == "ready"
    assert "does not serve model1; it serves qwen2-tiny" in found["models"]["model1"]
    assert "cannot be reached: Connection refused" in found["models"]["model2"]
    assert ENGINE_KEY not in text


def test_a_hanging_engine_does_not_hang_readiness(tmp_path: Path) -> None:
    hanging = FakeEngine(b"", hold=threading.Event())
    with hanging.running() as url, serving(tmp_path, url) as bridge:
        started = time.monotonic()
        status, text, _ = bridge.http("/readyz")
        assert time.monotonic() - started < 5
        assert status == 503
        assert "did not answer within 3 s" in text
        for _ in range(5):
            bridge.http("/readyz")
    assert len(hanging.requests) == 1, "one probe serves all who ask at about the same time"


def test_readiness_follows_the_engine(tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, f"http://127.0.0.1:{port}") as bridge:
        assert bridge.http("/readyz")[0] == 503
        with llama_server(port):
            wait_for(lambda: bridge.http("/readyz")[0] == 200, 10)
        wait_for(lambda: bridge.http("/readyz")[0] == 503, 10)


@pytest.mark.anyio
async def test_systemd_is_told_and_the_journal_gets_priorities(engine: str, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(10)
        environment = {"NOTIFY_SOCKET": address, "JOURNAL_STREAM": "8:1"}
        with serving(tmp_path / "bridge", engine, environment=environment) as bridge:
            ready = manager.recv(4096).decode()
            assert ready.startswith("READY=1\nSTATUS=Serving on 127.0.0.1:")
            assert "1 model(s), 1 developer(s)" in ready
            async with bridge.client() as client:
                await client.call_tool("chat", {"message": "What is the capital of France?"})
                await client.call_tool("no such\ntool", {})
            bridge.process.send_signal(signal.SIGTERM)
            assert manager.recv(4096).decode().startswith("STOPPING=1")
            assert bridge.process.wait(10) == 0
    log = bridge.log.read_text()
    good, bad = records(log)
    assert (good["what"], good["outcome"]) == ("chat", "ok")
    assert (bad["what"], bad["outcome"]) == ("-", "unknown_tool")
    assert all(re.match("<[0-7]>", text) for text in log.splitlines())
    for secret in (TOKEN, ENGINE_KEY, "France", "Paris", "no such"):
        assert secret not in log


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_running_calls_are_finished_before_it_stops(tmp_path: Path, mode: str) -> None:
    asked, hold = threading.Event(), threading.Event()

    class Slow(FakeEngine):
        def _handle(self, connection: socket.socket) -> None:
            asked.set()
            hold.wait(20)
            super()._handle(connection)

    engine = Slow(events(piece("at last"), piece("", "stop")))
    with engine.running() as url, serving(tmp_path, url) as bridge:
        async with bridge.client(mode) as client, anyio.create_task_group() as group:
            await client.list_tools()  # which the client would else do after the call, when nobody listens any more

            async def stop() -> None:
                await anyio.to_thread.run_sync(asked.wait, 20)
                bridge.process.send_signal(signal.SIGTERM)
                await anyio.sleep(1.5)
                hold.set()

            group.start_soon(stop)
            result = await client.call_tool("chat", {"message": "Take your time."})
            assert text_of(result) == "at last"
        assert await anyio.to_thread.run_sync(bridge.process.wait, 10) == 0


def started(folder: Path, content: dict[str, object], **environment: str) -> subprocess.CompletedProcess[str]:
    """Start a bridge that is not going to run."""
    (folder / "config.yml").write_text(yaml.safe_dump(content))
    return subprocess.run(
        [PROGRAM, "serve", "--config", str(folder / "config.yml")],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={"PATH": os.environ["PATH"], **environment},
    )


def test_a_port_that_is_taken_is_named(bridge: Bridge, tmp_path: Path) -> None:
    (tmp_path / "engine-key").write_text("k")
    done = started(tmp_path, configuration(bridge.port, "http://e"), CREDENTIALS_DIRECTORY=str(tmp_path))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{bridge.port}: Address already in use." in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_key_file_that_is_missing_is_named(tmp_path: Path) -> None:
    content = configuration(free_port(), "http://e")
    done = started(tmp_path, content)
    assert done.returncode == 2
    assert "LoadCredential=engine-key:/path" in done.stderr
    done = started(tmp_path, content, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path}/engine-key: cannot be read: No such file or directory" in done.stderr
    (tmp_path / "engine-key").write_text("two words")
    done = started(tmp_path, content, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert done.returncode == 2
    assert "must hold one key" in done.stderr
    assert "two words" not in done.stderr
