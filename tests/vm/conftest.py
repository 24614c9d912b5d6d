"""The virtual machine, and what its tests share; `run` starts it and sets VM_PORT."""

from __future__ import annotations

import os

import pytest
import testinfra
from testinfra.host import Host

KEY = "/var/cache/local-llm-fleet/vm/key"


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
