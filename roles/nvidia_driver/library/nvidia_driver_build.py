"""Ansible module: the driver's kernel module exists for the running kernel, or the end of its build's log is shown."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: nvidia_driver_build
short_description: The driver's kernel module for the running kernel
description:
  - Looks for the module in C(/lib/modules). Fails with the errors in DKMS' log and its last lines if there is none.
    Changes nothing.
author: local-llm-fleet
"""

MODULES = re.compile(r"nvidia(-current)?(-open)?\.ko(\.(xz|zst|gz))?")  # Debian's is called nvidia-current
LAST_LINES = 15
ERRORS = 10
WIDTH = 200  # characters of one line; a compiler's command has thousands


def modules(kernel: str, root: Path = Path("/lib/modules")) -> list[Path]:
    """The driver's modules for a kernel.

    Args:
        kernel: Release of the kernel.
        root: Where all kernels have their modules.
    """
    return sorted(path for path in (root / kernel).rglob("nvidia*.ko*") if MODULES.fullmatch(path.name))


def excerpt(log: Path) -> Iterator[str]:
    """What a reader needs of a build's log: the compiler's errors, and the end."""
    lines = [line[:WIDTH] for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror:|\*\*\*", line)]
    yield f"The errors in {log}:"
    yield from errors[:ERRORS] or ["(none is marked as one)"]
    yield "Its end:"
    yield from lines[-LAST_LINES:]


def logs(root: Path = Path("/var/lib/dkms")) -> list[Path]:
    """Logs of builds of the driver that did not succeed; DKMS keeps those of the others elsewhere."""
    return sorted(root.glob("nvidia*/*/build/make.log"))


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    kernel = subprocess.run(["uname", "-r"], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S607
    words = "\n".join(line for log in logs() for line in excerpt(log))
    if not modules(kernel):
        module.fail_json(msg=f"there is no NVIDIA module for the running kernel {kernel}.\n{words}".strip(), log=words)
    module.exit_json(changed=False, modules=[str(path) for path in modules(kernel)])


if __name__ == "__main__":
    main()
