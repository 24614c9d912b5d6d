"""What a running process has used: CPU time, memory, files. Read from the kernel, with whatever children it has."""

from __future__ import annotations

import re
import time
from pathlib import Path


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process and its living children have used, in seconds, user and system."""
    # The clock that clock_getcpuclockid(3) gives: all threads, in nanoseconds, where /proc/PID/stat counts in 10 ms.
    used = time.clock_gettime((~pid << 3) | 2)
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        used += sum(cpu_s(int(child)) for child in children.read_text().split())
    return used


def peak_mib(pid: int) -> float:
    """Return the most memory that a process has held at once (VmHWM), in MiB."""
    return _status_mib(pid, "VmHWM")


def resident_mib(pid: int) -> float:
    """Return the memory that a process holds (VmRSS), in MiB."""
    return _status_mib(pid, "VmRSS")


def open_files(pid: int) -> int:
    """Return how many file descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _status_mib(pid: int, key: str) -> float:
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if not found:
        raise ProcessLookupError(f"/proc/{pid}/status has no {key}: has the process ended?")
    return int(found[1]) / 1024
