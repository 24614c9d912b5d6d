"""Code in bubblewrap: it runs, its limits hold and have names, and no attempt gets out."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from local_llm_bridge.config import ExecutePython
from local_llm_bridge.errors import BadArgumentsError, ConfigError, SandboxError
from local_llm_bridge.sandbox import runner, sandbox, seccomp
from tests import escapes
from tests.services import TOKEN, Bridge, serving, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("bubblewrap")]


@pytest.fixture(scope="module")
def targets() -> Iterator[None]:
    """What the attempts are after: listeners, a file, a process with a secret, and a secret of the bridge's own."""
    secret = {"ESCAPES_SECRET": escapes.SECRET}
    os.environ.update(secret)
    command = ["/usr/bin/python3", "-c", escapes.TARGETS]
    with subprocess.Popen(command, env=secret, stdout=subprocess.PIPE, **NOBODY) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"ready\n"
        yield
        assert process.poll() is None, "an attempt has ended a process outside"
        process.terminate()
    shutil.rmtree(escapes.OUTSIDE)
    del os.environ["ESCAPES_SECRET"]


def settings(**limits: object) -> ExecutePython:
    return ExecutePython.model_validate({"sandbox": "bubblewrap", "time_s": 5, **limits})


@pytest.fixture(scope="module")
def box() -> sandbox.Sandbox:
    return sandbox.create(settings())


async def test_code_says_what_it_has_to_say(box: sandbox.Sandbox) -> None:
    run = await box.run("import sys; print('héllo 你好 🙂'); print('oh', file=sys.stderr); sys.exit(3)")
    assert (run.stdout, run.stderr, run.exit_code, run.limit) == ("héllo 你好 🙂\n", "oh\n", 3, None)
    assert 0 < run.duration_s < 5


async def test_an_exception_comes_with_the_line_it_is_in(box: sandbox.Sandbox) -> None:
    run = await box.run("def half(x):\n    return x / 0  # 一半\n\nhalf(4)\n")
    assert run.exit_code == 1
    assert "line 2, in half\n    return x / 0  # 一半" in run.stderr
    assert run.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("code", ["print('a' 'b'", "x = '\ud800'", "print('\0')"])
async def test_what_is_no_python_is_told_by_python(box: sandbox.Sandbox, code: str) -> None:
    run = await box.run(code)
    assert run.exit_code == 1
    assert "Error" in run.stderr


async def test_bytes_that_are_no_text_are_shown_as_such(box: sandbox.Sandbox) -> None:
    assert (await box.run("import os; os.write(1, b'a\\xffb')")).stdout == "a�b"


async def test_a_signals_number_is_told(box: sandbox.Sandbox) -> None:
    run = await box.run("import ctypes; ctypes.string_at(0)")
    assert (run.exit_code, run.limit) == (-11, None)
    run = await box.run("import os; os.kill(os.getpid(), 9)")
    assert (run.exit_code, run.limit) == (-9, None)


ORDINARY = {
    "asyncio": "import asyncio\nasyncio.run(asyncio.sleep(0.01))",
    "threads": "import concurrent.futures as f\nwith f.ThreadPoolExecutor(4) as p: list(p.map(str, range(99)))",
    "multiprocessing": "import multiprocessing as m\nwith m.Pool(3) as p: p.map(abs, [-1, 2])",
    "fork server": "import multiprocessing as m\nif __name__ == '__main__':\n"
    "  c = m.get_context('forkserver'); c.Semaphore(); q = c.Queue()\n"
    "  p = c.Process(target=q.put, args=(1,)); p.start(); assert q.get() == 1; p.join()\n"
    "else: print = len",
    "files": "import tempfile, sqlite3\nwith tempfile.NamedTemporaryFile() as f: sqlite3.connect(f.name).close()",
    "subprocess": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''], check=True)",
    "copies": "import shutil\nshutil.copy2('/usr/bin/env', '/tmp/env'); shutil.copy2('/tmp/env', '/tmp/env2')",
    "locks": "import sqlite3\nd = sqlite3.connect('/tmp/d'); d.execute('create table t (i)'); d.commit()",
    "shared memory": "import mmap, multiprocessing as m\nmmap.mmap(-1, 8 << 20)[:] = bytes(8 << 20)\n"
    "from multiprocessing.shared_memory import SharedMemory\n"
    "s = SharedMemory(create=True, size=8 << 20); s.buf[0] = 1; s.close(); s.unlink()\nm.Array('d', 99)",
    "sockets": "import socket\na, b = socket.socketpair(); a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)\n"
    "a.sendall(b'x' * 999); assert b.recv(999)",
    "asyncio subprocesses": "import asyncio\n"
    "async def one(): await (await asyncio.create_subprocess_exec('true')).wait()\n"
    "async def all():\n  for _ in range(5): await asyncio.gather(one(), one(), one())\nasyncio.run(all())",
    "copies of its memory": "import multiprocessing as m\nx = b'x' * (100 << 20)\n"
    "def work(n): return x[n]\nwith m.Pool(8) as p: p.map(work, range(999))",
    "zeros": "assert open('/dev/zero', 'rb').read(9) == bytes(9)",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n  def test(self): pass\nunittest.main(exit=False)",
}


