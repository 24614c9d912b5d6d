"""LiteLLM answers under every name of the model, survives its engines' faults, has few rights and keeps the keys."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.lab.waiting import until

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
ANSWERS = json.loads((PROJECT / "tests/tiny_model/answers.json").read_text())
UNIT = "litellm"
ENGINES = ["llama-cpp@qwen2-tiny", "llama-cpp@replica2"]
URL = "http://127.0.0.1:4000"
KEY = "sk-molecule-litellm-master-key"
ENGINE_KEY = "molecule-litellm-engine-key"
FRANCE = "What is the capital of France?"

Play = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.units(UNIT)


def http(
    host: Host, path: str, body: dict[str, Any] | None = None, key: str | None = KEY, url: str = URL
) -> tuple[int, str]:
    """Status and text of the reply to a GET, or to a POST of JSON."""
    options = ["-H", f"Authorization: Bearer {key}"] if key else []
    options += ["-H", "Content-Type: application/json", "-d", json.dumps(body)] if body else []
    words = " ".join(["%s"] * len(options))
    out = host.check_output(f"curl -sS -m 60 -w '\\n%%{{http_code}}' {words} %s", *options, url + path)
    text, _, status = out.rpartition("\n")
    return int(status), text


def question(text: str, model: str = "qwen2-tiny", **more: Any) -> dict[str, Any]:
    """A chat of one message, in OpenAI's and Anthropic's form alike."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 512} | more


def run(host: Host, program: str, *arguments: str) -> Any:
    """What a program of this scenario prints in a guest, as JSON."""
    words = " ".join(["%s"] * len(arguments))
    return json.loads(
        host.check_output(f"python3 -c %s {words}", (SCENARIO / "programs" / program).read_text(), *arguments)
    )


def events(text: str) -> list[Any]:
    """The JSON of the server-sent events of a reply, ``None`` for ``[DONE]``."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [None if line == "[DONE]" else json.loads(line) for line in lines]


def shown(host: Host, name: str) -> str:
    """A property of LiteLLM's unit."""
    return str(host.check_output("systemctl show --property=%s --value %s", name, UNIT))


def journal(host: Host) -> str:
    """All that LiteLLM has logged since the guest booted."""
    return str(host.check_output("journalctl --boot --no-pager --unit=%s", UNIT))


def engine(host: Host) -> str:
    """Where a guest's first engine answers."""
    return f"http://{host.check_output('hostname -I').split()[0]}:8000"


def both_engines_answer(host: Host) -> bool:
    """Whether both replicas are ready."""
    here = engine(host)
    return all(
        host.run("curl -sf -m 5 -o /dev/null %s/health", url).rc == 0 for url in (here, here.replace(":8000", ":8001"))
    )


def replica(host: Host) -> str:
    """Which replica LiteLLM asks this time, by LiteLLM's own word."""
    argv = ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json", "-d"]
    curl = "curl -s -m 60 -o /dev/null -w '%%header{x-litellm-model-id}' %s %s %s %s %s %s %s"
    return str(host.check_output(curl, *argv, json.dumps(question("ping", max_tokens=1)), f"{URL}/v1/chat/completions"))


def start_engines(host: Host) -> None:
    """Start what has been stopped or killed, however often that was, and wait for it."""
    host.check_output("systemctl reset-failed %s %s; systemctl start %s %s", *ENGINES, *ENGINES)
    until(lambda: both_engines_answer(host))


@pytest.fixture
def one(guest: Callable[..., Host]) -> Host:
    """The guest for what need not be asked of both."""
    return guest("debian13")


@pytest.fixture
def engines(one: Host) -> Iterator[None]:
    """Whatever happens to the engines, they are there again afterwards, and LiteLLM uses both."""
    yield
    start_engines(one)
    until(lambda: len({replica(one) for _ in range(6)} - {""}) == len(ENGINES))


@pytest.mark.parametrize("model", ["qwen2-tiny", "gpt-4", "claude-sonnet-4-5"])
def test_each_name_of_the_model_gives_its_known_answer(host: Host, model: str) -> None:
    for text in ("What is 2 + 2?", "Write a quicksort function in Python."):
        status, reply = http(host, "/v1/chat/completions", question(text, model))
        assert status == 200, reply
        assert json.loads(reply)["choices"][0]["message"]["content"] == ANSWERS["chat"][text]


def test_an_answer_can_be_streamed(host: Host) -> None:
    text = "Write a quicksort function in Python."
    *chunks, end = events(http(host, "/v1/chat/completions", question(text, stream=True))[1])
    assert end is None
    deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(deltas) == ANSWERS["chat"][text]
    assert len(chunks) > 3


