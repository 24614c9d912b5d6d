"""Ansible module: a developer's token, in a file of the controller: made, replaced, taken away."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: developer_token
short_description: A developer's token in a file of the controller
description:
  - Keeps C(<folder>/<name>.json) with the token, when it was made, and which former ones are still good and until when.
    The folder is all that there is of these tokens; what a gateway has is made from it.
  - The result holds no token.
author: local-llm-fleet
options:
  folder:
    description: An absolute path outside any repository. It is made if there is none, for its owner alone (mode 0700).
    type: path
    required: true
  name:
    description: The developer's name, in logs and limits; letters, digits and C(. _ @ -), 64 at most.
    type: str
    required: true
  action:
    description:
      - V(make) makes the first token of a developer.
      - V(rotate) makes another one; the one until now stays good for O(grace_hours).
      - V(revoke) removes the file, and so all of the developer's tokens.
    type: str
    choices: [make, rotate, revoke]
    required: true
  grace_hours:
    description: How long the former token stays good, in hours, 0 to 8760.
    type: float
    default: 24
"""

RETURN = r"""
file:
  description: Where the token is.
  type: str
former:
  description: SHA-256 of former tokens that are still good, and the Unix time in seconds at which each ends.
  type: list
"""

NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
"""As the bridge and the gateway have it."""
PREFIX = "llb_"
"""By this, people and secret scanners see what a token is for; the bridge's own tokens have it, too."""
LONGEST_GRACE = 8760.0  # hours


class Refused(Exception):
    """Something that the operator must mend first; the text says what was found and what to do."""


def check_folder(folder: Path) -> None:
    """Refuse a folder in which others could find the tokens.

    Args:
        folder: Where the tokens are, or will be.

    Raises:
        Refused: It is in a repository, somebody else's, open to others, or no folder.
    """
    if not folder.is_absolute():
        raise Refused(f"fleet_tokens is {str(folder)!r}; it is an absolute path, such as /home/you/.local/share/...")
    real = folder.resolve()
    if repository := next((path for path in (real, *real.parents) if (path / ".git").exists()), None):
        raise Refused(
            f"fleet_tokens is {folder}, which is in the repository {repository}: a commit could take the tokens along. "
            "Set it to a folder outside"
        )
    if not real.exists():
        return
    if not real.is_dir():
        raise Refused(f"fleet_tokens is {folder}, which is no folder. Set it to one, or move that file away")
    check_rights(real)


