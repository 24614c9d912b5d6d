"""A request's records, of gateway and bridge, are found together, kept for a set time, and sent to syslog."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.lab.waiting import until

CONVERGE = Path(__file__).resolve().parent.parent / "converge.yml"
JOURNAL = "/var/log/journal/$(cat /etc/machine-id).local-llm-audit"
RECEIVED = "/var/log/receiver.log"
TEXT = "What is the capital of France?"
TOKEN, NOBODYS = "molecule-token-of-alice", "molecule-token-of-nobody"

pytestmark = pytest.mark.units("local-llm-gateway", "local-llm-bridge", "rsyslog", "receiver")

Guest = Callable[..., Host]
Records = Callable[..., list[dict[str, Any]]]
Play = Callable[..., subprocess.CompletedProcess[str]]


def test_the_gateways_and_the_bridges_record_of_a_request_are_found_together(
    host: Host, ask: Callable[..., int], records: Records
) -> None:
    since = host.check_output("date '+%F %T.%6N'")
    assert ask(host, TEXT, **{"X-Request-ID": "mine"}) == 200
    assert ask(host, TEXT, NOBODYS) == 401
    found = {(record["source"], record["outcome"]): record for record in records(host, since, count=3)}
    way, call, refused = found["gateway", "ok"], found["bridge", "ok"], found["gateway", "refused"]
    common = {"time", "source", "request_id", "developer", "client", "what", "model", "outcome", "duration_ms"}
    assert all(common <= record.keys() for record in (way, call, refused))
    assert way["request_id"] == call["request_id"] not in ("mine", refused["request_id"])
    assert (way["developer"], way["what"], way["status"]) == ("alice", "POST /mcp", 200)
    assert (call["developer"], call["what"], call["model"]) == ("alice", "chat", "qwen2-tiny")
    assert call["prompt_tokens"] > 0
    assert (refused["developer"], refused["status"]) == ("-", 401)
    for record in (way, call, refused):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])
    journal = host.check_output("journalctl --boot --namespace='*'")
    assert not any(words in journal for words in (TEXT, "Paris", TOKEN, NOBODYS))


def test_records_reach_a_server_of_syslog_over_tls(host: Host, guest: Guest, records: Records) -> None:
    written = {(record["request_id"], record["source"]) for record in records(host)[-3:]}
    form = rf"<134>1 \d{{4}}-\d\d-\d\dT\S+ {host.check_output('hostname')} local-llm-audit \S+ - - +({{.*}})"

    def received() -> set[tuple[str, str]]:
        lines = guest("debian13").run("cat %s", RECEIVED).stdout.splitlines()
        sent = [json.loads(match[1]) for line in lines if (match := re.fullmatch(form, line))]
        return {(record["request_id"], record["source"]) for record in sent}

    until(lambda: written <= received())
    assert {source for _, source in written} == {"gateway", "bridge"}


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"audit_log_days": 0}, "audit_log_days is 0"),
        ({"audit_log_max_mib": 1}, "audit_log_max_mib is 1"),
        ({"audit_log_syslog": {"host": "tcp://logs"}}, "found host tcp://logs"),
        ({"audit_log_syslog": {"port": 514}}, "found host (none), port 514"),
        ({"audit_log_syslog": {"host": "logs", "ca": "/etc/ca.pem"}}, "found host logs, port 6514, a ca of 11"),
    ],
    ids=["days", "space", "host", "no host", "ca"],
)
def test_what_cannot_work_is_refused(play: Play, extra: dict[str, Any], text: str) -> None:
    done = play(CONVERGE, "--limit=debian13", f"--extra-vars={json.dumps(extra)}")
    assert done.returncode != 0
    assert text in " ".join(done.stdout.split())
    assert "changed=0" in done.stdout


def test_records_are_kept_for_the_time_that_was_set(guest: Guest, play: Play) -> None:
    done = play(CONVERGE, "--extra-vars={'audit_log_days': 3}")
    assert done.returncode == 0, done.stdout
    rotate = "journalctl --namespace=local-llm-audit --rotate"
    for name in ("debian12", "debian13"):
        host = guest(name)
        host.check_output(rotate)
        file = host.check_output(f"ls -t {JOURNAL}/system@*.journal | head -1")
        made = {}
        for days in (2, 5):
            # Journald takes a file's age from its name; that of its first record.
            began = int((time.time() - days * 86400) * 1e6)
            made[days] = f"{file.rpartition('-')[0]}-{began:016x}.journal"
            host.check_output(
                "cp --preserve %s %s && touch --date=@%s %s", file, made[days], str(began // 10**6), made[days]
            )
        host.check_output(rotate)
        assert host.file(made[2]).exists
        assert not host.file(made[5]).exists
        host.check_output("rm %s", made[2])
