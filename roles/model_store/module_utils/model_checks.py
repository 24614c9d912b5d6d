"""Hold files against the manifest, and know before anything is changed why one cannot be brought in place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.model_manifest import File

# The engines' units cannot see these (ProtectHome=, PrivateTmp=), so a link into them would be dead.
HIDDEN_FROM_SERVICES = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - nothing is written there


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size_of(path: Path) -> int:
    """Size in bytes, 0 if there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def human(size: int) -> str:
    """Bytes for people, with the exact number when it is rounded."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit} ({size} bytes)"
    return f"{size} bytes"


def mismatch(file: File, path: Path) -> str | None:
    """How a file differs from the manifest, if it does."""
    if (size := size_of(path)) != file.size:
        return f"{file.model}: {path} has {size} bytes, but the manifest says {file.size} for {file.path}"
    if (found := digest(path)) != file.sha256:
        return f"{file.model}: {path} has SHA-256 {found}, but the manifest says {file.sha256} for {file.path}"
    return None


def obstacles(path: Path, missing: list[File]) -> Iterator[str]:
    """Why the missing files cannot be brought in place.

    Args:
        path: Folder of the store.
        missing: What the store lacks.
    """
    for file in missing:
        if file.source == "host":
            yield from host_obstacles(path, file)
    needed, free = needed_bytes(missing), free_bytes(path)
    if needed > free:
        yield (
            f"{path} is too small: {human(needed)} are needed and {human(free)} are free. "
            "Free some space, or set model_store_path to a larger disk"
        )


def host_obstacles(store: Path, file: File) -> Iterator[str]:
    """Why a file that is on the host already cannot be linked into the store.

    Args:
        store: Folder of the store.
        file: A file with the source ``host``.
    """
    path = Path(file.origin)
    if path.is_relative_to(store):
        yield f"{file.model}: {path} is inside the store itself; leave the files where they come from"
    elif any(path.resolve().is_relative_to(hidden) for hidden in HIDDEN_FROM_SERVICES):
        yield f"{file.model}: {path} is in a folder that services cannot see; move it, for example to /srv/models"
    elif not path.is_file():
        yield f"{file.model}: {path} does not exist on this host; copy it there or correct path and files"
    elif path.stat().st_mode & 0o004 == 0 or any(up.stat().st_mode & 0o001 == 0 for up in path.parents):
        yield f"{file.model}: {path} cannot be read by other users; give the file o+r and its folders o+x"
    elif difference := mismatch(file, path):
        yield difference


def free_bytes(path: Path) -> int:
    """Free bytes of the file system on which a folder is or will be."""
    folder = path
    while not folder.is_dir():
        folder = folder.parent
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def needed_bytes(missing: list[File]) -> int:
    """Bytes that have yet to be written; what an interrupted download left is not counted twice."""
    return sum(max(0, file.size - size_of(file.staged)) for file in missing if file.source != "host")
