"""LiteLLM behind the real door: what developers get of it, and that they work on when it is taken away."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from door import Door, address, asking, question
from testinfra.host import Host

from tests.claude_client.guest import ask as ask_claude_code

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
ANSWERS = json.loads((PROJECT / "tests/tiny_model/answers.json").read_text())["chat"]
FRANCE = "What is the capital of France?"

pytestmark = pytest.mark.units("litellm", "local-llm-gateway")

Guest = Callable[..., Host]
Play = Callable[..., subprocess.CompletedProcess[str]]
Records = Callable[..., list[dict[str, Any]]]


def claude_code_answers(host: Host, records: Records) -> set[str]:
    """alice's Claude Code, which runs on the model, answers a question; whom the door has asked for it."""
    since = host.check_output("date '+%F %T'")
    # Few words besides the question, so that the tiny model knows the answer.
    few = ["--bare", "--settings", "/home/alice/.claude/settings.json", "--tools", "", "--system-prompt", "Be brief."]
    assert ask_claude_code(host, "alice", FRANCE, *few) == ANSWERS[FRANCE]
    asked = [record for record in records(host, since) if record["what"] == "POST /v1/messages"]
    return {record["server"] for record in asked if record["status"] == 200}


def test_developers_work_on_when_litellm_is_removed_and_put_back(guest: Guest, play: Play, records: Records) -> None:
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

    with asking(ip, question(FRANCE)) as outcomes:
        assert claude_code_answers(host, records) == {"litellm"}
        without = play(SCENARIO / "door.yml", "--extra-vars=litellm_state=absent")
        assert not host.file("/opt/litellm").exists
        assert Door(ip).post(question(FRANCE, model="gpt-4")).status == 404
        assert claude_code_answers(host, records) in ({"replica1"}, {"replica2"}, {"replica1", "replica2"})
        again = play(SCENARIO / "door.yml")
        assert claude_code_answers(host, records) == {"litellm"}
    assert (without.returncode, again.returncode) == (0, 0), without.stdout + again.stdout
    assert Door(ip).post(question(FRANCE, model="gpt-4")).status == 200
    assert set(outcomes) == {200}
    assert outcomes[200] > 20