@pytest.mark.parametrize("case", ANSWERS["tools"]["cases"][:2], ids=lambda case: case["question"])
def test_tools_are_called(one: Host, case: dict[str, Any]) -> None:
    body = question(case["question"], tools=ANSWERS["tools"]["definitions"])
    choice = json.loads(http(one, "/v1/chat/completions", body)[1])["choices"][0]
    calls = [call["function"] for call in choice["message"]["tool_calls"]]
    assert [{"name": call["name"], "arguments": json.loads(call["arguments"])} for call in calls] == case["calls"]


def test_anthropics_messages_are_answered(host: Host) -> None:
    status, reply = http(host, "/v1/messages", question(FRANCE, "claude-sonnet-4-5"))
    assert status == 200, reply
    assert json.loads(reply)["content"] == [{"type": "text", "text": "Paris"}]
    stream = events(http(host, "/v1/messages", question(FRANCE, "claude-sonnet-4-5", stream=True))[1])
    assert (stream[0]["type"], stream[-1]["type"]) == ("message_start", "message_stop")
    assert "".join(event["delta"]["text"] for event in stream if event["type"] == "content_block_delta") == "Paris"
    counted = json.loads(http(host, "/v1/messages/count_tokens", question(FRANCE, "claude-sonnet-4-5"))[1])
    assert counted["input_tokens"] > 5


def test_responses_and_completions_are_answered(host: Host) -> None:
    body = {"model": "gpt-4", "input": FRANCE, "temperature": 0}
    status, reply = http(host, "/v1/responses", body)
    assert status == 200, reply
    assert json.loads(reply)["output"][0]["content"][0]["text"] == "Paris"
    stream = events(http(host, "/v1/responses", {**body, "stream": True})[1])
    assert "response.completed" in [event["type"] for event in stream if event]
    status, reply = http(host, "/v1/completions", {"model": "gpt-4", "prompt": "ping", "max_tokens": 3})
    assert status == 200, reply
    assert json.loads(reply)["usage"]["completion_tokens"] == 3


def test_callers_can_see_the_models_and_their_limits(one: Host) -> None:
    models = {model["id"]: model for model in json.loads(http(one, "/v1/models")[1])["data"]}
    assert set(models) == {"qwen2-tiny", "gpt-4", "claude-sonnet-4-5", "gone"}
    assert models["gpt-4"]["max_input_tokens"] == 4096
    status, reply = http(one, "/v1/chat/completions", question("ping", "gpt-5"))
    assert status == 400
    assert "Invalid model name" in reply


def test_engines_hear_their_own_key_and_no_other(one: Host) -> None:
    """The engine refuses a caller's key, so what LiteLLM had answered it asked for with the engine's."""
    assert http(one, "/v1/chat/completions", question("ping"), key=KEY, url=engine(one))[0] == 401
    assert http(one, "/v1/chat/completions", question("ping"), key=ENGINE_KEY, url=engine(one))[0] == 200
    assert http(one, "/v1/chat/completions", question("ping"), key=KEY)[0] == 200


def test_only_the_master_key_opens_it(one: Host) -> None:
    assert http(one, "/v1/models", key=None)[0] == 401
    for key in (ENGINE_KEY, "sk-not-the-key-of-this-proxy"):
        status, reply = http(one, "/v1/models", key=key)
        assert status == 400
        assert (
            "No connected db" in reply
        )  # LiteLLM's word for: not the master key, and keys of other kinds need a database
    assert (
        one.check_output(f"curl -s -m 20 -o /dev/null -w '%%{{http_code}}' -H %s {URL}/v1/models", f"x-api-key: {KEY}")
        == "200"
    )


@pytest.mark.parametrize("field", ["api_base", "base_url"])
def test_a_caller_cannot_send_the_engines_key_elsewhere(one: Host, field: str) -> None:
    status, reply = http(one, "/v1/chat/completions", question("ping", **{field: "http://192.0.2.1/v1"}))
    assert status == 401
    assert f"{field} is not allowed in request body" in reply


def test_one_callers_mistakes_do_not_take_the_engines_from_others(one: Host) -> None:
    """An engine that refuses a request is not one that has failed."""
    for wrong, status in (({"api_key": "a-key-of-my-own"}, 401), ({"max_tokens": "many"}, 400)):
        assert [http(one, "/v1/chat/completions", question("ping", **wrong))[0] for _ in range(4)] == [status] * 4
        assert run(one, "load.py", URL, KEY, "gpt-4", "4") == [200] * 4


def test_the_keys_are_nowhere_but_in_their_files(host: Host) -> None:
    keys = {"LITELLM_MASTER_KEY": KEY, "LITELLM_ENGINE_KEY": ENGINE_KEY}
    for name, key in keys.items():
        file = host.file(f"/etc/litellm/credentials/{name}")
        assert file.content_string == key
        assert (file.user, file.mode) == ("root", 0o600)
    assert host.file("/etc/litellm/credentials").mode == 0o700
    pid = shown(host, "MainPID")
    everything = (
        host.check_output("cat /proc/%s/cmdline | tr '\\0' '\\n'", pid)
        + host.check_output("cat /etc/litellm/config.yaml /etc/systemd/system/litellm.service")
        + journal(host)
    )
    assert not [name for name, key in keys.items() if key in everything]
    assert host.run("su -s /bin/cat nobody /proc/%s/environ", pid).failed


