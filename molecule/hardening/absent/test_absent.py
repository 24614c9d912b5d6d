"""What is left when the hardening is gone: what was there before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from testinfra.host import Host


@pytest.mark.parametrize("name", ["debian12", "debian13"])
def test_the_host_is_set_to_what_it_was_before(guest: Callable[..., Host], name: str) -> None:
    host = guest(name)
    difference = host.run("host-state | diff /var/tmp/state-before -")
    assert difference.rc == 0, difference.stdout
    for path in ("/var/lib/local-llm-hardening", "/run/local-llm-hardening"):
        assert not host.file(path).exists
