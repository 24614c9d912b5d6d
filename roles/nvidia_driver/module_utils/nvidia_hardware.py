"""NVIDIA's cards in a host and the driver that runs them, read from /sys and /proc: no driver and no tool is needed."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NVIDIA = "0x10de"
GPU_CLASSES = ("0x0300", "0x0302")  # VGA and 3D controllers
NVSWITCH_CLASS = "0x0680"  # a bridge of another kind
SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"  # the UEFI specification's variable

# First PCI device id of each generation's ranges, after the list in https://pci-ids.ucw.cz and the table of
# compatible GPUs of NVIDIA/open-gpu-kernel-modules.
RANGES = [
    (0x0000, "Kepler or older"),
    (0x1340, "Maxwell"),
    (0x15F0, "Pascal"),
    (0x1600, "Maxwell"),
    (0x1B00, "Pascal"),
    (0x1D80, "Volta"),
    (0x1E00, "Turing"),
    (0x2000, "Ampere"),
    (0x2180, "Turing"),
    (0x2200, "Ampere"),
    (0x2300, "Hopper"),
    (0x2400, "Ampere"),
    (0x2600, "Ada Lovelace"),
    (0x2900, "Blackwell or newer"),
]
FIRST_OPEN = (
    0x1E00  # Turing: the first with the processor (GSP) that the open kernel modules need; CUDA 13's first, too
)
FIRST_OPEN_ONLY = 0x2900  # Blackwell: the proprietary modules do not know it


class Gpu(NamedTuple):
    """One card.

    Attributes:
        address: PCI address.
        device: PCI device id.
        generation: NVIDIA's name of the architecture.
        driver: Kernel driver that has the card, "" if none has.
    """

    address: str
    device: int
    generation: str
    driver: str

    @property
    def can_open(self) -> bool:
        """Whether the open kernel modules can run it."""
        return self.device >= FIRST_OPEN

    @property
    def needs_open(self) -> bool:
        """Whether only the open kernel modules can run it."""
        return self.device >= FIRST_OPEN_ONLY

    def __str__(self) -> str:
        """How messages name it."""
        return f"{self.address} (device {self.device:04x}, {self.generation})"


class Loaded(NamedTuple):
    """The NVIDIA kernel module that runs now; ``version`` is "" if none does."""

    version: str
    is_open: bool


def generation(device: int) -> str:
    """The architecture of a GPU by its PCI device id."""
    return RANGES[bisect.bisect([first for first, _ in RANGES], device) - 1][1]


def _devices(sys: Path, *classes: str) -> Iterator[Path]:
    for path in sorted((sys / "bus/pci/devices").glob("*")):
        try:
            vendor, kind = (path / "vendor").read_text().strip(), (path / "class").read_text()
        except OSError:
            continue  # it was just unplugged, or is a bus without these files
        if vendor == NVIDIA and kind.startswith(classes):
            yield path


def gpus(sys: Path = Path("/sys")) -> list[Gpu]:
    """The host's NVIDIA GPUs in the order of their PCI addresses."""
    found = []
    for path in _devices(sys, *GPU_CLASSES):
        device = int((path / "device").read_text(), 16)
        driver = path / "driver"
        name = driver.readlink().name if driver.is_symlink() else ""
        found.append(Gpu(path.name, device, generation(device), name))
    return found


def nvswitches(sys: Path = Path("/sys")) -> int:
    """How many NVSwitches are on the PCI bus (HGX and DGX boards up to Hopper)."""
    return len(list(_devices(sys, NVSWITCH_CLASS)))


def loaded(proc: Path = Path("/proc")) -> Loaded:
    """The NVIDIA kernel module that runs now."""
    try:
        text = (proc / "driver/nvidia/version").read_text()
    except OSError:
        return Loaded("", False)
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", text)
    return Loaded(found[1] if found else "", "Open Kernel Module" in text)


def secure_boot(sys: Path = Path("/sys")) -> bool:
    """Whether the firmware lets the kernel load signed modules only."""
    try:
        value = (sys / "firmware/efi/efivars" / SECURE_BOOT).read_bytes()
    except OSError:
        return False  # no UEFI
    return value[4:5] == b"\x01"  # four bytes of attributes come first
