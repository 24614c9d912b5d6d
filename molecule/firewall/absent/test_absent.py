"""What is left when the firewall is gone: what was there before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from testinfra.host import Host


@pytest.mark.parametrize("name", ["debian12", "debian13"])
def test_nothing_is_left_but_the_table_of_somebody_else(guest: Callable[..., Host], name: str) -> None:
    host = guest(name)
    assert host.check_output("nft list tables").split() == ["table", "ip", "admin"]
    assert host.run("systemctl cat local-llm-firewall").rc != 0
    for path in ("/etc/local-llm-firewall", "/run/local-llm-firewall"):
        assert not host.file(path).exists
