"""What the role has installed, held and written is gone, and what was there before it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from testinfra.host import Host

Guest = Callable[..., Host]

SERVED = ["nogpu", "datacentre", "nvswitch", "present", "reboot", "offline", "real"]


def installed(host: Host) -> set[str]:
    """Names of the installed packages."""
    shown = host.check_output("dpkg-query -W -f '${Package} ${db:Status-Status}\n'")
    return {row.split()[0] for row in shown.splitlines() if row.endswith(" installed")}


@pytest.mark.parametrize("name", SERVED)
def test_what_the_role_made_is_gone(guest: Guest, name: str) -> None:
    host = guest(name)
    made = (
        "/etc/apt/*/nvidia-driver* /etc/modprobe.d/nvidia-driver* /var/lib/nvidia-driver /etc/systemd/system/*.d/10-nv*"
    )
    assert host.run(f"ls -d {made}").stdout == ""
    assert host.check_output("apt-mark showhold") == ""


@pytest.mark.parametrize("name", ["datacentre", "nvswitch", "reboot", "offline", "real"])
def test_its_packages_are_gone(guest: Guest, name: str) -> None:
    left = [
        package for package in installed(guest(name)) if "nvidia" in package or package in ("libcuda1", "dkms", "gcc")
    ]
    assert left == []


def test_a_driver_that_was_there_before_stays(guest: Guest) -> None:
    packages = installed(guest("present"))
    assert {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "linux-image-6.12.0-standin-amd64"} <= packages
    assert "datacenter-gpu-manager-exporter" not in packages