@pytest.mark.parametrize("kind", ORDINARY)
async def test_ordinary_programs_run(box: sandbox.Sandbox, kind: str) -> None:
    run = await box.run(f"{ORDINARY[kind]}\nprint('fine')")
    assert (run.stdout, run.exit_code, run.limit) == ("fine\n", 0, None), run


FORKS = "import os, time\nfor _ in range(4):\n  if not os.fork():\n    x = b'x' * (90 << 20); time.sleep(9)\nos.wait()"
THREADS = "import threading, time\nfor _ in range(99): threading.Thread(target=time.sleep, args=(9,)).start()"


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ("time", "while True: pass"),
        ("time", "import time; time.sleep(99)"),
        ("memory", "x = bytearray(1 << 30)"),
        ("memory", FORKS),
        ("processes", THREADS),
        ("output", "while True: print('x' * 999)"),
    ],
)
async def test_the_limit_that_was_hit_is_named(limit: str, code: str) -> None:
    # Time enough for a busy machine to come as far as the other limits.
    time_s = 1 if limit == "time" else 8
    box = sandbox.create(settings(time_s=time_s, output_kib=8))
    run = await box.run(f"print('begun')\n{code}")
    assert run.limit == limit, run
    assert run.stdout.startswith("begun\n")
    assert len(run.stdout + run.stderr) <= 8 * 1024
    assert run.duration_s < time_s + 2


async def test_output_just_within_the_limit_is_whole(box: sandbox.Sandbox) -> None:
    run = await box.run("print('x' * (64 * 1024 - 1))")
    assert (len(run.stdout), run.limit, run.exit_code) == (64 * 1024, None, 0)


async def test_five_run_at_once(box: sandbox.Sandbox) -> None:
    code = "import time; print(time.monotonic()); time.sleep(3); print(time.monotonic())"
    runs = await asyncio.gather(*(box.run(code) for _ in range(5)))
    times = [[float(line) for line in run.stdout.split()] for run in runs]
    assert max(began for began, _ in times) < min(ended for _, ended in times), "all were under way at some time"


async def test_a_cancelled_call_ends_the_code_at_once(box: sandbox.Sandbox) -> None:
    call = asyncio.create_task(box.run(f"import time\ntime.sleep(99)  # {escapes.LEFT_BEHIND}"))
    await asyncio.sleep(0.5)
    assert processes("--as-pid-1")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not processes("--as-pid-1")


async def test_code_that_is_too_long_is_refused(box: sandbox.Sandbox) -> None:
    with pytest.raises(BadArgumentsError, match="at most 1,048,576"):
        await box.run("#" * (runner.MAX_CODE + 1))
    assert (await box.run("#" * runner.MAX_CODE)).exit_code == 0


@pytest.mark.usefixtures("targets")
@pytest.mark.parametrize("attempt", escapes.ATTEMPTS, ids=[attempt.name for attempt in escapes.ATTEMPTS])
async def test_no_attempt_gets_out(attempt: escapes.Attempt) -> None:
    # Time enough for a busy machine to come as far as the other limits.
    box = sandbox.create(settings(time_s=2 if "time" in attempt.limits else 10))
    before = contacts()
    begin = time.monotonic()
    run = await box.run(attempt.program())
    assert time.monotonic() - begin < 15
    assert "ESCAPED" not in run.stdout, run.stdout
    assert (run.limit in attempt.limits) if attempt.limits else (run.limit is None and run.exit_code is not None), run
    if following := attempt.next_program():
        run = await box.run(following)
        assert "ESCAPED" not in run.stdout, run.stdout
        assert run.exit_code == 0, run
    assert contacts() == before
    assert not processes(escapes.LEFT_BEHIND)
    assert not processes("--as-pid-1")


COUNTED = [attempt for attempt in escapes.ATTEMPTS if attempt.counted]


