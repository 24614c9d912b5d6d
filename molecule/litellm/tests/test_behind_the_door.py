"""LiteLLM behind the real door: what developers get of it, and that they work on when it is taken away."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra.host import Host

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "molecule/gateway/tests")]

from door import Door, address, question  # noqa: E402

from tests.claude_client.guest import ask as ask_claude_code  # noqa: E402

ANSWERS = json.loads((PROJECT / "tests/tiny_model/answers.json").read_text())["chat"]
FRANCE = "What is the capital of France?"

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

    outcomes: Counter[int] = Counter()
    done_asking = threading.Event()

    def ask() -> None:
        while not done_asking.is_set():
            outcomes[Door(ip).post(question(FRANCE)).status] += 1
            time.sleep(0.05)

    client = threading.Thread(target=ask)
    client.start()
    try:
        claude_code_answers(host, "litellm")
        without = play(SCENARIO / "door.yml", "--extra-vars=litellm_state=absent")
        assert not host.file("/opt/litellm").exists
        assert Door(ip).post(question(FRANCE, model="gpt-4")).status == 404
        claude_code_answers(host, "model-qwen2-tiny")
        again = play(SCENARIO / "door.yml")
        claude_code_answers(host, "litellm")
    finally:
        done_asking.set()
        client.join()
    assert (without.returncode, again.returncode) == (0, 0), without.stdout + again.stdout
    assert Door(ip).post(question(FRANCE, model="gpt-4")).status == 200
    assert set(outcomes) == {200}
    assert outcomes[200] > 20
