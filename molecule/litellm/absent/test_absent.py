"""What the role made is gone, and the engines are not."""

from __future__ import annotations

import pytest
from testinfra.host import Host


@pytest.mark.parametrize(
    "path", ["/opt/litellm", "/etc/litellm", "/var/cache/litellm", "/etc/systemd/system/litellm.service"]
)
def test_what_the_role_made_is_gone(host: Host, path: str) -> None:
    assert not host.file(path).exists


def test_no_process_and_no_user_is_left(host: Host) -> None:
    assert not host.user("litellm").exists
    assert host.check_output("systemctl list-units --all --no-legend 'litellm*'") == ""
    assert not host.socket("tcp://127.0.0.1:4000").is_listening


def test_the_engines_still_run(host: Host) -> None:
    assert host.service("llama-cpp@qwen2-tiny").is_running
    assert host.service("llama-cpp@replica2").is_running