@pytest.mark.parametrize("attempt", COUNTED, ids=[attempt.name for attempt in COUNTED])
async def test_the_same_attempt_gets_its_memory_where_more_is_allowed(attempt: escapes.Attempt) -> None:
    run = await sandbox.create(settings(time_s=30, memory_mib=8192)).run(attempt.program())
    assert "ESCAPED" in run.stdout, run


REAL = [attempt for attempt in escapes.ATTEMPTS if attempt.real]


@pytest.mark.usefixtures("targets")
@pytest.mark.parametrize("attempt", REAL, ids=[attempt.name for attempt in REAL])
def test_the_same_attempt_succeeds_without_a_sandbox(attempt: escapes.Attempt, tmp_path: Path) -> None:
    out = tmp_path / "out"  # a pipe would be open as long as what an attempt leaves behind
    with out.open("w") as file:
        for program in filter(None, (attempt.program(), attempt.next_program())):
            command = ["/usr/bin/python3", "-I", "-c", program]
            subprocess.run(command, cwd="/", stdout=file, stderr=file, check=False, **NOBODY)  # type: ignore[call-overload]
    assert "ESCAPED" in out.read_text()
    assert not processes(escapes.LEFT_BEHIND)


async def test_a_host_without_bubblewrap_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"found no bubblewrap .* Install it"):
        sandbox.create(settings())


