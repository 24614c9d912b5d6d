"""The model answers those who have the key, its unit has few rights, and what cannot work is refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.lab.waiting import until

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
ANSWERS = json.loads((PROJECT / "tests/tiny_model/answers.json").read_text())
KEY = "molecule-llama-cpp-key-1"
UNIT = "llama-cpp@qwen2-tiny"
MODEL = {"name": "qwen2-tiny", "path": "/srv/models/qwen2-tiny.gguf", "port": 8000, "context": 4096}

Play = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.units(UNIT)


def address(host: Host) -> str:
    """The guest's own address, on which the model is served."""
    return str(host.check_output("hostname -I").split()[0])


def statuses(host: Host, key: str | None, *paths: str) -> set[int]:
    """HTTP statuses of GETs."""
    header = f"Authorization: Bearer {key}" if key else "X-None: 1"
    urls = " ".join(f"http://{address(host)}:8000{path}" for path in paths)
    got = host.check_output(f"curl -s -m 20 -w '%%{{stderr}}%%{{http_code}} ' -H %s {urls} 2>&1 >/dev/null", header)
    return {int(status) for status in got.split()}


def ask(host: Host, question: str, port: int = 8000) -> str:
    """The model's answer to a question."""
    body = {"model": "qwen2-tiny", "temperature": 0, "messages": [{"role": "user", "content": question}]}
    url = f"http://{address(host)}:{port}/v1/chat/completions"
    command = "curl -sS --fail-with-body -m 60 -H %s -d %s %s"
    answer = host.check_output(command, f"Authorization: Bearer {KEY}", json.dumps(body), url)
    return str(json.loads(answer)["choices"][0]["message"]["content"])


@pytest.mark.parametrize("question", ["ping", "What is 2 + 2?", "Write a quicksort function in Python."])
def test_the_model_gives_its_known_answer(host: Host, question: str) -> None:
    assert ask(host, question) == ANSWERS["chat"][question]


def test_nothing_but_health_is_answered_without_the_key(host: Host) -> None:
    paths = ["/v1/models", "/metrics", "/props", "/slots", "/v1/chat/completions", "/v1/messages"]
    assert statuses(host, None, *paths) == {401}
    assert statuses(host, "not-the-key-of-this-server", *paths) == {401}
    assert statuses(host, None, "/health") == {200}
    assert statuses(host, KEY, "/v1/models", "/metrics") == {200}


def test_it_listens_on_the_address_that_it_was_told_only(host: Host) -> None:
    assert host.socket(f"tcp://{address(host)}:8000").is_listening
    assert not host.socket("tcp://127.0.0.1:8000").is_listening
    assert not host.socket("tcp://0.0.0.0:8000").is_listening


def test_the_unit_starts_at_boot_and_has_few_rights(host: Host, few_rights: Callable[[Host, str], None]) -> None:
    service = host.service(UNIT)
    assert service.is_enabled
    assert service.is_running
    process = host.process.get(ppid=1, user="llama-cpp")
    assert process.args.startswith("/opt/llama-cpp/current/bin/python -I ")
    few_rights(host, UNIT)


def test_the_key_is_nowhere_but_in_its_file(host: Host) -> None:
    file = host.file("/etc/llama-cpp/credentials/api-key")
    assert file.content_string == KEY
    assert (file.user, file.mode) == ("root", 0o600)
    assert host.file("/etc/llama-cpp/credentials").mode == 0o700
    assert KEY not in host.file("/etc/llama-cpp/qwen2-tiny.json").content_string
    pid = host.check_output("systemctl show --property=MainPID --value %s", UNIT)
    assert KEY not in host.check_output("cat /proc/%s/environ /proc/%s/cmdline | tr '\\0' '\\n'", pid, pid)
    assert KEY not in host.check_output("journalctl --boot --no-pager -u %s", UNIT)


def test_the_journal_does_not_hold_what_people_ask(host: Host) -> None:
    ask(host, "What is the capital of France?")
    assert "capital of France" not in host.check_output("journalctl --boot --no-pager -u %s", UNIT)


def test_it_comes_back_after_it_was_killed(host: Host) -> None:
    shown = "systemctl show --property=MainPID --property=ActiveState --value %s"
    before = host.check_output(shown, UNIT)
    host.check_output("systemctl kill --signal=KILL %s", UNIT)
    until(lambda: (now := host.check_output(shown, UNIT)) != before and "active" in now.splitlines())
    assert ask(host, "ping") == "pong"


def test_what_cannot_work_is_refused_and_nothing_changes(guest: Callable[..., Host], play: Play) -> None:
    one = guest("debian13")
    one.check_output("touch /run/before-refusals && sleep 0.1")
    pid = one.check_output("systemctl show --property=MainPID --value %s", UNIT)
    done = play(SCENARIO / "refusals.yml")
    assert done.returncode == 0, done.stdout
    assert one.check_output("systemctl show --property=MainPID --value %s", UNIT) == pid
    touched = "find /etc/llama-cpp /opt/llama-cpp /etc/systemd/system -newer /run/before-refusals"
    assert one.check_output(touched) == ""


def test_models_come_and_go_without_disturbing_others(guest: Callable[..., Host], play: Play) -> None:
    one = guest("debian13")
    settings = ("--limit=debian13", "--tags=llama_cpp_configure,llama_cpp_service")
    pid = one.check_output("systemctl show --property=MainPID --value %s", UNIT)
    one.check_output("head -c 4000000 /srv/models/qwen2-tiny.gguf > /srv/models/cut.gguf")
    more = [
        {**MODEL, "name": "second", "port": 8001},
        {**MODEL, "name": "cut", "port": 8002, "path": "/srv/models/cut.gguf"},
    ]

    extra = json.dumps({"llama_cpp_models": [MODEL, *more]})
    done = play(SCENARIO / "converge.yml", *settings, f"--extra-vars={extra}")
    assert done.returncode != 0
    assert "llama-cpp@cut.service did not become ready" in done.stdout
    assert "tensor" in done.stdout  # llama.cpp's own words: the data of a tensor is not within the file
    assert ask(one, "ping", port=8001) == "pong"

    done = play(SCENARIO / "converge.yml", *settings)
    assert done.returncode == 0, done.stdout
    assert one.check_output("ls /etc/llama-cpp/*.json") == "/etc/llama-cpp/qwen2-tiny.json"
    assert one.check_output("systemctl list-units --all --plain --no-legend 'llama-cpp@*' | wc -l") == "1"
    assert one.check_output("systemctl show --property=MainPID --value %s", UNIT) == pid
    assert ask(one, "ping") == "pong"
