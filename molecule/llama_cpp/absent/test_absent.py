"""What the role made is gone, and the model's file is not."""

from __future__ import annotations

import pytest
from testinfra.host import Host


@pytest.mark.parametrize("path", ["/opt/llama-cpp", "/etc/llama-cpp", "/etc/systemd/system/llama-cpp@.service"])
def test_what_the_role_made_is_gone(host: Host, path: str) -> None:
    assert not host.file(path).exists


def test_no_process_and_no_user_is_left(host: Host) -> None:
    assert not host.user("llama-cpp").exists
    assert host.check_output("systemctl list-units --all --no-legend 'llama-cpp@*'") == ""
    assert not host.socket("tcp://8000").is_listening


def test_the_model_is_still_there(host: Host) -> None:
    assert host.file("/srv/models/qwen2-tiny.gguf").exists
