"""What is left when the door is removed."""

from testinfra.host import Host


def test_nothing_is_left(host: Host) -> None:
    for path in ("/etc/local-llm-gateway", "/run/local-llm-gateway", "/etc/systemd/system/local-llm-gateway.service"):
        assert not host.file(path).exists
    assert not host.user("local-llm-gateway").exists
    assert not host.run("ss -Hltn 'sport = :443'").stdout
