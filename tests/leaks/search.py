"""Searches a guest for secrets: all files, the journal, the command lines and the environments of all processes."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from testinfra.host import Host

# The kernel's own view of the processes is looked at by itself.
FILES = (
    "echo %s | base64 -d | grep --recursive --text --only-matching --no-messages --devices=skip --null "
    "--fixed-strings --file=- $(find / -mindepth 1 -maxdepth 1 ! -type l ! -name proc ! -name sys)"
)
PROCESSES = """
import json, pathlib
found = []
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        found.append([(folder / name).read_bytes().decode(errors="replace") for name in ("comm", "cmdline", "environ")])
    except OSError:
        pass  # it has ended
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Place:
    """A file in which a secret belongs, and who may read it."""

    path: str
    user: str = "root"
    group: str = "root"
    mode: int = 0o600


def search(host: Host, secrets: Iterable[str]) -> dict[str, set[str]]:
    """Where each secret is on a guest; one that is nowhere is not in the answer.

    A place is a file's path, ``journal``, ``command line of <program>`` or ``environment of <program>``.

    Args:
        host: The guest, as root.
        secrets: What is searched for. None of them gets onto a command line by the search itself.
    """
    secrets = list(secrets)
    places: dict[str, set[str]] = defaultdict(set)
    patterns = base64.b64encode("\n".join(secrets).encode()).decode()
    for line in host.run(FILES, patterns).stdout_bytes.decode(errors="replace").splitlines():
        path, found, text = line.partition("\0")
        for secret in secrets:
            if found and secret in text:
                places[secret].add(path)
    journal = host.run("journalctl --namespace='*' --no-pager --output=export").stdout_bytes.decode(errors="replace")
    assert "MESSAGE=" in journal
    for secret in secrets:
        if secret in journal:
            places[secret].add("journal")
    for name, *shown in json.loads(host.check_output("python3 -c %s", PROCESSES)):
        for what, text in zip(("command line", "environment"), shown, strict=True):
            for secret in secrets:
                if secret in text:
                    places[secret].add(f"{what} of {name.strip()}")
    return dict(places)


def misplaced(host: Host, secrets: dict[str, list[Place]]) -> list[str]:
    """What is wrong with a guest's secrets, a line each: found where it does not belong, missing, or open to others.

    A service's own view of its credentials, below /run/credentials, is no place of its own.

    Args:
        host: The guest, as root.
        secrets: Each secret with the files of this guest in which it belongs.
    """
    problems = []
    found = search(host, secrets)
    for secret, places in secrets.items():
        paths = {path for path in found.get(secret, set()) if not path.startswith("/run/credentials/")}
        problems += [f"{secret} is in: {path}" for path in paths - {place.path for place in places}]
        problems += [f"{secret} is not in {place.path}" for place in places if place.path not in paths]
        for place in places:
            file = host.file(place.path)
            if place.path in paths and (file.user, file.group, file.mode) != (place.user, place.group, place.mode):
                problems.append(f"{place.path} is {file.user}:{file.group} {file.mode:04o}, wanted {place}")
    views = host.run("find /run/credentials -type f -perm /007").stdout.split()
    return problems + [f"{path} can be read by others" for path in views]
