"""The map in CONTRIBUTING.md has all that is at the top of the tree, and nothing else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def test_the_map_is_that_of_the_tree() -> None:
    text = (PROJECT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (`.+?) \|", text.partition("## Map of the tree")[2].partition("\n## ")[0], re.MULTILINE)
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`([^`]+)`", row)}
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert named == {path.partition("/")[0] for path in listed.splitlines()}