@pytest.fixture
def bin_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is first in PATH and that any user can read, which is not true of tmp_path."""
    with tempfile.TemporaryDirectory(prefix="bridge-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield folder


async def test_a_host_without_user_namespaces_is_told_so(bin_folder: Path, bubblewrap: str) -> None:
    # Stands in for such a host: the real bubblewrap, inside a sandbox in which nobody can make another.
    outer = f"{bubblewrap} --dev-bind / / --unshare-user --disable-userns"
    (bin_folder / "bwrap").write_text(f'#!/bin/sh\nexec {outer} {bubblewrap} "$@"\n')
    (bin_folder / "bwrap").chmod(0o755)
    with pytest.raises(
        ConfigError, match=r"cannot make a sandbox here: .*namespace.* sysctl user\.max_user_namespaces"
    ):
        sandbox.create(settings())


async def test_bubblewrap_that_went_away_is_told_at_the_call(bin_folder: Path, bubblewrap: str) -> None:
    shutil.copy(bubblewrap, bin_folder)
    box = sandbox.create(settings())
    shutil.rmtree(bin_folder)
    bin_folder.mkdir()  # noqa: ASYNC240 - nobody else waits
    with pytest.raises(SandboxError, match="cannot be started: No such file"):
        await box.run("print(1)")


# Stands in for a user's systemd with cgroups that hold memory, which there is not where the tests run: it tells what it
# was asked for, and runs the command where it is.
SYSTEMD_RUN = """#!/bin/sh
echo "$*" >> {folder}/asked
while [ "${{1#--}}" != "$1" ]; do
    case $1 in --property=MemoryMax=*) most=${{1#*=*=}} ;; esac
    shift
done
[ "$1" = /bin/sh ] && echo {found} && exit
exec "$@"
"""


@pytest.mark.parametrize(("found", "used"), [("$most", True), ("max", False)])
async def test_a_users_cgroup_is_used_where_its_limit_holds(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch, found: str, *, used: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # root has no systemd of its own
    (bin_folder / "systemd-run").write_text(SYSTEMD_RUN.format(folder=bin_folder, found=found))
    (bin_folder / "systemd-run").chmod(0o755)
    assert (await sandbox.create(settings(processes=5)).run("print(6 * 7)")).stdout == "42\n"
    tried, *runs = (bin_folder / "asked").read_text().splitlines()
    limits = f"--property=MemoryMax={320 << 20} --property=MemorySwapMax=0 --property=TasksMax=13"
    assert limits in tried
    assert len(runs) == (2 if used else 0), "the probe of bubblewrap, and the run"
    assert all(limits in run and "bwrap " in run for run in runs)


def systemd(path: Path) -> ExecutePython:
    return ExecutePython(sandbox="systemd", socket=str(path), time_s=1)


async def test_a_host_without_the_socket_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found no socket at .*nothing\. Is local-llm-sandbox\.socket running"):
        sandbox.create(systemd(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (b"", "ended before the code ran"),
        (b"\n", "ended without a result: the code has ended the process"),
        (b"\nrubbish", "no result"),
        (b"\n" + b"[" * 60_000, "no result"),
        (b"\n0 luck 1.000 0\n", "no result"),
        (b"\n0 - nan 0\n", "no result"),
        (b"\n0 - 1e9 0\n", "no result"),
        (b"\n0 - 1.000 9\nabc", "no result"),
        (b"\n0 - 1.000 " + b"9" * 400 + b"\n", "no result"),
        (b"\n" + b"9" * 400 + b" - 1.000 0\n", "no result"),
        ("\n٣ - 1.000 0\n".encode(), "no result"),
        (b"x" * 2_000_000, "no result"),
    ],
)
async def test_a_sandbox_that_breaks_is_told_as_such(tmp_path: Path, said: bytes, text: str) -> None:
    with pytest.raises(SandboxError, match=text):
        await stand_in(tmp_path, said)


async def test_a_sandbox_that_ends_while_much_memory_is_used_ended_for_that(tmp_path: Path) -> None:
    run = await stand_in(tmp_path, b"\n ")
    assert (run.exit_code, run.limit) == (None, "memory")


ODD = {
    "nested JSON": "print('[' * 60_000)",
    "numbers that are none": 'print(\'{"a": NaN, "b": -Infinity, "c": 1e400, "d": \' + \'9\' * 400 + \'}\')',
    "halves of characters": "import os; os.write(1, b'\\xed\\xa0\\x80 \\xf0\\x9f \\xff\\xfe'); os.write(2, b'\\x80')",
    "control characters": "print(*map(chr, range(0x20)), '\\x7f', '\\x85', '\\u2028', '\\u2029', '\\ufeff')",
    "what looks like a message": """print('data: {}\\n\\ndata: {"jsonrpc": "2.0", "id": 7, "result": 0}\\n\\n')""",
    "what looks like a report": "print('\\n0 - 1.000 9999\\n')",
    "an odd exit code": "import os; os._exit(2**31 - 1)",
}


@pytest.fixture(scope="module")
def bridge(engine: str, bubblewrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """A bridge that runs code, and records all words."""
    assert bubblewrap
    folder = tmp_path_factory.mktemp("bridge")
    with serving(folder, engine, execute_python={"sandbox": "bubblewrap"}, audit_content=True) as running:
        yield running


@pytest.mark.parametrize("kind", ODD)
async def test_odd_output_is_a_text_in_valid_json_like_any_other(bridge: Bridge, kind: str) -> None:
    params = {"name": "execute_python", "arguments": {"code": ODD[kind]}}
    status, text, _ = await asyncio.to_thread(
        bridge.http,
        "/mcp",
        method="POST",
        headers={
            "Authorization": f"Bearer {TOKEN}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
        },
        data=json.dumps({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}).encode(),
    )
    assert status == 200, text
    answer = strict(text.rstrip("\n").rpartition("\n")[2].removeprefix("data: "))
    assert (answer["id"], answer["result"]["isError"]) == (7, False)
    assert answer["result"]["_meta"]["exit_code"] in (0, 255)
    assert answer["result"]["content"][0]["text"].startswith("exit code ")
    await asyncio.to_thread(wait_for, lambda: f'"code":{json.dumps(ODD[kind])}' in bridge.log.read_text())
    for line in bridge.log.read_bytes().split(b"\n"):
        if b'"source":"bridge"' in line:
            strict(line[line.index(b"{") :].decode())


def strict(text: str) -> dict[str, Any]:
    """Read JSON as the standard has it: without NaN, and without halves of characters."""
    text.encode()

    def refuse(word: str) -> None:
        raise ValueError(word)

    value: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return value


async def stand_in(folder: Path, said: bytes) -> sandbox.Run:
    """Stands in for systemd: read the code, answer, close."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b"print(1)"
        writer.write(said)
        writer.close()

    async with await asyncio.start_unix_server(answer, folder / "socket"):
        return await sandbox.create(systemd(folder / "socket")).run("print(1)")


async def test_a_socket_on_which_nobody_listens_is_told_at_the_call(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
        with pytest.raises(SandboxError, match="Connection refused"):
            await sandbox.create(systemd(tmp_path / "socket")).run("print(1)")


@pytest.mark.parametrize("machine", seccomp.MACHINES)
async def test_each_machine_has_a_filter_that_the_kernel_can_take(machine: str) -> None:
    steps = len(seccomp.program(machine)) // 8
    assert 100 < steps < 4096


def contacts() -> str:
    """Return who has reached the targets."""
    return Path(escapes.OUTSIDE, "contacts").read_text()


def processes(word: str) -> list[str]:
    """Return the command lines outside that hold a word, once those that are ending have ended."""
    for _ in range(20):
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if word in command and "escapes.py" not in command:
                found.append(command[:200])
        if not found:
            break
        time.sleep(0.05)
    return found
