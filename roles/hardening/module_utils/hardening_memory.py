"""What the role has changed on this host, topic by topic, and how it was before: so that all of it can be put back."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEMORY = Path("/var/lib/local-llm-hardening")
PROC_SYS = Path("/proc/sys")
LOCKED = {"shell": "/usr/sbin/nologin", "password": "!"}  # by which nobody logs in

Diff = dict[str, str]


class HardeningError(Exception):
    """Something on the host does not do what it should; the text says what."""


def run(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program; what it says is what counts."""
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)  # noqa: S603


def must(command: str) -> None:
    """Run a command line.

    Args:
        command: Words as in a shell, without its other features.

    Raises:
        HardeningError: It failed.
    """
    try:
        ran = run(*shlex.split(command))
    except OSError as error:
        raise HardeningError(f"`{command}` cannot be run: {error.strerror}") from None
    if ran.returncode != 0:
        raise HardeningError(f"`{command}` failed: {ran.stderr.strip() or ran.stdout.strip()}")


def diff(path: str, before: str, after: str) -> Diff:
    """What Ansible shows of a change."""
    return {"before": before, "after": after, "before_header": path, "after_header": path}


class Topic:
    """The memory of one topic, kept in a file that root alone reads."""

    def __init__(self, name: str) -> None:
        """Read it, if there is one."""
        self.path = MEMORY / f"{name}.json"
        found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.pending: bool = found.get("pending", False)  # changed, and not yet in effect
        self.apply: list[str] = found.get("apply", [])
        self.undo: list[str] = found.get("undo", [])
        self.files: dict[str, dict[str, Any] | None] = found.get("files", {})
        self.folders: list[str] = found.get("folders", [])  # made for them
        self.lines: dict[str, dict[str, Any]] = found.get("lines", {})
        self.options: dict[str, dict[str, Any]] = found.get("options", {})
        self.modes: dict[str, dict[str, Any]] = found.get("modes", {})
        self.units: list[str] = found.get("units", [])
        self.sysctl: dict[str, list[str]] = found.get("sysctl", {})
        self.accounts: dict[str, dict[str, str]] = found.get("accounts", {})

    def save(self) -> None:
        """Write it, as a whole or not at all."""
        MEMORY.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(json.dumps({key: value for key, value in vars(self).items() if key != "path"}, indent=1))
        new.replace(self.path)


# --- files of our own ---


def write(path: Path, content: str, mode: int) -> None:
    """Write a file of root's, as a whole or not at all, under a name that nobody reads in between."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new~")
    new.write_text(content)
    new.chmod(mode)
    new.replace(path)


def remember_file(path: Path) -> dict[str, Any] | None:
    """A file as it is."""
    if not path.exists():
        return None
    stat = path.stat()
    content = base64.b64encode(path.read_bytes()).decode()
    return {"content": content, "mode": stat.st_mode & 0o7777, "uid": stat.st_uid, "gid": stat.st_gid}


def restore_file(path: Path, before: dict[str, Any] | None) -> None:
    """Make a file what it was, or take it away."""
    if before is None:
        path.unlink(missing_ok=True)
        return
    write(path, base64.b64decode(before["content"]).decode(), before["mode"])
    shutil.chown(path, before["uid"], before["gid"])


# --- lines and options in files of others ---


def with_line(text: str, match: str, line: str, append: bool) -> tuple[str, str | None]:
    """A text with a line in the place of the first that matches.

    Args:
        text: The file's.
        match: A regular expression for a whole line.
        line: What is wanted.
        append: Whether it comes to the end if none matches.

    Returns:
        The text, and the line that was there before.
    """
    lines = text.splitlines()
    if line in lines:
        return text, line
    for number, old in enumerate(lines):
        if re.fullmatch(match, old):
            lines[number] = line
            return "\n".join(lines) + "\n", old
    if not append:
        return text, line
    return "\n".join([*lines, line]) + "\n", None


def restore_line(text: str, new: str, old: str | None) -> str:
    """A text with a line as it was; somebody else's change of it stays."""
    lines = text.splitlines()
    if new not in lines or new == old:
        return text
    number = len(lines) - 1 - lines[::-1].index(new)
    lines[number : number + 1] = [] if old is None else [old]
    return "\n".join(lines) + "\n"


def with_option(text: str, kind: str, module: str, option: str, present: bool) -> str:
    """A file of PAM in which a module has an option, or has not.

    Args:
        text: The file's.
        kind: V(auth), V(account), V(password) or V(session).
        module: Name of the module.
        option: One word.
        present: Whether it is wanted.
    """

    def changed(found: re.Match[str]) -> str:
        words = [word for word in found[2].split() if word != option]
        return " ".join([found[1], *words, *([option] if present else [])])

    lines = text.splitlines()
    pattern = re.compile(rf"({kind}\s.*\s{re.escape(module)})((?:\s.*)?)")
    for number, line in enumerate(lines):
        found = pattern.fullmatch(line)
        if found and (option in found[2].split()) != present:
            lines[number] = changed(found)
    return "\n".join(lines) + "\n" if lines != text.splitlines() else text


# --- modes ---


def mode_of(path: Path) -> dict[str, Any]:
    """Mode and owners of a file."""
    stat = path.stat()
    return {"mode": stat.st_mode & 0o7777, "uid": stat.st_uid, "gid": stat.st_gid}


