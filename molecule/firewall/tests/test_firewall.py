"""The firewall, asked from outside, over IPv4 and IPv6; changed over ssh, and not to be locked out of."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import create_connection

import pytest
from testinfra.host import Host

from tests.lab.waiting import until

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
INVENTORIES = [SCENARIO / "inventory/hosts.yml"]
ANSWERS = json.loads((PROJECT / "tests/tiny_model/answers.json").read_text())["chat"]
QUICKSORT = "Write a quicksort function in Python."

PROTECTED = OVER_SSH = ["debian12", "debian13"]
IPV6 = {"debian12": "fd6c:6c66::12", "debian13": "fd6c:6c66::13", "attacker": "fd6c:6c66::66"}
ALLOWED = {8443, 9000, 9001, 9002}  # for the attacker
# Somebody who sends all the time, as a model does that answers, and somebody who reads it.
SENDER = """
import socket, time
reader, _ = socket.create_server(("", 9000)).accept()
while True:
    reader.send(b"x")
    time.sleep(0.1)
"""
READER = """
import socket, sys, time
while True:
    try:
        sender = socket.create_connection((sys.argv[1], 9000))
        break
    except ConnectionRefusedError:
        time.sleep(0.1)  # it does not listen yet
while sender.recv(1):
    print("x", end="", flush=True)
"""
TABLE = "nft --stateless --terse list table inet local_llm_fleet"

pytestmark = pytest.mark.units("local-llm-firewall", "local-llm-firewall-rollback")

Guest = Callable[..., Host]
Play = Callable[..., subprocess.CompletedProcess[str]]


def address(guest: Guest, name: str, family: int = 4) -> str:
    """A guest's address."""
    if family == 6:
        return IPV6[name]
    return str(guest(name).check_output("hostname --ip-address").split()[0])


def url(guest: Guest, name: str, family: int, port: int) -> str:
    """Where a guest answers by HTTP."""
    ip = address(guest, name, family)
    return f"http://{f'[{ip}]' if family == 6 else ip}:{port}/"


@pytest.fixture(scope="module", autouse=True)
def _listeners() -> Iterator[None]:
    """What listens on all guests: 8443, of which others may know, and 5555, of which they may not."""
    script = "for port in 5555 8443 9001; do systemd-run --quiet --unit=listener-$port --working-directory=/srv "
    script += "python3 -m http.server --bind :: $port; done"
    network = os.environ["LAB_NETWORK"]
    for name in IPV6:
        subprocess.run(["podman", "exec", f"{network}-{name}", "sh", "-c", script], check=False)
    yield


def states(attacker: Host, target: str, *flags: str) -> tuple[dict[int, str], dict[str, int]]:
    """What a scan finds: the state of single ports, and how many others have each reason."""
    shown = attacker.check_output(f"nmap -n -Pn -T4 -oX - {' '.join(flags)} {target}")
    ports = next(ET.fromstring(shown).iter("ports"))  # noqa: S314 - nmap's own
    single = {int(port.attrib["portid"]): port.find("state").attrib["state"] for port in ports.iter("port")}  # type: ignore[union-attr]
    others = {reason.attrib["reason"]: int(reason.attrib["count"]) for reason in ports.iter("extrareasons")}
    return single, others


def test_a_full_scan_finds_what_is_allowed_and_nothing_else(guest: Guest) -> None:
    targets = [(name, address(guest, name)) for name in PROTECTED] + [(name, IPV6[name]) for name in PROTECTED]
    allowed = ",".join(map(str, ALLOWED))

    def scan(target: str) -> dict[int, str]:
        family = "-6" if ":" in target else ""
        # At this rate an answer may be lost where the machine is busy: those that have to come are asked for once more.
        single, others = states(guest("attacker"), target, "-sS -p- --min-rate 12000 --max-retries 1", family)
        # Dropped: a refusal would be a reset or an ICMP message.
        assert others == {"no-response": 65535 - len(single)}
        return single | states(guest("attacker"), target, f"-sS -p {allowed}", family)[0]

    with ThreadPoolExecutor(2) as pool:
        for (name, ip), single in zip(targets, pool.map(scan, [ip for _, ip in targets]), strict=True):
            assert set(single) == ALLOWED, f"{name} at {ip}"
            assert {port for port, state in single.items() if state == "open"} == {8443, 9001}


