"""Hardening after a real boot: what the kernel does with it, and not what was written."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest
from testinfra.host import Host

from tests.lab.waiting import until

SYSCTL = "/etc/sysctl.d/zz-local-llm-hardening.conf"
RULES = "/etc/audit/rules.d/50-local-llm-hardening.rules"
MODULES = "/etc/modprobe.d/local-llm-hardening.conf"
PROGRAM = "/usr/local/bin/probe"
PROFILE = f"""
profile probe {PROGRAM} {{
    {PROGRAM} mr,
    /usr/lib/** mr,
    /etc/ld.so.cache r,
    /etc/os-release r,
}}
"""


def test_the_journal_is_kept_over_the_reboot(host: Host) -> None:
    assert len(host.check_output("journalctl --list-boots --quiet --output=json").split("boot_id")) - 1 == 2


def test_every_parameter_of_the_kernel_is_as_it_was_set(host: Host) -> None:
    lines = host.file(SYSCTL).content_string.splitlines()
    wanted = dict(re.split(r"\s*=\s*", line, maxsplit=1) for line in lines if re.match(r"-?[a-z]", line))
    wanted = {key.removeprefix("-"): value for key, value in wanted.items() if "*" not in key}
    found = host.check_output(f"sysctl --values {' '.join(wanted)}").splitlines()
    assert len(wanted) > 30
    assert dict(zip(wanted, found, strict=True)) == wanted


def test_blocked_modules_cannot_be_loaded(host: Host) -> None:
    blocked = re.findall(r"^install (\S+) /bin/false$", host.file(MODULES).content_string, re.MULTILINE)
    there = [module for module in blocked if host.run("modinfo --field=filename %s", module).rc == 0]
    assert there  # or this proves nothing
    assert [module for module in there if host.run("modprobe %s", module).rc == 0] == []
    assert host.run("modprobe dummy").rc == 0  # others can


def test_nobody_comes_in_by_a_password(port: int) -> None:
    argv = ["ssh", "-p", str(port), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    argv += ["-o", "BatchMode=yes", "-o", "PubkeyAuthentication=no", "deploy@127.0.0.1", "true"]
    asked = subprocess.run(argv, capture_output=True, text=True)
    assert asked.returncode == 255
    assert "Permission denied (publickey)." in asked.stderr


def test_the_audit_rules_are_in_the_kernel(host: Host) -> None:
    assert host.service("auditd").is_running
    assert "enabled 1" in host.check_output("auditctl -s").splitlines()
    rules = [line for line in host.file(RULES).content_string.splitlines() if line.startswith("-")]
    loaded = host.check_output("auditctl -l").splitlines()
    assert len(rules) > 20
    assert len(loaded) == len(rules), loaded


def test_auditd_logs_who_changes_what_makes_the_host_safe(host: Host) -> None:
    host.check_output("touch /etc/sudoers.d/audited && rm /etc/sudoers.d/audited")
    # Ansible's account, through sudo: the audit knows who came in.
    search = "ausearch --input-logs --interpret --key scope --file /etc/sudoers.d/audited --loginuid %s"
    until(lambda: host.run(search, host.check_output("id --user deploy")).rc == 0)


@pytest.fixture
def confined(host: Host) -> Iterator[Host]:
    """A program with a profile that lets it read one file."""
    host.check_output("install /usr/bin/cat %s", PROGRAM)
    assert host.run("%s /etc/hostname", PROGRAM).rc == 0
    host.check_output("echo %s | apparmor_parser --replace", PROFILE)
    yield host
    host.check_output("echo %s | apparmor_parser --remove; rm %s", PROFILE, PROGRAM)


def test_apparmor_confines_and_auditd_logs_it(confined: Host) -> None:
    assert int(confined.check_output("aa-status --enforced")) > 1  # Debian's own, too
    assert confined.run("%s /etc/os-release", PROGRAM).rc == 0
    refused = confined.run("%s /etc/hostname", PROGRAM)
    assert "Permission denied" in refused.stderr
    # ausearch does not find AppArmor's records.
    search = 'grep \'^type=AVC .*apparmor="DENIED".*profile="probe" name="/etc/hostname"\' /var/log/audit/audit.log'
    until(lambda: confined.run(search).rc == 0)


def test_the_clock_is_set_by_a_service_that_no_container_runs(host: Host) -> None:
    assert host.service("systemd-timesyncd").is_running


@pytest.mark.parametrize("timer", ["apt-daily.timer", "apt-daily-upgrade.timer"])
def test_updates_are_looked_for_every_day(host: Host, timer: str) -> None:
    assert host.check_output("systemctl show --property=ActiveState --value %s", timer) == "active"