def check_rights(path: Path) -> None:
    """Refuse what is somebody else's, or open to others.

    Args:
        path: A folder or file.

    Raises:
        Refused: It is.
    """
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise Refused(
            f"{path} belongs to the user with the id {status.st_uid}, and this runs as {os.geteuid()}. Run the "
            "playbook as its owner, without sudo"
        )
    if status.st_mode & 0o077:
        raise Refused(
            f"{path} has the mode {status.st_mode & 0o7777:04o}, so that others may get at the tokens: "
            f"chmod {'700' if path.is_dir() else '600'} {path}. If others have accounts here, rotate what they may "
            "have read"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others from changing anything in a folder meanwhile; make it if there is none."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_whole(content: Any, name: str) -> bool:
    """Whether this is what a developer's file holds."""
    return (
        isinstance(content, dict)
        and content.keys() == {"name", "token", "created", "former"}
        and content["name"] == name
        and isinstance(content["token"], str)
        and re.fullmatch("[!-~]{20,}", content["token"]) is not None
        and isinstance(content["former"], list)
        and all(
            isinstance(entry, dict)
            and re.fullmatch("[0-9a-f]{64}", str(entry.get("token_sha256")))
            and isinstance(entry.get("expires"), int)
            for entry in content["former"]
        )
    )


def read(file: Path) -> dict[str, Any]:
    """Return what a developer's file holds.

    Args:
        file: The file.

    Raises:
        Refused: Others may read it, or it holds something else. What it holds is not shown.
    """
    check_rights(file)
    try:
        content = json.loads(file.read_text())
    except ValueError:
        content = None
    if not is_whole(content, file.stem):
        raise Refused(
            f"{file} is not as this playbook writes it. Restore it from a backup, or take the developer out with "
            "-e revoke=true and make a new token"
        )
    return dict(content)


def write(file: Path, content: dict[str, Any]) -> None:
    """Replace a file in one step; only its owner may read it.

    Args:
        file: The file.
        content: What it holds afterwards.
    """
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w") as new:
            new.write(json.dumps(content, indent=2) + "\n")
            new.flush()
            os.fsync(descriptor)
        Path(name).replace(file)
    finally:
        Path(name).unlink(missing_ok=True)


def change(file: Path, action: str, grace_s: float, *, dry: bool) -> list[dict[str, Any]]:
    """Make, replace or take away a developer's token.

    Args:
        file: The developer's.
        action: `make`, `rotate` or `revoke`.
        grace_s: How long the token until now stays good, in seconds.
        dry: Whether to leave everything as it is.

    Returns: the former tokens that are still good.

    Raises:
        Refused: There is a token already, or none, or the file cannot be used.
    """
    name, exists = file.stem, file.exists()
    if action == "make" and exists:
        raise Refused(
            f"{name} has a token already, in {file}. For a new one, while the old one stays good for a day: "
            "-e rotate=true; if it may be in wrong hands: -e revoke=true, then make one"
        )
    if action != "make" and not exists:
        there = ", ".join(sorted(other.stem for other in file.parent.glob("[!.]*.json"))) or "nobody"
        raise Refused(f"{name} has no token in {file.parent}; there are: {there}. Correct the name, or make a token")
    if action == "revoke":
        if not dry:
            file.unlink()
        return []
    now = time.time()
    former: list[dict[str, Any]] = []
    if action == "rotate":
        before = read(file)
        digest = hashlib.sha256(before["token"].encode()).hexdigest()
        former = [*before["former"], {"token_sha256": digest, "expires": int(now + grace_s)}]
        former = [entry for entry in former if entry["expires"] > now]
    if not dry:
        token = PREFIX + secrets.token_urlsafe(32)
        created = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        write(file, {"name": name, "token": token, "created": created, "former": former})
    return former


def change_in(folder: Path, name: str, action: str, grace_hours: float, *, dry: bool) -> list[dict[str, Any]]:
    """Check what was asked for, and do it while nobody else changes the folder.

    Args:
        folder: Where the tokens are.
        name: The developer's.
        action: `make`, `rotate` or `revoke`.
        grace_hours: How long the token until now stays good.
        dry: Whether to leave everything as it is.

    Returns: the former tokens that are still good.

    Raises:
        Refused: It cannot be done.
        OSError: The folder cannot be used.
    """
    if not re.fullmatch(NAME, name):
        raise Refused(
            f"name is {name!r:.100}; wanted letters, digits and . _ @ - (64 at most), the first a letter or digit"
        )
    if not 0 <= grace_hours <= LONGEST_GRACE:
        raise Refused(f"grace_hours is {grace_hours:g}; wanted 0 to {LONGEST_GRACE:g}")
    check_folder(folder)
    file = folder / f"{name}.json"
    if dry:
        return change(file, action, grace_hours * 3600, dry=True)
    with locked(folder):
        return change(file, action, grace_hours * 3600, dry=False)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "action": {"type": "str", "choices": ["make", "rotate", "revoke"], "required": True},
            "grace_hours": {"type": "float", "default": 24.0},
        },
        supports_check_mode=True,
    )
    params = module.params
    folder, name = Path(params["folder"]), params["name"]
    try:
        former = change_in(folder, name, params["action"], params["grace_hours"], dry=module.check_mode)
    except Refused as error:
        module.fail_json(msg=f"{error}. Nothing was changed")
    except OSError as error:
        module.fail_json(msg=f"{error.filename or folder}: {error.strerror}. Nothing was changed")
    module.exit_json(changed=True, file=str(folder / f"{name}.json"), former=former)


if __name__ == "__main__":
    main()
