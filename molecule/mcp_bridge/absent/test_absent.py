"""What the role made is gone."""

from __future__ import annotations

import pytest
from testinfra.host import Host


@pytest.mark.parametrize(
    "path",
    [
        "/opt/local-llm-bridge",
        "/etc/local-llm-bridge",
        "/etc/systemd/system/local-llm-bridge.service",
        "/etc/systemd/system/local-llm-sandbox.socket",
        "/etc/systemd/system/local-llm-sandbox@.service",
        "/var/lib/local-llm-sandbox",
        "/run/local-llm-sandbox.sock",
    ],
)
def test_what_the_role_made_is_gone(host: Host, path: str) -> None:
    assert not host.file(path).exists


def test_no_process_and_no_user_is_left(host: Host) -> None:
    assert not host.user("local-llm-bridge").exists
    assert not host.socket("tcp://8080").is_listening


def test_the_engine_still_runs(host: Host) -> None:
    assert host.service("llama-cpp@qwen2-tiny").is_running
