"""What the roles' scenarios take for granted of the lab, on two guests of its own (under a minute).

Run by itself, with the images built: ``pytest tests/lab``.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

LAB = Path(__file__).resolve().parent
PROJECT = LAB.parent.parent
NETWORK = "lab-test"
ENVIRONMENT = os.environ | {"LAB_NETWORK": NETWORK, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "NO_COLOR": "1"}
GUESTS = ("debian12", "debian13")
INVENTORY = f"--inventory={PROJECT / 'molecule' / 'shared' / 'inventory'}"


def run(*argv: str, status: int = 0) -> str:
    done = subprocess.run(argv, env=ENVIRONMENT, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def playbook(name: str) -> str:
    return run("ansible-playbook", INVENTORY, str(LAB / name))


def ansible(guest: str, module: str, arguments: str, *more: str, status: int = 0) -> str:
    return run("ansible", INVENTORY, guest, f"--module-name={module}", f"--args={arguments}", *more, status=status)


def podman(*arguments: str) -> str:
    return run(str(LAB / "bin" / "podman"), *arguments)


def in_guest(guest: str, command: str) -> str:
    return podman("exec", f"{NETWORK}-{guest}", "sh", "-c", command).strip()


@pytest.fixture(scope="module", autouse=True)
def guests() -> Iterator[None]:
    playbook("destroy.yml")
    playbook("create.yml")
    try:
        playbook("prepare.yml")
        yield
    finally:
        playbook("destroy.yml")
        assert podman("ps", "--all", f"--filter=name={NETWORK}-", "--quiet") == ""
        assert NETWORK not in podman("network", "ls", "--format={{.Name}}").split()


def test_create_and_prepare_change_nothing_the_second_time() -> None:
    for name in ("create.yml", "prepare.yml"):
        changes = re.findall(r"changed=([1-9]\d*)", output := playbook(name))
        assert not changes, output


@pytest.mark.parametrize(("guest", "peer"), [("debian12", "debian13"), ("debian13", "debian12")])
def test_guests_find_each_other_by_their_inventory_names(guest: str, peer: str) -> None:
    assert in_guest(guest, "hostname") == guest
    assert " 0% packet loss" in in_guest(guest, f"ping -c 1 -W 5 {peer}")


def test_a_new_network_knows_nothing_of_guests_whose_podman_was_killed() -> None:
    network, names = f"{NETWORK}-again", "/run/containers/networks/aardvark-dns"
    leave = f"printf '10.255.0.1\n%064d 10.255.0.2 {network}\n' 1 >/names/{network}"
    podman("run", "--rm", "--privileged", f"--volume={names}:/names", "localhost/lab-debian12", "sh", "-c", leave)
    podman("network", "create", network)
    try:
        ask = ["--network", network, "--network-alias=itself", "localhost/lab-debian12", "getent", "hosts", "itself"]
        assert "itself" in podman("run", "--rm", "--privileged", *ask)
    finally:
        podman("network", "rm", "--force", network)


def test_a_stopped_guest_starts_again_with_what_was_on_it_and_units_get_their_credentials() -> None:
    in_guest("debian13", "touch /root/kept")
    podman("stop", "--time=5", f"{NETWORK}-debian13")

    assert "is not running" in ansible("debian13", "ansible.builtin.ping", "", status=4)

    playbook("create.yml")
    playbook("prepare.yml")
    assert in_guest("debian13", "ls /root/kept") == "/root/kept"
    unit = "systemd-run --quiet --wait --pipe -p LoadCredential=name:/etc/hostname"
    assert in_guest("debian13", f"{unit} sh -c 'cat $CREDENTIALS_DIRECTORY/name'") == "debian13"


@pytest.mark.parametrize("guest", GUESTS)
def test_a_command_finds_what_podman_itself_would_give_it(guest: str) -> None:
    # bin/podman leaves to podman what it does not know, such as --user=root
    command = "id; pwd; env | grep -v ^container_uuid= | sort; umask; cat /proc/self/cgroup; wc -c; "
    command += "grep -e ^Cap -e ^Seccomp: -e ^NoNewPrivs /proc/self/status; ls /proc/self/fd | wc -l; exit 7"
    quick, own = (
        run(str(LAB / "bin" / "podman"), "exec", *user, f"{NETWORK}-{guest}", "sh", "-c", command, status=7)
        for user in (["--user", "root"], ["--user=root"])
    )
    assert quick == own
    assert "uid=0(root)" in quick


@pytest.mark.parametrize("guest", GUESTS)
def test_a_module_finds_what_a_process_of_its_own_would(guest: str) -> None:
    # lab_modules.py leaves to Python what does not run as /usr/bin/python3
    command = "id; pwd; env | sort; umask; ulimit -a; cat /proc/self/cgroup; "
    command += "grep -e ^Cap -e ^Sig[BIC] /proc/self/status"
    copied, own = (
        ansible(guest, "ansible.builtin.shell", f"{command} executable=/bin/bash", *more)
        for more in ([], ["--extra-vars=ansible_python_interpreter=/bin/python3"])
    )
    assert copied == own
    assert "uid=0(root)" in copied
    assert in_guest(guest, "pgrep --full --count '[l]ab_modules.serve'") == "1"
    assert "non-zero return code" in ansible(guest, "ansible.builtin.command", "false", status=2)


def test_large_files_arrive_whole_in_both_directions(tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(64 * 2**20))

    ansible("debian12", "ansible.builtin.copy", f"src={there} dest=/var/tmp/large mode=0600")
    ansible("debian12", "ansible.builtin.fetch", f"src=/var/tmp/large dest={back} flat=true")

    assert there.read_bytes() == back.read_bytes()


@pytest.mark.parametrize("guest", GUESTS)
def test_apt_and_pip_reach_their_packages(guest: str) -> None:
    # apt has been seen to wait for itself for ever; that is not what is tested here
    update = "timeout 60 apt-get --quiet update --error-on=any"
    in_guest(guest, f"{update} || {update}")
    in_guest(guest, "python3 -m venv /tmp/venv && /tmp/venv/bin/pip download --quiet --no-deps --dest /tmp six")


def test_guests_share_what_pip_has_fetched() -> None:
    (cache,) = {in_guest(guest, "python3 -m venv /tmp/pip && /tmp/pip/bin/pip cache dir") for guest in GUESTS}
    for guest in GUESTS:
        in_guest(guest, f"touch {cache}/{NETWORK}-{guest}")
    try:
        assert all(in_guest(guest, f"ls {cache}/{NETWORK}-{other}") for guest in GUESTS for other in GUESTS)
    finally:
        in_guest("debian12", f"rm {cache}/{NETWORK}-*")
