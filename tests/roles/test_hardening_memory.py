"""What hardening remembers of a host, and how it puts that back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import hardening_memory as memory

LOGIN_DEFS = "# UMASK 022\nUMASK\t\t022\nUID_MIN 1000\n"
COMMON_AUTH = "auth\t[success=1 default=ignore]\tpam_unix.so nullok\nauth\trequisite\tpam_deny.so\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "memory")
    monkeypatch.setattr(memory, "PROC_SYS", tmp_path / "sys")


def test_a_line_takes_the_place_of_the_one_that_matches_and_goes_again() -> None:
    text, old = memory.with_line(LOGIN_DEFS, r"UMASK\s.*", "UMASK 027", True)
    assert (text.splitlines()[1], old) == ("UMASK 027", "UMASK\t\t022")
    assert memory.with_line(text, r"UMASK\s.*", "UMASK 027", True)[0] == text
    assert memory.restore_line(text, "UMASK 027", old) == LOGIN_DEFS


def test_a_line_comes_to_the_end_if_none_matches_and_goes_again() -> None:
    text, old = memory.with_line(LOGIN_DEFS, r"LOGIN_RETRIES\s.*", "LOGIN_RETRIES 5", True)
    assert (text, old) == (LOGIN_DEFS + "LOGIN_RETRIES 5\n", None)
    assert memory.restore_line(text, "LOGIN_RETRIES 5", None) == LOGIN_DEFS
    assert memory.with_line(LOGIN_DEFS, r"LOGIN_RETRIES\s.*", "LOGIN_RETRIES 5", False)[0] == LOGIN_DEFS


def test_a_line_that_was_as_wanted_stays() -> None:
    text, old = memory.with_line(LOGIN_DEFS, r"UID_MIN\s.*", "UID_MIN 1000", True)
    assert (text, old) == (LOGIN_DEFS, "UID_MIN 1000")
    assert memory.restore_line(text, "UID_MIN 1000", old) == LOGIN_DEFS


def test_what_somebody_else_has_written_since_stays() -> None:
    assert memory.restore_line("UMASK 077\n", "UMASK 027", "UMASK 022") == "UMASK 077\n"


def test_an_option_of_pam_is_taken_away_and_given_back() -> None:
    without = memory.with_option(COMMON_AUTH, "auth", "pam_unix.so", "nullok", False)
    assert without == COMMON_AUTH.replace(" nullok", "")
    assert memory.with_option(without, "auth", "pam_unix.so", "nullok", False) == without
    assert memory.with_option(without, "auth", "pam_unix.so", "nullok", True) == COMMON_AUTH
    assert memory.with_option(COMMON_AUTH, "account", "pam_unix.so", "x", True) == COMMON_AUTH


def topic(**fields: Any) -> memory.Topic:
    """A memory that is on the disk."""
    made = memory.Topic("test")
    vars(made).update(fields)
    made.save()
    return memory.Topic("test")


def test_everything_is_put_back(tmp_path: Path) -> None:
    ours, theirs, mode = tmp_path / "new" / "ours", tmp_path / "theirs", tmp_path / "mode"
    ours.parent.mkdir()
    theirs.write_text("before\n")
    theirs.chmod(0o640)
    remembered = memory.remember_file(theirs)
    ours.write_text("ours\n")
    theirs.write_text("changed\n")
    mode.touch(mode=0o600)
    (key := tmp_path / "sys/kernel/sysrq").parent.mkdir(parents=True)
    key.write_text("0\n")
    new = memory.mode_of(mode)
    made = topic(
        files={str(ours): None, str(theirs): remembered},
        folders=[str(ours.parent)],
        modes={str(mode): {"old": new | {"mode": 0o644}, "new": new, "override": False}},
        sysctl={"kernel/sysrq": ["438", "0"], "kernel/gone": ["1", "0"]},
    )
    assert len(list(memory.undo(made, check_mode=True))) == 4
    assert ours.exists()
    assert made.path.exists()
    assert len(list(memory.undo(made, check_mode=False))) == 4
    assert not ours.parent.exists()
    assert theirs.read_text() == "before\n"
    assert theirs.stat().st_mode & 0o777 == 0o640
    assert mode.stat().st_mode & 0o777 == 0o644
    assert key.read_text() == "438"
    assert not made.path.exists()


def test_a_mode_and_a_parameter_that_somebody_has_changed_since_stay(tmp_path: Path) -> None:
    path = tmp_path / "mode"
    path.touch(mode=0o640)
    now = memory.mode_of(path)
    (key := tmp_path / "sys/kernel/sysrq").parent.mkdir(parents=True)
    key.write_text("1\n")
    made = topic(
        modes={str(path): {"old": now | {"mode": 0o644}, "new": now | {"mode": 0o600}, "override": False}},
        sysctl={"kernel/sysrq": ["438", "0"]},
    )
    assert list(memory.undo(made, check_mode=False)) == []
    assert path.stat().st_mode & 0o777 == 0o640
    assert key.read_text() == "1\n"


def test_root_alone_reads_the_memory() -> None:
    made = topic(accounts={"games": {"shell": "/bin/sh"}})
    assert made.path.stat().st_mode & 0o777 == 0o600
    assert made.path.parent.stat().st_mode & 0o777 == 0o700
    assert made.path.stat().st_uid == os.getuid()


def test_the_commands_of_a_topic_come_before_and_after_its_files(tmp_path: Path) -> None:
    log, ours = tmp_path / "log", tmp_path / "ours"
    ours.write_text("")
    ours.chmod(0o600)
    say = f"sh -c 'test -e {ours} && echo there >>{log} || echo gone >>{log}'"
    list(memory.undo(topic(files={str(ours): None}, undo=[say], apply=[say]), check_mode=False))
    assert log.read_text().split() == ["there", "gone"]


def test_a_command_that_fails_is_told_with_its_words() -> None:
    with pytest.raises(memory.HardeningError, match=r"`sh -c .*` failed: so it is"):
        memory.must("sh -c 'echo so it is >&2; exit 3'")
    with pytest.raises(memory.HardeningError, match="`/nonexistent x` cannot be run"):
        memory.must("/nonexistent x")


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.5/rp_filter", "net/ipv4/conf/eth0.5/rp_filter"),
    ],
)
def test_where_a_parameter_is(tmp_path: Path, key: str, path: str) -> None:
    assert memory.sysctl_path(key) == tmp_path / "sys" / path
