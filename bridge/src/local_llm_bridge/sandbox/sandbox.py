"""Running Python code that nobody has looked at, where it can do no harm: one fresh sandbox per call.

On a server systemd is the sandbox: a connection to a socket starts one throw-away unit. On a developer's machine it is
bubblewrap. In both, `runner` runs the code, and this module talks to it over a socket; closing that ends the
call. What comes back is the code's own word: it may be anything, but is never longer than allowed. docs/sandbox.md says
what is guaranteed by what.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import platform
import re
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from local_llm_bridge.errors import BadArgumentsError, ConfigError, SandboxError
from local_llm_bridge.sandbox import runner, seccomp

if TYPE_CHECKING:
    from local_llm_bridge.config import ExecutePython

PYTHON = "/usr/bin/python3"
_RUNNER = "/runner.py"
_BESIDE = "/seccomp.py"
TMP_MIB = 64
"""Size of the code's /tmp in bubblewrap."""
# How long after the code's own deadline the bridge waits for the runner's word.
_GRACE_S = 5.0
_PROBE_S = 10.0
# Longest that a result is without its output, in bytes.
_MOST_WORDS = 64
_REPORT = re.compile(rb"\s+(-|-?\d{1,3}) (-|time|memory|processes|output) (\d{1,6}\.\d{3}) (\d{1,8})\n", re.ASCII)
# What the runner and the files in /tmp may take besides, in MiB, and how many processes there are besides the code's.
_BESIDES_MIB = 64
_BESIDES_PROCESSES = 8
# Prints the limit that holds for the cgroup which it runs in.
_SHOW_LIMIT = 'cat "/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/memory.max"'
# What root becomes for the sandbox: the kernel's limit on processes does not hold for root.
_NOBODY = 65534
_HELP = "docs/sandbox.md says what is needed. To do without, remove execute_python from the settings."


@dataclass(frozen=True)
class Run:
    """What came of a piece of code."""

    stdout: str
    stderr: str
    exit_code: int | None
    """Negative: the number of the signal that ended it. None: ended by a limit before it could exit."""
    limit: str | None
    """The limit that was hit, as far as one can tell: time, memory, processes or output."""
    duration_s: float


@dataclass(frozen=True)
class _Answer:
    said: bytes
    in_time: bool
    why_not: str
    """Where nothing was said: why that may be, and what to do."""


class Sandbox(ABC):
    """A way of running code in a sandbox.

    Args:
        settings: the limits.
    """

    def __init__(self, settings: ExecutePython) -> None:
        self._settings = settings

    async def run(self, code: str) -> Run:
        """Run Python code in a fresh sandbox; when this is cancelled, the code is ended.

        Args:
            code: the program's text.

        Raises:
            BadArgumentsError: the code is longer than a sandbox takes.
            SandboxError: there was no sandbox, or it broke.
        """
        content = code.encode(errors="surrogatepass")
        if len(content) > runner.MAX_CODE:
            raise BadArgumentsError(
                f"The code has {len(content):,} bytes; at most {runner.MAX_CODE:,} can be run. Make it shorter."
            )
        begin = time.monotonic()
        answer = await self._ask(content)
        return _judge(answer, time.monotonic() - begin)

    @abstractmethod
    async def _ask(self, content: bytes) -> _Answer:
        """Have the code run in a new sandbox, and return what came back before it ended.

        Raises:
            SandboxError: there was no sandbox.
        """

    async def _talk(self, connection: socket.socket, content: bytes) -> tuple[bytes, bool]:
        """Send the code to a runner, and return its answer and whether it came in time."""
        answer = bytearray()
        most = self._settings.output_kib * 1024 + _MOST_WORDS
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            async with asyncio.timeout(self._settings.time_s + _GRACE_S):
                with contextlib.suppress(ConnectionError):  # the sandbox has ended
                    writer.write(content)
                    writer.write_eof()
                    while len(answer) <= most and (data := await reader.read(65536)):
                        answer += data
        except TimeoutError:
            return bytes(answer), False
        finally:
            writer.transport.abort()
        return bytes(answer), True