@pytest.mark.parametrize("family", [4, 6])
def test_udp_is_dropped_where_it_is_not_allowed(guest: Guest, family: int) -> None:
    target = address(guest, "debian13", family)
    single, _ = states(guest("attacker"), target, "-sU -p 53,123,7000,8443", "-6" if family == 6 else "")
    # Nothing listens on 7000: the host itself says so.
    assert single == {53: "open|filtered", 123: "open|filtered", 7000: "closed", 8443: "open|filtered"}


@pytest.mark.parametrize("family", [4, 6])
def test_the_model_answers_the_allowed_peer_alone_under_strict(guest: Guest, family: int) -> None:
    body = json.dumps({"model": "qwen2-tiny", "temperature": 0, "messages": [{"role": "user", "content": QUICKSORT}]})
    ask = f"curl --silent --max-time 60 -H 'Authorization: Bearer molecule-llama-cpp-key-1' -d '{body}' "
    ask += f"-H 'Content-Type: application/json' '{url(guest, 'debian13', family, 8000)}v1/chat/completions'"
    reply = json.loads(guest("debian12").check_output(ask))
    assert reply["choices"][0]["message"]["content"] == ANSWERS[QUICKSORT]
    assert guest("attacker").run(ask.replace("--max-time 60", "--max-time 3")).rc == 28  # no answer at all


@pytest.mark.parametrize("family", [4, 6])
def test_strict_lets_out_what_is_named_and_refuses_the_rest_at_once(guest: Guest, family: int) -> None:
    strict, free = guest("debian13"), guest("debian12")
    curl = "curl --silent --output /dev/null --max-time 20 "
    # debian12 lets nobody but the attacker in at 9001: the peer's own firewall drops what this one lets out.
    assert strict.run(curl.replace("20", "3") + url(guest, "debian12", family, 9001)).rc == 28
    elsewhere = curl + url(guest, "attacker", family, 8443)
    assert strict.run(elsewhere).rc == 7  # refused, not timed out
    assert free.run(elsewhere).rc == 0
    udp = (
        "import socket as s; u = s.socket(s.AF_INET6 if ':' in '{0}' else s.AF_INET, s.SOCK_DGRAM); "
        "u.connect(('{0}', 7000)); u.send(b'x'); u.send(b'x')"
    ).format(address(guest, "attacker", family))
    assert "PermissionError" in strict.run("python3 -c %s", udp).stderr
    assert "DNS" in strict.check_output(TABLE)
    assert strict.run("getent hosts debian12").rc == 0


@pytest.mark.parametrize("family", [4, 6])
def test_icmp(guest: Guest, family: int) -> None:
    attacker, target = guest("attacker"), address(guest, "debian12", family)
    assert attacker.run(f"ping -c 1 -W 5 {target}").rc == 0
    flood = attacker.run(f"ping -q -c 300 -i 0.002 -W 1 {target}").stdout
    received = int(flood.split(" received")[0].split()[-1])
    assert 1 <= received < 250, flood
    if family == 4:  # an ICMP message that nobody needs
        assert "0 hosts up" in attacker.check_output(f"nmap -n -sn -PP --send-ip --disable-arp-ping {target}")


def test_drops_are_counted_and_logged_with_a_limit(guest: Guest) -> None:
    """The kernel does not show a container's log; that the rule was reached is as far as a guest can see."""
    rule = next(
        line
        for line in guest("debian12").check_output("nft list chain inet local_llm_fleet refused").splitlines()
        if "log" in line
    )
    assert 'log prefix "local-llm-firewall in: "' in rule
    assert "limit rate 10/minute burst 20 packets" in rule
    assert int(rule.split("packets ")[2].split()[0]) > 0


def test_a_second_run_over_ssh_changes_nothing(over_ssh: Play) -> None:
    """The port of ssh is found as before, by sshd's configuration and by the session."""
    done = over_ssh()
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("changed=0") == len(PROTECTED), done.stdout


def connected(attacker: Host, target: str, attempts: int) -> int:
    """How many of so many connections to ssh, all made at once, are let in."""
    script = (
        "import socket, sys, concurrent.futures as c\n"
        "def one(_):\n"
        "    try: return bool(socket.create_connection((sys.argv[1], 22), 0.9))\n"
        "    except TimeoutError: return False\n"
        "n = int(sys.argv[2]); print(sum(c.ThreadPoolExecutor(n).map(one, range(n))))"
    )
    return int(attacker.check_output("python3 -c %s %s %s", script, target, str(attempts)))


