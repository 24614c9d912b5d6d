"""Code of the tool execute_python runs in a throw-away unit, and nothing that it tries gets out of it."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.lab.waiting import until

SCENARIO = Path(__file__).resolve().parent.parent
SOCKET = "local-llm-sandbox.socket"
USER = "local-llm-bridge"
GATEWAY_KEY = "molecule-key-of-the-gateway"
PYTHON = "/opt/local-llm-bridge/current/bin/python"

pytestmark = pytest.mark.units("local-llm-bridge", SOCKET)


def load_escapes() -> Any:
    """The attempts that the bridge's own tests make in bubblewrap, too."""
    path = SCENARIO.parent.parent / "bridge/tests/escapes.py"
    spec = importlib.util.spec_from_file_location("escapes", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["escapes"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


ESCAPES = load_escapes()
ATTEMPTS = {attempt.name: attempt for attempt in ESCAPES.ATTEMPTS}
ASK = """
# Runs programs, by name and all at once, in the sandbox of the bridge's settings; prints what came of them as JSON.
import asyncio, dataclasses, json, sys
from pathlib import Path
from local_llm_bridge import config, errors
from local_llm_bridge.sandbox import sandbox
programs = json.loads(Path("/srv/escapes/programs.json").read_text())
settings = config.from_file(Path("/etc/local-llm-bridge/config.yml"), read_keys=False).execute_python
async def run(name):
    try:
        return dataclasses.asdict(await sandbox.create(settings).run(programs[name]))
    except errors.SandboxError as error:
        return {"error": str(error)}
async def main():
    return await asyncio.gather(*map(run, sys.argv[1:]))
if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))
"""
TRY = f"""
# Makes attempts, by name and one after the other; prints as JSON what came of each, and what it left outside.
import asyncio, json, subprocess, sys, time
from pathlib import Path
from ask import programs, run
UNITS = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "local-llm-sandbox@*"]
PROCESSES = ["pgrep", "--full", "--list-full", "[l]ocal-llm-escapes-left-behind|[/]tmp/main.py"]
def left():
    for _ in range(60):
        found = "".join(subprocess.run(command, stdout=-1, text=True).stdout for command in (UNITS, PROCESSES))
        if not found:
            break
        time.sleep(0.25)
    return found
def contacts():
    return Path("{ESCAPES.OUTSIDE}/contacts").read_text()
async def main():
    outcomes = {{}}
    for name in sys.argv[1:]:
        before = contacts()
        runs = [await run(one) for one in (name, "after " + name) if one in programs]
        alive = subprocess.run(["systemctl", "is-active", "escapes-targets"], stdout=-1, text=True).stdout.strip()
        outcomes[name] = {{"runs": runs, "left": left(), "contacts": contacts()[len(before):], "targets": alive}}
    return outcomes
print(json.dumps(asyncio.run(main())))
"""
PROGRAMS = {
    "hello": "print('héllo 你好')",
    "fail": "1 / 0",
    "endless": "print('begun')\nwhile True: pass",
    "sleep": "import time\ntime.sleep(1)\nprint('slept')",
    "kill": "import os, time\ntime.sleep(0.5)\nos.kill(-1, 9)",
    "reserve": "x = bytearray(1 << 30)",
    "asyncio": "import asyncio\nasyncio.run(asyncio.sleep(0.01))\nprint('fine')",
    "multiprocessing": "import multiprocessing as m\nwith m.Pool(3) as p: p.map(abs, [-1, 2])\nprint('fine')",
    "files": "open('/tmp/x', 'w').write('1')\nimport tempfile\ntempfile.TemporaryFile().close()\nprint('fine')",
    **{name: attempt.program() for name, attempt in ATTEMPTS.items()},
    **{f"after {name}": attempt.next_program() for name, attempt in ATTEMPTS.items() if attempt.then},
}


def write(host: Host, path: str, text: str) -> None:
    """Write a text into a file of the guest that anybody may read."""
    packed = base64.b64encode(gzip.compress(text.encode())).decode()  # a command is at most 128 KiB
    host.check_output("echo %s | base64 -d | gunzip > %s && chmod 0644 %s", packed, path, path)


@pytest.fixture(scope="module")
def targets(host: Host) -> Iterator[Host]:
    """What the attempts are after, running in the guest, and the programs, to be run there."""
    host.check_output("mkdir -p /srv/escapes")
    write(host, "/srv/escapes/targets.py", ESCAPES.TARGETS)
    write(host, "/srv/escapes/programs.json", json.dumps(PROGRAMS))
    write(host, "/srv/escapes/ask.py", ASK)
    write(host, "/srv/escapes/try.py", TRY)
    secret = f"--setenv=ESCAPES_SECRET={ESCAPES.SECRET}"
    command = "systemd-run --quiet --unit=escapes-targets %s /usr/bin/python3 /srv/escapes/targets.py"
    host.check_output(command, secret)
    host.check_output("timeout 20 sh -c 'until test -S %s/socket; do sleep 0.1; done'", ESCAPES.OUTSIDE)
    yield host
    host.check_output("systemctl stop escapes-targets; rm -r %s /srv/escapes", ESCAPES.OUTSIDE)


def run(host: Host, *names: str, script: str = "ask.py") -> Any:
    """Have programs run as the bridge would: by default at once, and the results come in a list."""
    words = " ".join(["%s"] * len(names))
    return json.loads(
        host.check_output(
            f"setpriv --reuid={USER} --regid={USER} --init-groups {PYTHON} /srv/escapes/{script} {words}", *names
        )
    )


def wait_until_nothing_is_left(host: Host) -> None:
    """Wait until no unit of a sandbox is there, nor a process that an attempt has started."""
    units = "systemctl list-units --all --plain --no-legend 'local-llm-sandbox@*'"
    processes = "pgrep --full --list-full '[l]ocal-llm-escapes-left-behind|[/]tmp/main.py'"
    until(lambda: not host.check_output(units) and not host.run(processes).stdout, seconds=15)


def test_code_says_what_it_has_to_say(targets: Host) -> None:
    (hello,) = run(targets, "hello")
    assert (hello["stdout"], hello["exit_code"], hello["limit"]) == ("héllo 你好\n", 0, None)
    (fail,) = run(targets, "fail")
    assert fail["exit_code"] == 1
    assert fail["stderr"].endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("name", ["asyncio", "multiprocessing", "files"])
def test_ordinary_programs_run(targets: Host, name: str) -> None:
    (result,) = run(targets, name)
    assert (result["stdout"], result["exit_code"]) == ("fine\n", 0), result


# In a guest nothing enforces MemoryMax=, so what only that holds is not tried there.
TRIED = [name for name, attempt in ATTEMPTS.items() if not attempt.needs_cgroup]


@pytest.fixture(scope="module")
def outcomes(targets: Host) -> dict[str, dict[str, Any]]:
    """What came of the attempts: all in one go, as to start a program in a guest takes longer than most of them."""
    found: dict[str, dict[str, Any]] = run(targets, *TRIED, script="try.py")
    return found


@pytest.mark.parametrize("name", TRIED)
def test_no_attempt_gets_out(outcomes: dict[str, dict[str, Any]], name: str) -> None:
    attempt, outcome = ATTEMPTS[name], outcomes[name]
    result, *then = outcome["runs"]
    if "error" in result:
        assert attempt.ends_sandbox, result
        assert "ended without a result: the code has ended" in result["error"]
    else:
        assert "ESCAPED" not in result["stdout"], result
        assert result["limit"] in (attempt.limits or (None,)), result
    if attempt.then:
        assert "ESCAPED" not in then[0]["stdout"], then
        assert then[0]["exit_code"] == 0, then
    assert not outcome["contacts"]
    assert not outcome["left"]
    assert outcome["targets"] == "active"


HOG = """
# Asks the bridge for code to be run, many times for one developer and then once for another; prints who had an answer.
import json, sys, threading, time, urllib.request
def call(developer, code):
    headers = {"Authorization": "Bearer " + sys.argv[1], "X-Local-LLM-Developer": developer}
    headers |= {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    params = {"name": "execute_python", "arguments": {"code": code}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    request = urllib.request.Request("http://127.0.0.1:8080/mcp", body, headers)
    text = urllib.request.urlopen(request, timeout=60).read().decode()
    print(developer, "42" in text, flush=True)
for _ in range(18):
    threading.Thread(target=call, args=("alice", "import time; time.sleep(4); print(6 * 7)")).start()
time.sleep(1)
call("bob", "print(6 * 7)")
"""


def test_another_developer_runs_code_while_one_would_have_all_places(targets: Host) -> None:
    write(targets, "/srv/escapes/hog.py", HOG)
    answered = targets.check_output("python3 /srv/escapes/hog.py %s", GATEWAY_KEY).splitlines()
    assert answered == ["bob True", *["alice True"] * 18]


def test_one_run_cannot_end_another(targets: Host) -> None:
    *slept, _ = run(targets, "sleep", "sleep", "sleep", "sleep", "kill")
    assert [one.get("stdout") for one in slept] == ["slept\n"] * 4


def test_the_bridge_answers_while_the_sandboxes_are_busy(targets: Host) -> None:
    attack = ["a fork bomb", "memory of several processes", "endless work that ignores signals", "endless", "endless"]
    words = " ".join(["%s"] * len(attack))
    targets.check_output(
        f"systemd-run --quiet --unit=escapes-attack --uid={USER} {PYTHON} /srv/escapes/ask.py {words}", *attack
    )
    took = []
    for _ in range(5):
        begin = time.monotonic()
        targets.check_output("curl -sf -m 5 http://127.0.0.1:8080/healthz")
        took.append(time.monotonic() - begin)
    assert max(took) < 3
    until(lambda: targets.run("systemctl is-active escapes-attack").failed, seconds=30)
    wait_until_nothing_is_left(targets)


GIVE_UP = f"""
units() {{ systemctl list-units --all --plain --no-legend 'local-llm-sandbox@*'; }}
systemd-run --quiet --unit=escapes-call --uid={USER} {PYTHON} /srv/escapes/ask.py endless
until [ -n "$(units)" ]; do sleep 0.05; done
systemctl kill --signal=KILL escapes-call
for _ in $(seq 20); do [ -z "$(units)" ] && exit 0; sleep 0.05; done
units; exit 1
"""


def test_a_call_that_is_given_up_ends_its_unit(targets: Host) -> None:
    begin = time.monotonic()
    targets.check_output("sh -c %s", GIVE_UP)
    assert time.monotonic() - begin < 8, "the code runs for 8 s"


def test_nobody_but_the_bridge_may_have_code_run(host: Host) -> None:
    socket = host.file("/run/local-llm-sandbox.sock")
    assert (socket.user, socket.group, socket.mode) == ("root", USER, 0o660)
    connect = "import socket; socket.socket(socket.AF_UNIX).connect('/run/local-llm-sandbox.sock')"
    assert (
        "Permission denied"
        in host.run("setpriv --reuid=nobody --clear-groups --regid=nogroup python3 -c %s", connect).stderr
    )


# A guest's kernel may not enforce these; that the code is held all the same, the attempts prove.
LIMITS = {
    "MemoryMax": str((256 + 64) * 1024 * 1024),
    "MemorySwapMax": "0",
    "TasksMax": "20",
    "CPUQuotaPerSecUSec": "1s",
    "RuntimeMaxUSec": "18s",
    "DynamicUser": "yes",
    "PrivateNetwork": "yes",
    "CollectMode": "inactive-or-failed",
}


def test_the_unit_has_its_limits(host: Host) -> None:
    shown = host.check_output(f"systemctl show --property={','.join(LIMITS)} local-llm-sandbox@test.service")
    assert dict(line.split("=", 1) for line in shown.splitlines()) == LIMITS


@pytest.mark.parametrize("unit", ["local-llm-sandbox@test", "local-llm-bridge"])
def test_the_units_have_few_rights(host: Host, unit: str, few_rights: Callable[[Host, str], None]) -> None:
    few_rights(host, unit)


def test_the_socket_is_there_after_a_reboot(host: Host) -> None:
    assert host.service(SOCKET).is_enabled
    assert host.service(SOCKET).is_running
