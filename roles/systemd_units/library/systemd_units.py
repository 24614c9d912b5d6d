"""Ansible module: units run with what is on the disk now, and retired ones do not run."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: systemd_units
short_description: Units that are enabled, ready, and newer than what they read
description:
  - Starts each unit, or starts it again if something that it reads has changed since it was started. So a change takes
    effect even when an earlier run was broken off between the change and the restart.
  - What it can read again while it runs is reloaded instead.
  - Goes on to the next unit only when systemd has called this one ready, so that the others keep answering.
author: local-llm-fleet
options:
  units:
    description: The units in the order in which they are started.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the unit.
        type: str
        required: true
      reads:
        description: Files and links that it reads when it starts.
        type: list
        elements: path
        required: true
      reloads:
        description: Files and links that it reads again when it is reloaded; a change of them needs no new start.
        type: list
        elements: path
        default: []
  retired:
    description: Units that are stopped and disabled before others start; systemd forgets them even if they failed.
    type: list
    elements: str
    default: []
"""

MICROSECONDS = 10**6
JOURNAL_LINES = 15


def systemctl(*args: str) -> subprocess.CompletedProcess[str]:
    """Run systemctl."""
    return subprocess.run(["/usr/bin/systemctl", *args], capture_output=True, text=True, check=False)  # noqa: S603


def properties(unit: str) -> dict[str, str]:
    """What decides about a unit."""
    names = "ActiveState,UnitFileState,InactiveExitTimestampMonotonic,StateChangeTimestampMonotonic"
    shown = systemctl("show", f"--property={names}", unit).stdout
    return dict(line.split("=", 1) for line in shown.splitlines())


def is_stale(started: int, reads: list[str]) -> bool:
    """Whether something has changed after a unit was started or reloaded.

    Args:
        started: When that was, in microseconds of the monotonic clock.
        reads: What it reads.
    """
    now = time.time()
    start = now - (time.monotonic() - started / MICROSECONDS)
    for path in map(Path, reads):
        if not path.exists():
            continue
        # ctime, because a file that was moved into place keeps the mtime of its download. The link itself counts as
        # well: it is what an upgrade flips. A time in the future says nothing.
        changed = (path.lstat().st_ctime, path.stat().st_ctime)
        if any(start < moment <= now for moment in changed):
            return True
    return False


def last_words(unit: str) -> str:
    """The end of a unit's journal, without the lines of earlier starts."""
    invocation = systemctl("show", "--property=InvocationID", "--value", unit).stdout.strip()
    argv = ["/usr/bin/journalctl", "--output=cat", f"--lines={JOURNAL_LINES}", f"_SYSTEMD_INVOCATION_ID={invocation}"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "units": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "reads": {"type": "list", "elements": "path", "required": True},
                    "reloads": {"type": "list", "elements": "path", "default": []},
                },
            },
            "retired": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    units: list[dict[str, Any]] = module.params["units"]
    done: dict[str, str] = {}
    for name in module.params["retired"]:
        done[name] = "retire"
        if not module.check_mode:
            systemctl("disable", name)
            systemctl("stop", name)
            systemctl("reset-failed", name)
    for unit in units:
        name = unit["name"]
        state = properties(name)
        if state.get("ActiveState") != "active":
            verb = "start"
        elif is_stale(int(state["InactiveExitTimestampMonotonic"]), unit["reads"]):
            verb = "restart"
        elif is_stale(int(state["StateChangeTimestampMonotonic"]), unit["reloads"]):
            verb = "reload"
        elif state.get("UnitFileState") != "enabled":
            verb = "enable"
        else:
            continue
        done[name] = verb
        if module.check_mode:
            continue
        if not Path("/run/systemd/system").is_dir():
            module.fail_json(msg="systemd is not running on this host, and it has to run these units")
        systemctl("daemon-reload")
        systemctl("enable", name)
        if verb == "enable":
            continue
        systemctl("reset-failed", name)
        if (result := systemctl("reload" if verb == "reload" else "restart", name)).returncode != 0:
            words = last_words(name) or result.stderr.strip()
            module.fail_json(
                msg=f"{name} did not become ready. The end of its journal:\n{words}\nAll of it: journalctl -u {name}",
                changed=True,
            )
    module.exit_json(changed=bool(done), done=done)


if __name__ == "__main__":
    main()
