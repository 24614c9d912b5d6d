"""After all else: LiteLLM's master key is replaced while developers work, and is where it belongs and nowhere else.

It leaves debian13 with another key than the scenario has; ``molecule converge`` puts that back.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from door import address, asking, question
from testinfra.host import Host

from tests.leaks.search import Place, misplaced

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
MASTER_KEY = "sk-molecule-litellm-master-key"

pytestmark = pytest.mark.units("litellm", "local-llm-gateway")

Guest = Callable[..., Host]
Play = Callable[..., subprocess.CompletedProcess[str]]


def test_the_master_key_is_replaced_while_developers_work(guest: Guest, play: Play) -> None:
    host = guest("debian13")
    new = "sk-molecule-litellm-key-that-is-new"
    with asking(address(host), question("Hello", model="gpt-4")) as outcomes:  # which LiteLLM alone knows
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
