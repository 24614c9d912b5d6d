"""Ansible module: nobody logs in without a password, and nobody as a system account."""

from __future__ import annotations

import pwd
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.hardening_memory import LOCKED, HardeningError, Topic, diff, run

DOCUMENTATION = r"""
module: hardening_accounts
short_description: Locks empty passwords, and takes the shell of system accounts away
description:
  - A system account keeps its shell if it is in O(keep), or if it has keys of ssh, since then somebody comes in by it.
  - What was changed is remembered.
author: local-llm-fleet
options:
  keep:
    description: System accounts that keep their shells.
    type: list
    elements: str
    required: true
"""

KEY_FILES = ("authorized_keys", "authorized_keys2")
# Programs that end at once.
KEPT_SHELLS = {LOCKED["shell"], "/sbin/nologin", "/bin/false", "/usr/bin/false", "/bin/sync", "/usr/bin/sync"}


def first_human() -> int:
    """The first uid of human beings, from login.defs(5)."""
    found = re.search(r"(?m)^\s*UID_MIN\s+(\d+)", Path("/etc/login.defs").read_text())
    return int(found[1]) if found else 1000


def wanted_changes(keep: list[str]) -> dict[str, dict[str, tuple[str, str]]]:
    """What has to change, by account: before and after.

    Args:
        keep: System accounts that keep their shells.
    """
    human = first_human()
    changes: dict[str, dict[str, tuple[str, str]]] = {}
    for entry in pwd.getpwall():
        kept = entry.pw_name in keep or entry.pw_shell in KEPT_SHELLS
        comes_in = any((Path(entry.pw_dir) / ".ssh" / name).exists() for name in KEY_FILES)
        if 0 < entry.pw_uid < human and not kept and not comes_in:
            changes.setdefault(entry.pw_name, {})["shell"] = (entry.pw_shell, LOCKED["shell"])
    for line in Path("/etc/shadow").read_text().splitlines():
        name, password = line.split(":")[:2]
        if not password:
            changes.setdefault(name, {})["password"] = ("", LOCKED["password"])
    return changes


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={"keep": {"type": "list", "elements": "str", "required": True}}, supports_check_mode=True
    )
    changes = wanted_changes(module.params["keep"])
    if not changes:
        module.exit_json(changed=False)
    diffs = [
        diff(f"account {name}", *("".join(f"{key}: {pair[side]}\n" for key, pair in change.items()) for side in (0, 1)))
        for name, change in changes.items()
    ]
    if module.check_mode:
        module.exit_json(changed=True, diff=diffs)
    topic = Topic("accounts")
    for name, change in changes.items():
        for key, (old, _) in change.items():
            topic.accounts.setdefault(name, {}).setdefault(key, old)
    topic.save()
    try:
        for name, change in changes.items():
            argv = [word for key, (_, new) in change.items() for word in (f"--{key}", new)]
            if (ran := run("/usr/sbin/usermod", *argv, name)).returncode != 0:
                raise HardeningError(f"the account {name} cannot be changed: {ran.stderr.strip()}")
    except HardeningError as error:
        module.fail_json(msg=f"accounts: {error}")
    module.exit_json(changed=True, diff=diffs)


if __name__ == "__main__":
    main()
