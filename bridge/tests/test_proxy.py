"""Proxies of the environment: which requests go through one, what is said of its failures, and never its password."""

from __future__ import annotations

import base64
import json
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from local_llm_bridge.errors import ConfigError
from local_llm_bridge.models.connection_errors import proxy_answered
from local_llm_bridge.proxy import Proxy, for_url, is_exempt, is_loopback
from tests.services import MODEL, FakeEngine, Listener, answer, events, free_port, piece, piped, serving
from tests.test_stdio import call

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USER, PASSWORD = "proxy-user", "p@ss:w/ rd"
WRITTEN = "proxy-user:p%40ss%3Aw%2F%20rd"
SECRETS = (USER, PASSWORD, WRITTEN, "p%40ss", base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode())
ENGINE = "http://engine.example:8000"
OK = events(piece("through the proxy", "stop"))


@pytest.mark.parametrize(
    "host",
    ["localhost", "a.localhost", "localhost.localdomain", "127.0.0.1", "127.8.9.1", "127.1", "2130706433", "0x7f000001",
     "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "0:0:0:0:0:0:0:1"],
)  # fmt: skip
def test_loopback_however_it_is_written(host: str) -> None:
    assert is_loopback(host)
    url = f"http://[{host}]:8000/v1" if ":" in host else f"http://{host.upper()}:8000/v1"
    assert for_url(url, {"http": "http://proxy:3128", "all": "socks5://proxy"}) is None


@pytest.mark.parametrize("host", ["127.example", "localhost.example", "notlocalhost", "10.0.0.1", "::2", "dead.beef"])
def test_what_only_looks_like_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "exempt"),
    [
        ("*", "engine.example", 80, True),
        ("other, *", "engine.example", 80, True),
        ("engine.example", "engine.example", 80, True),
        ("ENGINE.Example", "engine.example", 80, True),
        ("example", "engine.example", 80, True),
        (".example", "engine.example", 80, True),
        (".engine.example", "engine.example", 80, True),
        ("*.example", "engine.example", 80, True),
        ("*.example", "a.engine.example", 80, True),
        ("engine.*", "engine.example", 80, True),
        ("a b\tengine.example", "engine.example", 80, True),
        (" a , engine.example ,", "engine.example", 80, True),
        ("a;engine.example", "engine.example", 80, True),
        ("engine.example.", "engine.example", 80, True),
        ("http://engine.example", "engine.example", 80, True),
        ("https://engine.example:8000/v1", "engine.example", 8000, True),
        ("engine.example/", "engine.example", 80, True),
        ('"other,engine.example"', "engine.example", 80, True),
        ("'10.0.0.0/8'", "10.1.2.3", 80, True),
        ("engine.example:8000", "engine.example", 8000, True),
        ("*.example:8000", "engine.example", 8000, True),
        ("engine.example:8001", "engine.example", 8000, False),
        ("gine.example", "engine.example", 80, False),
        ("engine.example", "engine.example.org", 80, False),
        ("other.example", "engine.example", 80, False),
        ("", "engine.example", 80, False),
        (",. ,*.", "engine.example", 80, False),
        ("10.0.0.5", "10.0.0.5", 80, True),
        ("10.0.0.0/8", "10.1.2.3", 80, True),
        ("10.0.0.7/8", "10.1.2.3", 80, True),
        ("10.0.0.0/255.0.0.0", "10.1.2.3", 80, True),
        ("10.*", "10.1.2.3", 80, True),
        ("192.168.1.*", "192.168.1.9", 80, True),
        ("10.0.0.5:8000", "10.0.0.5", 8000, True),
        ("10.0.0.5:8000", "10.0.0.5", 80, False),
        ("10.0.0.0/8", "11.1.2.3", 80, False),
        ("0.0.5", "10.0.0.5", 80, False),
        ("10.0.0.0/99", "10.0.0.5", 80, False),
        ("fd00::/8", "fd12::1", 80, True),
        ("[fd00::]/8", "fd12::1", 80, True),
        ("fd12::1", "fd12::1", 80, True),
        ("FD12:0::1", "fd12::1", 80, True),
        ("[fd12::1]", "fd12::1", 80, True),
        ("[fd12::1]:8000", "fd12::1", 8000, True),
        ("[fd12::1]:8000", "fd12::1", 80, False),
        ("fd13::/16", "fd12::1", 80, False),
        ("10.0.0.0/8", "::ffff:10.0.0.1", 80, True),
        ("10.0.0.0/8", "fd12::1", 80, False),
    ],
)
def test_no_proxy_in_its_forms(no_proxy: str, host: str, port: int, *, exempt: bool) -> None:
    assert is_exempt(host, port, no_proxy) is exempt


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("proxy:3128", "http://proxy:3128"),
        (" HTTP://Proxy:3128/ ", "http://proxy:3128"),
        ('"http://proxy:3128"', "http://proxy:3128"),
        ("'http://proxy:3128'\r\n", "http://proxy:3128"),
        ("http://proxy", "http://proxy:80"),
        ("https://proxy", "https://proxy:443"),
        ("http://[fd00::1]:3128", "http://[fd00::1]:3128"),
    ],
)
def test_addresses_of_proxies(value: str, url: str) -> None:
    assert for_url(ENGINE, {"http": value}) == Proxy(url, "http_proxy")
    with_auth = value.strip().replace("//", f"//{WRITTEN}@") if "//" in value else f"{WRITTEN}@{value}"
    proxy = for_url(ENGINE, {"all": with_auth})
    assert proxy == Proxy(url, "all_proxy", (USER, PASSWORD))
    assert not any(secret in f"{proxy} {proxy!r} {proxy.name}" for secret in SECRETS)


