"""Ansible module: Multi-Instance GPU mode of all cards that have it."""

from __future__ import annotations

import subprocess
from typing import NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: nvidia_driver_mig
short_description: MIG mode of a host's cards
description:
  - Switches MIG mode on or off with C(nvidia-smi). Instances are not made.
author: local-llm-fleet
options:
  state:
    description: The mode.
    type: str
    choices: [enabled, disabled]
    required: true
"""

RETURN = r"""
pending:
  description: Cards whose mode changes with the next reset or reboot.
  type: list
  elements: str
  returned: always
"""

QUERY = ["nvidia-smi", "--query-gpu=index,mig.mode.current,mig.mode.pending", "--format=csv,noheader"]
NONE = "[N/A]"  # a card without MIG


class Card(NamedTuple):
    """MIG of one card: its mode now, and after the next reset."""

    number: str
    current: str
    pending: str


def cards(shown: str) -> list[Card]:
    """What nvidia-smi answers to the query, such as ``0, Disabled, Enabled``."""
    return [Card(*(part.strip() for part in line.split(","))) for line in shown.splitlines() if line.strip()]


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={"state": {"type": "str", "choices": ["enabled", "disabled"], "required": True}},
        supports_check_mode=True,
    )
    wanted = module.params["state"].capitalize()

    def query() -> list[Card]:
        done = subprocess.run(QUERY, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            module.fail_json(msg=f"nvidia-smi cannot ask the cards: {done.stdout}{done.stderr}".strip())
        return cards(done.stdout)

    found = query()
    without = [card.number for card in found if card.pending == NONE]
    if wanted == "Enabled" and without:
        module.fail_json(
            msg=f"nvidia_driver_mig is enabled, and the cards {', '.join(without)} (nvidia-smi's numbers) have no MIG; "
            "set it to unmanaged for this host"
        )
    change = [card.number for card in found if card.pending not in (wanted, NONE)]
    if change and not module.check_mode:
        argv = ["nvidia-smi", "-i", ",".join(change), "-mig", str(int(wanted == "Enabled"))]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            module.fail_json(msg=f"nvidia-smi could not switch MIG: {done.stdout}{done.stderr}".strip())
        found = query()
    module.exit_json(changed=bool(change), pending=[card.number for card in found if card.current != card.pending])


if __name__ == "__main__":
    main()
