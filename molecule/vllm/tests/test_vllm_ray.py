"""One model on two hosts: vLLM's executor on Ray, with a stand-in for the GPUs that Ray counts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import testinfra
from engine import KEY, ONE_MODEL, base, post, question, status
from testinfra.host import Host

from tests.lab.waiting import until

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
INVENTORIES = [SCENARIO / "inventory"]
PORT = 8002
RAY_PORTS = (6379, 6380, 6381, 6386)
WITH_PAIR = f"--extra-vars={json.dumps({'fleet_models': ['{{ qwen2_tiny }}', '{{ second }}', '{{ pair }}']})}"

pytestmark = pytest.mark.units("vllm@pair", "vllm-ray@pair")


Play = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def first(guest: Callable[..., Host]) -> Host:
    """The host that clients ask."""
    return guest("model1")


@pytest.fixture
def other(guest: Callable[..., Host]) -> Host:
    """The host that has the other half of the layers."""
    return guest("model2")


def answer(host: Host) -> str:
    """What the model says to a known question."""
    reply = post(f"{base(host, PORT)}/v1/chat/completions", question("ping", "pair"))
    return str(reply["choices"][0]["message"]["content"])


def is_ready(host: Host) -> bool:
    """The model's readiness; when it is not, 503 comes or, while the unit starts again, no answer at all."""
    return bool(status(f"{base(host, PORT)}/health") == 200)


def test_it_is_added_to_the_models_that_run(first: Host, play: Play) -> None:
    alone = first.check_output("systemctl show --property=MainPID --value vllm@second")
    done = play(PROJECT / "playbooks/models.yml", WITH_PAIR)
    assert done.returncode == 0, done.stdout
    again = play(PROJECT / "playbooks/models.yml", WITH_PAIR)
    assert again.stdout.count("changed=0 ") == 2, again.stdout
    assert first.check_output("systemctl show --property=MainPID --value vllm@second") == alone


def test_the_model_answers_and_half_of_it_runs_on_each_host(first: Host, other: Host) -> None:
    assert answer(first) == "pong"
    for host in (first, other):
        assert host.run("pgrep --full ray::RayWorkerProc").rc == 0
        assert host.service("vllm-ray@pair").is_enabled
    assert not other.file("/etc/vllm/pair.yaml").exists


def test_the_key_stays_on_the_first_host(other: Host) -> None:
    group = other.check_output("systemctl show --property=ControlGroup --value vllm-ray@pair")
    processes = other.check_output("cat /sys/fs/cgroup%s/cgroup.procs", group).split()
    environments = [other.run("tr '\\0' '\\n' < /proc/%s/environ", process).stdout for process in processes]
    assert len([environment for environment in environments if "RAY_" in environment]) > 2
    assert [environment for environment in environments if KEY in environment] == []


def test_a_stranger_cannot_reach_ray(first: Host, other: Host) -> None:
    """This machine is not one of the model's hosts; what Ray listens on is open to those alone."""
    address = first.check_output("hostname -I").split()[0]
    probe = "timeout 2 bash -c '</dev/tcp/%s/%d'"
    assert all(first.check_output("ss --no-header --listening --tcp sport = :%s", str(port)) for port in RAY_PORTS)
    assert other.run(probe % (address, RAY_PORTS[0])).rc == 0
    here = testinfra.get_host("local://")
    for port in RAY_PORTS:
        assert here.run(probe % (address, port)).rc != 0


def test_ray_has_few_rights(first: Host, few_rights: Callable[[Host, str], None]) -> None:
    few_rights(first, "vllm-ray@pair")


def test_it_answers_behind_the_firewall(first: Host, other: Host, play: Play) -> None:
    """So it does in all that follows: Ray finds the other host again through the rules, which let nothing else out."""
    done = play(PROJECT / "playbooks/firewall.yml", WITH_PAIR)
    assert done.returncode == 0, done.stdout
    for host in (first, other):
        assert host.check_output("nft list table inet local_llm_fleet").count("pair over its hosts") == 2
    assert answer(first) == "pong"


def test_it_comes_back_after_the_other_host_lost_its_ray(first: Host, other: Host) -> None:
    other.check_output("pkill --signal KILL --exact raylet")
    until(lambda: not is_ready(first))
    until(lambda: is_ready(first))
    assert answer(first) == "pong"


def test_stopping_the_first_hosts_ray_stops_the_model(first: Host) -> None:
    first.check_output("systemctl stop vllm-ray@pair")
    assert not first.service("vllm@pair").is_running
    first.check_output("systemctl start vllm@pair")
    assert answer(first) == "pong"


def test_models_are_taken_off_again(first: Host, other: Host, play: Play) -> None:
    """The second model, too: what follows has one, as each restart of vLLM takes a minute of CI's time."""
    done = play(PROJECT / "playbooks/models.yml", ONE_MODEL)
    assert done.returncode == 0, done.stdout
    for host in (first, other):
        units = host.check_output("systemctl list-units --all --plain --no-legend 'vllm*.service'").splitlines()
        assert [unit.split()[0] for unit in units] == ["vllm@qwen2-tiny.service"]
        assert host.check_output("find /etc -name '*pair*' -or -name '*second*'") == ""


def test_the_firewall_is_taken_off_again(first: Host, other: Host, play: Play) -> None:
    done = play(PROJECT / "playbooks/firewall.yml", "--extra-vars=firewall_state=absent")
    assert done.returncode == 0, done.stdout
    for host in (first, other):
        assert "local_llm_fleet" not in host.check_output("nft list tables")