def test_the_journal_does_not_hold_what_people_ask(one: Host) -> None:
    assert http(one, "/v1/chat/completions", question(FRANCE))[0] == 200
    assert http(one, "/v1/messages", question(FRANCE))[0] == 200
    assert http(one, "/v1/chat/completions", question(FRANCE, max_tokens="many"))[0] == 400
    assert http(one, "/v1/chat/completions", question(FRANCE * 1000))[0] == 400  # more than the context
    assert "capital" not in journal(one)
    assert "Paris" not in journal(one)


def test_the_unit_starts_at_boot_and_has_few_rights(host: Host, few_rights: Callable[[Host, str], None]) -> None:
    assert host.service(UNIT).is_enabled
    assert host.service(UNIT).is_running
    assert host.process.get(pid=int(shown(host, "MainPID"))).user == "litellm"
    few_rights(host, UNIT)
    assert shown(host, "MemoryMax") == str(2 * 1024**3)


def test_it_listens_on_loopback_unless_told_otherwise(host: Host) -> None:
    assert host.socket("tcp://127.0.0.1:4000").is_listening
    assert not host.socket("tcp://0.0.0.0:4000").is_listening


def test_systemd_lets_it_reach_its_engines_only(host: Host) -> None:
    address = host.check_output("hostname -I").split()[0]
    assert set(shown(host, "IPAddressAllow").split()) == {f"{address}/32", "127.0.0.0/8", "::1/128"}
    assert set(shown(host, "IPAddressDeny").split()) == {"0.0.0.0/0", "::/0"}


@pytest.mark.usefixtures("engines")
def test_no_request_fails_when_a_replica_is_killed(one: Host) -> None:
    assert run(one, "load.py", URL, KEY, "gpt-4", "50", ENGINES[0]) == [200] * 50


@pytest.mark.usefixtures("engines")
def test_without_replicas_a_request_fails_and_the_next_model_helps_where_there_is_one(one: Host) -> None:
    status, reply = http(one, "/v1/chat/completions", question("ping", "gone"))
    assert status == 200  # qwen2-tiny is its fallback
    assert json.loads(reply)["choices"][0]["message"]["content"] == "pong"
    one.check_output("systemctl stop %s %s", *ENGINES)
    answers = run(one, "load.py", URL, KEY, "qwen2-tiny", "6")
    assert set(answers) <= {500, 429}  # 429 while both are left alone: an outage looks like a limit
    start_engines(one)
    until(lambda: http(one, "/v1/chat/completions", question("ping"))[0] == 200)


def test_a_stop_takes_nothing_new_and_lets_a_stream_end(one: Host) -> None:
    stream = run(one, "stop.py", URL, KEY)
    assert stream == {
        "text": ANSWERS["chat"]["Count from 1 to 200."],
        "done": True,
        "events": stream["events"],
        "refused": True,
    }
    assert stream["events"] > 100
    until(lambda: shown(one, "ActiveState") == "inactive")
    assert shown(one, "Result") == "success"
    one.check_output("systemctl start %s", UNIT)
    assert http(one, "/health/readiness", key=None)[0] == 200  # ready when systemd says so


def test_it_comes_back_after_it_was_killed(one: Host) -> None:
    before = shown(one, "MainPID")
    one.check_output("systemctl kill --signal=KILL %s", UNIT)
    until(lambda: shown(one, "ActiveState") == "active" and shown(one, "MainPID") not in ("0", before))
    assert http(one, "/v1/chat/completions", question("ping"))[0] == 200


def state(host: Host) -> str:
    """What a refused run must not change."""
    return str(
        host.check_output(
            "systemctl show --property=MainPID litellm; readlink /opt/litellm/current;"
            "find /etc/litellm /etc/systemd/system/litellm.service -type f | sort | xargs sha256sum"
        )
    )


def test_what_cannot_work_is_refused_and_nothing_changes(one: Host, play: Play) -> None:
    before = state(one)
    done = play(SCENARIO / "refusals.yml")
    assert done.returncode == 0, done.stdout
    assert state(one) == before


def test_settings_that_litellm_does_not_take_replace_nothing(one: Host, play: Play) -> None:
    before = state(one)
    wrong = {"litellm_routing_strategy": "by-magic", "litellm_engine_key": f"another-{ENGINE_KEY}"}
    done = play(SCENARIO / "converge.yml", "--limit=debian13", f"--extra-vars={json.dumps(wrong)}")
    assert done.returncode != 0
    assert "Invalid routing_strategy: 'by-magic'. Valid options: ['simple-shuffle'" in done.stdout
    assert state(one) == before
