"""Hardened hosts: the way in that works, those that do not, what each topic does, and no way to lock oneself out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra.host import Host

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
INVENTORIES = [SCENARIO / "inventory/hosts.yml"]
ANSWERS = json.loads((PROJECT / "tests/tiny_model/answers.json").read_text())["chat"]
QUICKSORT = "Write a quicksort function in Python."

HARDENED = OVER_SSH = ["debian12", "debian13"]  # the second with the level strict
DROP_IN = "/etc/ssh/sshd_config.d/00-local-llm-hardening.conf"
MOST_TASKS = 40

pytestmark = pytest.mark.units("ssh", "local-llm-hardening-rollback")

Guest = Callable[..., Host]
Play = Callable[..., subprocess.CompletedProcess[str]]


def address(guest: Guest, name: str) -> str:
    """A guest's address."""
    return str(guest(name).check_output("hostname --ip-address").split()[0])


def key() -> Path:
    """The key that prepare.yml has made."""
    return Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "key"


def ssh(guest: Guest, user: str, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Come in by ssh from outside, with the key."""
    argv = ["ssh", "-F", "none", "-i", str(key()), "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no"]
    argv += ["-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", *options]
    argv += [f"{user}@{address(guest, name)}", "id --user --name"]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What Ansible says, without its folding of lines."""
    return " ".join((done.stdout + done.stderr).split())


def recap(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, int]]:
    """What Ansible counts, by host."""
    lines = re.findall(r"^(\S+)\s+: (ok=.*)$", done.stdout, re.MULTILINE)
    return {host: {word: int(n) for word, n in re.findall(r"(\w+)=(\d+)", counts)} for host, counts in lines}


