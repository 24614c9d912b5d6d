"""What runs inside a sandbox: it starts one piece of Python code, watches its limits and tells what came of it.

Started by systemd (one unit instance per connection) or by bubblewrap, always with a stream socket as standard input
and output. It reads the code until the other side has no more, writes a line feed when the code starts, a blank once
when the code uses much memory, and the result as JSON at the end. When the other side goes away, it ends.

It is no boundary: the code runs as the same user, and whatever it does to this process, it does to itself. The boundary
is around both. Only the standard library, and nothing of it that is slow to import: the system's own Python runs this.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

MAX_CODE = 1024 * 1024
"""Longest code, in bytes."""
FILE_MIB = 32
"""Largest file that the code may write."""
# How often memory and processes are looked at, in seconds.
_TICK_S = 0.05
_MIB = 1024 * 1024
_SCRIPT = "/tmp/main.py"  # noqa: S108 - a file system of this sandbox's own
_ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    # An arena reserves 64 MiB of addresses for each thread, which would count as memory.
    "MALLOC_ARENA_MAX": "1",
}
_NO_PROCESS = (b"BlockingIOError: [Errno 11]", b"can't start new thread", b"fork: Resource temporarily unavailable")
_NO_MEMORY = (b"MemoryError", b"Cannot allocate memory")


class Output:
    """What the code has written to standard output and error, up to a limit for both together.

    Args:
        most: the limit in bytes.
    """

    def __init__(self, most: int) -> None:
        self._left = most
        self.text = {name: bytearray() for name in ("stdout", "stderr")}
        self.pipes: dict[int, str] = {}
        self.full = False

    def pipe(self, name: str) -> int:
        """Return the writing end of a new pipe for `stdout` or `stderr`."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        self.pipes[reading] = name
        return writing

    def read(self, pipe: int) -> bool:
        """Take what is in a pipe now; return whether there may be more later."""
        try:
            data = os.read(pipe, 65536)
        except BlockingIOError:
            return True
        kept = data[: self._left]
        self.text[self.pipes[pipe]] += kept
        self._left -= len(kept)
        self.full = self.full or len(kept) < len(data)
        return bool(data)


def run(code: bytes, time_s: float, memory_mib: int, processes: int, output_kib: int) -> dict[str, object]:
    """Run the code in a session of its own and return the result.

    Args:
        code: the program's text.
        time_s: how long it may take, in seconds of wall clock; each process has as much CPU time.
        memory_mib: what all of its processes together may use, and each may reserve, in MiB.
        processes: how many processes and threads it may have, the first included.
        output_kib: how much it may write to standard output and error together, in KiB.
    """
    Path(_SCRIPT).write_bytes(code)
    output = Output(output_kib * 1024)
    begin = time.monotonic()
    child = _start(output.pipe("stdout"), output.pipe("stderr"), _limits(time_s, memory_mib, processes))
    _tell(b"\n")
    limit = _watch(child, output, begin + time_s, memory_mib, processes)
    duration_s = time.monotonic() - begin
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # also what the code has left running
    _, status, usage = os.wait4(child, 0)
    for pipe in output.pipes:
        while not output.full and output.read(pipe) and select.select([pipe], [], [], 0)[0]:
            pass
    exit_code = None if limit else os.waitstatus_to_exitcode(status)
    limit = limit or _hit(exit_code, bytes(output.text["stderr"]), usage.ru_maxrss / 1024, memory_mib)
    return {
        **{name: text.decode(errors="replace") for name, text in output.text.items()},
        "exit_code": exit_code,
        "limit": limit,
        "duration_s": round(duration_s, 3),
    }


def _limits(time_s: float, memory_mib: int, processes: int) -> dict[int, int]:
    return {
        resource.RLIMIT_AS: memory_mib * _MIB,
        resource.RLIMIT_CPU: int(time_s) + 1,
        resource.RLIMIT_FSIZE: FILE_MIB * _MIB,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        # This process counts, too; and one too many must be possible, so that it is seen.
        resource.RLIMIT_NPROC: processes + 2,
    }


