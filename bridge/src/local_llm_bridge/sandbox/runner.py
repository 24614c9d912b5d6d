"""What runs inside a sandbox: it starts one piece of Python code, watches its limits and tells what came of it.

Started by systemd (one unit instance per connection) or by bubblewrap, always with a stream socket as standard input
and output. It reads the code until the other side has no more, writes a line feed when the code starts, a blank once
when the code uses much memory, and the result at the end (`report`). When the other side goes away, it ends.

It is no boundary: the code runs as the same user, and whatever it does to this process, it does to itself. The boundary
is around both. Only the standard library, and nothing of it that is slow to import: the system's own Python runs this.
Beside it has to be seccomp.py.
"""

from __future__ import annotations

import _socket  # `socket` takes long to import
import contextlib
import ctypes
import os
import resource
import select
import signal
import struct
import sys
import time
from pathlib import Path

MAX_CODE = 1024 * 1024
"""Longest code, in bytes."""
FILE_MIB = 32
"""Largest file that the code may write."""
SHARED_MIB = 8
"""Largest mapping of shared memory without a file, as which each counts, however little of it is still mapped."""
# How often memory and processes are looked at, in seconds, if that takes less than a quarter of a processor's time, or
# half of it once half of the memory is used.
_TICK_S = 0.02
# How much nicer the code is than what watches it.
_NICE = 5
# A process that is being started shares its parent's memory for a moment, and counts twice.
_MOMENT_S = 0.01
# What the kernel keeps for each of these, in KiB, seldom more.
_MAPPING_KIB, _FILE_KIB = 0.5, 1.5
# Longest list of a process's mappings for each MiB of memory, and of all locks, in bytes. What is longer has used up
# the memory: reading it would take time, in which nobody looks.
_MAPS_PER_MIB = 1024
_LONGEST_LOCKS = 1 << 18
_SHARED = b"/dev/zero (deleted)"
_WRITABLE = ("/tmp", "/dev/shm")  # noqa: S108 - file systems of this sandbox's own
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 4, 22, 2
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


def run(code: bytes, time_s: float, memory_mib: int, processes: int, output_kib: int) -> bytes:
    """Run the code in a session of its own and return the report.

    Args:
        code: the program's text.
        time_s: how long it may take, in seconds of wall clock; each process has as much CPU time.
        memory_mib: what all of its processes together may use, and each may reserve, in MiB.
        processes: how many processes and threads it may have, the first included.
        output_kib: how much it may write to standard output and error together, in KiB.
    """
    Path(_SCRIPT).write_bytes(code)
    output = Output(output_kib * 1024)
    confine = _confinement()
    usage = _Usage(memory_mib, processes)
    begin = time.monotonic()
    child = _start(output.pipe("stdout"), output.pipe("stderr"), _limits(time_s, memory_mib, processes), confine)
    _tell(b"\n")
    limit = _watch(child, output, begin + time_s, usage)
    duration_s = time.monotonic() - begin
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # also what the code has left running
    _, status, used = os.wait4(child, 0)
    for pipe in output.pipes:
        while not output.full and output.read(pipe) and select.select([pipe], [], [], 0)[0]:
            pass
    exit_code = None if limit else os.waitstatus_to_exitcode(status)
    limit = limit or _hit(exit_code, bytes(output.text["stderr"]), used.ru_maxrss / 1024, memory_mib)
    return report(exit_code, limit, duration_s, *map(bytes, output.text.values()))


def report(exit_code: int | None, limit: str | None, duration_s: float, stdout: bytes, stderr: bytes) -> bytes:
    """Return a result as it goes to the bridge: a line of words, then the output as it came.

    Args:
        exit_code: negative for a signal; None: ended by a limit.
        limit: name of the limit that was hit, if any.
        duration_s: how long it took, in seconds.
        stdout: what the code wrote to it.
        stderr: the same.
    """
    ended = "-" if exit_code is None else exit_code
    return f"{ended} {limit or '-'} {duration_s:.3f} {len(stdout)}\n".encode() + stdout + stderr


