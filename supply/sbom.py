"""Writes the bill of materials of a release, CycloneDX in JSON: `make sbom`.

A package that several locks have is one component; who wants it is in the dependencies. The same commit gives the same
document.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from locks import Package, packages, tracked

# What a fleet gets, and what the controller runs. The other locks are for tests and measurements.
INSTALLED = re.compile(r"roles/|requirements\.txt|bridge/requirements\.txt")


NEWEST = "the distribution's newest, signed by it"
BRANCH = "a branch; what is installed of it is pinned and held"


def git(*words: str) -> str:
    """What git says about the project in the present folder."""
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, S607


def version() -> str:
    """Of the release, or of the commit after it."""
    return git("describe", "--always", "--tags", "--dirty")


def hashes(digests: set[str]) -> list[dict[str, str]]:
    """Checksums as CycloneDX writes them."""
    return [{"alg": digest[:3].upper() + "-" + digest[3:6], "content": digest[7:]} for digest in sorted(digests)]


def installed(version: str) -> dict[str, Any]:
    """What a component is that has no lock, and which version of it comes."""
    return {"scope": "required", "properties": [{"name": "local-llm-fleet:version", "value": version}]}


def component(entries: list[Package]) -> dict[str, Any]:
    """A package with the hashes of all files that the locks accept of it."""
    first = entries[0]
    group, _, name = first.name.rpartition("/")
    purl = f"pkg:{first.kind}/{quote(first.name)}@{quote(first.version)}"
    scope = "required" if any(INSTALLED.match(entry.lock) for entry in entries) else "excluded"
    found = {"type": "library", "bom-ref": purl, "name": name, "version": first.version, "purl": purl, "scope": scope}
    files = {digest for entry in entries for digest in entry.hashes}
    return found | ({"group": group} if group else {}) | {"hashes": hashes(files)}


def apt_tasks(node: Any) -> Iterator[dict[str, Any]]:
    """Arguments of all tasks that install with apt."""
    for each in node if isinstance(node, list) else node.values() if isinstance(node, dict) else ():
        yield from apt_tasks(each)
    arguments = node.get("ansible.builtin.apt") if isinstance(node, dict) else None
    if arguments and arguments.get("state") != "absent":
        yield arguments


def in_lists(expression: str, variables: dict[str, Any]) -> list[str]:
    """Words in the lists of an expression, or of variables that it names: what any of the settings would install."""
    found = []
    for name in re.findall(r"{{ (\w+)", expression):
        value = variables.get(name, "")
        for part in value.values() if isinstance(value, dict) else [value]:
            expression += part if isinstance(part, str) else ""
            found += part if isinstance(part, list) else []
    return found + re.findall(r"'([^']+)'", "".join(re.findall(r"\[[^]]*\]", expression)))


def from_debian() -> dict[str, set[str]]:
    """Names of the distribution's packages, and the roles that install them."""
    wanted = defaultdict(set)
    for tasks in tracked("roles/*/tasks/*.yml"):
        role = tasks.parts[1]
        variables: dict[str, Any] = {}
        for path in tracked(f"roles/{role}/defaults/*.yml", f"roles/{role}/vars/*.yml"):
            variables |= yaml.load(path.read_text(), yaml.BaseLoader) or {}  # noqa: S506 - tags mean nothing here
        for arguments in apt_tasks(yaml.load(tasks.read_text(), yaml.BaseLoader)):  # noqa: S506
            names = arguments.get("name", "update_cache")
            if names == "update_cache" or "__nvidia_driver_plan" in names:
                continue  # nothing, or the driver, which is a component of its own
            if "{{" in names:
                names = in_lists(names, variables)
            if not names:
                sys.exit(f"{tasks}: which packages does {arguments['name']} name?")
            for name in [names] if isinstance(names, str) else names:
                wanted[name].add(f"roles/{role}")
    return wanted


def document() -> dict[str, Any]:
    """The bill of the project in the present folder."""
    components = []
    wanted = defaultdict(list)
    for entries in packages().values():
        components.append(component(entries))
        for lock in {entry.lock for entry in entries}:
            wanted[lock].append(components[-1]["bom-ref"])
    for name, roles in from_debian().items():
        purl = f"pkg:deb/debian/{name}"
        components.append({"type": "library", "bom-ref": purl, "name": name, "purl": purl} | installed(NEWEST))
        for role in roles:
            wanted[role].append(purl)
    driver = yaml.safe_load(Path("roles/nvidia_driver/defaults/main.yml").read_text())["nvidia_driver_branch"]
    named = {"type": "device-driver", "bom-ref": "nvidia-driver", "name": "nvidia-driver", "version": driver}
    components.append(named | installed(BRANCH))
    wanted["roles/nvidia_driver"].append("nvidia-driver")
    bridge = re.findall(r'(?m)^version = "(.*)"', Path("bridge/pyproject.toml").read_text())[0]
    components.append({"type": "application", "bom-ref": "bridge", "name": "local-llm-bridge", "version": bridge})

    parents = [name for name in wanted if name != "bridge/requirements.txt"]
    tree = {"local-llm-fleet": ["bridge", *parents], "bridge": ["bridge/requirements.txt"], **wanted}
    for name in wanted:
        parent: dict[str, Any] = {"type": "application", "bom-ref": name, "name": name}
        if Path(name).is_file():
            parent |= {"type": "file", "hashes": hashes({f"sha256:{sha256(Path(name).read_bytes()).hexdigest()}"})}
        components.append(parent)
    root = {"type": "application", "bom-ref": "local-llm-fleet", "name": "local-llm-fleet", "version": version()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"local-llm-fleet {git('rev-parse', 'HEAD')}").urn,
        "version": 1,
        "metadata": {"timestamp": git("log", "-1", "--format=%cI"), "component": root},
        "components": sorted(components, key=lambda each: str(each["bom-ref"])),
        "dependencies": [{"ref": name, "dependsOn": sorted(parts)} for name, parts in sorted(tree.items())],
    }


def main() -> None:
    """Write the bill into dist/, if it is what CycloneDX's schema allows."""
    text = json.dumps(document(), indent=1) + "\n"
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"The bill of materials is not valid, and was not written: {error}")
    path = Path("dist", f"local-llm-fleet-{version()}.cdx.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    print(path)


if __name__ == "__main__":
    main()
