"""Downloads: one unit for each model, which fetches the files of its job and is watched from outside."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.model_checks import size_of
from ansible.module_utils.model_manifest import HUBS, File, StoreError

JOBS = Path("/run/model-store")
RUNNING = ("active", "activating", "deactivating")


def systemctl(*args: str) -> str:
    """Output of systemctl.

    Raises:
        StoreError: It failed.
    """
    argv = ["/usr/bin/systemctl", *args]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise StoreError(f"systemctl {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


def unit_of(model: str) -> str:
    """Name of the unit that downloads a model."""
    return f"model-store@{model}.service"


def unit_state(unit: str) -> dict[str, str]:
    """ActiveState, Result and InvocationID of a unit."""
    shown = systemctl("show", "--property=ActiveState,Result,InvocationID", unit)
    return dict(line.split("=", 1) for line in shown.splitlines())


def job_of(model: str) -> Path:
    """The list of files that the unit of a model downloads. It is there from the start of a download to its end."""
    return JOBS / f"{model}.json"


def start_downloads(missing: list[File]) -> None:
    """Give each model that lacks files its job and start its unit, unless that is running already.

    Args:
        missing: What the store lacks.

    Raises:
        StoreError: A unit cannot be started.
    """
    for model in sorted({file.model for file in missing if file.source in HUBS}):
        if unit_state(unit_of(model))["ActiveState"] in RUNNING:
            continue
        files = [file for file in missing if file.model == model]
        job = [
            {"url": file.origin, "path": str(file.staged), "size": file.size, "token": file.source == "huggingface"}
            for file in files
        ]
        JOBS.mkdir(mode=0o755, exist_ok=True)
        systemctl("daemon-reload")
        job_of(model).write_text(json.dumps(job))
        job_of(model).chmod(0o644)
        systemctl("start", unit_of(model))


def watch_downloads(models: list[str]) -> dict[str, Any]:
    """How far the downloads are.

    Args:
        models: Names.

    Returns:
        ``running`` and, for each model that has a job, ``have`` and ``size`` in bytes.

    Raises:
        StoreError: No unit is running any more and one gave up; with the last words of its journal.
    """
    progress: dict[str, dict[str, int]] = {}
    failures = []
    running = False
    for model in models:
        if not job_of(model).exists():
            continue
        state = unit_state(unit_of(model))
        job = json.loads(job_of(model).read_text())
        have, size = sum(size_of(Path(file["path"])) for file in job), sum(file["size"] for file in job)
        progress[model] = {"have": have, "size": size}
        if state["ActiveState"] in RUNNING:
            running = True
        elif have < size:
            failures.append(f"{model}: {journal(unit_of(model), state['InvocationID'])}")
    if failures and not running:
        raise StoreError("\n".join(failures))
    return {"running": running, "progress": progress}


def journal(unit: str, invocation: str) -> str:
    """The last words of one run of a unit."""
    argv = ["/usr/bin/journalctl", "--output=cat", "--lines=3", f"_SYSTEMD_INVOCATION_ID={invocation}"]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    return said or f"{unit} failed and said nothing; see journalctl -u {unit}"