def _limits(time_s: float, memory_mib: int, processes: int) -> dict[int, int]:
    return {
        resource.RLIMIT_AS: memory_mib * _MIB,
        resource.RLIMIT_CPU: int(time_s) + 1,
        resource.RLIMIT_FSIZE: FILE_MIB * _MIB,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64 + 4 * processes,  # each may be a pipe or a socket with a full buffer
        resource.RLIMIT_SIGPENDING: 128,  # timers count, too
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        # This process counts, too; and one too many must be possible, so that it is seen.
        resource.RLIMIT_NPROC: processes + 2,
    }


def _prctl(option: int, *arguments: object) -> None:
    """Call prctl.

    Raises:
        OSError: the kernel refuses.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(option, *arguments, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def _confinement() -> bytes:
    sys.path.append(str(Path(__file__).parent))
    import seccomp  # type: ignore[import-not-found] # noqa: PLC0415 - in a sandbox there is no package

    return bytes(seccomp.arguments(SHARED_MIB * _MIB))


def _start(stdout: int, stderr: int, limits: dict[int, int], confine: bytes) -> int:
    """Start Python in a process of its own and return its id."""
    _prctl(_PR_SET_DUMPABLE, 0, 0)  # the code may not look into this process, nor write
    child = os.fork()
    if child:
        os.close(stdout)
        os.close(stderr)
        return child
    try:
        os.setsid()
        with contextlib.suppress(PermissionError):  # under systemd, where MemoryMax= holds
            os.nice(_NICE)
        null = os.open(os.devnull, os.O_RDWR)
        for number, fd in enumerate((null, stdout, stderr)):
            os.dup2(fd, number)
        for kind, most in limits.items():
            resource.setrlimit(kind, (most, most))
        _prctl(_PR_SET_DUMPABLE, 1, 0)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes first
        os.chdir("/tmp")  # noqa: S108
        steps = ctypes.create_string_buffer(confine, len(confine))
        filter_ = ctypes.create_string_buffer(struct.pack("@HP", len(confine) // 8, ctypes.addressof(steps)))
        _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_)
        os.execve(sys.executable, [sys.executable, "-I", "-B", "-u", "-X", "utf8", _SCRIPT], _ENVIRONMENT)  # noqa: S606
    except BaseException as error:  # noqa: BLE001 - a forked process must not go on as its parent
        os.write(2, f"the sandbox cannot start Python: {error}\n".encode())
    os._exit(127)


def _watch(child: int, output: Output, deadline: float, usage: _Usage) -> str | None:
    """Collect output until the code ends or hits a limit; return the limit's name."""
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(0, 0)  # tells only when the other side has gone
    for pipe in output.pipes:
        poll.register(pipe, select.POLLIN)
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
    """What all processes of this sandbox use together, looked at many times a second.

    Memory is what is theirs alone or, if it is shared, their part of it; swapped or not; and what the kernel keeps for
    them. Files in /tmp and /dev/shm have limits of their own, and only their number counts here.

    Args:
        memory_mib: what is allowed, in MiB.
        processes: how many processes and threads are allowed.
    """

    def __init__(self, memory_mib: int, processes: int) -> None:
        self._memory_kib = memory_mib * 1024
        self._processes = processes
        self._longest_maps = memory_mib * _MAPS_PER_MIB
        self._socket_kib = _socket_kib()
        self._base_kib = 0.0
        self._base_kib = self._kernel_kib()
        self._next = 0.0
        self._told = False

    def limit_hit(self, now: float) -> str | None:
        """Return the name of the limit that is exceeded, if it is time to look."""
        if now < self._next:
            return None
        begin = time.process_time()
        used_kib, tasks = self._look()
        if used_kib > self._memory_kib:
            time.sleep(_MOMENT_S)
            used_kib, tasks = self._look()
        much = used_kib > self._memory_kib / 2
        self._next = time.monotonic() + max(_TICK_S, (1 if much else 3) * (time.process_time() - begin))
        if much and not self._told:
            self._told = True
            _tell(b" ")
        if used_kib > self._memory_kib:
            return "memory"
        return "processes" if tasks > self._processes else None

    def _look(self) -> tuple[float, int]:
        """Return the memory in KiB and the number of threads of all processes but this one."""
        others = [_Process(int(name)) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]  # noqa: PTH208
        kib = self._kernel_kib()
        shared: set[bytes] = set()
        for one in others:
            maps = _read(f"/proc/{one.pid}/maps", self._longest_maps)
            if len(maps) >= self._longest_maps:
                kib += self._memory_kib
            kib += maps.count(b"\n") * _MAPPING_KIB + one.tables_kib
            if _SHARED in maps:
                shared |= {line.split()[4] for line in maps.splitlines() if line.endswith(_SHARED)}
        kib += len(shared) * SHARED_MIB * 1024
        # Memory that a fork shares with its parent is in this sum twice; to find out takes longer.
        own_kib = sum(one.own_kib for one in others)
        if kib + own_kib > self._memory_kib / 2:
            own_kib = sum(one.own_part_kib() for one in others)
        return kib + own_kib, sum(one.threads for one in others)

    def _kernel_kib(self) -> float:
        """Return the most that sockets may hold and what the number of files takes, beyond what there was at first."""
        sockets = _fields(_read("/proc/self/net/sockstat").replace(b"used ", b"")).get(b"sockets", 0)
        kib = sockets * self._socket_kib
        if len(_read("/proc/locks", _LONGEST_LOCKS)) >= _LONGEST_LOCKS:
            kib += self._memory_kib
        for folder in _WRITABLE:
            files = os.statvfs(folder)
            kib += (files.f_files - files.f_ffree) * _FILE_KIB
        return max(0.0, kib - self._base_kib)