def _start(stdout: int, stderr: int, limits: dict[int, int]) -> int:
    """Start Python in a process of its own and return its id."""
    child = os.fork()
    if child:
        os.close(stdout)
        os.close(stderr)
        return child
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number, fd in enumerate((null, stdout, stderr)):
            os.dup2(fd, number)
        for kind, most in limits.items():
            resource.setrlimit(kind, (most, most))
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes first
        os.chdir("/tmp")  # noqa: S108
        os.execve(sys.executable, [sys.executable, "-I", "-B", "-u", "-X", "utf8", _SCRIPT], _ENVIRONMENT)  # noqa: S606
    except BaseException as error:  # noqa: BLE001 - a forked process must not go on as its parent
        os.write(2, f"the sandbox cannot start Python: {error}\n".encode())
    os._exit(127)


def _watch(child: int, output: Output, deadline: float, memory_mib: int, processes: int) -> str | None:
    """Collect output until the code ends or hits a limit; return the limit's name."""
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(0, 0)  # tells only when the other side has gone
    for pipe in output.pipes:
        poll.register(pipe, select.POLLIN)
    usage = _Usage(memory_mib, processes)
    while (now := time.monotonic()) < deadline:
        if limit := usage.limit_hit(now):
            return limit
        events = [fd for fd, _ in poll.poll(1000 * min(_TICK_S, deadline - now) + 1)]
        if 0 in events:
            sys.exit("the caller has gone")
        for pipe in output.pipes.keys() & set(events):
            if not output.read(pipe):
                poll.unregister(pipe)
        if output.full:
            return "output"
        if ended in events:
            return None
        _reap(child)
    return "time"


class _Usage:
    """What all processes of this sandbox use, looked at a few times a second.

    Args:
        memory_mib: what is allowed, in MiB.
        processes: how many processes and threads are allowed.
    """

    def __init__(self, memory_mib: int, processes: int) -> None:
        self._memory_mib = memory_mib
        self._processes = processes
        self._next = 0.0
        self._told = False

    def limit_hit(self, now: float) -> str | None:
        """Return the name of the limit that is exceeded, if it is time to look."""
        if now < self._next:
            return None
        self._next = now + _TICK_S
        used_mib, tasks = _usage()
        if used_mib > self._memory_mib / 2 and not self._told:
            self._told = True
            _tell(b" ")
        if used_mib > self._memory_mib:
            return "memory"
        return "processes" if tasks > self._processes else None


def _usage() -> tuple[float, int]:
    """Return the memory in MiB and the number of threads of all processes of this sandbox but this one."""
    pages = tasks = 0
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are all that is needed
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        try:
            fields = Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()
            resident, shared = Path("/proc", entry, "statm").read_bytes().split()[1:3]
        except OSError:
            continue  # it has just ended
        tasks += int(fields[17])
        pages += int(resident) - int(shared)
    return pages * resource.getpagesize() / _MIB, tasks


def _reap(child: int) -> None:
    """Let processes that lost their parent disappear, if this one has inherited them; leave the child itself."""
    try:
        while (info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and info.si_pid != child:
            os.waitpid(info.si_pid, 0)
    except ChildProcessError:
        pass


def _hit(exit_code: int | None, stderr: bytes, peak_mib: float, memory_mib: int) -> str | None:
    """Return the limit because of which the code failed by itself, as far as one can tell."""
    if not exit_code:
        return None
    if exit_code == -signal.SIGXCPU:
        return "time"
    if any(text in stderr for text in _NO_MEMORY) or (exit_code == -signal.SIGKILL and peak_mib > memory_mib / 2):
        return "memory"
    return "processes" if any(text in stderr for text in _NO_PROCESS) else None


def _read_code() -> bytes:
    code = b""
    while data := os.read(0, 65536):
        code += data
        if len(code) > MAX_CODE:
            sys.exit("the code is too long")
    return code


def _tell(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    time_s, memory_mib, processes, output_kib = sys.argv[1:]
    result = run(_read_code(), float(time_s), int(memory_mib), int(processes), int(output_kib))
    _tell(json.dumps(result, ensure_ascii=False).encode())
