"""The NVIDIA cards of a host: from the driver where it is loaded, else from the PCI bus."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
NVIDIA, DISPLAY = "0x10de", "0x03"  # PCI vendor, and the class that graphics cards and accelerators share

QUERY = "index,name,memory.total,memory.reserved,compute_cap,mig.mode.current,driver_version"

# What the driver and the firmware keep of a card's memory when the driver cannot be asked (memory.reserved of
# nvidia-smi: 426 MiB on a T4, 471 on an H100 SXM, 869 on an A100 80 GB).
RESERVED_MIB = 640

# PCI device -> name, memory as nvidia-smi reports it in MiB (ECC on where it is by default), compute capability.
# Devices: pci.ids (https://pci-ids.ucw.cz) of 2025-06-09; B300 and GB300 from NVIDIA's list of supported cards
# (https://github.com/NVIDIA/open-gpu-kernel-modules). Memory: nvidia-smi outputs that users have published.
KNOWN: dict[str, tuple[str, int, tuple[int, int]]] = {
    "1db1": ("Tesla V100 SXM2 16 GB", 16384, (7, 0)),
    "1db4": ("Tesla V100 PCIe 16 GB", 16384, (7, 0)),
    "1db5": ("Tesla V100 SXM2 32 GB", 32768, (7, 0)),
    "1db6": ("Tesla V100 PCIe 32 GB", 32768, (7, 0)),
    "1eb8": ("Tesla T4", 15360, (7, 5)),
    "20b0": ("A100 SXM4 40 GB", 40960, (8, 0)),
    "20b1": ("A100 PCIe 40 GB", 40960, (8, 0)),
    "20f1": ("A100 PCIe 40 GB", 40960, (8, 0)),
    "20b2": ("A100 SXM4 80 GB", 81920, (8, 0)),
    "20b5": ("A100 PCIe 80 GB", 81920, (8, 0)),
    "20b7": ("A30", 24576, (8, 0)),
    "20bd": ("A800 SXM4 40 GB", 40960, (8, 0)),
    "20f6": ("A800 PCIe 40 GB", 40960, (8, 0)),
    "20f3": ("A800 SXM4 80 GB", 81920, (8, 0)),
    "20f5": ("A800 PCIe 80 GB", 81920, (8, 0)),
    "2203": ("GeForce RTX 3090 Ti", 24564, (8, 6)),
    "2204": ("GeForce RTX 3090", 24576, (8, 6)),
    "2230": ("RTX A6000", 49140, (8, 6)),
    "2231": ("RTX A5000", 24564, (8, 6)),
    "2235": ("A40", 46068, (8, 6)),
    "2236": ("A10", 23028, (8, 6)),
    "2237": ("A10G", 23028, (8, 6)),
    "2684": ("GeForce RTX 4090", 24564, (8, 9)),
    "2685": ("GeForce RTX 4090 D", 24564, (8, 9)),
    "26b1": ("RTX 6000 Ada", 49140, (8, 9)),
    "26b3": ("RTX 5880 Ada", 49140, (8, 9)),
    "26b5": ("L40", 46068, (8, 9)),
    "26b9": ("L40S", 46068, (8, 9)),
    "26ba": ("L20", 46068, (8, 9)),
    "27b8": ("L4", 23034, (8, 9)),
    "2321": ("H100 NVL", 95830, (9, 0)),
    "2330": ("H100 SXM 80 GB", 81559, (9, 0)),
    "2331": ("H100 PCIe 80 GB", 81559, (9, 0)),
    "2322": ("H800 PCIe 80 GB", 81559, (9, 0)),
    "2324": ("H800 SXM 80 GB", 81559, (9, 0)),
    "2329": ("H20", 97871, (9, 0)),
    "2335": ("H200 SXM", 143771, (9, 0)),
    "233b": ("H200 NVL", 143771, (9, 0)),
    "2342": ("GH200 96 GB", 97871, (9, 0)),
    "2901": ("B200", 183359, (10, 0)),
    "2941": ("GB200", 189471, (10, 0)),
    "3182": ("B300", 275040, (10, 3)),
    "31c2": ("GB300", 284208, (10, 3)),
    "2b85": ("GeForce RTX 5090", 32607, (12, 0)),
    "2b87": ("GeForce RTX 5090 D", 32607, (12, 0)),
    "2bb1": ("RTX PRO 6000 Blackwell Workstation", 97887, (12, 0)),
    "2bb3": ("RTX PRO 5000 Blackwell", 48935, (12, 0)),
    "2bb5": ("RTX PRO 6000 Blackwell Server", 97887, (12, 0)),
}


@dataclass(frozen=True)
class Card:
    """A card as placement sees it.

    Attributes:
        index: Number of the card, in the order of the PCI bus.
        name: Its name.
        memory: Bytes that programs can use, None if unknown.
        total: Bytes that nvidia-smi shows, None if unknown.
        capability: Compute capability, None if unknown.
        mig: Whether it is cut into MIG instances.
    """

    index: int
    name: str
    memory: int | None
    total: int | None
    capability: tuple[int, int] | None
    mig: bool = False


def _mib(field: str) -> int | None:
    """Bytes of a field in MiB, None for ``[N/A]``, which cards with the host's memory show."""
    return int(field) * MIB if field.isdigit() else None


