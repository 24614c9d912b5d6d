"""After a real boot the firewall is there before the network, and everything that should answer does."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.lab.waiting import until

ANSWERS = json.loads((Path(__file__).resolve().parent.parent / "tiny_model/answers.json").read_text())["chat"]
QUICKSORT = "Write a quicksort function in Python."
KEY = "virtual-machine-llama-cpp-key"
OFFER = "2"
# The smallest request of DHCP that there is (RFC 2131), and what is answered to it.
DISCOVER = """
import socket
dhcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
dhcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the network's manager has the port, too
dhcp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
dhcp.bind(("", 68))
dhcp.settimeout(60)
me = bytes.fromhex("525400999999")
head = bytes.fromhex("01010600deadbeef00008000") + bytes(16) + me + bytes(202)
dhcp.sendto(head + bytes.fromhex("63825363350101ff"), ("255.255.255.255", 67))
answer = dhcp.recv(1500)
assert answer[4:8] == head[4:8]
print(answer[answer.index(bytes.fromhex("3501")) + 2])
"""
TABLE = "nft --stateless --terse list table inet local_llm_fleet"


def logged(host: Host, *words: str) -> bool:
    """Whether the kernel has logged a packet that the firewall did not let through."""
    return bool(host.run("journalctl --dmesg --boot --grep=%s", ".*".join(["local-llm-firewall", *words])).rc == 0)


def when(host: Host, unit: str, name: str) -> int:
    """When something became of a unit, in microseconds since the boot."""
    return int(host.check_output("systemctl show --property=%s --value %s", f"{name}TimestampMonotonic", unit))


def test_nothing_has_failed(host: Host) -> None:
    until(lambda: host.run("systemctl is-system-running").stdout.strip() in ("running", "degraded"))
    assert host.check_output("systemctl --failed --plain --no-legend") == ""


def test_the_rules_are_those_of_before(host: Host) -> None:
    table = host.check_output(TABLE)
    assert table == host.file("/srv/table").content_string.strip()
    assert table.count("policy drop;") == 2  # what comes in, and what goes out


def test_the_rules_were_there_before_the_network(host: Host) -> None:
    loaded = when(host, "local-llm-firewall", "ActiveEnter")
    assert 0 < loaded < when(host, "systemd-networkd", "InactiveExit")
    assert loaded < when(host, "ssh", "InactiveExit")


def test_the_model_answers_whom_it_may(port: int, host: Host) -> None:
    """The unit has started by itself, and the answer passes a firewall that is strict on both ways."""
    until(lambda: host.service("llama-cpp@qwen2-tiny").is_running)
    body = {"model": "qwen2-tiny", "temperature": 0, "messages": [{"role": "user", "content": QUICKSORT}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port + 1}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310
        assert json.load(answer)["choices"][0]["message"]["content"] == ANSWERS[QUICKSORT]


def test_the_bridge_is_ready(host: Host) -> None:
    until(lambda: host.run("curl --silent --fail --max-time 60 http://127.0.0.1:8080/readyz").rc == 0)


def test_what_is_dropped_is_logged(port: int, host: Host) -> None:
    """Somebody listens there; of QEMU's network this machine's side answers, and the packet is sent on."""
    host.check_output("systemd-run --quiet --collect --unit=listener python3 -m http.server 5555")
    until(lambda: host.run("curl --silent http://127.0.0.1:5555/").rc == 0)
    with pytest.raises((TimeoutError, ConnectionError, urllib.error.URLError)):
        urllib.request.urlopen(f"http://127.0.0.1:{port + 2}/", timeout=10)
    until(lambda: logged(host, " in: ", "SRC=10.0.2.2 ", "PROTO=TCP ", "DPT=5555 "))
    host.check_output("systemctl stop listener")


def test_what_must_not_go_out_is_refused_and_logged(host: Host) -> None:
    assert host.run("curl --silent --max-time 120 http://192.0.2.1/").rc == 7  # at once
    until(lambda: logged(host, " out: ", "DST=192.0.2.1 ", "PROTO=TCP ", "DPT=80 "))


def test_addresses_are_asked_for_and_given(host: Host) -> None:
    """By a socket, whose packets pass the firewall both ways; the network's manager asks around it, the first time."""
    assert host.check_output("python3 -c %s", DISCOVER) == OFFER
    assert not logged(host, "DPT=67 ")
