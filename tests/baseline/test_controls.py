"""The controls on made-up hosts: each kind of check passes, fails, and says what it found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.baseline.controls import CONTROLS, Fact
from tests.baseline.report import Result, judge, rate, side_by_side, summary, unexplained
from tests.baseline.snapshot import PATHS, File, Snapshot, parse

# What the command prints, in short.
OUTPUT = """
\x1edistribution
debian

\x1econtainer
podman

\x1efiles
/etc/passwd 644 root root regular file
/etc/shadow 640 root shadow regular file
/etc/cron.d 755 root root directory
/usr/bin/mtr 2755 root root regular file

\x1esysctl
net/ipv4/conf/all/rp_filter:0
net/ipv4/conf/default/rp_filter:1
net/ipv6/conf/all/forwarding:0
kernel/sysrq:0
kernel/sysrq:8

\x1emounts
tmpfs /tmp tmpfs rw,nosuid,nodev 0 0
/dev/vda1 /boot ext4 ro,nosuid,nodev,noexec 0 0

\x1epackages
telnetd deinstall ok config-files
telnetd not-installed
xinetd installed

\x1elogin_defs
# PASS_MAX_DAYS 60
PASS_MAX_DAYS\t99999

\x1epasswd
root:x:0:0:root:/root:/bin/bash
twin:hash:0:0::/:/bin/sh

\x1emodprobe
install cramfs /bin/true
#install udf /bin/true

\x1epath
/usr/bin::/bin

\x1eopenssh
OpenSSH_10.0p2 Debian-7, OpenSSL 3.5.9

\x1esshd
hostkey /etc/ssh/ssh_host_rsa_key
hostkey /etc/ssh/ssh_host_dsa_key
listenaddress 10.0.0.1:22
ciphers aes256-ctr
kexalgorithms mlkem768x25519-sha256,diffie-hellman-group14-sha1
strictmodes yes
loglevel INFO

