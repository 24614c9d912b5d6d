"""What the tests of all scenarios share: guests by their inventory names, and the journal of a failed test's units."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from tests.lab.waiting import until

PROJECT = Path(__file__).resolve().parent.parent
LAB = PROJECT / "tests" / "lab"
JOURNAL_LINES = 50
# The most that `systemd-analyze security` may say of each unit, on Debian 12 and 13 alike: 0 is shut, 10 is open. What
# a unit cannot have, and why, is in its template.
EXPOSURE = {
    "litellm": 1.1,
    "llama-cpp@": 1.1,
    "local-llm-bridge": 1.1,
    "local-llm-firewall": 1.8,
    "local-llm-gateway-acme": 1.9,
    "local-llm-gateway-address": 2.8,
    "local-llm-gateway": 1.4,
    "local-llm-sandbox@": 0.1,
    "model-store@": 1.1,
    "vllm-ray@": 1.6,
    "vllm@": 1.6,
}


def _network() -> str:
    return os.environ["LAB_NETWORK"]


def pytest_configure(config: pytest.Config) -> None:
    """Let testinfra talk to the scenario's guests through podman itself.

    It cannot read our connection plugin from an inventory, and would start one ``ansible`` process for each command.

    Args:
        config: pytest's configuration, whose host options are replaced.

    Raises:
        pytest.UsageError: No guest of the scenario is running.
    """
    config.addinivalue_line("markers", "units(*names): systemd units whose journal is shown when the test fails")
    os.environ["PATH"] = f"{LAB / 'bin'}:{os.environ['PATH']}"
    podman_ps = f"podman ps --filter=network={_network()} --format={{{{.Names}}}}"
    guests = testinfra.get_host("local://").check_output(podman_ps).split()
    if not guests:
        raise pytest.UsageError(f"no guest is running on the network {_network()}; run `molecule converge` first")
    config.option.hosts = ",".join(f"podman://{name}" for name in sorted(guests))
    config.option.connection = None
    config.option.ansible_inventory = None


@pytest.fixture
def guest() -> Callable[..., Host]:
    """Address one guest: ``guest("dev1")``, or as a user of it ``guest("dev1", "alice")``.

    Returns:
        A function of the guest's inventory name and, optionally, the user to run commands as (root by default).
    """

    def get(name: str, user: str = "root") -> Host:
        return testinfra.get_host(f"podman://{user}@{_network()}-{name}")

    return get


@pytest.fixture
def play(request: pytest.FixtureRequest) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a playbook on the scenario's guests: ``play(SCENARIO / "converge.yml", "--limit=debian13")``.

    A test module whose scenario has inventories of its own names them in ``INVENTORIES``.

    Returns:
        A function of the playbook's path and ansible-playbook's arguments; the result's text has no colours.
    """
    inventories = getattr(request.module, "INVENTORIES", [PROJECT / "molecule/shared/inventory/hosts.yml"])

    def run(playbook: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ansible-playbook", *(f"--inventory={path}" for path in inventories), str(playbook), *arguments],
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "false"},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def over_ssh(
    request: pytest.FixtureRequest,
    guest: Callable[..., Host],
    play: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Converge as on servers: over ssh, by the account that tests/lab/ssh.yml has made, which becomes root with sudo.

    The test module names the guests in ``OVER_SSH``, and the inventory has them in the group ``servers``.

    Returns:
        A function of ansible-playbook's arguments and of extra variables by their names; ``hosts`` are other guests,
        ``user`` is another account, and with a ``password`` it comes in by that instead of the key.
    """
    converge = request.path.parent.parent / "converge.yml"

    def run(
        *arguments: str,
        hosts: list[str] = request.module.OVER_SSH,
        user: str = "deploy",
        password: str = "",
        **variables: object,
    ) -> subprocess.CompletedProcess[str]:
        common = {
            "ansible_connection": "ssh",
            "ansible_user": user,
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
        }
        if password:
            common["ansible_password"] = password
            common["ansible_ssh_common_args"] += " -o PubkeyAuthentication=no"
        else:
            common["ansible_ssh_private_key_file"] = f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/key"
        entries = {
            name: common | {"ansible_host": guest(name).check_output("hostname --ip-address").split()[0]}
            for name in hosts
        }
        inventory = tmp_path / "ssh.json"
        inventory.write_text(json.dumps({"servers": {"hosts": entries}}))
        arguments = (f"--inventory={inventory}", f"--limit={','.join(hosts)}", *arguments)
        return play(converge, "--diff", *arguments, f"--extra-vars={json.dumps(variables)}")

    return run


@pytest.fixture
def restart(guest: Callable[..., Host]) -> Callable[..., None]:
    """Restart guests, and wait until they have booted: ``restart("debian12", "debian13")``.

    They are containers: `make test-vm` is for what a real boot does.

    Returns:
        A function of the guests' inventory names.
    """

    def run(*names: str) -> None:
        subprocess.run(["podman", "restart", "--time=5", *(f"{_network()}-{name}" for name in names)], check=True)
        hosts = [guest(name) for name in names]
        state = "systemctl is-system-running"
        until(lambda: all(host.run(state).stdout.strip() in ("running", "degraded") for host in hosts))
        for host in hosts:
            host.check_output("mount --make-rshared /")  # as tests/lab/prepare.yml does

    return run


@pytest.fixture
def few_rights() -> Callable[[Host, str], None]:
    """Hold a unit to its figure: ``few_rights(host, "vllm@a-model")``.

    Returns:
        A function of the guest and the unit; it fails if the unit may do more than it needs.
    """

    def hold(host: Host, unit: str) -> None:
        table = host.check_output("systemd-analyze security --no-pager %s", unit)
        figure = float(table.rpartition(": ")[2].split()[0])
        assert figure <= EXPOSURE[re.sub("@.*", "@", unit.removesuffix(".service"))], table

    return hold


@pytest.fixture
def records() -> Callable[..., list[dict[str, Any]]]:
    """Read a guest's records of requests: ``records(host)``, or ``records(host, "2026-11-27 12:00:00", count=2)``.

    Returns:
        A function of the guest and, optionally, a moment as journalctl has it, and how many there have to be: it waits
        for them.
    """
    command = (
        "journalctl --quiet --namespace=local-llm-audit --identifier=local-llm-audit --priority=info..info --output=cat"
    )

    def read(host: Host, since: str = "@0", *, count: int = 0) -> list[dict[str, Any]]:
        def lines() -> list[str]:
            return str(host.check_output(f"{command} --since=%s", since)).splitlines()

        until(lambda: len(lines()) >= count)
        return [json.loads(line) for line in lines()]

    return read


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failed test's report what the units that it is marked with have logged.

    Args:
        item: The test.
        call: One phase of it.

    Returns:
        The phase's report.
    """
    report = yield
    if report.failed:
        used = getattr(item, "funcargs", {}).get("host")
        hosts = [used] if used else testinfra.get_hosts(item.config.option.hosts.split(","))
        for host in hosts:
            for unit in [name for mark in item.iter_markers("units") for name in mark.args]:
                # "-n 0": the status without its own excerpt of the journal
                status = host.run("systemctl status --no-pager -n 0 %s", unit).stdout
                journal = host.run("journalctl --no-pager -n %s -u %s", str(JOURNAL_LINES), unit).stdout
                report.sections.append((f"{unit} on {host.backend.get_pytest_id()}", f"{status}\n{journal}"))
    return report
