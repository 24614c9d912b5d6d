"""Who locks himself out of a real host over ssh is let in again, by the host's own timer."""

from __future__ import annotations

import subprocess
from pathlib import Path

from testinfra.host import Host

HERE = Path(__file__).resolve().parent
TABLE = "nft --stateless --terse list table inet local_llm_fleet"


def test_a_lockout_is_undone(host: Host) -> None:
    before = host.check_output(TABLE)
    done = subprocess.run(
        ["ansible-playbook", f"--inventory={HERE / 'inventory.yml'}", str(HERE / "lockout.yml")],
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stdout
    assert "has gone back to the former ones by itself" in done.stdout, done.stdout
    assert "timed out" in done.stdout
    assert host.check_output(TABLE) == before