def test_ssh_is_for_admins_or_for_everybody_with_a_limit(guest: Guest, over_ssh: Play) -> None:
    attacker, ip = guest("attacker"), address(guest, "debian12")
    assert connected(attacker, ip, 3) == 0
    done = over_ssh(firewall_admins=[])
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("changed=2") == len(PROTECTED), done.stdout  # tried, and kept
    for target in (ip, IPV6["debian13"]):
        assert 10 <= connected(attacker, target, 120) < 110
    done = over_ssh()
    assert done.returncode == 0, done.stdout
    assert connected(attacker, ip, 3) == 0


def test_a_change_by_hand_is_seen_and_mended(guest: Guest, over_ssh: Play) -> None:
    debian12 = guest("debian12")
    before = debian12.check_output(TABLE)
    debian12.check_output("nft insert rule inet local_llm_fleet input tcp dport 5555 accept")
    done = over_ssh()
    assert done.returncode == 0, done.stdout
    assert "tcp dport 5555 accept" in [line.strip() for line in done.stdout.replace("-\t", "").splitlines()]
    assert debian12.check_output(TABLE) == before


def test_rules_that_would_plainly_lock_ansible_out_are_refused(guest: Guest, over_ssh: Play) -> None:
    before = [guest(name).check_output(TABLE) for name in PROTECTED]
    done = over_ssh(firewall_admins=["192.0.2.0/24"])
    assert done.returncode == 2
    assert "from which this run comes by ssh: it would lock itself out" in done.stdout
    assert done.stdout.count("changed=0") == len(PROTECTED)
    assert [guest(name).check_output(TABLE) for name in PROTECTED] == before


def shut(target: str, done: threading.Event) -> list[float]:
    """When ssh let nobody in, looked at again and again."""
    moments = []
    while not done.is_set():
        try:
            create_connection((target, 22), 1).close()
        except OSError:
            moments.append(time.monotonic())
        time.sleep(0.5)
    return moments


def test_a_lockout_undoes_itself(guest: Guest, over_ssh: Play) -> None:
    """The same, with a become that hides the session (as run0 does), so that nothing shows it beforehand."""
    before = [guest(name).check_output(TABLE) for name in PROTECTED]
    kept = [guest(name).file("/etc/local-llm-firewall/rules.nft").content for name in PROTECTED]
    ended = threading.Event()
    with ThreadPoolExecutor(len(PROTECTED)) as pool:
        watched = [pool.submit(shut, address(guest, name), ended) for name in PROTECTED]
        try:
            done = over_ssh(
                firewall_admins=["192.0.2.0/24"],
                firewall_rollback_s=20,
                ansible_python_interpreter="/usr/local/bin/python3-of-no-session",
            )
        finally:
            ended.set()
    assert done.returncode == 2
    assert "which this run comes" not in done.stdout
    assert done.stdout.count("has gone back to the former ones by itself") == len(PROTECTED), done.stdout
    assert "Connection timed out" in done.stdout
    for moments in watched:
        # It was really shut, and not for much longer than the timer's time.
        assert 5 < moments.result()[-1] - moments.result()[0] < 40
    assert [guest(name).check_output(TABLE) for name in PROTECTED] == before
    assert [guest(name).file("/etc/local-llm-firewall/rules.nft").content for name in PROTECTED] == kept
    # The next run, by the same ssh, says so, once.
    again = over_ssh()
    assert again.returncode == 0, again.stdout
    assert again.stdout.count("changed=0") == len(PROTECTED)
    words = "The rules of an earlier run were undone"
    assert words in again.stdout + again.stderr
    for name in PROTECTED:
        assert not guest(name).file("/run/local-llm-firewall").exists


