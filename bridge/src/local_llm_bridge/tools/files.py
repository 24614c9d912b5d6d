"""Files of the developer's project, read for a call: text inside the project's folder, and nothing that is secret.

Names are judged before anything is opened. What is opened are the names that were judged, one folder after the other
and none of them a link, so nothing that is swapped meanwhile can lead elsewhere. What has been read is judged, too.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from local_llm_bridge.errors import RefusedFileError
from local_llm_bridge.texts import printable
from local_llm_bridge.tools.secret_files import find_secret, is_secret_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MOST_FILES = 20
MOST_BYTES = 2**20

_LONGEST_PATH = 4096
_LONGEST_SHOWN = 300
# Of a folder's names, as many are compared with one that is missing.
_MOST_COMPARED = 2000

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link that leads in a circle",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_files(root: Path, paths: Sequence[str]) -> str:
    """Return the texts of files as Markdown: each under its name, in a fence of its own, in the order given.

    Args:
        root: the project's folder.
        paths: the files, relative to it or absolute. Links are followed as long as they stay inside.

    Raises:
        RefusedFileError: one of them may not be read or cannot be; its text tells the first one, why, and what to do.
    """
    if len(paths) > MOST_FILES:
        raise RefusedFileError(
            f"{len(paths)} files are too many for one call, {MOST_FILES} are the most. Make several calls."
        )
    folder = os.path.realpath(root)
    try:
        folder_fd = os.open(folder, _FOLDER_FLAGS)
    except OSError as error:
        raise RefusedFileError(
            f"The project's folder {_shown(folder)} cannot be opened: {error.strerror}. No file can be read."
        ) from None
    sections = []
    size = 0
    try:
        for path in paths:
            names = _names(folder, path)
            data = _read(folder_fd, names, path, size)
            size += len(data)
            text = _text(path, data)
            _refuse_secret_in(text, names[-1], path)
            sections.append(_section(path, text))
    finally:
        os.close(folder_fd)
    return "\n".join(sections)


def _names(folder: str, path: str) -> list[str]:
    """Return the names of the folders from the project's down to the file, and the file's own; none is a link yet."""
    if not path:
        raise RefusedFileError("A path is empty. Name a file, such as src/main.py.")
    if len(path) > _LONGEST_PATH:
        raise RefusedFileError(
            f"The path {_shown(path)} is too long: {len(path)} characters, and {_LONGEST_PATH} are the most."
        )
    if "\0" in path:
        raise RefusedFileError(f"The path {_shown(path)} has a NUL character in it. Remove it.")
    try:
        path.encode()
        os.fsencode(path)
    except UnicodeEncodeError:
        raise RefusedFileError(
            f"The path {_shown(path)} has characters in it that no text and no file's name can have. Remove them."
        ) from None
    _refuse_secret(folder, path.removeprefix(f"{folder}/"), path)
    try:
        names = os.path.relpath(os.path.realpath(os.path.join(folder, path)), folder).split("/")  # noqa: PTH118
    except RecursionError:
        raise RefusedFileError(
            f"{_shown(path)} leads through too many links. Name the file that the last of them leads to."
        ) from None
    except OSError as error:  # such as a link that is replaced just now
        raise _unreadable(path, error) from None
    if names[0] == "..":
        raise RefusedFileError(
            f"{_shown(path)} is not in the project's folder {_shown(folder)}, or is a link that leads out of it. "
            "Only files inside can be read."
        )
    _refuse_secret(folder, "/".join(names), path)
    return names


def _refuse_secret(folder: str, names: str, path: str) -> None:
    parent = folder.rpartition("/")[2]
    for name in names.split("/"):
        if is_secret_name(name, parent):
            leads = "" if name in path else f" leads to {_shown(name)} and"
            raise RefusedFileError(
                f"{_shown(path)}{leads} is refused: the name {_shown(name)} means secrets. Copy what the model has to "
                "know into another file, without the secrets, and name that one."
            )
        parent = name


def _refuse_secret_in(text: str, name: str, path: str) -> None:
    if found := find_secret(text, name):
        what, line = found
        raise RefusedFileError(
            f"{_shown(path)} is refused: line {line} has {what}. Copy what the model has to know into another file, "
            "without the secret, and name that one."
        )


def _read(folder_fd: int, names: list[str], path: str, size: int) -> bytes:
    """Return a file's content.

    Args:
        folder_fd: the project's folder.
        names: the way from there.
        path: the file as the caller named it.
        size: how many bytes have been read from other files.
    """
    left = MOST_BYTES - size
    data = bytearray()
    try:
        fd = _open(folder_fd, names, path)
        try:
            info = os.fstat(fd)
            _refuse_special(info, path)
            if info.st_size <= left:
                while len(data) <= left and (packet := os.read(fd, left + 1 - len(data))):
                    data += packet
        finally:
            os.close(fd)
    except OSError as error:
        raise _unreadable(path, error) from None
    if (most := max(info.st_size, len(data))) > left:
        raise RefusedFileError(
            f"{_shown(path)} is too much for one call: with it the files are {size + most} bytes, and {MOST_BYTES} are "
            "the most. Leave it out, call several times, or pass the part that matters as text."
        )
    return bytes(data)


def _open(folder_fd: int, names: list[str], path: str) -> int:
    """Return a descriptor of the file; none of the names on the way is taken for a link."""
    walked: list[str] = []
    fd = os.dup(folder_fd)
    try:
        for name in names[:-1]:
            fd = _moved(fd, os.open(name, _FOLDER_FLAGS, dir_fd=fd))
            walked.append(name)
        # Looked at before, because opening a device can have effects of its own.
        _refuse_special(os.stat(names[-1], dir_fd=fd, follow_symlinks=False), path)
        return os.open(names[-1], _FILE_FLAGS, dir_fd=fd)
    except FileNotFoundError:
        near = [_shown("/".join([*walked, name])) for name in _near(fd, names[len(walked)])]
        hint = f"Did you mean {' or '.join(near)}?" if near else "Paths are relative to that folder."
        raise RefusedFileError(f"There is no {_shown(path)} in the project's folder. {hint}") from None
    finally:
        os.close(fd)


def _moved(old_fd: int, new_fd: int) -> int:
    os.close(old_fd)
    return new_fd


def _refuse_special(info: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(info.st_mode):
        kind = _KINDS.get(stat.S_IFMT(info.st_mode), "something else")
        raise RefusedFileError(f"{_shown(path)} is {kind}, not a file. Name files one by one.")


def _unreadable(path: str, error: OSError) -> RefusedFileError:
    return RefusedFileError(
        f"{_shown(path)} cannot be read: {error.strerror}. Check the path and who may read it, or leave it out."
    )


def _near(folder_fd: int, name: str) -> list[str]:
    """Return a folder's names that look like one that is missing there."""
    from difflib import get_close_matches  # noqa: PLC0415 - not needed to start
    from itertools import islice  # noqa: PLC0415

    try:
        with os.scandir(folder_fd) as entries:
            there = {entry.name.lower(): entry.name for entry in islice(entries, _MOST_COMPARED)}
    except OSError:
        return []
    return [there[match] for match in get_close_matches(name.lower(), there)]


def _text(path: str, data: bytes) -> str:
    hint = "Only text in UTF-8 can be read: convert it, or leave it out."
    if b"\0" in data:
        raise RefusedFileError(f"{_shown(path)} is binary: it has a NUL byte at offset {data.index(0)}. {hint}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedFileError(
            f"{_shown(path)} is binary or in another encoding: the byte at offset {error.start} is not UTF-8. {hint}"
        ) from None


def _section(path: str, text: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    end = "" if not text or text.endswith("\n") else "\n"
    return f"File {_shown(path)}:\n{fence}\n{text}{end}{fence}\n"


def _shown(name: str) -> str:
    """Return a name on one line, without what cannot be printed, and not too long."""
    if len(name) > _LONGEST_SHOWN:
        name = f"{name[: _LONGEST_SHOWN // 2]}…{name[-_LONGEST_SHOWN // 2 :]}"
    return printable(name)