@pytest.mark.parametrize(
    "value",
    ["http://", "http://:3128", "http://proxy:port", "http://proxy:99999", "http://proxy:0", "ftp://proxy:21",
     "http:/proxy", "http//proxy:3128", "http://proxy:3128/path", "http://proxy:3128?x", "http://pro xy:3128", "http://[fd00::1:3128",
     "http://proxy\udce9:3128", "://", "http://user:pa#ss@proxy:3128", "http://user:12/ss@proxy:3128"],
)  # fmt: skip
def test_what_is_no_address_of_a_proxy(value: str) -> None:
    for written in (value, value.replace("http://", f"http://{WRITTEN}@")):
        with pytest.raises(ConfigError) as error:
            for_url(ENGINE, {"http": written})
        assert "http_proxy: is not the address of a proxy; wanted http://host:port" in str(error.value)
        assert "engine.example" in str(error.value)
        assert not any(secret in str(error.value) for secret in (*SECRETS, "pa#ss", "12/ss"))


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4a", "SOCKS"])
def test_a_socks_proxy_is_refused_by_name(scheme: str) -> None:
    with pytest.raises(ConfigError) as error:
        for_url(ENGINE, {"all": f"{scheme}://{WRITTEN}@proxy:1080"})
    assert f"all_proxy: names a SOCKS proxy ({scheme.lower()}://)" in str(error.value)
    assert not any(secret in str(error.value) for secret in SECRETS)
    assert for_url(ENGINE, {"all": f"{scheme}://proxy:1080", "no": ".example"}) is None
    assert for_url(ENGINE, {"all": f"{scheme}://proxy:1080", "http": "proxy:3128"}) is not None


@pytest.mark.parametrize(
    ("status", "headers", "body", "is_its_own"),
    [
        (407, {}, b"", True),
        (403, {}, b"<html>Access denied</html>", True),
        (502, {}, b"Bad gateway: no such host", True),
        (503, {"x-squid-error": "ERR_DNS_FAIL 0"}, b"{}", True),
        (403, {}, b'{"error": {"message": "wrong key"}}', False),
        (503, {}, b' {"error": "loading"}', False),
        (404, {}, b"<html>", False),
        (500, {}, b"Internal Server Error", False),
    ],
)
def test_whose_a_refusal_is(status: int, headers: dict[str, str], body: bytes, *, is_its_own: bool) -> None:
    assert proxy_answered(status, headers, body) is is_its_own