def test_a_run_that_was_broken_off_is_undone_by_the_next(guest: Guest, over_ssh: Play) -> None:
    """The controller is gone between the trial and its proof; nobody has to wait for the timer."""
    before = guest("debian12").check_output(TABLE)
    rules = """
        table inet local_llm_fleet {}
        delete table inet local_llm_fleet
        table inet local_llm_fleet {
            chain input {
                type filter hook input priority filter;
                tcp dport 9 drop comment "broken off"
            }
        }
    """
    argv = ["ansible", f"--inventory={INVENTORIES[0]}", "debian12", "--module-name=firewall_table"]
    argv += [f"--module-path={PROJECT / 'roles/firewall/library'}"]
    argv += [f"--args={json.dumps({'state': 'tried', 'rules': rules, 'rollback_s': 600})}"]
    shared = {"ANSIBLE_MODULE_UTILS": str(PROJECT / "roles/commit_confirm/module_utils")}
    subprocess.run(argv, cwd=PROJECT, env=os.environ | shared, check=True)
    assert "broken off" in guest("debian12").check_output(TABLE)
    assert guest("debian12").service("local-llm-firewall-rollback.timer").is_running
    again = over_ssh()
    assert again.returncode == 0, again.stdout
    assert "The rules of an earlier run were undone" in again.stdout + again.stderr
    assert again.stdout.count("changed=0") == len(PROTECTED)
    assert guest("debian12").check_output(TABLE) == before
    assert not guest("debian12").service("local-llm-firewall-rollback.timer").is_running


def test_the_first_rules_cut_nothing_off_that_they_let_in(guest: Guest, play: Play, over_ssh: Play) -> None:
    """Neither the ssh connection by which they come, nor an answer that a host under strict is in the middle of."""
    removed = play(SCENARIO / "absent.yml")
    assert removed.returncode == 0, removed.stdout
    sender, reader = guest("debian13"), guest("attacker")
    sender.check_output("systemd-run --quiet --collect --unit=sender python3 -c %s", SENDER)
    run = "systemd-run --quiet --collect --unit=reader -p StandardOutput=truncate:/run/read python3 -c %s %s"
    reader.check_output(run, READER, address(guest, "debian13"))
    try:
        done = over_ssh()
        assert done.returncode == 0, done.stdout
        read = reader.file("/run/read").size
        assert read > 0
        until(lambda: reader.file("/run/read").size > read)
    finally:
        sender.run("systemctl stop sender")
        reader.run("systemctl stop reader")


def test_the_table_of_somebody_else_is_as_it_was(guest: Guest) -> None:
    for name in PROTECTED:
        shown = guest(name).check_output("nft --stateless list table ip admin").splitlines()
        assert [line.strip() for line in shown] == [
            "table ip admin {",
            "chain input {",
            "type filter hook input priority filter - 5; policy accept;",
            'tcp dport 9 counter drop comment "an admin\'s own"',
            "}",
            "}",
        ]
        assert not guest(name).service("nftables").is_enabled


def test_the_rules_come_back_with_the_unit_and_when_somebody_flushes_all(guest: Guest) -> None:
    """Debian's own nftables.service begins with `flush ruleset`."""
    debian12 = guest("debian12")
    before = debian12.check_output(TABLE)
    debian12.check_output("nft delete table inet local_llm_fleet && systemctl restart local-llm-firewall")
    assert debian12.check_output(TABLE) == before
    debian12.check_output("systemctl start nftables")
    try:
        for verb in ("restart", "reload"):
            debian12.check_output("systemctl %s nftables", verb)
            assert debian12.run("nft list table ip admin").rc != 0
            # systemctl waits for nftables alone, and ours follows it.
            until(lambda: debian12.run(TABLE).stdout.rstrip() == before)
    finally:
        debian12.check_output("systemctl stop nftables; systemctl start local-llm-firewall")
        debian12.check_output("nft --file /etc/admin.nft")
    assert debian12.check_output(TABLE) == before


def test_the_unit_has_few_rights(guest: Guest, few_rights: Callable[[Host, str], None]) -> None:
    for name in PROTECTED:
        few_rights(guest(name), "local-llm-firewall")


def test_the_rules_are_there_after_a_restart_of_the_host(guest: Guest, restart: Callable[..., None]) -> None:
    debian12 = guest("debian12")
    before = debian12.check_output(TABLE)
    restart("debian12")
    assert debian12.check_output(TABLE) == before
    assert debian12.service("local-llm-firewall").is_running
    assert connected(guest("attacker"), address(guest, "debian12"), 3) == 0
    debian12.check_output("nft --file /etc/admin.nft")
