"""Which of LiteLLM's routes answer without a key, and that none of them makes it call anybody outside.

``routes.txt`` has each route of the pinned release with the status that it gives without a key. The gateway passes on
only those that it names; its own test reads the same file. After an upgrade, look at what has changed:

    PYTEST_ADDOPTS="-k routes" molecule verify -s litellm     # shows the difference
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

SCENARIO = Path(__file__).resolve().parent.parent
ROUTES = (SCENARIO / "routes.txt").read_text().splitlines()

pytestmark = pytest.mark.units("litellm")

COUNTER = """table inet outside {
  chain output {
    type filter hook output priority 0
    meta skuid litellm oifname != "lo" counter
  }
}
"""
# What the gateway sends on.
GUARDED = [
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
]


@pytest.fixture
def one(guest: Callable[..., Host]) -> Iterator[Host]:
    """The guest whose packets of LiteLLM to others than itself are counted, before systemd drops them."""
    host = guest("debian13")
    host.check_output("nft %s", COUNTER)
    yield host
    host.check_output("nft delete table inet outside")


def test_the_routes_are_those_that_we_know_and_nothing_goes_outside(one: Host) -> None:
    program = (SCENARIO / "programs/routes.py").read_text()
    one.check_output("systemctl restart litellm")  # a start counts, too
    environment = one.check_output("systemctl show --property=Environment --value litellm")
    found = one.check_output(f"{environment} /opt/litellm/current/bin/python -c %s 4000 2>/run/routes.err", program)
    assert found.splitlines() == ROUTES
    assert "counter packets 0 bytes 0" in one.check_output("nft list table inet outside")


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_what_the_gateway_sends_on_needs_the_key(method: str, path: str) -> None:
    assert f"401 {method} {path}" in ROUTES