class _Process:
    """A process as /proc shows it at this moment; all is 0 when it has just ended.

    Args:
        pid: its id. Afterwards that of a thread which is still there, if the first one has ended.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        status = _fields(_read(f"/proc/{pid}/status"))
        self.threads = status.get(b"Threads", 0)
        if b"VmSize" not in status and self.threads > 1:
            with contextlib.suppress(OSError):
                for thread in map(int, os.listdir(f"/proc/{pid}/task")):  # noqa: PTH208
                    if b"VmSize" in (status := _fields(_read(f"/proc/{thread}/status"))):
                        self.pid = thread
                        break
        self.own_kib = status.get(b"RssAnon", 0) + status.get(b"VmSwap", 0)
        self.tables_kib = status.get(b"VmPTE", 0)

    def own_part_kib(self) -> int:
        """Return how much memory is its own, and its part of what it shares with others."""
        rollup = _fields(_read(f"/proc/{self.pid}/smaps_rollup"))
        if b"Pss_Anon" in rollup:
            return rollup[b"Pss_Anon"] + rollup.get(b"SwapPss", 0)
        # It has ended, or may not be looked at so closely.
        return self.own_kib if b"VmSize" in _fields(_read(f"/proc/{self.pid}/status")) else 0


def _fields(text: bytes) -> dict[bytes, int]:
    """Return the numbers of a file in /proc that has lines like `VmSize: 12 kB`."""
    fields = {}
    for line in text.splitlines():
        name, _, value = line.partition(b":")
        words = value.split(None, 1)
        if words and words[0].isdigit():
            fields[name] = int(words[0])
    return fields


def _read(path: str, most: int = 65536) -> bytes:
    """Return what a file in /proc says, nothing if it is not there."""
    text = b""
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:  # noqa: PTH123 - many times a second
        while len(text) < most and (data := file.read(65536)):
            text += data
    return text


def _socket_kib() -> float:
    """Return how much memory a socket may hold, in KiB: its full buffer, and what was sent just before it was full."""
    own = _socket.socket(fileno=os.dup(0))
    try:
        return 2 * own.getsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF) / 1024
    finally:
        own.close()


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
    _tell(run(_read_code(), float(time_s), int(memory_mib), int(processes), int(output_kib)))
