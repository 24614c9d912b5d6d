#!/usr/bin/env python3
"""Stand-in for hardware: gives a guest NVIDIA's cards, a loaded driver, Secure Boot and a kernel that it has not.

Mounts files over /sys, /proc and puts small programs before real ones, in this guest only. Run as
``stand_in_host.py '{"gpus": ["2330"], ...}'`` with the keys of ``stand_in`` in the inventory.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path("/srv/stand-in")
KERNEL = "6.12.0-standin-amd64"

# The guest's kernel is the machine's, for which no distribution has headers.
UNAME = """#!/bin/sh
# Stand-in: names a kernel that has headers.
case "$*" in -r) cat /srv/stand-in/kernel ;; *) exec /usr/bin/uname "$@" ;; esac
"""

# A guest cannot load a kernel module, and a container that reboots is gone.
SHUTDOWN = """#!/bin/sh
# Stand-in for a reboot: another boot id, and the installed driver is loaded and has the cards.
set -e
cat /proc/sys/kernel/random/uuid >/srv/stand-in/boot_id
mount --bind /srv/stand-in/boot_id /proc/sys/kernel/random/boot_id
version=$(dpkg-query -W -f '${Version}' libcuda1)
loaded=/srv/stand-in/driver/nvidia
mkdir -p $loaded
echo "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  ${version%-*}  Release Build" >$loaded/version
for card in /srv/stand-in/devices/*; do
    ln -sfn ../../../bus/pci/drivers/nvidia "$card/driver"
done
date >/srv/stand-in/rebooted
"""

MODPROBE = """#!/bin/sh
# Stand-in: a guest is privileged and would load modules into the machine's kernel.
exit 1
"""


def program(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # it may be a link to the real one
    path.write_text(text)
    path.chmod(0o755)


def mount(source: Path, target: str) -> None:
    if subprocess.run(["mountpoint", "--quiet", target], check=False).returncode:
        subprocess.run(["mount", "--bind", str(source), target], check=True)


def device(address: str, kind: str, number: str, driver: str) -> None:
    folder = ROOT / "devices" / address
    folder.mkdir(parents=True)
    (folder / "vendor").write_text("0x10de\n")
    (folder / "device").write_text(f"0x{number}\n")
    (folder / "class").write_text(f"{kind}\n")
    if driver:
        (folder / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")


def debian_kernel() -> str:
    """Release of the newest kernel that Debian offers with headers."""
    shown = subprocess.run(["apt-cache", "depends", "linux-headers-amd64"], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in shown.stdout.splitlines() if "Depends: linux-headers-" in line]
    return names[0].removeprefix("linux-headers-")


def main() -> None:
    wanted = json.loads(sys.argv[1])
    if ROOT.exists():
        return  # prepared before
    for folder in ("devices", "driver"):
        (ROOT / folder).mkdir(parents=True)
    for number, gpu in enumerate(wanted.get("gpus", []), 1):
        device(f"0000:0{number}:00.0", "0x030200", gpu, wanted.get("driver", ""))
    for number in range(wanted.get("nvswitches", 0)):
        device(f"0000:8{number}:00.0", "0x068000", "1af1", "")
    if wanted.get("loaded"):
        (ROOT / "driver/nvidia").mkdir()
        (ROOT / "driver/nvidia/version").write_text(
            f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {wanted['loaded']}  Release Build\n"
        )
    mount(ROOT / "devices", "/sys/bus/pci/devices")
    mount(ROOT / "driver", "/proc/driver")
    if wanted.get("secure_boot"):
        efivars = ROOT / "firmware/efi/efivars"
        efivars.mkdir(parents=True)
        (efivars / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(b"\x06\x00\x00\x00\x01")
        mount(ROOT / "firmware", "/sys/firmware")
    if wanted.get("has_no_sources"):
        shutil.rmtree("/etc/apt/sources.list.d")
        Path("/etc/apt/sources.list.d").mkdir()
        Path("/etc/apt/sources.list").write_text("")
    (ROOT / "kernel").write_text(debian_kernel() if wanted.get("kernel") == "debian" else KERNEL)
    program(Path("/usr/local/bin/uname"), UNAME)
    program(Path("/usr/local/sbin/modprobe"), MODPROBE)
    if wanted.get("can_reboot"):
        program(Path("/usr/sbin/shutdown"), SHUTDOWN)


if __name__ == "__main__":
    main()
