"""Work with files in other people's homes: with their rights, in one step, keeping owner, group, mode and links."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.json_additions import Document, DocumentError, Style, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

# macOS lists more groups of an account than it accepts back.
MAX_GROUPS = os.sysconf("SC_NGROUPS_MAX")


class ConfigError(Exception):
    """Something that a person must mend first; the text says what was found and what to do."""


@dataclass(frozen=True)
class Account:
    """An account of this host."""

    user: str
    uid: int
    gid: int
    home: Path
    shell: str


@dataclass(frozen=True)
class Snapshot:
    """A JSON file as it was when it was read; document is None where there is no file."""

    path: Path
    document: Document | None
    style: Style
    identity: tuple[int, ...]


def find_account(user: str) -> Account:
    """Return the account of the given name.

    Raises:
        ConfigError: there is none, its home is missing, or this process may not act for it.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError("no such account on this host; create it, or take it off the list of developers") from None
    if os.geteuid() not in (0, entry.pw_uid):
        raise ConfigError("only root can work in another account's home; run the play with become: true")
    if not Path(entry.pw_dir).is_dir():
        raise ConfigError(f"the home {entry.pw_dir} does not exist; create it first")
    return Account(user, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir), entry.pw_shell)


@contextlib.contextmanager
def acting_as(account: Account) -> Iterator[None]:
    """Give this process an account's rights for a while.

    Paths in a home are in the hand of its owner: root would follow a link to any file of the host.
    """
    if os.geteuid() != 0:
        yield
        return
    groups, gid, umask = os.getgroups(), os.getegid(), os.umask(0o077)
    os.initgroups(account.user, account.gid)
    os.setegid(account.gid)
    os.seteuid(account.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups[:MAX_GROUPS])
        os.umask(umask)


def check_folder(account: Account, path: Path) -> None:
    """Refuse a path whose folder the account could not write, or not make; leaves nothing there.

    Raises:
        ConfigError: with the reason.
    """
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        owner = _name_of(pwd.getpwuid, folder.stat().st_uid)
        raise ConfigError(
            f"{folder} cannot be written by {account.user}: {error.strerror} (it belongs to {owner}); "
            f"mount it writable, or give it to {account.user}"
        ) from None


def check_owner(account: Account, path: Path) -> None:
    """Refuse a file that would get another owner or group when the account replaces it.

    Raises:
        ConfigError: with the owner or the group.
    """
    if not path.exists():
        return
    found = path.stat()
    if found.st_uid != account.uid:
        owner = _name_of(pwd.getpwuid, found.st_uid)
        raise ConfigError(f"{path} belongs to {owner}; give it back: chown {account.user} {path}")
    if found.st_gid not in (os.getegid(), *os.getgroups()):
        group = _name_of(grp.getgrgid, found.st_gid)
        raise ConfigError(f"{path} belongs to the group {group}, which {account.user} is not in; chgrp it first")


def _name_of(find: Any, number: int) -> str:
    """Return the name of an account or a group, or its number where it has no name."""
    try:
        return str(find(number)[0])
    except KeyError:
        return str(number)


def identity_of(path: Path) -> tuple[int, ...]:
    """Return what changes whenever the file is written; nothing where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def read(path: Path) -> Snapshot:
    """Read a JSON file; links are followed, so that they stay links when the file is replaced.

    Raises:
        ConfigError: it is not a JSON object; the file, the line and the column are named.
    """
    target = Path(os.path.realpath(path))
    identity = identity_of(target)
    if not identity:
        if path.is_symlink() and not target.parent.is_dir():
            raise ConfigError(f"{path}: is a link into {target.parent}, which does not exist; mend or remove the link")
        return Snapshot(target, None, Style(), identity)
    try:
        document, style = parse(target.read_bytes().decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; mend or remove the file") from None
    except DocumentError as error:
        raise ConfigError(f"{path}: {error}; mend or remove the file") from None
    return Snapshot(target, document, style, identity)


def write(path: Path, data: bytes, identity: tuple[int, ...] | None = None, mode: int = 0o600) -> bool:
    """Replace a file in one step, keeping its group and mode.

    Args:
        path: the file; a link is replaced, so resolve it first.
        data: its new contents.
        identity: what `identity_of` said when the old contents were read; None for a file that nobody else writes.
        mode: of a new file, and of one that nobody else writes.

    Returns:
        False if the file is no longer the one with the given identity; then it was left alone.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if identity:
                found = path.stat()
                os.fchown(file.fileno(), -1, found.st_gid)
                mode = stat.S_IMODE(found.st_mode)
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if identity is not None and identity_of(path) != identity:
            return False
        Path(name).replace(path)
        return True
    finally:
        Path(name).unlink(missing_ok=True)
