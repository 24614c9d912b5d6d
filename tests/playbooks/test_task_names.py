"""A task's name is read in a log, without the lines around it."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
_NAME = re.compile(r"^\s*- name: (?P<name>[^#\n]+)", re.MULTILINE)
_PRONOUN = re.compile(
    r"\b(?:it|its|them|they|their|these|those|ones?(?! \w)|him|his|her|what|whom|others)\b", re.IGNORECASE
)


def test_each_name_can_be_read_alone() -> None:
    files = [
        file for folder in ("molecule", "playbooks", "roles", "tests") for file in (PROJECT / folder).rglob("*.yml")
    ]
    names = [(file, match["name"]) for file in files for match in _NAME.finditer(file.read_text())]
    assert len(names) > 500
    assert [f"{file}: {name}" for file, name in names if _PRONOUN.search(name)] == []
