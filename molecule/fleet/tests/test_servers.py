"""The servers from outside: what listens there is shut to those who need not come, and nothing leaves that need not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from testinfra.host import Host

MODEL_HOSTS = ("model1", "model2")
GATEWAYS = ("gateway1", "gateway2")

pytestmark = pytest.mark.units("local-llm-firewall")

Guest = Callable[..., Host]


def listening(host: Host) -> set[tuple[str, int]]:
    """Where a host listens for others: addresses and TCP ports."""
    sockets = [line.split()[3].rpartition(":") for line in host.check_output("ss -Htln").splitlines()]
    return {(address, int(port)) for address, _, port in sockets if not address.startswith(("127.", "[::1]"))}


def answer(host: Host, address: str, port: int) -> int:
    """How an attempt to connect ends, as curl's exit status: 28 is no answer, 7 a refusal, others a connection."""
    return int(host.run("curl --silent --output /dev/null --max-time 2 http://%s:%s/", address, str(port)).rc)


def test_a_developers_host_reaches_the_gateways_alone(guest: Guest) -> None:
    for name in MODEL_HOSTS + GATEWAYS:
        sockets = listening(guest(name))
        assert sockets
        for address, port in sockets:
            dropped = answer(guest("dev1"), address, port) == 28
            assert dropped == (port != 443), f"{name}, {address}, port {port}"


@pytest.mark.parametrize("name", MODEL_HOSTS + GATEWAYS)
def test_nothing_leaves_that_need_not(guest: Guest, name: str) -> None:
    dev1 = guest("dev1").check_output("hostname --ip-address").split()[0]
    assert answer(guest(name), dev1, 443) == 7
    assert (
        "refused"
        in guest(name).run("python3 -c 'import socket; socket.create_connection((\"192.0.2.1\", 443))'").stderr
    )
