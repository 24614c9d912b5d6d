"""The tokens file: developers whom the command `token` enters and removes while the bridge runs.

It holds names, dates and the SHA-256 of tokens: whoever reads it is let in nowhere.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import os
import secrets
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from local_llm_bridge import config
from local_llm_bridge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PREFIX = "llb_"
"""By this, people and secret scanners see what a token is for."""
_HEAD = "# Written by local-llm-bridge token. A running bridge reads this file again when it changes.\n"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the quicker one: a running bridge waits for it
_MODE = 0o640


class Entry(config.Developer):
    """A developer, and the day on which the token was made."""

    created: dt.date


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    developers: list[Entry]


def read(path: Path) -> tuple[Entry, ...]:
    """Return who is in a tokens file; nobody where there is none.

    Raises:
        ConfigError: the file cannot be read, or something in it is wrong.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - both are safe ones
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{path}: {f'line {mark.line + 1}: ' if mark else ''}is not valid YAML") from None
    try:
        entries = () if content is None else tuple(_Content.model_validate(content).developers)
    except ValidationError as error:
        # What was found is not shown: it may be a token.
        texts = (f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"{path}: {'; '.join(texts)}") from None
    names = [entry.name for entry in entries]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{path}: developers: name: found {double!r} more than once; revoke it, then make a new one")
    return entries


def create(path: Path, name: str) -> str:
    """Enter a developer; return the token, which is kept nowhere.

    Args:
        path: the tokens file; it is made if there is none.
        name: the developer's.

    Raises:
        ConfigError: the name will not do or has a token already, or the file is wrong or cannot be written.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode()).hexdigest()
    try:
        entry = Entry(name=name, token_sha256=digest, created=dt.datetime.now(tz=dt.UTC).date())
    except ValidationError:
        raise ConfigError(
            f"NAME: found {name!r:.100}; wanted letters, digits and . _ @ - (64 at most), the first a letter or digit"
        ) from None
    with _locked(path) as file:
        entries = read(file)
        if known := next((known for known in entries if known.name == name), None):
            raise ConfigError(
                f"{path}: {name} has a token already, made on {known.created}. If it is lost, revoke it and make a "
                f"new one: local-llm-bridge token revoke {name} --file {path}"
            )
        _write(file, (*entries, entry))
    return token


def revoke(path: Path, name: str) -> None:
    """Remove a developer.

    Args:
        path: the tokens file.
        name: the developer's.

    Raises:
        ConfigError: there is no such developer, or the file is wrong or cannot be written.
    """
    with _locked(path) as file:
        entries = read(file)
        rest = [entry for entry in entries if entry.name != name]
        if len(rest) == len(entries):
            known = ", ".join(entry.name for entry in entries) or "nobody"
            raise ConfigError(f"{path}: found no {name!r:.100}; in the file: {known}")
        _write(file, rest)


@contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Keep others from changing the file meanwhile; gives the file itself where the path is a link.

    The lock is on the folder, as the file is replaced by another one.
    """
    try:
        file = path.resolve()
    except OSError as error:  # relative to a working folder that was deleted, or a link to itself
        raise ConfigError(f"{path}: cannot be found: {error.strerror}; name it from /") from None
    try:
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{file.parent}: cannot be opened: {error.strerror}; make the folder first") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield file
        os.fsync(folder)
    finally:
        os.close(folder)


def _write(path: Path, entries: Sequence[Entry]) -> None:
    """Replace the file in one step; its owner and group stay."""
    text = _HEAD + yaml.safe_dump({"developers": [entry.model_dump() for entry in entries]}, sort_keys=False)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _unwritable(path, error) from None
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            _own(descriptor, path)
            os.fchmod(descriptor, _MODE)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def _own(descriptor: int, path: Path) -> None:
    """Give a new file the owner and group of the old one; without one, the group of its folder, which may read it."""
    if path.exists():
        status = path.stat()
        os.fchown(descriptor, status.st_uid, status.st_gid)
        return
    with suppress(PermissionError):  # the group is not one of the caller's
        os.fchown(descriptor, -1, path.parent.stat().st_gid)


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot be written: {error.strerror}; run this as root, or as the file's owner")
