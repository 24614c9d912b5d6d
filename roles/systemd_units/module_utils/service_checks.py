"""What keeps any service from running on this host: addresses, ports, keys."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

KEY_LENGTH = 20  # characters; less can be guessed


def address_problem(variable: str, address: str) -> str | None:
    """What keeps a service from listening on an address.

    Args:
        variable: What sets it.
        address: What it is.
    """
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        with socket.socket(family) as probe:
            probe.bind((address, 0))
    except ValueError:
        return f"{variable} is {address!r}; it is an IP address of this host, 127.0.0.1 or 0.0.0.0"
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return f"{variable} is {address}, which this host does not have; `ip address` shows those that it has"
    return None


def key_problem(variable: str, key: str) -> str | None:
    """What makes a key unfit to be a secret in a header; it is not shown.

    Args:
        variable: What sets it.
        key: What it is.
    """
    if len(key) >= KEY_LENGTH and re.fullmatch(r"[!-~]+", key):
        return None
    return (
        f"{variable} has {len(key)} characters; it needs at least {KEY_LENGTH}, ASCII without blanks. "
        "`openssl rand -hex 32` makes one"
    )


def listeners(ss: str, port: int) -> Iterator[tuple[str, str, int]]:
    """Who listens on a port.

    Args:
        ss: Path of ss(8).
        port: TCP port.

    Yields:
        Address, name of the process and its id (0 if unknown).
    """
    argv = [ss, "--no-header", "--listening", "--tcp", "--numeric", "--processes", f"sport = :{port}"]
    for line in subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines():  # noqa: S603
        address = line.split()[3].rpartition(":")[0].strip("[]").split("%")[0]
        process = re.search(r'\("([^"]+)",pid=(\d+)', line)
        yield address, process[1] if process else "an unknown process", int(process[2]) if process else 0


def is_of_unit(pid: int, unit: str) -> bool:
    """Whether a process belongs to a unit."""
    try:
        return Path(f"/proc/{pid}/cgroup").read_text().rstrip().endswith(f"/{unit}")
    except OSError:
        return False


def overlap(one: str, other: str) -> bool:
    """Whether two listening addresses get in each other's way."""
    everywhere = ("*", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
    return one == other or one in everywhere or other in everywhere
