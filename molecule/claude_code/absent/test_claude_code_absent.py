"""After state absent, the developers have what they had before and what Claude Code itself has written since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testinfra.host import Host

FILES = Path(__file__).resolve().parents[1] / "files"


@pytest.mark.parametrize("user", ["alice", "bob", "carol", "dave"])
def test_nothing_of_the_role_is_left(host: Host, user: str) -> None:
    assert not host.file(f"/home/{user}/.config").exists
    mentions = host.run("grep -lF local-llm /home/%s/.claude.json /home/%s/.claude/settings.json", user, user)
    assert mentions.stdout == ""


def test_the_developers_files_say_what_they_said(host: Host) -> None:
    had = json.loads((FILES / "claude.json").read_text())
    has = json.loads(host.file("/home/bob/.claude.json").content_string)
    assert {key: has[key] for key in had if key != "numStartups"} == {
        key: had[key] for key in had if key != "numStartups"
    }
    assert host.file("/home/bob/.claude/settings.json").content_string == (FILES / "settings.json").read_text()


def test_a_file_that_the_role_made_is_gone(host: Host) -> None:
    assert not host.file("/home/alice/.claude/settings.json").exists


def test_the_client_is_gone(host: Host) -> None:
    assert not host.exists("claude")
    assert not host.file("/opt/claude-code").exists