class _Systemd(Sandbox):
    """A unit of its own for each call, started by systemd when the bridge connects."""

    async def _ask(self, content: bytes) -> _Answer:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)  # noqa: FBT003 - the name says it
        with connection:
            try:
                async with asyncio.timeout(_GRACE_S):
                    await asyncio.get_running_loop().sock_connect(connection, self._settings.socket)
            except (OSError, TimeoutError) as error:
                raise SandboxError(
                    f"The sandbox cannot be reached at {self._settings.socket}: {_reason(error)}. "
                    "Is local-llm-sandbox.socket running? systemctl status local-llm-sandbox.socket tells."
                ) from None
            said, in_time = await self._talk(connection, content)
        why_not = "If many calls run at once, try again a little later; journalctl -u 'local-llm-sandbox*' says more."
        return _Answer(said, in_time, why_not)


class _Bubblewrap(Sandbox):
    """Namespaces of its own for each call."""

    def __init__(self, settings: ExecutePython, bwrap: str) -> None:
        super().__init__(settings)
        self._command = [*_scope(settings), bwrap]
        limits = (settings.time_s, settings.memory_mib, settings.processes, settings.output_kib)
        self._runner = [_RUNNER, *map(str, limits)]
        program, beside = (Path(inspect.getfile(module)).read_bytes() for module in (runner, seccomp))
        self._data = [
            ("--seccomp", seccomp.program(), []),
            ("--ro-bind-data", program, [_RUNNER]),
            ("--ro-bind-data", beside, [_BESIDE]),
        ]

    def probe(self) -> None:
        """Try whether sandboxes can be made here.

        Raises:
            ConfigError: they cannot.
        """
        program = ["-c", "import ctypes; print('it works')"]
        try:
            with self._start(program, subprocess.DEVNULL, subprocess.PIPE) as process:
                try:
                    said, words = process.communicate(timeout=_PROBE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    said, words = b"", f"nothing happened for {_PROBE_S:.0f} s".encode()
        except OSError as error:
            said, words = b"", _reason(error).encode()
        if said.strip() != b"it works":
            raise ConfigError(
                f"execute_python: bubblewrap cannot make a sandbox here: {_last(words)}. "
                "It needs bubblewrap 0.8 or newer, Linux 5.14 or newer, and a kernel that lets this user make user "
                "namespaces: see sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone and "
                f"kernel.apparmor_restrict_unprivileged_userns. {_HELP}"
            )

    async def _ask(self, content: bytes) -> _Answer:
        ours, theirs = socket.socketpair()
        with ours:
            try:
                with theirs:
                    process = self._start(self._runner, theirs.fileno(), theirs.fileno())
            except OSError as error:
                raise SandboxError(f"bubblewrap cannot be started: {_reason(error)}. Is it still installed?") from None
            try:
                said, in_time = await self._talk(ours, content)
            finally:
                # With bubblewrap its sandbox dies, whatever is in it.
                process.kill()
                _, words = await asyncio.shield(asyncio.to_thread(process.communicate))
        return _Answer(said, in_time, f"bubblewrap said: {_last(words)}.")

    def _start(self, arguments: list[str], stdin: int, stdout: int) -> subprocess.Popen[bytes]:
        """Start Python in a new sandbox.

        Args:
            arguments: Python's.
            stdin: as for subprocess.
            stdout: the same.

        Raises:
            OSError: bubblewrap cannot be started.
        """
        root = os.geteuid() == 0
        with contextlib.ExitStack() as stack:
            options, fds = [], []
            for option, data, place in self._data:
                fds.append(stack.enter_context(_reading(data)).fileno())
                options += [option, str(fds[-1]), *place]
            return subprocess.Popen(  # noqa: S603
                [*self._command, *options, *_box(), PYTHON, "-I", "-S", *arguments],
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                pass_fds=fds,
                cwd="/",
                user=_NOBODY if root else None,
                group=_NOBODY if root else None,
                extra_groups=[] if root else None,
            )


def create(settings: ExecutePython) -> Sandbox:
    """Return the sandbox that the settings name.

    Raises:
        ConfigError: there is none here, or it does not work.
    """
    if settings.sandbox == "systemd":
        if not Path(settings.socket).is_socket():
            raise ConfigError(
                f"execute_python: socket: found no socket at {settings.socket}. Is local-llm-sandbox.socket running? "
                f"The role mcp_bridge installs it where mcp_bridge_execute_python is set. {_HELP}"
            )
        return _Systemd(settings)
    bwrap = shutil.which("bwrap")
    if not bwrap:
        raise ConfigError(
            "execute_python: found no bubblewrap (bwrap) on this machine. Install it (apt install bubblewrap, "
            f"dnf install bubblewrap; there is none outside Linux). {_HELP}"
        )
    if not Path(PYTHON).exists():
        raise ConfigError(f"execute_python: found no {PYTHON}, which is what runs the code. Install Python. {_HELP}")
    if platform.machine() not in seccomp.MACHINES:
        raise ConfigError(
            f"execute_python: found a machine of kind {platform.machine()}; bubblewrap is used on "
            f"{' and '.join(seccomp.MACHINES)} only. {_HELP}"
        )
    sandbox = _Bubblewrap(settings, bwrap)
    sandbox.probe()
    return sandbox


def _scope(settings: ExecutePython) -> list[str]:
    """Return the command that runs another in a cgroup with these limits; nothing where this user can have none.

    There has to be a systemd for this user to which cgroups with memory are delegated: it is tried.
    """
    systemd_run = shutil.which("systemd-run")
    if not systemd_run or os.geteuid() == 0:
        return []
    most = (settings.memory_mib + _BESIDES_MIB) * 1024 * 1024
    limits = (f"MemoryMax={most}", "MemorySwapMax=0", f"TasksMax={settings.processes + _BESIDES_PROCESSES}")
    command = [systemd_run, "--user", "--scope", "--quiet", "--collect", *(f"--property={limit}" for limit in limits)]
    try:
        done = subprocess.run(  # noqa: S603
            [*command, "/bin/sh", "-c", _SHOW_LIMIT], capture_output=True, timeout=_PROBE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return command if done.stdout.strip() == str(most).encode() else []


def _box() -> list[str]:
    """Return bubblewrap's arguments: nothing of the machine but its programs, read-only."""
    return [
        *("--unshare-all", "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"),
        *("--cap-drop", "ALL", "--hostname", "sandbox"),
        *("--ro-bind", "/usr", "/usr", *_libraries(), "--proc", "/proc", "--dev", "/dev"),
        *("--size", str(TMP_MIB * 1024 * 1024 // 4), "--tmpfs", "/dev/shm"),  # noqa: S108 - the sandbox's own
        *("--size", str(TMP_MIB * 1024 * 1024), "--tmpfs", "/tmp"),  # noqa: S108
        # It reads as zeros, too, but cannot be mapped: shared memory that nobody counts.
        *("--dev-bind", "/dev/full", "/dev/zero"),
        # No terminals: much memory of the kernel, and many of its faults.
        *("--tmpfs", "/dev/pts", "--remount-ro", "/dev/pts"),
        *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"),
    ]


def _reading(data: bytes) -> BinaryIO:
    """Return a file of which the data can be read, and that other processes can be given."""
    file = os.fdopen(os.memfd_create("sandbox"), "w+b")
    file.write(data)
    file.seek(0)
    return file


def _libraries() -> list[str]:
    """Return what makes /bin and /lib* in the sandbox what they are outside: links into /usr, or folders."""
    arguments = []
    for path in (Path("/", name) for name in ("bin", "lib", "lib64")):
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    return arguments


def _judge(answer: _Answer, duration_s: float) -> Run:
    """Make a result of what the runner said.

    Raises:
        SandboxError: it said nothing, or what is no result.
    """
    if not answer.in_time:
        # The runner should have ended it: the code has stopped or hurt its runner.
        return Run("", "", None, "time", duration_s)
    if not answer.said:
        raise SandboxError(f"The sandbox ended before the code ran. {answer.why_not}")
    if not answer.said.strip():
        if b" " in answer.said:
            return Run("", "", None, "memory", duration_s)
        raise SandboxError(
            "The sandbox ended without a result: the code has ended the process that watches over it, or the machine "
            f"ran out of memory. {answer.why_not}"
        )
    return _result(answer.said)


def _result(said: bytes) -> Run:
    """Return the result that a runner reports, or that the code has made up in its place.

    Raises:
        SandboxError: it is none.
    """
    if not (words := _REPORT.match(said)) or int(words[4]) > len(said) - words.end():
        raise SandboxError(
            "The sandbox answered with something that is no result: the code has probably hurt the process that "
            "watches over it. Change the code."
        )
    exit_code, limit, duration_s, length = (word.decode() for word in words.groups())
    output = said[words.end() :]
    stdout, stderr = (text.decode(errors="replace") for text in (output[: int(length)], output[int(length) :]))
    return Run(
        stdout,
        stderr,
        None if exit_code == "-" else int(exit_code),
        None if limit == "-" else limit,
        float(duration_s),
    )


def _last(words: bytes) -> str:
    """Return the end of what a program has complained of."""
    return words[-500:].decode(errors="replace").strip().rstrip(".") or "nothing"


def _reason(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
