"""The virtual machine, and what its tests share; `run` starts it and sets VM_PORT."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
import testinfra
from testinfra.host import Host

KEY = "/var/cache/local-llm-fleet/vm/key"
EMULATED_S = 300  # the longest that anything takes there on a busy machine


@pytest.fixture(scope="session")
def port() -> int:
    """This machine's port for its ssh; the ones above lead to its 8000 and its 5555."""
    return int(os.environ["VM_PORT"])


@pytest.fixture(scope="session")
def host(port: int, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """The virtual machine, as root."""
    return testinfra.get_host(
        f"ssh://deploy@127.0.0.1:{port}",
        ssh_identity_file=KEY,
        ssh_extra_args="-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        controlpath=str(tmp_path_factory.mktemp("ssh") / "master"),
        sudo=True,
        timeout=120,
    )


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until something is so.

    Returns:
        A function of what is asked again and again.
    """

    def wait(so: Callable[[], object]) -> None:
        deadline = time.monotonic() + EMULATED_S
        while not so():
            assert time.monotonic() < deadline, f"not so after {EMULATED_S} s"
            time.sleep(1)

    return wait
