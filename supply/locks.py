"""What the project's locks hold, for the bill of materials and for the audit."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Package:
    """A package as a lock has it.

    Args:
        kind: ``pypi`` or ``npm``.
        name: With its scope, if it has one.
        version: Exact.
        hashes: ``sha256:…`` or ``sha512:…`` in hex, of each file that there is of it.
        lock: Path of the lock.
    """

    kind: str
    name: str
    version: str
    hashes: tuple[str, ...]
    lock: str


def tracked(*patterns: str) -> list[Path]:
    """The files of the project in the present folder, as git's patterns choose them."""
    listed = subprocess.run(["git", "ls-files", "--", *patterns], capture_output=True, text=True, check=True)  # noqa: S603, S607
    return [Path(line) for line in listed.stdout.splitlines()]


def _python() -> Iterator[Package]:
    for lock in tracked("*requirements*.txt", "molecule/*/locks/*.txt"):
        for entry in re.sub(r"\\\n", " ", lock.read_text()).splitlines():
            if found := re.match(r"([\w.-]+)(?:\[[^]]*\])?==(\S+)", entry):
                hashes = tuple(re.findall(r"--hash=(\S+)", entry))
                yield Package("pypi", found[1].lower(), found[2], hashes, str(lock))


def _npm() -> Iterator[Package]:
    for lock in tracked("*package-lock.json"):
        for path, entry in json.loads(lock.read_text())["packages"].items():
            if path:
                digest = base64.b64decode(entry["integrity"].removeprefix("sha512-")).hex()
                name = path.rpartition("node_modules/")[2]
                yield Package("npm", name, entry["version"], (f"sha512:{digest}",), str(lock))


def _claude_code() -> Iterator[Package]:
    for defaults in tracked("roles/claude_code/defaults/main.yml"):
        version = yaml.safe_load(defaults.read_text())["claude_code_client_version"]
        table = defaults.parents[1] / "vars/main.yml"
        for name, digest in yaml.safe_load(table.read_text())["_claude_code_sha512"][version].items():
            yield Package("npm", f"@anthropic-ai/{name}", version, (f"sha512:{digest}",), str(table))


def packages() -> dict[tuple[str, str, str], list[Package]]:
    """All that is locked: (kind, name, version) and the locks' entries for it."""
    every = defaultdict(list)
    for package in (*_python(), *_npm(), *_claude_code()):
        every[package.kind, package.name, package.version].append(package)
    return every
