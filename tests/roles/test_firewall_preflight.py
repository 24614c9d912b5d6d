"""The module firewall_preflight: what it refuses, and what it finds out."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import firewall_preflight as preflight
import pytest
from ansible.module_utils.ssh_session import Session

RULE = {"name": "model", "protocol": "tcp", "ports": ["8000"], "from": ["10.0.0.5"]}
FROM_ANYWHERE = {"ipv4": ["0.0.0.0/0"], "ipv6": ["::/0"]}


def read(*rules: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """What is made of rules, and what is wrong with them."""
    problems: list[str] = []
    return preflight.read_rules("firewall_allow", "from", list(rules), problems), problems


def test_a_rule_is_written_as_nft_wants_it() -> None:
    given = RULE | {"ports": ["8001", "9000-9010", "9005-9020", "8000"]}
    given["from"] = ["10.0.0.5", "10.0.0.0/24", "fd00::1", "fd00::2/128", "192.0.2.1"]
    (rule,), problems = read(given)
    assert not problems
    assert rule == {
        "name": "model",
        "protocol": "tcp",
        "ports": ["8000-8001", "9000-9020"],
        "ipv4": ["10.0.0.0/24", "192.0.2.1"],
        "ipv6": ["fd00::1", "fd00::2"],
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"from": []}, "firewall_allow: model: `from` is empty, so it would be for nobody"),
        ({"from": ["10.0.0.5/24"]}, "the network is 10.0.0.0/24"),
        ({"from": ["10.0.0.0/33"]}, "'10.0.0.0/33' is no network"),
        ({"from": ["10.0.0.300"]}, "'10.0.0.300' is neither an address, nor a network, nor a name"),
        ({"from": ["a b"]}, "'a b' is neither"),
        ({"from": ["nobody.invalid"]}, "nobody.invalid is not known on this host"),
        ({"from": ["localhost"]}, "localhost leads to this host's own loopback"),
        ({"ports": []}, "firewall_allow: model: no ports; 1-65535 are all"),
        ({"ports": ["0"]}, "port '0'; one is 1 to 65535"),
        ({"ports": ["9-8"]}, "port '9-8'"),
        ({"ports": ["http"]}, "port 'http'"),
        ({"ports": ["65536"]}, "port '65536'"),
        ({"protocol": "sctp"}, "protocol is 'sctp'; use tcp, udp or vrrp"),
        ({"protocol": "vrrp"}, "vrrp has no ports"),
        ({"name": 'x" accept'}, "name 'x\" accept': use letters"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    _, (problem,) = read(RULE | change)
    assert words in problem


def test_two_rules_have_two_names() -> None:
    _, (problem,) = read(RULE, RULE)
    assert problem == "firewall_allow: model is there more than once; give each entry a name of its own"


def test_a_name_has_all_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(name: str, _: None) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        assert name == "gateway1.test"
        return [(2, 1, 6, "", ("10.0.0.7", 0)), (10, 1, 6, "", ("fd00::7", 0)), (2, 2, 17, "", ("10.0.0.7", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    (rule,), problems = read(RULE | {"from": ["gateway1.test"]})
    assert not problems
    assert (rule["ipv4"], rule["ipv6"]) == (["10.0.0.7"], ["fd00::7"])


@pytest.mark.parametrize(
    ("came", "admins", "allow", "locked_out"),
    [
        (None, {"ipv4": [], "ipv6": []}, [], False),  # not by ssh
        (("10.0.0.9", "22"), FROM_ANYWHERE, [], False),
        (("fd00::9", "22"), FROM_ANYWHERE, [], False),
        (("10.0.0.9", "22"), {"ipv4": ["10.0.0.0/28"], "ipv6": []}, [], False),
        (("10.0.0.99", "22"), {"ipv4": ["10.0.0.0/28"], "ipv6": []}, [], True),
        (("fd00::9", "22"), {"ipv4": ["0.0.0.0/0"], "ipv6": []}, [], True),
        (("10.0.0.99", "2222"), {"ipv4": ["10.0.0.1"], "ipv6": []}, [("2000-3000", "10.0.0.0/24")], False),
        (("10.0.0.99", "22"), {"ipv4": ["10.0.0.1"], "ipv6": []}, [("2000-3000", "10.0.0.0/24")], True),
    ],
)
def test_whoever_runs_it_is_not_locked_out(
    came: tuple[str, str] | None, admins: dict[str, list[str]], allow: list[tuple[str, str]], locked_out: bool
) -> None:
    rules = [{"protocol": "tcp", "ports": [ports], "ipv4": [network], "ipv6": []} for ports, network in allow]
    session = came and Session("deploy", came[0], "50000", "10.0.0.5", came[1])
    assert bool(list(preflight.lockout_problems(session, admins, rules))) is locked_out


def test_the_ports_of_sshd_are_those_that_it_listens_on(tmp_path: Path) -> None:
    sshd = tmp_path / "sshd"
    sshd.write_text("#!/bin/sh\nprintf 'port 22\\nlistenaddress [::]:2222\\nlistenaddress 10.0.0.5:22022\\n'\n")
    sshd.chmod(0o755)
    assert preflight.sshd_ports(str(sshd)) == {"2222", "22022"}
    sshd.write_text("#!/bin/sh\necho 'Missing privilege separation directory: /run/sshd' >&2\nexit 255\n")
    with pytest.raises(ValueError, match="does not say on which port sshd listens: Missing privilege"):
        preflight.sshd_ports(str(sshd))
