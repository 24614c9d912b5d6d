"""The module gateway_preflight: what it refuses, and that it shows no secret."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gateway_preflight as preflight
import pytest

DIGEST = "a" * 64
SERVER = {"name": "model1", "address": "10.0.0.5:8000"}
MODEL = {"name": "qwen2-tiny", "servers": [SERVER]}


def test_a_sound_gateway_has_no_problems() -> None:
    assert not list(preflight.target_problems([MODEL], [{"name": "gateway1", "address": "gateway1.example.com:8080"}]))
    assert not list(preflight.target_problems([MODEL | {"servers": [{"name": "v6", "address": "[fd00::1]:8000"}]}], []))
    assert not list(preflight.caller_problems([{"name": "alice", "token_sha256": DIGEST}], {"key": "k" * 20}))


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([], "nothing is behind the gateway"),
        ([MODEL, MODEL], "qwen2-tiny is there more than once"),
        ([MODEL | {"name": "a b"}], "name 'a b'"),
        ([MODEL | {"servers": []}], "qwen2-tiny has no servers"),
        ([MODEL | {"servers": [SERVER, SERVER]}], "model1 is there more than once"),
        ([MODEL | {"servers": [SERVER | {"address": "http://10.0.0.5:8000/v1"}]}], "it is host:port, without http://"),
        ([MODEL | {"servers": [SERVER | {"name": "x y"}]}], "name 'x y' of a server"),
    ],
)
def test_targets_that_cannot_be_are_refused(models: list[dict[str, Any]], words: str) -> None:
    (problem,) = preflight.target_problems(models, [])
    assert words in problem


@pytest.mark.parametrize(
    ("developers", "words"),
    [
        ([{"name": "alice smith", "token_sha256": DIGEST}], "name 'alice smith'"),
        ([{"name": "alice", "token_sha256": "secret-token"}], "token_sha256 of alice has 12 characters"),
        (
            [{"name": "alice", "token_sha256": DIGEST}, {"name": "bob", "token_sha256": DIGEST}],
            "alice, bob have the same",
        ),
    ],
)
def test_callers_that_cannot_be_are_refused(developers: list[dict[str, Any]], words: str) -> None:
    (problem,) = preflight.caller_problems(developers, {})
    assert words in problem
    assert "secret-token" not in problem


def test_keys_that_can_be_guessed_are_refused_and_not_shown() -> None:
    (problem,) = preflight.caller_problems([], {"gateway_engine_key": "short-secret"})
    assert problem.startswith("gateway_engine_key has 12 characters")
    assert "short-secret" not in problem


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of loopback on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_that_somebody_has_is_refused(taken: int) -> None:
    ports = {"gateway_port": taken, "gateway_internal_port": 1}
    (problem,) = preflight.place_problems("127.0.0.1", ports, "local-llm-gateway.service", "ss")
    assert f"gateway_port: port {taken} on 127.0.0.1 is taken by" in problem
    assert f"pid {os.getpid()}" in problem


@pytest.mark.parametrize(
    ("address", "ports", "words"),
    [
        ("here", {}, "gateway_address is 'here'"),
        ("192.0.2.1", {}, "which this host does not have"),
        ("127.0.0.1", {"gateway_port": 0, "gateway_internal_port": 1}, "gateway_port is 0"),
        ("127.0.0.1", {"gateway_port": 1, "gateway_internal_port": 1}, "are the same port"),
        (
            "127.0.0.1",
            {"gateway_port": 80, preflight.ACME: 80},
            "gateway_port and gateway_tls: acme are the same port, 80",
        ),
    ],
)
def test_places_that_cannot_be_are_refused(address: str, ports: dict[str, int], words: str) -> None:
    (problem,) = preflight.place_problems(address, ports, "local-llm-gateway.service", "ss")
    assert words in problem


def test_the_authoritys_port_is_none_to_choose(taken: int) -> None:
    (problem,) = preflight.place_problems("127.0.0.1", {preflight.ACME: taken}, "local-llm-gateway.service", "ss")
    assert problem.startswith(f"gateway_tls: acme: port {taken} on 127.0.0.1 is taken by")
    assert problem.endswith("stop it, on that port the authority asks")


@pytest.mark.parametrize("domain", ["10.0.0.5", "fd00::5", "gateway1", "*.example.com", "llm.example.com.", ""])
def test_names_that_no_authority_can_ask_at_are_refused(domain: str) -> None:
    (problem,) = preflight.acme_problems(domain)
    assert problem.startswith(f"gateway_domain is {domain!r}; gateway_tls: acme needs a name of DNS")
    assert not list(preflight.acme_problems("llm.example.com"))


@pytest.mark.parametrize(
    ("peers", "words"),
    [
        ([{"name": "gateway2", "address": "10.0.0.6:80"}], "without a port"),
        ([{"name": "gateway 2", "address": "10.0.0.6"}], "name 'gateway 2'"),
        ([{"name": "gateway2", "address": "10.0.0.6"}] * 2, "gateway2 is there more than once"),
    ],
)
def test_peers_that_cannot_be_are_refused(peers: list[dict[str, Any]], words: str) -> None:
    (problem,) = preflight.peer_problems(peers)
    assert words in problem
    addresses = ["10.0.0.6", "fd00::6", "gateway2.example.com"]
    assert not list(
        preflight.peer_problems([{"name": address.replace(":", "-"), "address": address} for address in addresses])
    )


def test_texts_that_are_no_pem_are_refused() -> None:
    certificate, key = preflight.certificate_problems("/etc/ssl/gateway.pem", "secret-words")
    assert "gateway_certificate has no PEM certificate" in certificate
    assert "gateway_private_key has no PEM private key" in key
    assert "secret-words" not in key


# --- the address that gateways share ---


def test_a_shared_address_is_one_of_a_network_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"is '10\.0\.0'; it is an IPv4 address"):
        preflight.interface_of("10.0.0")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1, which this host has as its own"):
        preflight.interface_of("127.0.0.1")
    # what ip(8) says of an address behind a router
    routes = [{"dst": "192.0.2.1", "gateway": "10.0.0.1", "dev": "eth0", "prefsrc": "10.0.0.5", "flags": []}]
    monkeypatch.setattr(preflight, "ip_json", lambda *args: routes if args[0] == "route" else [])
    with pytest.raises(ValueError, match=r"192\.0\.2\.1, which is in no network of this host"):
        preflight.interface_of("192.0.2.1")


def test_the_other_gateways_have_addresses() -> None:
    assert preflight.resolved([{"name": "gateway2", "address": "127.0.0.1"}]) == ["127.0.0.1"]
    with pytest.raises(ValueError, match="needs a second gateway"):
        preflight.resolved([])
    with pytest.raises(ValueError, match=r"gateway2: nowhere\.invalid is not known on this host"):
        preflight.resolved([{"name": "gateway2", "address": "nowhere.invalid"}])


def test_names_are_looked_up_as_the_name_servers_know_them(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/etc/resolv.conf": [["search", "example.com", "example.net"], ["nameserver", "10.0.0.1"]],
        "/etc/hosts": [["127.0.0.1", "localhost"], ["10.0.0.9", "listed.example.com", "Listed"]],
    }
    known = {"short.example.net", "full.example.org"}
    monkeypatch.setattr(preflight, "settings", files.__getitem__)
    monkeypatch.setattr(preflight, "is_in_dns", known.__contains__)
    hosts = ["short", "full.example.org", "unknown", "listed", "10.0.0.5", "[fd00::1]", "fd00::1"]
    assert preflight.names_of_dns(hosts) == {
        "short": "short.example.net",
        "full.example.org": "full.example.org",
        "unknown": "unknown",
    }
    files["/etc/resolv.conf"] = []
    assert preflight.names_of_dns(hosts) == {}


def test_settings_are_read_without_comments(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# all\n10.0.0.1\ta b # not c\n\n; d\n")
    assert preflight.settings(str(file)) == [["10.0.0.1", "a", "b"]]
    assert preflight.settings(str(tmp_path / "none")) == []