def test_a_second_run_over_ssh_changes_nothing_and_has_few_tasks(
    over_ssh: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    done = over_ssh()
    took = time.monotonic() - began
    assert done.returncode == 0, done.stdout
    for host, counts in recap(done).items():
        tasks = counts["ok"] + counts["skipped"]
        with capsys.disabled():
            print(f"\n{host}: {tasks} tasks, {counts['skipped']} of them skipped; {took:.0f} s for both hosts together")
        assert counts["changed"] == 0, done.stdout
        assert tasks <= MOST_TASKS


@pytest.mark.parametrize("name", HARDENED)
def test_only_keys_are_let_in(guest: Guest, name: str) -> None:
    assert ssh(guest, "deploy", name).stdout.strip() == "deploy"
    without = ("-o", "PubkeyAuthentication=no")
    assert "Permission denied (publickey)." in ssh(guest, "deploy", name, *without).stderr
    assert "Permission denied (publickey,password)." in ssh(guest, "deploy", "fresh", *without).stderr


def test_root_comes_in_by_key_or_under_strict_not_at_all(guest: Guest) -> None:
    assert ssh(guest, "root", "debian12").stdout.strip() == "root"
    assert "Permission denied" in ssh(guest, "root", "debian13").stderr


@pytest.mark.parametrize("name", HARDENED)
def test_a_key_lets_in_whatever_has_become_of_the_password(guest: Guest, name: str) -> None:
    host = guest(name)
    host.check_output("chage --lastday 2020-01-01 --maxdays 60 alice")
    assert ssh(guest, "alice", name).stdout.strip() == "alice"
    host.check_output("chage --lastday -1 --maxdays 99999 --mindays 0 --warndays 7 alice")


@pytest.mark.parametrize("name", HARDENED)
def test_weak_algorithms_are_refused(guest: Guest, name: str) -> None:
    weak = ("Ciphers=aes128-cbc", "MACs=hmac-sha1", "KexAlgorithms=diffie-hellman-group14-sha1")
    for option in weak:
        # A cipher without a MAC of its own; of two options the first counts.
        refused = ssh(guest, "deploy", name, "-o", option, "-o", "Ciphers=aes128-ctr")
        assert "no matching" in refused.stderr, refused.stderr


def test_a_run_that_would_plainly_lock_itself_out_is_refused(guest: Guest, over_ssh: Play) -> None:
    before = [guest(name).file(DROP_IN).content for name in HARDENED]
    done = over_ssh(hardening_ssh_allow_groups=["games"])
    assert done.returncode == 2
    words = "sshd would let in only the groups games, and deploy, as whom this run came in, is not among"
    assert said(done).count(words) >= len(HARDENED), done.stdout
    assert all(counts["changed"] == 0 for counts in recap(done).values())
    assert [guest(name).file(DROP_IN).content for name in HARDENED] == before


def test_a_run_as_root_is_not_told_to_shut_root_out(over_ssh: Play) -> None:
    done = over_ssh(hosts=["debian12"], user="root", hardening_level="strict")
    assert done.returncode == 2
    assert "This run came in as root, and hardening_ssh_root_login is 'no'" in said(done).replace("''", "'")
    assert recap(done)["debian12"]["changed"] == 0


def test_a_run_that_came_in_by_password_is_refused(guest: Guest, over_ssh: Play) -> None:
    done = over_ssh(hosts=["fresh"], password="molecule-deploy-password")  # noqa: S106 - of a guest
    assert done.returncode == 2, done.stdout
    assert "This run came in as deploy by password" in said(done)
    assert not guest("fresh").file("/var/lib/local-llm-hardening").exists


def test_what_sshd_does_not_take_is_never_used(guest: Guest, over_ssh: Play) -> None:
    host = guest("debian12")
    before = host.file(DROP_IN).content
    host.check_output("echo 'Nonsense yes' >/etc/ssh/sshd_config.d/50-admin.conf")
    try:
        done = over_ssh(hosts=["debian12"], hardening_ssh_forwarding=True)
        assert done.returncode == 2
        assert "sshd does not take this configuration, so nothing was changed" in said(done)
        assert "Bad configuration option: Nonsense" in said(done)
        assert host.file(DROP_IN).content == before
    finally:
        host.check_output("rm /etc/ssh/sshd_config.d/50-admin.conf")


def test_a_lockout_undoes_itself(guest: Guest, over_ssh: Play) -> None:
    """With a become that hides the session (as run0 does), so that nothing shows it beforehand."""
    before = [guest(name).file(DROP_IN).content for name in HARDENED]
    done = over_ssh(
        hardening_ssh_allow_groups=["games"],
        hardening_rollback_s=20,
        ansible_python_interpreter="/usr/local/bin/python3-of-no-session",
    )
    assert done.returncode == 2
    assert said(done).count("has gone back to the former one by itself") >= len(HARDENED), done.stdout
    assert "Permission denied" in said(done)
    assert [guest(name).file(DROP_IN).content for name in HARDENED] == before
    # The next run, by the same ssh, says so, once.
    again = over_ssh()
    assert again.returncode == 0, again.stdout
    assert all(counts["changed"] == 0 for counts in recap(again).values()), again.stdout
    assert "The sshd_config of an earlier run was undone" in said(again)
    for name in HARDENED:
        assert not guest(name).file("/run/local-llm-hardening").exists


@pytest.mark.parametrize("name", HARDENED)
def test_a_parameter_of_the_kernel_that_was_changed_is_set_again(guest: Guest, over_ssh: Play, name: str) -> None:
    host = guest(name)
    host.check_output("sysctl --write net.ipv4.conf.all.accept_redirects=1 kernel.kptr_restrict=0")
    done = over_ssh("--tags=hardening_sysctl", hosts=[name])
    assert done.returncode == 0, done.stdout
    assert "-kernel/kptr_restrict = 0" in done.stdout
    assert recap(done)[name]["changed"] == 1
    shown = host.check_output("sysctl --values net.ipv4.conf.all.accept_redirects kernel.kptr_restrict")
    assert shown.split() == ["0", "2"]


def test_what_gpu_hosts_need_is_left_alone(guest: Guest) -> None:
    keys = "net.ipv4.tcp_timestamps net.ipv6.conf.all.accept_ra kernel.yama.ptrace_scope net.ipv4.conf.all.rp_filter"
    assert guest("debian12").check_output(f"sysctl --values {keys}").split() == ["1", "1", "1", "2"]
    blocked = guest("debian12").check_output("modprobe --showconfig")
    assert "install cramfs /bin/false" in blocked
    for module in ("squashfs", "overlay", "vfat", "nvidia", "ib_core"):
        assert f"install {module} " not in blocked
    assert "install squashfs /bin/false" in guest("debian13").check_output("modprobe --showconfig")


@pytest.mark.parametrize("name", HARDENED)
def test_accounts(guest: Guest, name: str) -> None:
    host = guest(name)
    assert host.user("daemon-with-shell").shell == "/usr/sbin/nologin"
    assert host.user("daemon-with-shell").password.startswith("!")
    assert host.user("backup-by-ssh").shell == "/bin/bash"  # somebody comes in by it
    assert ssh(guest, "backup-by-ssh", name).stdout.strip() == "backup-by-ssh"
    assert host.user("deploy").shell == "/bin/bash"
    host.check_output("runuser -u deploy -- sudo --non-interactive true")
    assert "deploy" in host.file("/var/log/sudo.log").content_string
    # What sudo makes is for services to read, whatever login.defs says.
    assert host.check_output("runuser -l deploy -c 'sudo sh -c umask'") == "0022"


@pytest.mark.parametrize("name", HARDENED)
def test_passwords(guest: Guest, name: str) -> None:
    host = guest(name)
    refused = host.run("echo alice:alice123 | chpasswd")
    assert refused.rc != 0
    assert "BAD PASSWORD" in refused.stderr
    assert "nullok" not in host.check_output("grep -h pam_unix /etc/pam.d/common-auth")
    shown = host.check_output("useradd newcomer && chage --list newcomer && userdel newcomer")
    assert re.search(r"Maximum number of days.*: 60", shown)
    attempt = "runuser -u backup-by-ssh -- sh -c 'echo wrong | su alice -c true'"
    right = "runuser -u backup-by-ssh -- sh -c 'echo molecule-alice-password | su alice -c true'"
    if name == "debian13":  # strict: su is for the group sudo
        assert host.run(right).rc != 0
        assert not re.search(r"^\d", host.check_output("faillock --user alice"), re.MULTILINE)
        return
    assert host.run(right).rc == 0
    for _ in range(5):
        assert host.run(attempt).rc != 0
    assert host.run(right).rc != 0  # locked
    assert ssh(guest, "alice", name).stdout.strip() == "alice"  # by key all the same
    host.check_output("faillock --user alice --reset")
    assert host.run(right).rc == 0


@pytest.mark.parametrize("name", HARDENED)
def test_modes(guest: Guest, name: str) -> None:
    host = guest(name)
    assert host.file("/etc/ssh/sshd_config").mode == 0o600
    assert host.file("/etc/cron.daily").mode == 0o700
    keysign = "/usr/lib/openssh/ssh-keysign"
    assert host.file(keysign).mode == 0o755
    assert f"root root 0755 {keysign}" in host.check_output("dpkg-statoverride --list").replace(" 755 ", " 0755 ")


@pytest.mark.parametrize("name", HARDENED)
def test_no_core_dump_is_written(guest: Guest, name: str) -> None:
    host = guest(name)
    assert host.check_output("runuser -l deploy -c 'ulimit -H -c'") == "0"
    assert host.check_output("sysctl --values kernel.core_pattern fs.suid_dumpable").split() == ["|/bin/false", "0"]


@pytest.mark.parametrize("name", HARDENED)
def test_audit_and_apparmor_wait_for_a_host_that_has_them(guest: Guest, name: str) -> None:
    """In a container neither can start; `make test-vm` is for what they do."""
    host = guest(name)
    assert "No change" in host.check_output("augenrules --check")
    rules = host.check_output("cat /etc/audit/audit.rules")
    assert "-w /etc/shadow -p wa -k identity" in rules
    assert ("key=refused" in rules) is (name == "debian13")
    assert host.service("auditd").is_enabled
    assert host.service("apparmor").is_enabled


@pytest.mark.parametrize("name", HARDENED)
def test_the_journal_is_kept_and_bounded(guest: Guest, name: str) -> None:
    host = guest(name)
    shown = host.check_output("systemd-analyze cat-config systemd/journald.conf")
    for line in ("Storage=persistent", "SystemMaxUse=2G", "MaxRetentionSec=90days"):
        assert line in shown.splitlines()
    assert host.check_output("find /var/log/journal -name system.journal")


@pytest.mark.parametrize("name", HARDENED)
def test_updates_are_debians_security_without_drivers_and_kernels(guest: Guest, name: str) -> None:
    host = guest(name)
    shown = host.run("unattended-upgrades --dry-run --debug")
    said = shown.stdout + shown.stderr
    codename = {"debian12": "bookworm", "debian13": "trixie"}[name]
    origins = f"origin=Debian,codename={codename}-security,label=Debian-Security"
    assert f"Allowed origins are: {origins}\n" in said
    assert "linux- (lib)?nvidia" in said
    assert 'Automatic-Reboot "false"' in host.check_output("apt-config dump")
    assert host.service("apt-daily-upgrade.timer").is_enabled


def test_a_topic_that_is_switched_off_is_put_back(guest: Guest, over_ssh: Play) -> None:
    host = guest("debian12")
    blocked = "/etc/modprobe.d/local-llm-hardening.conf"
    off = {"hosts": ["debian12"], "hardening_modules": False, "hardening_banner": "Authorised use only."}
    done = over_ssh("--tags=hardening_modules,hardening_banner,hardening_ssh", **off)
    assert done.returncode == 0, done.stdout
    assert not host.file(blocked).exists
    assert "Authorised use only." in ssh(guest, "deploy", "debian12").stderr
    again = over_ssh("--tags=hardening_modules,hardening_banner,hardening_ssh", **off)
    assert recap(again)["debian12"]["changed"] == 0, again.stdout
    done = over_ssh(hosts=["debian12"])
    assert done.returncode == 0, done.stdout
    assert host.file(blocked).exists
    assert "Authorised" not in ssh(guest, "deploy", "debian12").stderr


def test_the_model_answers_under_strict(guest: Guest) -> None:
    body = json.dumps({"model": "qwen2-tiny", "temperature": 0, "messages": [{"role": "user", "content": QUICKSORT}]})
    ask = f"curl --silent --max-time 60 -H 'Authorization: Bearer molecule-llama-cpp-key-1' -d '{body}' "
    ask += "-H 'Content-Type: application/json' http://127.0.0.1:8000/v1/chat/completions"
    reply = json.loads(guest("debian13").check_output(ask))
    assert reply["choices"][0]["message"]["content"] == ANSWERS[QUICKSORT]


def test_all_is_right_after_a_restart(restart: Callable[..., None], guest: Guest, over_ssh: Play) -> None:
    restart(*HARDENED)
    for name in HARDENED:
        shown = guest(name).check_output("sysctl --values kernel.kptr_restrict net.ipv4.tcp_rfc1337")
        assert shown.split() == ["2", "1"]
    assert ssh(guest, "deploy", "debian13").stdout.strip() == "deploy"
    done = over_ssh()
    assert done.returncode == 0, done.stdout
    assert all(counts["changed"] == 0 for counts in recap(done).values()), done.stdout
