"""A host as the driver sees it: its system, kernel, cards, packages, and what the firmware allows."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import NamedTuple

from ansible.module_utils import nvidia_hardware, nvidia_packages

MACHINES = {"x86_64": "x86_64", "aarch64": "sbsa"}  # and NVIDIA's names for them


class Host(NamedTuple):
    """What the plan depends on.

    Attributes:
        system: ``debian`` or ``ubuntu``, or what else it is.
        name: The system with its version, as NVIDIA's repository names it: ``debian12``.
        kernel: Release of the running kernel.
        gpus: The cards.
        nvswitches: Number of NVSwitches.
        packages: The installed packages.
        loaded: The driver that runs.
        secure_boot: Whether only signed modules may be loaded.
    """

    system: str
    name: str
    kernel: str
    gpus: list[nvidia_hardware.Gpu]
    nvswitches: int
    packages: dict[str, nvidia_packages.Package]
    loaded: nvidia_hardware.Loaded
    secure_boot: bool

    @property
    def installed(self) -> str:
        """Version of the driver that is installed as packages."""
        return str(nvidia_packages.driver_version(self.packages))


def look(sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> Host:
    """Read the host."""
    release = platform.freedesktop_os_release()
    system, version = release.get("ID", ""), release.get("VERSION_ID", "")
    return Host(
        system=system,
        name=system + version.replace(".", ""),
        kernel=subprocess.run(["uname", "-r"], capture_output=True, text=True, check=True).stdout.strip(),  # noqa: S607
        gpus=nvidia_hardware.gpus(sys),
        nvswitches=nvidia_hardware.nvswitches(sys),
        packages=nvidia_packages.installed(),
        loaded=nvidia_hardware.loaded(proc),
        secure_boot=nvidia_hardware.secure_boot(sys),
    )
