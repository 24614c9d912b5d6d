"""Real vLLM serves the model to those who have the key and survives what happens to services; few rights are enough."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine import KEY, base, post, question, status, stream
from testinfra.host import Host

from tests.lab.waiting import until

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
INVENTORIES = [SCENARIO / "inventory"]
ANSWERS: dict[str, Any] = json.loads((PROJECT / "tests/tiny_model/answers.json").read_text())
UNIT = "vllm@qwen2-tiny"
MODELS = [("qwen2-tiny", 8000), ("second", 8001)]  # of model1

Play = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.units(UNIT)


@pytest.fixture
def model1(guest: Callable[..., Host]) -> Host:
    """The host with two models."""
    return guest("model1")


def shown(host: Host, name: str, unit: str = UNIT) -> str:
    """A property of a unit."""
    return str(host.check_output("systemctl show --property=%s --value %s", name, unit))


def is_ready(host: Host) -> bool:
    """Whether the model's readiness says so."""
    return bool(status(f"{base(host)}/health") == 200)


@pytest.mark.parametrize(("model", "port"), MODELS)
@pytest.mark.parametrize(
    "text", ["ping", "What is 2 + 2?", "Write a quicksort function in Python.", "法国的首都是哪里？"]
)
def test_each_model_gives_its_known_answers(model1: Host, model: str, port: int, text: str) -> None:
    reply = post(f"{base(model1, port)}/v1/chat/completions", question(text, model))
    assert reply["model"] == model
    assert reply["choices"][0]["message"]["content"] == ANSWERS["chat"][text]


def test_an_answer_can_be_streamed(host: Host) -> None:
    text = "Write a quicksort function in Python."
    *chunks, end = stream(f"{base(host)}/v1/chat/completions", question(text))
    assert end is None
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == ANSWERS["chat"][text]
    assert len(chunks) > 3  # fewer than tokens: vLLM sends together what came while the client was slow


@pytest.mark.parametrize("case", ANSWERS["tools"]["cases"], ids=lambda case: case["question"])
def test_tools_are_called(model1: Host, case: dict[str, Any]) -> None:
    body = question(case["question"], tools=ANSWERS["tools"]["definitions"])
    choice = post(f"{base(model1)}/v1/chat/completions", body)["choices"][0]
    calls = [call["function"] for call in choice["message"]["tool_calls"]]
    made = [{"name": call["name"], "arguments": json.loads(call["arguments"])} for call in calls]
    assert made == case["calls"]
    assert choice["finish_reason"] == "tool_calls"


def test_anthropics_messages_are_answered(host: Host) -> None:
    reply = post(f"{base(host)}/v1/messages", question("ping"))
    assert reply["type"] == "message"
    assert [block["text"] for block in reply["content"]] == ["pong"]
    assert reply["stop_reason"] == "end_turn"
    count = post(f"{base(host)}/v1/messages/count_tokens", question("ping"))
    assert count["input_tokens"] == reply["usage"]["input_tokens"]


def test_v1_is_closed_without_the_key(host: Host) -> None:
    for path in ("chat/completions", "completions", "messages", "responses"):
        assert status(f"{base(host)}/v1/{path}", question("ping"), key=None) == 401
        assert status(f"{base(host)}/v1/{path}", question("ping"), key="not-the-key-of-this-server") == 401
    assert status(f"{base(host)}/v1/models", key=None) == 401
    assert status(f"{base(host)}/v1/models") == 200


def test_an_unknown_model_is_refused(host: Host) -> None:
    assert status(f"{base(host)}/v1/chat/completions", question("ping", "gpt-4")) == 404


def test_it_listens_on_the_address_that_it_was_told_only(host: Host) -> None:
    address = host.check_output("hostname -I").split()[0]
    assert host.socket(f"tcp://{address}:8000").is_listening
    assert not host.socket("tcp://127.0.0.1:8000").is_listening
    assert not host.socket("tcp://0.0.0.0:8000").is_listening


