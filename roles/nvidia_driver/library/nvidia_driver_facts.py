"""Ansible module: which NVIDIA cards a host has, and which driver is installed and loaded."""

from __future__ import annotations

import json
import platform
from pathlib import Path

from ansible.module_utils import nvidia_hardware, nvidia_packages
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.nvidia_host import MACHINES, look

DOCUMENTATION = r"""
module: nvidia_driver_facts
short_description: NVIDIA's cards in a host, and the driver that is installed and loaded
description:
  - Finds the cards on the PCI bus, so it needs no driver. Changes nothing.
author: local-llm-fleet
options:
  record:
    description: File in which the role remembers what it has installed and held.
    type: path
    required: true
"""

RETURN = r"""
system:
  description: The system as NVIDIA's repository names it, such as C(debian13).
  type: str
  returned: always
machine:
  description: The architecture as NVIDIA's repository names it, such as C(x86_64).
  type: str
  returned: always
gpus:
  description: The cards, with C(address), C(device) (PCI device id), C(generation) and C(driver) (kernel driver).
  type: list
  elements: dict
  returned: always
nvswitches:
  description: Number of NVSwitches on the PCI bus.
  type: int
  returned: always
installed:
  description: Version of the driver that is installed as packages, or C("").
  type: str
  returned: always
loaded:
  description: Version of the driver that runs, or C("").
  type: str
  returned: always
reboot_reasons:
  description: Why what is installed does not run yet.
  type: list
  elements: str
  returned: always
packages:
  description: Names of all installed packages.
  type: list
  elements: str
  returned: always
unheld:
  description: Packages of the driver and the kernel that an upgrade could still change.
  type: list
  elements: str
  returned: always
record:
  description: What the role has C(asked) for, the C(packages) that came with it, and the C(holds) that it has set.
  type: dict
  returned: always
"""


def reboot_reasons(gpus: list[nvidia_hardware.Gpu], installed: str, loaded: str) -> list[str]:
    """Why the installed driver does not run yet.

    Args:
        gpus: The cards.
        installed: Version of the installed driver, or "".
        loaded: Version of the loaded one, or "".
    """
    reasons = []
    if installed and installed != loaded:
        reasons.append(f"driver {installed} is installed, and {loaded or 'none'} is loaded")
    if installed and any(gpu.driver == "nouveau" for gpu in gpus):
        reasons.append("nouveau has the card")
    return reasons


def read_record(path: Path) -> dict[str, list[str]]:
    """What the role remembers, empty before its first run."""
    try:
        read: dict[str, list[str]] = json.loads(path.read_text())
    except FileNotFoundError:
        read = {}
    return {"asked": [], "packages": [], "holds": [], **read}


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={"record": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    host = look()
    unheld = [name for name in nvidia_packages.pair(host.packages) if not host.packages[name].is_held]
    module.exit_json(
        changed=False,
        system=host.name,
        machine=MACHINES.get(platform.machine(), platform.machine()),
        gpus=[gpu._asdict() for gpu in host.gpus],
        nvswitches=host.nvswitches,
        installed=host.installed,
        loaded=host.loaded.version,
        reboot_reasons=reboot_reasons(host.gpus, host.installed, host.loaded.version),
        packages=sorted(host.packages),
        unheld=unheld if host.installed else [],
        record=read_record(Path(module.params["record"])),
    )


if __name__ == "__main__":
    main()
