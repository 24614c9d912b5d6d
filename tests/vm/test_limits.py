"""The limits of our units hold, by the figures that the roles have set."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from testinfra.host import Host

from tests.lab.waiting import until

BRIDGE = "local-llm-bridge.service"
ENGINE = "llama-cpp@qwen2-tiny.service"
SANDBOX = "local-llm-sandbox@*.service"  # while there is one
MIB = 1024 * 1024


# Each is a process that goes into a unit's cgroup, and there does what the limit is against. It gives up beyond it.
JOIN = """
import os, signal, sys, time
cgroup, limit = sys.argv[1], int(sys.argv[2])
open(cgroup + '/cgroup.procs', 'w').write(str(os.getpid()))
open('/proc/self/oom_score_adj', 'w').write('1000') # as the sandbox's code has it
"""
EAT = f"""{JOIN}
blocks = []
while len(blocks) * 16 * {MIB} < limit * 1.25:
    blocks.append(bytearray(16 * {MIB}))
    blocks[-1][::4096] = bytes(4096)
    print(len(blocks) * 16, flush=True)
"""
FORK = f"""{JOIN}
children = []
try:
    while len(children) < limit * 1.25:
        child = os.fork()
        if not child:
            signal.pause()
        children.append(child)
except BlockingIOError:
    pass
print(len(children), open(cgroup + '/pids.current').read(), open(cgroup + '/pids.events').read())
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""
# A run of Python code, for which the bridge would connect like this.
RUN_CODE = """
import socket, sys, time
sandbox = socket.socket(socket.AF_UNIX)
sandbox.connect('/run/local-llm-sandbox.sock')
sandbox.sendall(sys.argv[1].encode())
sandbox.shutdown(socket.SHUT_WR)
assert sandbox.recv(1) == b'\\n'
print('begun', flush=True)
sandbox.recv(1)
"""
BUSY = "import os\nos.fork()\nwhile True: pass"
USAGE = """
import json, sys, time
def read():
    return {key: int(value) for key, value in (line.split() for line in open(sys.argv[1] + '/cpu.stat'))}
before, begin = read(), time.monotonic()
time.sleep(10)
after, took = read(), time.monotonic() - begin
print(json.dumps({key: (after[key] - before[key]) for key in before} | {'took': took}))
"""


def shown(host: Host, unit: str, name: str) -> str:
    """A property of a unit."""
    return str(host.check_output("systemctl show --property=%s --value %s", name, unit)).strip()


def cgroup(host: Host, unit: str) -> str:
    """The folder of a unit's cgroup."""
    return f"/sys/fs/cgroup{shown(host, unit, 'ControlGroup')}"


@pytest.fixture
def sandbox(host: Host) -> Iterator[Host]:
    """Python code of a developer runs, and would like two processors."""
    host.check_output("systemd-run --quiet --collect --unit=caller python3 -c %s %s", RUN_CODE, BUSY)
    until(lambda: "begun" in host.check_output("journalctl --boot --output=cat --unit=caller"))
    yield host
    host.run("systemctl stop caller")
    until(lambda: not host.check_output("systemctl list-units --plain --no-legend %s", SANDBOX))


def is_held_at_its_memory(host: Host, unit: str, limit: int) -> None:
    """A process of the unit that wants more than its MemoryMax is killed, because of that limit and of none else."""
    assert int(shown(host, unit, "MemoryMax")) == limit
    group = cgroup(host, unit)
    script = 'python3 -c "$@"; echo status $?'
    eaten = host.run("sh -c %s sh %s %s %s", script, EAT, group, str(limit)).stdout.split()
    assert eaten[-2:] == ["status", "137"], eaten
    assert limit / 2 < int(eaten[-3]) * MIB < limit
    name = re.escape(group.removeprefix("/sys/fs/cgroup"))
    kill = f"oom-kill:constraint=CONSTRAINT_MEMCG,.*oom_memcg={name},.*task=python3,"
    until(lambda: host.run("journalctl --dmesg --boot --grep=%s", kill).rc == 0)


def is_held_at_its_tasks(host: Host, unit: str, limit: int) -> None:
    """A process of the unit may fork until the unit has as many as its TasksMax."""
    assert int(shown(host, unit, "TasksMax")) == limit
    out = host.check_output("python3 -c %s %s %s", FORK, cgroup(host, unit), str(limit)).split()
    children, current = int(out[0]), int(out[1])
    assert current == limit
    assert 0 < children < limit
    assert out[2] == "max"
    assert int(out[3]) > 0  # refused


def test_the_bridge_is_held_at_its_memory_and_comes_back(host: Host) -> None:
    restarts = int(shown(host, BRIDGE, "NRestarts"))
    is_held_at_its_memory(host, BRIDGE, 1024 * MIB)
    until(lambda: "'oom-kill'" in host.check_output("journalctl --boot --output=cat --unit=%s", BRIDGE))
    until(lambda: host.run("curl --silent --fail --max-time 60 http://127.0.0.1:8080/readyz").rc == 0)
    assert int(shown(host, BRIDGE, "NRestarts")) == restarts + 1


def test_the_sandbox_is_held_at_its_memory(sandbox: Host) -> None:
    is_held_at_its_memory(sandbox, SANDBOX, (256 + 64) * MIB)


@pytest.mark.parametrize(("unit", "limit"), [(BRIDGE, 64), (ENGINE, 512)])
def test_a_service_is_held_at_its_tasks(host: Host, unit: str, limit: int) -> None:
    is_held_at_its_tasks(host, unit, limit)
    assert shown(host, unit, "ActiveState") == "active"


def test_the_sandbox_is_held_at_its_tasks(sandbox: Host) -> None:
    is_held_at_its_tasks(sandbox, SANDBOX, 16 + 4)


def test_the_sandbox_is_held_at_one_processor(sandbox: Host) -> None:
    """Two processes that never rest get the time of one, on two processors."""
    assert shown(sandbox, SANDBOX, "CPUQuotaPerSecUSec") == "1s"
    usage = json.loads(sandbox.check_output("python3 -c %s %s", USAGE, cgroup(sandbox, SANDBOX)))
    assert usage["nr_throttled"] > 0
    assert 0.5 < usage["usage_usec"] / 1e6 / usage["took"] < 1.3, usage
