"""Ansible module: puts back what topics have changed that are switched off now."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.hardening_memory import MEMORY, Diff, HardeningError, Topic, undo

DOCUMENTATION = r"""
module: hardening_undo
short_description: Puts back what topics have changed that are switched off now
description:
  - What each topic has changed is remembered on the host. What somebody else has changed since stays as it is.
author: local-llm-fleet
options:
  keep:
    description: Topics that stay; all others are undone.
    type: list
    elements: str
    required: true
"""


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={"keep": {"type": "list", "elements": "str", "required": True}}, supports_check_mode=True
    )
    gone = sorted(path.stem for path in MEMORY.glob("*.json") if path.stem not in module.params["keep"])
    diffs: list[Diff] = []
    for name in gone:
        try:
            for change in undo(Topic(name), module.check_mode):
                if isinstance(change, str):
                    module.warn(change)
                else:
                    diffs.append(change)
        except HardeningError as error:
            module.fail_json(msg=f"{name} cannot be undone: {error}", diff=diffs)
    if not module.check_mode and MEMORY.exists() and not any(MEMORY.iterdir()):
        MEMORY.rmdir()
    module.exit_json(changed=bool(gone), diff=diffs, undone=gone)


if __name__ == "__main__":
    main()
