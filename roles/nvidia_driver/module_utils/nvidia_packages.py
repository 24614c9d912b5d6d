"""The driver's Debian packages: how each source names them, which are installed, and how their versions compare."""

from __future__ import annotations

import re
import subprocess
from typing import NamedTuple

UNIFIED = 590  # from this branch on NVIDIA's packages for Ubuntu are named as those for Debian
OPEN_DEFAULT = 560  # from this branch on NVIDIA recommends the open kernel modules for every card that can use them
LAST_OLD = 580  # the last branch for cards before Turing
OPEN_ONLY = 620  # from this branch on there are no proprietary kernel modules

_USER_SPACE = re.compile(r"libcuda1|nvidia-driver-cuda|libnvidia-compute-\d+(-server)?")
_KERNEL_SPACE = re.compile(
    r"nvidia-kernel(-open)?-dkms|nvidia-open-kernel-dkms|nvidia-dkms-\d+\S*|linux-modules-nvidia-\d+\S*"
)
_KERNEL = re.compile(
    r"linux-(image|headers|modules|modules-extra)-\S+|linux-(generic|virtual|lowlatency|aws|azure|gcp|oracle)\S*"
)


class Package(NamedTuple):
    """An installed package."""

    version: str
    is_held: bool


def upstream(version: str) -> str:
    """The driver's own version in a package's: ``1:580.95.05-0ubuntu1`` is ``580.95.05``."""
    return version.split(":")[-1].split("-")[0]


def number(version: str) -> tuple[int, ...]:
    """A driver's version to compare with others."""
    return tuple(int(part) for part in re.findall(r"\d+", upstream(version)))


def in_branch(version: str, branch: str) -> bool:
    """Whether a version belongs to a branch (``580``) or is the very one (``580.95.05``)."""
    return upstream(version) == branch or upstream(version).startswith(f"{branch}.")


def installed() -> dict[str, Package]:
    """All packages that are wholly installed; none on a system without dpkg."""
    form = "${Package}\t${Version}\t${db:Status-Want}\t${db:Status-Status}\n"
    try:
        shown = subprocess.run(["/usr/bin/dpkg-query", "-W", "-f", form], capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        return {}
    rows = (line.split("\t") for line in shown.stdout.splitlines())
    return {name: Package(version, want == "hold") for name, version, want, status in rows if status == "installed"}


def driver_version(packages: dict[str, Package]) -> str:
    """Version of the driver that the packages make up, "" if they make up none (CUDA's library alone is no driver)."""
    versions = [upstream(package.version) for name, package in packages.items() if _USER_SPACE.fullmatch(name)]
    if not versions or not any(_KERNEL_SPACE.fullmatch(name) for name in packages):
        return ""
    return max(versions, key=number)


def kinds(packages: dict[str, Package]) -> set[str]:
    """Kinds of the installed kernel modules: ``open``, ``proprietary``, or both."""
    return {"open" if "-open" in name else "proprietary" for name in packages if _KERNEL_SPACE.fullmatch(name)}


def pair(packages: dict[str, Package]) -> list[str]:
    """Installed packages that must stay as they are together: the driver's, and the kernel's."""
    version = driver_version(packages)
    return sorted(
        name
        for name, package in packages.items()
        if upstream(package.version) == version or _KERNEL_SPACE.fullmatch(name) or _KERNEL.fullmatch(name)
    )


def carrier(system: str, source: str, branch: str) -> str:
    """The package whose version is the driver's, as a source names it.

    Args:
        system: ``debian`` or ``ubuntu``.
        source: ``distribution``, ``repository`` or ``folder``.
        branch: ``nvidia_driver_branch``.
    """
    major = int(branch.split(".")[0])
    if source == "distribution":
        return "libcuda1" if system == "debian" else f"nvidia-utils-{major}-server"
    return f"libnvidia-compute-{major}" if system == "ubuntu" and major < UNIFIED else "nvidia-driver-cuda"


def driver(system: str, source: str, version: str, is_open: bool, kernel: str) -> list[str]:
    """The packages that make up a driver for computing, without a desktop's parts.

    The names are those of NVIDIA's Driver Installation Guide ("Compute-only"), of Debian's ``non-free``, and of
    Ubuntu's ``-server`` drivers with the modules that Canonical has built and signed.

    Args:
        system: ``debian`` or ``ubuntu``.
        source: ``distribution``, ``repository`` or ``folder``.
        version: The driver's version.
        is_open: The open kernel modules instead of the proprietary ones.
        kernel: Release of the running kernel.
    """
    major = number(version)[0]
    if source == "distribution" and system == "ubuntu":
        flavour = f"{major}-server-open" if is_open else f"{major}-server"
        return [
            f"linux-modules-nvidia-{flavour}-{kernel}",
            f"nvidia-headless-no-dkms-{flavour}",
            f"nvidia-compute-utils-{major}-server",
            f"nvidia-utils-{major}-server",
        ]
    if source == "distribution":
        dkms = "nvidia-open-kernel-dkms" if is_open else "nvidia-kernel-dkms"
        return [dkms, "libcuda1", "nvidia-smi", "nvidia-persistenced"]
    if system == "ubuntu" and major < UNIFIED:
        dkms = f"nvidia-dkms-{major}-open" if is_open else f"nvidia-dkms-{major}"
        return [
            dkms,
            f"libnvidia-compute-{major}",
            f"nvidia-compute-utils-{major}",
            f"nvidia-utils-{major}",
        ]
    return ["nvidia-kernel-open-dkms" if is_open else "nvidia-kernel-dkms", "nvidia-driver-cuda", "nvidia-persistenced"]


def fabric_manager(version: str) -> list[str]:
    """Names that fabric manager has had; only one at the driver's very version will do."""
    major = number(version)[0]
    return ["nvidia-fabricmanager", f"nvidia-fabricmanager-{major}"]


def dcgm(version: str) -> list[str]:
    """DCGM for the CUDA that a driver runs, and its exporter (CUDA 13 came with branch 580)."""
    cuda = 13 if number(version)[0] >= 580 else 12
    return [f"datacenter-gpu-manager-4-cuda{cuda}", "datacenter-gpu-manager-exporter"]
