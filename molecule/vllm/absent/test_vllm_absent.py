"""`state: absent` leaves the models and nothing of the role."""

from __future__ import annotations

from testinfra.host import Host


def test_nothing_of_it_runs_or_is_left(host: Host) -> None:
    for path in ("/opt/vllm", "/etc/vllm", "/etc/systemd/system/vllm@.service", "/var/cache/vllm"):
        assert not host.file(path).exists
    assert host.check_output("systemctl list-units --all --plain --no-legend 'vllm*'") == ""
    assert not host.user("vllm").exists


def test_the_models_stay(host: Host) -> None:
    assert host.file("/var/lib/models/qwen2-tiny/model.safetensors").exists
