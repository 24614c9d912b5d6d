"""LiteLLM behind the real door: what developers get of it, and that they work on when it is taken away."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from testinfra.host import Host

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "molecule/gateway/tests")]

from door import Door, address, question  # noqa: E402

from tests.claude_client.guest import ask as ask_claude_code  # noqa: E402
from tests.leaks.search import Place, misplaced  # noqa: E402

ANSWERS = json.loads((PROJECT / "tests/tiny_model/answers.json").read_text())["chat"]
FRANCE = "What is the capital of France?"
MASTER_KEY = "sk-molecule-litellm-master-key"

pytestmark = pytest.mark.units("litellm", "local-llm-gateway")

Guest = Callable[..., Host]
Play = Callable[..., subprocess.CompletedProcess[str]]


def claude_code_answers(host: Host, backend: str) -> None:
    """alice's Claude Code, which runs on the model, answers a question, and the door has asked this backend for it."""
    since = host.check_output("date '+%F %T'")
    # Few words besides the question, so that the tiny model knows the answer.
    few = ["--bare", "--settings", "/home/alice/.claude/settings.json", "--tools", "", "--system-prompt", "Be brief."]
    assert ask_claude_code(host, "alice", FRANCE, *few) == ANSWERS[FRANCE]
    lines = host.check_output("journalctl --unit=local-llm-gateway --since=%s --output=cat", since).splitlines()
    assert [line for line in lines if f"path=/v1/messages status=200 backend={backend} " in line]


@contextmanager
def asking(ip: str, model: str) -> Iterator[Counter[int]]:
    """A client asks a model all the time; gives how often each status came."""
    outcomes: Counter[int] = Counter()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            outcomes[Door(ip).post(question(FRANCE, model=model)).status] += 1
            time.sleep(0.05)

    client = threading.Thread(target=ask)
    client.start()
    try:
        yield outcomes
    finally:
        done.set()
        client.join()


def test_developers_work_on_when_litellm_is_removed_and_put_back(guest: Guest, play: Play) -> None:
    host = guest("debian13")
    ip = address(host)
    for playbook in ("door.yml", "client.yml"):
        done = play(SCENARIO / playbook)
        assert done.returncode == 0, done.stdout

    reply = Door(ip).post(question(FRANCE, model="gpt-4"))
    assert reply.status == 200
    assert reply.json["choices"][0]["message"]["content"] == ANSWERS[FRANCE]
    assert not [name for name in reply.headers if name.startswith(("x-litellm-", "llm_provider-"))]
    message = Door(ip).post(question(FRANCE, model="claude-sonnet-4-5"), "/v1/messages")
    assert [block["text"] for block in message.json["content"]] == [ANSWERS[FRANCE]]
    assert {"gpt-4", "qwen2-tiny"} <= {model["id"] for model in Door(ip).ask("GET", "/v1/models").json["data"]}
    for path in ("/health/readiness", "/routes", "/key/generate", "/v1/embeddings"):
        assert Door(ip).ask("GET", path).status == 404

    with asking(ip, "qwen2-tiny") as outcomes:
        claude_code_answers(host, "litellm")
        without = play(SCENARIO / "door.yml", "--extra-vars=litellm_state=absent")
        assert not host.file("/opt/litellm").exists
        assert Door(ip).post(question(FRANCE, model="gpt-4")).status == 404
        claude_code_answers(host, "model-qwen2-tiny")
        again = play(SCENARIO / "door.yml")
        claude_code_answers(host, "litellm")
    assert (without.returncode, again.returncode) == (0, 0), without.stdout + again.stdout
    assert Door(ip).post(question(FRANCE, model="gpt-4")).status == 200
    assert set(outcomes) == {200}
    assert outcomes[200] > 20


def test_the_master_key_is_replaced_while_developers_work(guest: Guest, play: Play) -> None:
    host = guest("debian13")
    new = "sk-molecule-litellm-key-that-is-new"
    with asking(address(host), "gpt-4") as outcomes:  # which LiteLLM alone knows
        done = play(
            SCENARIO / "door.yml", f"--extra-vars=litellm_master_key={new}", "--extra-vars=litellm_new_keys=true"
        )
    assert done.returncode == 0, done.stdout
    assert set(outcomes) == {200}
    assert outcomes[200] > 20
    curl = "curl -s -o /dev/null -w '%%{http_code}' -H 'Authorization: Bearer %s' http://127.0.0.1:4000/v1/models"
    assert host.check_output(curl, new) == "200"
    assert host.check_output(curl, MASTER_KEY) in {"400", "401"}
    assert host.run("find /run/systemd /etc/systemd /etc/litellm -name '*meanwhile*'").stdout == ""

    # LiteLLM itself has them in its environment, which its user and root can read.
    own = [Place("/etc/litellm/credentials/LITELLM_MASTER_KEY")]
    door = Place("/etc/local-llm-gateway/keys.map", group="local-llm-gateway", mode=0o640)
    assert misplaced(host, {new: [*own, door], MASTER_KEY: []}) == [f"{new} is in: environment of litellm"]
