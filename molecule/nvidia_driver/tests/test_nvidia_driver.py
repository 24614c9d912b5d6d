"""Each kind of host ends with the driver that fits it, or with a refusal that has changed nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

SCENARIO = Path(__file__).resolve().parent.parent
INVENTORIES = [SCENARIO / "inventory"]

Guest = Callable[..., Host]
Play = Callable[..., subprocess.CompletedProcess[str]]

NEWEST = "580.95.05"  # of branch 580 on the mirror, which has 595 too


def installed(host: Host) -> dict[str, str]:
    """The packages that are wholly installed, and their versions."""
    shown = host.check_output("dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\n'")
    return {row.split()[0]: row.split()[1] for row in shown.splitlines() if row.endswith(" installed")}


def held(host: Host) -> set[str]:
    """Packages that no upgrade changes."""
    return set(host.check_output("apt-mark showhold").split())


def facts(host: Host) -> dict[str, Any]:
    """What the role has left for later roles."""
    found: dict[str, Any] = json.loads(host.file("/srv/facts.json").content_string)
    return found


def test_a_host_without_a_card_stays_as_it_is(guest: Guest) -> None:
    host = guest("nogpu")
    assert facts(host) == {"reboot_needed": False, "version": "", "gpus": []}
    assert not [name for name in installed(host) if "nvidia" in name or name.startswith("linux-headers")]
    made = (
        "ls -d /etc/apt/sources.list.d/nvidia* /etc/apt/preferences.d/nvidia* /etc/modprobe.d/nvidia* /var/lib/nvidia*"
    )
    assert host.run(made).stdout == ""


def test_cards_are_found_on_the_bus_without_a_driver(guest: Guest) -> None:
    cards = facts(guest("datacentre"))["gpus"]
    assert [card["address"] for card in cards] == ["0000:01:00.0", "0000:02:00.0"]
    assert {card["generation"] for card in cards} == {"Hopper"}
    assert {card["driver"] for card in cards} == {""}


def test_the_newest_driver_of_the_branch_comes_from_the_signed_repository(guest: Guest) -> None:
    host = guest("datacentre")
    packages = installed(host)
    assert packages["nvidia-driver-cuda"] == packages["nvidia-kernel-open-dkms"] == f"{NEWEST}-1"
    assert "nvidia-kernel-dkms" not in packages
    source = host.file("/etc/apt/sources.list.d/nvidia-driver.sources").content_string
    assert "URIs: http://mirror:8080/debian13/x86_64/\n" in source
    assert "Signed-By: /etc/apt/keyrings/nvidia-driver.asc\n" in source
    assert "Trusted" not in source


def test_an_upgrade_changes_neither_driver_nor_kernel(guest: Guest) -> None:
    host = guest("datacentre")
    before = installed(host)
    pair = {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "linux-image-6.12.0-standin-amd64"}
    assert pair <= held(host)
    assert "nvidia-container-toolkit" not in held(host)
    host.check_output("apt-get -q -y dist-upgrade")
    assert {name: installed(host)[name] for name in pair} == {name: before[name] for name in pair}


def test_another_branch_cannot_come_in_beside_it(guest: Guest) -> None:
    policy = guest("datacentre").check_output("apt-cache policy nvidia-fabricmanager")
    assert f"Candidate: {NEWEST}-1" in policy  # and not 595
    assert "Candidate: 1.19.0-1" in guest("datacentre").check_output("apt-cache policy nvidia-container-toolkit")


def test_a_reboot_is_asked_for_and_not_made(guest: Guest) -> None:
    host = guest("datacentre")
    assert facts(host)["reboot_needed"] is True
    assert host.service("nvidia-persistenced").is_enabled
    assert not host.service("nvidia-persistenced").is_running  # without the driver it could not
    assert "blacklist nouveau" in host.file("/etc/modprobe.d/nvidia-driver-nouveau.conf").content_string
    assert "nvidia-uvm" in host.file("/etc/modules-load.d/nvidia-driver.conf").content_string.splitlines()


def test_the_container_toolkit_is_an_option(guest: Guest) -> None:
    assert "nvidia-container-toolkit" in installed(guest("datacentre"))
    assert "nvidia-container-toolkit" not in installed(guest("present"))


def test_fabric_manager_has_exactly_the_drivers_version(guest: Guest) -> None:
    host = guest("nvswitch")
    packages = installed(host)
    assert packages["nvidia-fabricmanager"] == packages["nvidia-driver-cuda"] == "580.65.06-1"
    assert "nvidia-fabricmanager" in held(host)
    assert host.service("nvidia-fabricmanager").is_enabled
    assert "nvidia-fabricmanager" not in installed(guest("datacentre"))


def test_the_right_driver_is_left_alone(guest: Guest) -> None:
    host = guest("present")
    assert installed(host)["nvidia-driver-cuda"] == "580.65.06-1"  # the mirror has a newer one
    assert facts(host)["reboot_needed"] is False
    assert "nvidia-driver-cuda" in held(host)
    assert host.service("nvidia-persistenced").is_running


@pytest.mark.units("nvidia-dcgm-exporter.service")
def test_the_exporter_listens_on_loopback(guest: Guest) -> None:
    host = guest("present")
    assert host.service("nvidia-dcgm").is_running
    assert host.socket("tcp://127.0.0.1:9400").is_listening
    assert not host.socket("tcp://0.0.0.0:9400").is_listening


def test_mig_is_left_alone_until_it_is_asked_for(guest: Guest, play: Play) -> None:
    host = guest("present")
    assert not host.file("/run/stand-in-mig").exists  # nvidia-smi was never called
    extra = ("--limit=present", "--extra-vars=nvidia_driver_mig=enabled")
    first, second = play(SCENARIO / "converge.yml", *extra), play(SCENARIO / "converge.yml", *extra)
    assert host.file("/run/stand-in-mig").content_string == "Enabled\n"
    assert "MIG is to change on card 0" in first.stdout
    assert "changed=2 " in first.stdout, first.stdout  # the mode, and the fact that a reset is needed
    assert "changed=0 " in second.stdout, second.stdout


def test_a_reboot_that_is_allowed_brings_the_driver_up(guest: Guest) -> None:
    host = guest("reboot")
    assert host.file("/srv/stand-in/rebooted").exists
    assert facts(host)["reboot_needed"] is False
    assert facts(host)["gpus"][0]["driver"] == "nvidia"  # it was nouveau's
    assert host.service("nvidia-persistenced").is_running


def test_a_host_without_a_network_takes_the_folder(guest: Guest) -> None:
    host = guest("offline")
    packages = installed(host)
    # Its card is a Pascal, which the open modules cannot run.
    assert packages["nvidia-driver-cuda"] == packages["nvidia-kernel-dkms"] == f"{NEWEST}-1"
    assert packages["datacenter-gpu-manager-4-cuda13"] == "1:4.5.0-1"  # with an epoch, which is %3a in the file's name
    assert not host.service("nvidia-dcgm-exporter").is_running  # without the driver it could not
    assert "file:/var/lib/nvidia-driver/packages " in host.check_output("apt-cache policy libcuda1")


def test_debians_real_driver_is_built_for_debians_kernel(guest: Guest) -> None:
    host = guest("real")
    version = installed(host)["nvidia-kernel-dkms"].split("-")[0]
    assert facts(host)["version"] == version
    kernel = host.check_output("uname -r")
    status = host.check_output("dkms status")
    assert f"nvidia-current/{version}, {kernel}, x86_64: installed" in status
    module = host.check_output("modinfo -F version /lib/modules/%s/updates/dkms/nvidia-current.ko", kernel)
    assert module == version
    assert {"nvidia-kernel-dkms", "libcuda1", f"linux-headers-{kernel}"} <= held(host)
    assert host.service("nvidia-persistenced").is_enabled
    assert facts(host)["reboot_needed"] is True


def test_what_cannot_work_is_refused_and_nothing_changes(guest: Guest, play: Play) -> None:
    hosts = [guest(name) for name in ("old", "secureboot", "broken")]
    for host in hosts:
        host.check_output("touch /srv/before-refusals && sleep 0.1")
    done = play(SCENARIO / "refusals.yml")
    assert done.returncode == 0, done.stdout
    for host in hosts:
        # /usr/bin itself had a file for the .run installer's case
        touched = "find /etc /usr /boot /opt /var/lib -xdev -newer /srv/before-refusals -not -path /usr/bin"
        assert host.check_output(touched) == ""


def test_a_driver_whose_module_does_not_build_is_not_left_half_done(guest: Guest, play: Play) -> None:
    host = guest("broken")
    done = play(SCENARIO / "broken_build.yml")
    assert done.returncode == 0, done.stdout
    assert not [name for name in installed(host) if name.startswith(("nvidia-", "libcuda"))]
    assert host.check_output("dpkg --audit") == ""
    assert held(host) == set()
    assert not host.file("/etc/modprobe.d/nvidia-driver-nouveau.conf").exists
