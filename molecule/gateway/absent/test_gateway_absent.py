"""What is left when the gateway is removed."""

from testinfra.host import Host


def test_nothing_is_left(host: Host) -> None:
    assert not host.run("find /etc /var/lib -name 'local-llm-gateway*'").stdout
    assert not host.run("ls -d /run/local-llm-gateway*").stdout
    assert not host.user("local-llm-gateway").exists
    assert not host.run("ss -Hltn 'sport = :443'").stdout
    assert not host.run("ip -4 -o address show | grep '/32'").stdout
