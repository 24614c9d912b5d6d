"""Finds what is installed without a pin: every function takes a file's text and yields what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

# Modules that get something from elsewhere, and the argument without which they take whatever comes.
MODULES = {
    "get_url": "checksum",
    **dict.fromkeys(
        ("git", "pip", "npm", "gem", "apt_key", "apt_repository", "yum", "dnf", "package"), "(it has no hashes)"
    ),
}
REQUIREMENT = re.compile(r"[A-Za-z0-9][\w.-]*(\[[\w,-]+\])?==\S+( ; [^\\]+)?( --hash=sha256:[0-9a-f]{64})+")
EXACT = re.compile(r"\d+\.\d+\.\d+(-[\w.]+)?")


def in_commands(text: str) -> Iterator[str]:
    """Commands of pip, npm, curl, wget, in whatever language a file is; a command is what stands in one line."""
    for line in text.splitlines():
        if re.search(r"""\bpip['"]?,?\s+['"]?(install|download|wheel)\b""", line):
            hashed = "--require-hashes" in line and "--only-binary=:all:" in line
            if not hashed and not {"--no-index", "--no-deps"} <= set(line.split()):
                yield f"pip takes what has no hash: {line.strip()}"
        if re.search(r"\bnpx\b|\bnpm\s+(i|install|exec)\b", line):
            yield f"npm takes what is in no lock: {line.strip()}"
        if re.search(r"\bnpm\b.*(?<!\w)(ci|pack)\b", line) and "--ignore-scripts" not in line:
            yield f"npm runs the packages' scripts: {line.strip()}"
        if re.search(r"\b(curl|wget)\b", line) and re.search(
            r"\| *(sudo )?(ba)?sh\b|wget|--remote-name|-o +/(?!dev/null)", line
        ):
            yield f"what is fetched is not checked: {line.strip()}"


def in_tasks(text: str) -> Iterator[str]:
    """Tasks of Ansible that fetch or install without a checksum, or the newest there is."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, list):
            for item in node:
                yield from walk(item)
        elif isinstance(node, dict):
            for key, value in node.items():
                module = str(key).removeprefix("ansible.builtin.")
                arguments = value if isinstance(value, dict) else {}
                if module in MODULES and isinstance(value, dict | str) and MODULES[module] not in arguments:
                    yield f"{node.get('name')}: {module} without {MODULES[module]}"
                if module == "apt" and {"deb", "allow_unauthenticated"} & arguments.keys():
                    yield f"{node.get('name')}: apt takes a package that no distribution has signed"
                if arguments.get("state") == "latest":
                    yield f"{node.get('name')}: state is latest"
                if module == "unarchive" and "://" in str(arguments.get("src")):
                    yield f"{node.get('name')}: unarchive from a URL has no checksum"
                yield from walk(value)

    yield from walk(yaml.load(text, yaml.BaseLoader))  # noqa: S506 - no tag means anything to it


def in_pip_lock(text: str) -> Iterator[str]:
    """Requirements that are no name==version with hashes; and places, which are not a lock's to say."""
    whole = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    for line in re.sub(r"\s*\\\n\s*", " ", whole).splitlines():
        if line.strip() and not REQUIREMENT.fullmatch(line.strip()):
            yield f"no version, or no hash: {line.strip()[:100]}"


def in_npm_lock(text: str) -> Iterator[str]:
    """Packages without a checksum; and where they came from, which is somebody's own registry."""
    for path, package in json.loads(text)["packages"].items():
        if path and not package.get("integrity", "").startswith("sha512-"):
            yield f"{path} has no integrity"
        if "resolved" in package:
            yield f"{path} names a registry"


def in_npm_wishes(text: str) -> Iterator[str]:
    """Packages of a package.json without an exact version."""
    wishes = json.loads(text)
    for kind in ("dependencies", "devDependencies", "optionalDependencies"):
        for name, version in wishes.get(kind, {}).items():
            if not EXACT.fullmatch(version):
                yield f"{name} is {version}"
