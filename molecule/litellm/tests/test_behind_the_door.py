"""LiteLLM behind the real door: what developers get of it, and that the door needs it for nothing."""

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
sys.path.insert(0, str(PROJECT / "molecule/gateway/tests"))

from door import Door, address, question  # noqa: E402

ANSWERS = json.loads((PROJECT / "tests/tiny_model/answers.json").read_text())["chat"]
FRANCE = "What is the capital of France?"

pytestmark = pytest.mark.units("litellm", "local-llm-gateway")

Guest = Callable[..., Host]
Play = Callable[..., subprocess.CompletedProcess[str]]


def test_the_door_works_with_litellm_and_without(guest: Guest, play: Play) -> None:
    host = guest("debian13")
    ip = address(host)
    done = play(SCENARIO / "door.yml")
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
        without = play(SCENARIO / "door.yml", "--extra-vars=gateway_litellm_port=0")
        host.check_output("systemctl stop litellm")
        assert Door(ip).post(question(FRANCE, model="gpt-4")).status == 404
        host.check_output("systemctl start litellm")
        again = play(SCENARIO / "door.yml")
    finally:
        done_asking.set()
        client.join()
    assert (without.returncode, again.returncode) == (0, 0), without.stdout + again.stdout
    assert Door(ip).post(question(FRANCE, model="gpt-4")).status == 200
    assert set(outcomes) == {200}
    assert outcomes[200] > 20