def set_mode(path: Path, wanted: dict[str, Any]) -> None:
    """Give it mode and owners."""
    shutil.chown(path, wanted["uid"], wanted["gid"])
    path.chmod(wanted["mode"])  # last, as chown takes setuid away


def shown_mode(mode: dict[str, Any]) -> str:
    """Mode and owners for a reader."""
    return f"{mode['mode']:04o} {mode['uid']}:{mode['gid']}\n"


# --- the kernel's parameters ---


def sysctl_path(key: str) -> Path:
    """Where a parameter is; a key with a slash first has dots in its parts."""
    first = next((sign for sign in key if sign in "./"), ".")
    return PROC_SYS / (key.replace(".", "/") if first == "." else key)


def sysctl_read(path: Path) -> str:
    """A parameter's value, as sysctl.d(5) would have it."""
    return " ".join(path.read_text().split())


# --- the way back ---


def undo(topic: Topic, check_mode: bool) -> Iterator[Diff | str]:
    """Put back all that a topic has changed.

    Args:
        topic: Its memory.
        check_mode: Whether it is only looked at.

    Yields:
        Changes, and warnings.
    """
    for entry in topic.options.values():
        yield from undo_option(entry, check_mode)
    for entry in reversed(topic.lines.values()):
        yield from undo_line(entry, check_mode)
    if not check_mode:
        for command in topic.undo:
            must(command)
    for name, before in topic.files.items():
        yield from undo_file(name, before, check_mode)
    for folder in map(Path, topic.folders):
        if not check_mode and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    for name, entry in topic.modes.items():
        yield from undo_mode(name, entry, check_mode)
    for name, (old, new) in topic.sysctl.items():
        yield from undo_sysctl(name, old, new, check_mode)
    for name, entry in topic.accounts.items():
        yield from undo_account(name, entry, check_mode)
    if not check_mode:
        for command in topic.apply:
            must(command)
    for unit in topic.units:
        yield diff(unit, "enabled\n", "disabled\n")
        if not check_mode:
            must(f"/usr/bin/systemctl disable --quiet --now {unit}")
    if not check_mode:
        topic.path.unlink(missing_ok=True)


def undo_file(name: str, before: dict[str, Any] | None, check_mode: bool) -> Iterator[Diff]:
    """Make a file what it was."""
    path = Path(name)
    if path.exists() or before:
        was = base64.b64decode(before["content"]).decode() if before else ""
        yield diff(name, path.read_text() if path.exists() else "", was)
    if not check_mode:
        restore_file(path, before)


def undo_line(entry: dict[str, Any], check_mode: bool) -> Iterator[Diff]:
    """Make a line what it was."""
    path = Path(entry["path"])
    text = path.read_text() if path.exists() else ""
    if (restored := restore_line(text, entry["new"], entry["old"])) != text:
        yield diff(str(path), text, restored)
        if not check_mode:
            write_over(path, restored)


def undo_option(entry: dict[str, Any], check_mode: bool) -> Iterator[Diff]:
    """Give a module of PAM the option that it had, or take it away."""
    path = Path(entry["path"])
    text = path.read_text() if path.exists() else ""
    restored = with_option(text, entry["kind"], entry["module"], entry["option"], not entry["present"])
    if restored != text:
        yield diff(str(path), text, restored)
        if not check_mode:
            write_over(path, restored)


def undo_mode(name: str, entry: dict[str, Any], check_mode: bool) -> Iterator[Diff]:
    """Give a file the mode that it had, unless somebody has given it another since."""
    path = Path(name)
    if not path.exists() or mode_of(path) != entry["new"]:
        return
    yield diff(name, shown_mode(entry["new"]), shown_mode(entry["old"]))
    if not check_mode:
        if entry["override"]:
            run("/usr/bin/dpkg-statoverride", "--remove", name)
        set_mode(path, entry["old"])


def undo_sysctl(name: str, old: str, new: str, check_mode: bool) -> Iterator[Diff | str]:
    """Give a parameter the value that it had, unless somebody has given it another since."""
    path = PROC_SYS / name
    if not path.exists() or sysctl_read(path) != new or old == new:
        return
    yield diff(name, f"{new}\n", f"{old}\n")
    if not check_mode:
        try:
            path.write_text(old)
        except OSError as error:
            yield f"{name} stays {new} until the host starts again ({error.strerror})"


def undo_account(name: str, entry: dict[str, str], check_mode: bool) -> Iterator[Diff]:
    """Give an account what it had, unless it is gone, or somebody has given it something else since.

    Raises:
        HardeningError: usermod does not do it.
    """
    found = [run("/usr/bin/getent", database, name).stdout.strip().split(":") for database in ("passwd", "shadow")]
    now = {"shell": found[0][-1], "password": found[1][1] if len(found[1]) > 1 else ""}
    for key, value in entry.items():
        if now[key] != LOCKED[key]:
            continue
        yield diff(f"{key} of {name}", f"{now[key]}\n", f"{value}\n")
        if not check_mode and (ran := run("/usr/sbin/usermod", f"--{key}", value, name)).returncode != 0:
            raise HardeningError(f"the account {name} cannot be changed: {ran.stderr.strip()}")


def write_over(path: Path, text: str) -> None:
    """Write a file anew, with the mode and the owners that it has."""
    mode = mode_of(path)
    new = path.with_name(f".{path.name}.new~")
    new.touch(mode=0o600)
    new.write_text(text)
    set_mode(new, mode)
    new.replace(path)