\x1ersa_host_key
3072 SHA256:abc root@host (RSA)
"""
HOST = parse(OUTPUT)


def of(host: Snapshot, name: str) -> Result:
    return next(result for result in judge(host) if result.id == name)


def test_every_control_is_there_once() -> None:
    names = [control.id for control in CONTROLS]
    assert len(names) == len(set(names))
    families = {name.partition("-")[0] for name in names}
    assert {family: sum(name.startswith(f"{family}-") for name in names) for family in families} == {
        "os": 17,
        "package": 7,
        "sysctl": 35,
        "sshd": 49,
        "ssh": 22,
    }


@pytest.mark.parametrize(
    ("name", "outcome", "found"),
    [
        ("os-01", "pass", ""),
        ("os-02", "pass", ""),
        ("os-03b", "fail", "a password in /etc/passwd of is twin, wanted none"),
        ("os-04", "fail", "relative in root's PATH is '', wanted none"),
        ("os-05b", "n/a", "for Red Hat; this is debian"),
        ("os-06", "fail", "setuid or setgid is /usr/bin/mtr, wanted none"),
        ("os-07", "fail", "double uid is 0, wanted none"),
        ("os-13", "fail", "mode of /etc/cron.d is 0755, wanted none of 0066"),
        ("os-14", "fail", "/tmp is mounted without noexec, wanted mounted with noexec"),
        ("os-15", "pass", ""),
        ("package-01", "fail", "installed is xinetd, wanted none"),
        ("package-02", "pass", ""),
        ("sysctl-02", "fail", "net.ipv4.conf.all.rp_filter is 0, wanted 1"),
        ("sysctl-03", "fail", "net.ipv4.icmp_ignore_bogus_error_responses is absent, wanted 1"),
        ("sysctl-19", "pass", ""),
        ("sysctl-30", "n/a", "kernel.sysrq belongs to the machine that carries the container"),
        ("sshd-01", "pass", ""),
        ("sshd-02", "fail", "weak kexalgorithms is diffie-hellman-group14-sha1, wanted none"),
        ("sshd-03", "fail", "weak macs is all, wanted none"),
        ("sshd-09", "pass", ""),
        ("sshd-10", "n/a", "OpenSSH has the option no longer"),
        ("sshd-11", "pass", ""),
        ("sshd-13", "fail", "loglevel is INFO, wanted VERBOSE"),
        ("sshd-50", "fail", "bits of the RSA host key is 3072, wanted 4096"),
        ("ssh-03", "n/a", "no ssh"),
    ],
)
def test_what_a_control_says(name: str, outcome: str, found: str) -> None:
    result = of(HOST, name)
    assert (result.outcome, result.found) == (outcome, found)


def test_the_same_controls_the_other_way_round() -> None:
    other = replace(
        HOST,
        files={"/etc/hosts.equiv": File(0o644, "root", "root", "regular file")},
        sysctl={**HOST.sysctl, "net.ipv4.conf.all.rp_filter": "1"},
        mounts={"/tmp": frozenset({"noexec"}), "/proc/sys/kernel": frozenset({"rw"})},
        packages=frozenset({"telnetd"}),
        path="/usr/bin:/bin",
        sshd={"listenaddress": ("0.0.0.0:22",), "ciphers": ("3des-cbc",), "loglevel": ("VERBOSE",)},
    )
    outcomes = {result.id: result.outcome for result in judge(other)}
    passed = ["os-04", "os-06", "os-14", "package-01", "sysctl-02", "sysctl-30", "sshd-13"]
    assert [outcomes[name] for name in passed] == ["pass"] * len(passed)
    failed = ["os-01", "os-02", "os-15", "package-02", "sshd-01", "sshd-09"]
    assert [outcomes[name] for name in failed] == ["fail"] * len(failed)
    assert outcomes["os-13"] == "n/a"
    assert outcomes["sshd-50"] == "n/a"


def test_a_host_with_nothing_fails_what_it_lacks() -> None:
    outcomes = {result.id: result.outcome for result in judge(Snapshot())}
    assert outcomes["os-03"] == outcomes["package-08"] == outcomes["sysctl-05"] == "fail"
    assert outcomes["sshd-01"] == outcomes["ssh-01"] == outcomes["sysctl-22"] == "n/a"


def test_every_control_can_fail() -> None:
    """On a host of the worst kind, with an OpenSSH so old that all options are there."""
    setuid = File(0o6777, "games", "games", "regular file")
    worst = Snapshot(
        files={path: setuid for path in PATHS if path != "/sys/firmware/efi"},
        sysctl={"net.ipv6.conf.all.forwarding": "1", "fs.suid_dumpable": "2", "kernel.core_pattern": "core"},
        mounts={"/boot": frozenset()},
        packages=frozenset({"xinetd", "telnetd", "rsh-server", "ypserv", "tftp-server", "prelink"}),
        passwd=(("root", "hash", "0"), ("twin", "x", "0")),
        path=".",
        rhosts=("/root/.rhosts",),
        vulnerabilities={"meltdown": "Vulnerable"},
        openssh=(5, 3),
        ssh={"port": ("2222",)},
        sshd={"listenaddress": ("0.0.0.0:22",), "hostkey": ("/etc/ssh/ssh_host_rsa_key", "/tmp/key")},
        sshd_processes=("sshd -D -oCiphers=none",),
        small_moduli=("1023",),
    )
    results = judge(worst)
    assert [result.id for result in results if result.outcome != "fail"] == ["os-05b", "sysctl-31a"]
    assert of(replace(worst, sysctl={"fs.suid_dumpable": "1"}), "sysctl-31a").outcome == "fail"


def test_what_is_blocked_by_modprobe() -> None:
    found = of(HOST, "os-10").found
    assert "cramfs" not in found
    assert "udf is not blocked" in found
    lines = "\n".join(f"install {name} /bin/false" for name in ("cramfs", "freevxfs", "jffs2", "hfs", "hfsplus", "udf"))
    assert of(replace(HOST, modprobe=lines), "os-10").outcome == "fail"
    efi = {"/sys/firmware/efi": File(0o755, "root", "root", "directory")}
    assert of(replace(HOST, modprobe=lines, snapd=True, files=efi), "os-10").outcome == "pass"


def test_the_rate_is_of_what_applies() -> None:
    results = [Result("a", "A", outcome) for outcome in ("pass", "pass", "fail", "n/a")]
    assert rate(results) == pytest.approx(2 / 3)
    assert summary(results) == "2 of 3 (66.7%), 1 not applicable"


RP_FILTER = ("net.ipv4.conf.all.rp_filter", "net.ipv4.conf.default.rp_filter")
IS_1 = Fact("it", "1", "0", False)


def test_the_table_says_what_the_last_host_lacks() -> None:
    other = Result("b", "B", "fail", (IS_1,))
    table = side_by_side({"fresh": [other, other], "hardened": [Result("a", "A", "pass"), other]})
    assert [line.split() for line in table.splitlines()[:2]] == [["fresh", "hardened"], ["a", "fail", "pass", "A"]]
    assert table.splitlines()[2].endswith("B: it is 1, wanted 0")
    assert table.splitlines()[3:] == [
        "fresh: 0 of 2 (0.0%), 0 not applicable",
        "hardened: 1 of 2 (50.0%), 0 not applicable",
    ]


def test_an_exception_too_many_is_as_wrong_as_one_too_few(tmp_path: Path) -> None:
    exceptions = tmp_path / "exceptions.yml"
    because = "{found: [it is 1], why: because}"
    exceptions.write_text(f"fail: {{a: {because}, b: {because}, z: {because}}}\nnot_applicable: {{c: because}}\n")
    results = [
        Result("a", "A", "fail", (IS_1,)),
        Result("b", "B", "pass"),
        Result("c", "C", "n/a", reason="nothing there"),
        Result("d", "D", "fail", (IS_1,)),
        Result("e", "E", "n/a", reason="nothing there"),
    ]
    assert unexplained(results, exceptions) == [
        "b (B): pass, explained: fail.",
        "d (D): fail, explained: pass. it is 1, wanted 0",
        "e (E): n/a, explained: pass. nothing there",
        "z: no such control",
    ]


def test_an_explained_control_fails_only_as_it_is_explained() -> None:
    loose = judge(replace(HOST, sysctl=dict.fromkeys(RP_FILTER, "2")))
    off = judge(replace(HOST, sysctl=dict.fromkeys(RP_FILTER, "0")))
    assert not [line for line in unexplained(loose, also="fail_at_baseline") if line.startswith("sysctl-02 ")]
    assert len([line for line in unexplained(off, also="fail_at_baseline") if line.startswith("sysctl-02 ")]) == 1
