"""Without the role records go on, and go nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from testinfra.host import Host


def test_gateway_and_bridge_still_write_them(
    host: Host, ask: Callable[..., int], records: Callable[..., list[dict[str, Any]]]
) -> None:
    before = len(records(host))
    assert before > 0
    assert ask(host, "ping") == 200
    records(host, count=before + 2)


def test_nothing_of_the_role_is_left(host: Host) -> None:
    assert not host.run("grep -rl local-llm-audit /etc/rsyslog.d /etc/systemd/journald@* /etc/ssl/certs").stdout
    assert not host.run("ss -xl | grep journal.local-llm-audit/syslog").stdout