def test_the_unit_starts_at_boot_and_has_few_rights(host: Host, few_rights: Callable[[Host, str], None]) -> None:
    service = host.service(UNIT)
    assert service.is_enabled
    assert service.is_running
    assert shown(host, "User") == "vllm"
    few_rights(host, UNIT)


def test_the_key_is_nowhere_but_in_its_file(host: Host) -> None:
    file = host.file("/etc/vllm/credentials/api-key")
    assert file.content_string == KEY
    assert (file.user, file.mode) == ("root", 0o600)
    assert host.file("/etc/vllm/credentials").mode == 0o700
    places = "/etc/vllm/*.yaml /etc/vllm/*.env /etc/systemd /opt/vllm/*/*.txt"
    assert host.run(f"grep --recursive --fixed-strings %s {places}", KEY).rc == 1
    assert KEY not in host.check_output("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'")
    assert KEY not in host.check_output("journalctl --boot --no-pager -u %s", UNIT)


def test_the_journal_does_not_hold_what_people_ask(host: Host) -> None:
    post(f"{base(host)}/v1/chat/completions", question("What is the capital of France?"))
    assert "capital of France" not in host.check_output("journalctl --boot --no-pager -u %s", UNIT)


def test_nothing_is_reported_or_asked_of_a_hub(host: Host) -> None:
    pid = shown(host, "MainPID")
    environment = host.check_output("tr '\\0' '\\n' < /proc/%s/environ", pid).splitlines()
    assert {"HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1"} <= set(environment)


def test_the_planned_cache_is_the_one_that_vllm_has(model1: Host, play: Play) -> None:
    plan = play(PROJECT / "playbooks/plan.yml", "--limit=model1")
    assert plan.returncode == 0, plan.stdout
    planned = int(plan.stdout.partition("qwen2-tiny: the cache holds ")[2].split()[0])
    journal = model1.check_output("journalctl --boot --no-pager -u %s -g 'KV cache size'", UNIT)
    reported = int(journal.splitlines()[-1].partition("KV cache size: ")[2].split()[0].replace(",", ""))
    assert planned == pytest.approx(reported, rel=0.05)


def test_it_comes_back_after_its_engine_was_killed(model1: Host) -> None:
    main = shown(model1, "MainPID")
    engine = model1.check_output("pgrep --parent %s --full EngineCore", main)
    model1.check_output("kill -KILL %s", engine)
    until(lambda: not is_ready(model1))
    until(lambda: model1.service(UNIT).is_running and is_ready(model1))
    assert shown(model1, "MainPID") != main
    answer = post(f"{base(model1)}/v1/chat/completions", question("ping"))
    assert answer["choices"][0]["message"]["content"] == "pong"


def test_an_answer_that_is_under_way_ends_whole_when_the_service_is_stopped(model1: Host) -> None:
    tokens = 3000
    body = {"model": "qwen2-tiny", "prompt": "x", "max_tokens": tokens, "ignore_eos": True}
    events = stream(f"{base(model1)}/v1/completions", body)
    received = [next(events) for _ in range(10)]
    model1.check_output("systemctl stop --no-block %s", UNIT)
    received += events
    assert received[-1] is None
    assert received[-2]["choices"][0]["finish_reason"] == "length"
    assert len(received) > tokens / 2
    until(lambda: shown(model1, "ActiveState") == "inactive")
    assert shown(model1, "Result") == "success"
    assert status(f"{base(model1)}/health") == 0
    assert model1.check_output("systemctl is-active vllm@second") == "active"
    model1.check_output("systemctl start %s", UNIT)
    assert is_ready(model1)  # a start returns when the model answers


def test_what_cannot_work_is_refused_and_nothing_changes(model1: Host, play: Play) -> None:
    model1.check_output("touch /run/before-refusals && sleep 0.1")
    pid = shown(model1, "MainPID")
    done = play(SCENARIO / "refusals.yml")
    assert done.returncode == 0, done.stdout
    assert shown(model1, "MainPID") == pid
    touched = "find /etc/vllm /opt/vllm /etc/systemd/system -type f -not -name '*.pyc' -cnewer /run/before-refusals"
    assert model1.check_output(touched) == ""