@contextmanager
def proxy(reply: bytes, tunnels_to: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Run a proxy; gives its host and port, and the heads of the requests that it got.

    Args:
        reply: what it answers; empty: it hangs up.
        tunnels_to: after the reply, it is a tunnel to this port.
    """
    heads: list[str] = []

    def handle(connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        heads.append(data.partition(b"\r\n\r\n")[0].decode())
        connection.sendall(reply)
        if tunnels_to:
            with socket.create_connection(("127.0.0.1", tunnels_to)) as engine:
                threading.Thread(target=pump, args=(connection, engine), daemon=True).start()
                pump(engine, connection)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while more := source.recv(65536):
                sink.sendall(more)
        except OSError:
            pass

    listener = Listener(handle)
    try:
        yield listener.url.removeprefix("http://").removesuffix("/v1"), heads
    finally:
        listener.close()


def asked(url: str, **environment: str) -> str:
    """Ask an engine; gives the text of the result. No secret is in what the bridge says or logs."""
    settings = {"LOCAL_API_URL": url, "MODEL_NAME": MODEL, "OPENAI_MAX_RETRIES": "0", **environment}
    replies, done = piped(call(1, "hi"), **settings)
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS)
    if not replies:
        return done.stderr
    result: dict[str, Any] = replies[0]["result"]
    text: str = result["content"][0]["text"]
    return text


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_it_is_asked_with_user_and_password(variable: str) -> None:
    with proxy(OK) as (name, heads):
        assert asked(ENGINE, **{variable: f"http://{WRITTEN}@{name}"}) == "through the proxy"
    assert heads[0].startswith(f"POST {ENGINE}/v1/chat/completions HTTP/1.1\r\n")
    assert f"\r\nProxy-Authorization: Basic {SECRETS[-1]}" in heads[0]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("user", ["", f"{WRITTEN}@"])
def test_it_does_not_get_the_engines_key(scheme: str, user: str) -> None:
    url = ENGINE.replace("http", scheme)
    with proxy(OK) as (name, heads):
        asked(url, **{f"{scheme}_proxy": f"http://{user}{name}", "OPENAI_API_KEY": "engine-key"})
    shown = dict(line.lower().split(": ", 1) for line in heads[0].split("\r\n")[1:])
    # A request that it passes on holds what is for the engine; a tunnel's hides it.
    assert shown.get("authorization") == ("bearer engine-key" if scheme == "http" else None)
    assert shown.get("proxy-authorization", "basic")[:5] == "basic"
    assert ("proxy-authorization" in shown) is bool(user)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_loopback_is_never_sent_to_it(host: str) -> None:
    with FakeEngine(events(piece("straight", "stop"))).running() as url, proxy(b"") as (name, heads):
        text = asked(url.replace("127.0.0.1", host), http_proxy=name, ALL_PROXY="socks5://proxy:1080")
    assert heads == []
    assert "cannot be reached: Connection refused" in text if host == "127.0.0.2" else text == "straight"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (answer("407 Proxy Authentication Required", "text/html", "<h1>Who are you?</h1>"),
         ["(HTTP 407: Who are you?)", "It does not know this user and password: http_proxy takes them as"]),
        (answer("403 Forbidden", "text/html", "<p>Category: AI</p>"), ["(HTTP 403: Category: AI)"]),
        (answer("502 Bad Gateway", "text/plain", "no such host"), ["(HTTP 502: no such host)"]),
        (b"", ["hung up before it answered"]),
    ],
)  # fmt: skip
def test_what_it_refuses_is_told_as_its_own(reply: bytes, words: list[str]) -> None:
    with proxy(reply) as (name, _):
        text = asked(ENGINE, http_proxy=f"http://{WRITTEN}@{name}")
    assert text.startswith(f"The proxy {name}")
    assert all(word in text for word in [*words, "engine.example"]), text
    assert "key" not in text, "the engine's has nothing to do with it"


def test_what_the_engine_refuses_is_the_engines() -> None:
    refusal = answer("403 Forbidden", "application/json", json.dumps({"error": {"message": "not this model"}}))
    with proxy(refusal) as (name, _):
        text = asked(ENGINE, http_proxy=f"http://{WRITTEN}@{name}")
    assert text.startswith(f"The model server at {ENGINE}/v1 refused the bridge's key (HTTP 403)")


def test_one_that_is_not_there() -> None:
    name = f"127.0.0.1:{free_port()}"
    text = asked(ENGINE, http_proxy=f"http://{WRITTEN}@{name}")
    assert text.startswith(f"The proxy {name}, on the way to {ENGINE}/v1, cannot be reached: Connection refused. ")
    assert "put engine.example into NO_PROXY" in text
    text = asked(ENGINE, http_proxy=f"http://{WRITTEN}@proxy.invalid:3128")
    assert text.startswith(f"The proxy proxy.invalid:3128, on the way to {ENGINE}/v1, cannot be reached: ")


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            answer("407 Proxy Authentication Required", "text/html", ""),
            "wants a user and a password: HTTPS_PROXY takes",
        ),
        (answer("403 Forbidden", "text/html", ""), "if engine.example is to be reached without it"),
        (answer("502 Bad Gateway", "text/plain", ""), "if engine.example is to be reached without it"),
    ],
)
def test_a_tunnel_that_it_refuses(reply: bytes, words: str) -> None:
    status = reply.decode().partition("\r\n")[0].removeprefix("HTTP/1.1 ").replace(" ", ": ", 1)
    with proxy(reply) as (name, heads):
        text = asked(ENGINE.replace("http", "https"), HTTPS_PROXY=f"http://{name}")
    assert heads[0].startswith("CONNECT engine.example:8000 HTTP/1.1\r\n")
    assert text.startswith(f"The proxy {name} refused to connect to https://engine.example:8000/v1 (HTTP {status})."), (
        text
    )
    assert words in text


def test_a_wrong_one_ends_the_start_with_a_sentence() -> None:
    text = asked(ENGINE, ALL_PROXY=f"socks5h://{WRITTEN}@proxy:1080")
    assert text.startswith("local-llm-bridge: ALL_PROXY: names a SOCKS proxy (socks5h://)")
    text = asked(ENGINE, http_proxy=f"http://{WRITTEN}@proxy:port")
    assert text.startswith("local-llm-bridge: http_proxy: is not the address of a proxy")


def test_readyz_and_the_log_have_no_password(tmp_path: Path) -> None:
    name = f"127.0.0.1:{free_port()}"
    environment = {"http_proxy": f"http://{WRITTEN}@{name}"}
    with serving(tmp_path, ENGINE, environment=environment) as bridge:
        status, text, _ = bridge.http("/readyz")
    assert status == 503
    assert f"The proxy {name}" in text
    assert not any(secret in text + bridge.log.read_text() for secret in SECRETS)