def cards_of_driver(output: str) -> tuple[list[Card], str | None]:
    """What the driver says.

    Args:
        output: Of ``nvidia-smi --query-gpu=<QUERY> --format=csv,noheader,nounits``.

    Returns:
        The cards and the driver's version.
    """
    cards: list[Card] = []
    driver = None
    for line in output.splitlines():
        index, name, total_mib, reserved_mib, capability, mig, driver = (field.strip() for field in line.split(","))
        total, reserved = _mib(total_mib), _mib(reserved_mib)
        version = re.fullmatch(r"(\d+)\.(\d+)", capability)
        cards.append(
            Card(
                index=int(index),
                name=name,
                memory=None if total is None else total - (RESERVED_MIB * MIB if reserved is None else reserved),
                total=total,
                capability=(int(version[1]), int(version[2])) if version else None,
                mig=mig == "Enabled",
            )
        )
    return cards, driver


def cards_of_bus(devices: Path) -> list[Card]:
    """Cards on the PCI bus, for a host whose driver is not there yet.

    Args:
        devices: ``/sys/bus/pci/devices``; a name in it is an address, so their order is that of nvidia-smi.
    """
    cards: list[Card] = []
    for device in sorted(devices.iterdir()):
        if (device / "vendor").read_text().strip() != NVIDIA:
            continue
        if not (device / "class").read_text().startswith(DISPLAY):
            continue
        code = (device / "device").read_text().strip()[2:]
        if code in KNOWN:
            name, mib, capability = KNOWN[code]
            cards.append(Card(len(cards), name, (mib - RESERVED_MIB) * MIB, mib * MIB, capability))
        else:
            cards.append(Card(len(cards), f"NVIDIA card 10de:{code}", None, None, None))
    return cards


def driver_of_kernel(version: Path) -> str | None:
    """Version of the loaded driver.

    Args:
        version: ``/proc/driver/nvidia/version``.

    Returns:
        For example ``580.95.05``, None if no driver is loaded.
    """
    try:
        found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", version.read_text())
    except OSError:
        return None
    return found[1] if found else None


def older(version: str, than: str) -> bool:
    """Whether one driver version comes before another."""
    return [int(part) for part in version.split(".")] < [int(part) for part in than.split(".")]


def look_for_cards(nvidia_smi: str | None) -> tuple[list[Card], str | None]:
    """The host's cards and the version of its driver, None if no driver is loaded."""
    if nvidia_smi:
        argv = [nvidia_smi, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
        answer = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603
        if answer.returncode == 0:
            return cards_of_driver(answer.stdout)
    return cards_of_bus(Path("/sys/bus/pci/devices")), driver_of_kernel(Path("/proc/driver/nvidia/version"))


def driver_problems(cards: list[Card], driver: str | None, minimum: str, release: str) -> Iterator[str]:
    """Whether there are cards, and a driver that this release of vLLM works with.

    Args:
        cards: Cards of the host.
        driver: Version of the loaded driver.
        minimum: Oldest version that works, empty if any does.
        release: Name of the release of vLLM.
    """
    if not cards:
        yield (
            "this host has no NVIDIA card on its PCI bus. Use llama_cpp here (vllm_device: cpu is for tests), or "
            "pass the card through if this is a virtual machine"
        )
    elif driver is None:
        names = ", ".join(sorted({card.name for card in cards}))
        yield (
            f"no NVIDIA driver is loaded for {names}. Run the role nvidia_driver, and boot again if it says so"
            + (f"; vLLM {release} needs at least {minimum}" if minimum else "")
        )
    elif minimum and older(driver, minimum):
        yield (
            f"the NVIDIA driver is {driver}, but vLLM {release} needs at least {minimum}. Three ways out: install a "
            "newer driver with nvidia_driver (its default, NVIDIA's repository, has one); or pin a release of vLLM for "
            "an older CUDA in vllm_requirements; or serve the model with llama_cpp, which needs no driver"
        )
