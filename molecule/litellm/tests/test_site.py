"""A fleet with LiteLLM, by site.yml and its group_vars: what developers get of it, and that they work on meanwhile.

It leaves debian13 without LiteLLM; ``molecule converge`` puts that back.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway import Gateway, address, asking, question
from testinfra.host import Host

from tests.claude_client.guest import ask as ask_claude_code
from tests.leaks.search import Place, misplaced

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
ANSWERS = json.loads((PROJECT / "tests/tiny_model/answers.json").read_text())["chat"]
FRANCE = "What is the capital of France?"
INVENTORIES = [PROJECT / "molecule/shared/inventory/hosts.yml", SCENARIO / "fleet"]
# Tells HAProxy something, as the operator with its admin socket can.
HAPROXY = """
import socket, sys
admin = socket.socket(socket.AF_UNIX)
admin.connect("/run/local-llm-gateway/admin.sock")
admin.sendall(sys.argv[1].encode() + b"\\n")
assert admin.recv(1024) == b"\\n"
"""
REPLICAS = {"debian12", "debian13"}
MASTER_KEY = "sk-molecule-litellm-master-key"

pytestmark = pytest.mark.units("litellm", "local-llm-gateway")

Guest = Callable[..., Host]
Play = Callable[..., subprocess.CompletedProcess[str]]
Records = Callable[..., list[dict[str, Any]]]


def claude_code_answers(host: Host, records: Records) -> set[str]:
    """alice's Claude Code, which runs on the model, answers a question; whom the gateway has asked for it."""
    since = host.check_output("date '+%F %T'")
    # Few words besides the question, so that the tiny model knows the answer.
    few = ["--bare", "--settings", "/home/alice/.claude/settings.json", "--tools", "", "--system-prompt", "Be brief."]
    assert ask_claude_code(host, "alice", FRANCE, *few) == ANSWERS[FRANCE]
    asked = [record for record in records(host, since, count=1) if record["what"] == "POST /v1/messages"]
    assert asked
    return {record["server"] for record in asked if record["status"] == 200}


@pytest.fixture
def site(play: Play) -> Callable[..., None]:
    """Run site.yml as far as LiteLLM is concerned, with ``fleet_litellm`` on or off."""

    def run(*, litellm: bool, tags: str = "litellm,gateway") -> None:
        done = play(PROJECT / "site.yml", f"--tags={tags}", "--extra-vars", json.dumps({"fleet_litellm": litellm}))
        assert done.returncode == 0, done.stdout

    return run


def test_developers_work_on_when_litellm_comes_gets_other_keys_and_goes(
    guest: Guest, play: Play, records: Records, site: Callable[..., None]
) -> None:
    host = guest("debian13")
    ip = address(host)
    host.check_output("id alice || useradd --create-home --shell /bin/bash alice")
    site(litellm=False, tags="gateway,claude_code")  # LiteLLM itself stays as the role has installed it

    with asking(ip, question(FRANCE)) as outcomes:
        assert claude_code_answers(host, records) <= REPLICAS
        site(litellm=True)
        assert claude_code_answers(host, records) == {"litellm"}
        for name in ("qwen2-tiny", "gpt-4"):
            reply = Gateway(ip).post(question(FRANCE, model=name))
            assert reply.status == 200
            assert reply.json["choices"][0]["message"]["content"] == ANSWERS[FRANCE]
            assert not [header for header in reply.headers if header.startswith(("x-litellm-", "llm_provider-"))]
        for name in ("qwen2-tiny", "claude-sonnet-4-5"):
            message = Gateway(ip).post(question(FRANCE, model=name), "/v1/messages")
            assert [block["text"] for block in message.json["content"]] == [ANSWERS[FRANCE]]
        assert {"gpt-4", "qwen2-tiny"} <= {model["id"] for model in Gateway(ip).ask("GET", "/v1/models").json["data"]}
        for path in ("/health/readiness", "/routes", "/key/generate", "/v1/embeddings"):
            assert Gateway(ip).ask("GET", path).status == 404
        # LiteLLM asks the gateway, which takes the replicas in turn.
        assert {record["server"] for record in records(host) if record["source"] == "internal"} == REPLICAS

    assert set(outcomes) == {200}
    verify_names_what_to_look_at(host, play)
    with asking(ip, question("Hello", model="gpt-4")) as aliased:  # which LiteLLM alone knows
        keys_are_replaced(host, play)
    with asking(ip, question(FRANCE)) as without:
        site(litellm=False)
        assert claude_code_answers(host, records) <= REPLICAS
    assert set(aliased) == set(without) == {200}
    assert min(outcomes[200], aliased[200], without[200]) > 20
    assert Gateway(ip).post(question(FRANCE, model="gpt-4")).status == 404
    assert not host.file("/opt/litellm").exists


def verify_names_what_to_look_at(host: Host, play: Play) -> None:
    """All units are active, and yet no question reaches LiteLLM."""

    def haproxy(command: str) -> None:
        host.check_output("python3 -c %s %s", HAPROXY, command)

    haproxy("disable server litellm/litellm")
    try:
        done = play(PROJECT / "playbooks/verify.yml", "--extra-vars", json.dumps({"fleet_litellm": True}))
    finally:
        haproxy("enable server litellm/litellm")
    assert done.returncode != 0
    assert re.search(r"litellm\.service +active", done.stdout)
    for path in ("chat/completions", "messages"):
        assert f"qwen2-tiny does not answer https://debian13/v1/{path}: " in done.stdout
    assert "Look first at LiteLLM, `journalctl -u litellm` on debian13" in done.stdout
    assert "molecule-token-of-alice" not in done.stdout


def keys_are_replaced(host: Host, play: Play) -> None:
    """LiteLLM's master key is another afterwards, and is where it belongs and nowhere else."""
    new = "sk-molecule-litellm-key-that-is-new"
    extra = {"fleet_litellm": True, "fleet_litellm_key": new}
    done = play(PROJECT / "playbooks/rotate_keys.yml", "--extra-vars", json.dumps(extra))
    assert done.returncode == 0, done.stdout
    curl = "curl -s -o /dev/null -w '%%{http_code}' -H 'Authorization: Bearer %s' http://127.0.0.1:4000/v1/models"
    assert host.check_output(curl, new) == "200"
    assert host.check_output(curl, MASTER_KEY) in {"400", "401"}
    assert host.run("find /run/systemd /etc/systemd /etc/litellm -name '*meanwhile*'").stdout == ""

    # LiteLLM itself has them in its environment, which its user and root can read.
    own = [Place("/etc/litellm/credentials/LITELLM_MASTER_KEY")]
    gateway = Place("/etc/local-llm-gateway/keys.map", group="local-llm-gateway", mode=0o640)
    assert misplaced(host, {new: [*own, gateway], MASTER_KEY: []}) == [f"{new} is in: environment of litellm"]
