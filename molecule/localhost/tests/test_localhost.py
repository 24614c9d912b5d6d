"""One server is everything: the model that the inventory chose answers on loopback, and the play says which it is."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.lab.waiting import until

PROJECT = Path(__file__).resolve().parent.parent.parent.parent
INVENTORIES = [PROJECT / "molecule/localhost/inventory"]
ENGINE, BRIDGE = "llama-cpp@qwen2-tiny", "local-llm-bridge"

pytestmark = pytest.mark.units(ENGINE, BRIDGE)

Play = Callable[..., subprocess.CompletedProcess[str]]


def test_the_play_says_which_model_it_serves_and_why(play: Play) -> None:
    done = play(PROJECT / "playbooks/models.yml")
    said = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stdout
    assert "The model is qwen2-tiny. qwen2.5-coder-" in said
    assert "cannot be reached" in said
    assert "set HF_ENDPOINT to a mirror that can" in said


def test_the_model_answers_through_the_bridge_and_may_take_long(guest: Callable[..., Host], play: Play) -> None:
    """As a large model does: after five seconds the bridge sends signs of life, and the answer as an event."""
    server = guest("server1")
    with ThreadPoolExecutor() as pool:
        server.check_output("systemctl kill --signal=STOP %s", ENGINE)
        try:
            verified = pool.submit(play, PROJECT / "playbooks/verify.yml")
            until(lambda: "1 calls running" in server.check_output("systemctl status %s", BRIDGE))
            time.sleep(6)
        finally:
            server.check_output("systemctl kill --signal=CONT %s", ENGINE)
    done = verified.result()
    assert done.returncode == 0, done.stdout
    assert "def quicksort(items):" in done.stdout


def test_nothing_listens_beyond_loopback(host: Host) -> None:
    listening = host.check_output("ss --no-header --listening --tcp --numeric | awk '{print $4}'").split()
    assert {"127.0.0.1:8000", "127.0.0.1:8080"} <= set(listening)
    assert all(address.startswith(("127.0.0.", "[::1]")) for address in listening)


def test_the_operators_own_claude_code_is_configured(host: Host) -> None:
    entry = json.loads(host.file("/root/.claude.json").content_string)["mcpServers"]["local-llm"]
    assert entry["url"] == "http://127.0.0.1:8080/mcp"
