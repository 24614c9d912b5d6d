"""Ansible module: refuses what could not work or would lock Ansible out, before anything is changed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.hardening_memory import HardeningError, run
from ansible.module_utils.hardening_sshd import (
    DROP_IN,
    FOLDER,
    MAIN,
    SSHD,
    effective,
    lockout_problems,
    method,
)
from ansible.module_utils.ssh_session import session

DOCUMENTATION = r"""
module: hardening_preflight
short_description: What would keep the host from being hardened, and what has to be known of it
description:
  - Reads the input, the host's system, sshd's configuration, and how this run came in. Changes nothing.
  - Returns C(container), C(machine), C(efi), C(networks), in how many the host is, C(sshd), C(kex), which key exchanges
    it knows, and C(time), which service sets the clock.
author: local-llm-fleet
options:
  ssh:
    description: Whether sshd is to be hardened.
    type: bool
    required: true
  allow_groups:
    description: Whom sshd is to let in; empty for everybody.
    type: list
    elements: str
    required: true
  root_login:
    description: What sshd is to do with root.
    type: str
    required: true
  rollback_s:
    description: Seconds after which sshd's new configuration is undone.
    type: int
    required: true
  banner:
    description: Text before the login.
    type: str
    required: true
  sysctl_set:
    description: The kernel's parameters that are set in another way.
    type: dict
    required: true
  journal:
    description: Sizes and times of the journal, by variable.
    type: dict
    required: true
"""

RELEASES = {"debian": ["12", "13"]}
SHORTEST_ROLLBACK = 20  # seconds; a new connection takes some
CLOCKS = {"chrony": "/usr/sbin/chronyd", "ntpsec": "/usr/sbin/ntpd"}
JOURNAL_VALUES = {
    "hardening_journal_size": (r"\d+[KMGT]?", "a size such as 2G"),
    "hardening_journal_keep": (r"\d+ ?(s|min|h|day|days|week|weeks|month|months|year|years)", "a time such as 90days"),
}


def host_problems() -> Iterator[str]:
    """What kind of host cannot be hardened."""
    if os.geteuid() != 0:
        yield "This does not run as root; set become: true"
    if not Path("/run/systemd/system").is_dir():
        first = Path("/proc/1/comm").read_text().strip()
        yield (
            f"systemd does not run on this host (the first process is {first}), and sshd, the journal and audit are "
            "set through it"
        )
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE))
    if fields.get("VERSION_ID") not in RELEASES.get(fields.get("ID", ""), []):
        system = fields.get("PRETTY_NAME", "an unknown system")
        yield f"This host has {system}; what is set is known for Debian 12 and 13 only"


def input_problems(params: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the input."""
    if params["rollback_s"] < SHORTEST_ROLLBACK:
        yield f"hardening_rollback_s is {params['rollback_s']}; it is at least {SHORTEST_ROLLBACK}"
    if "\\" in params["banner"]:
        yield "hardening_banner has a backslash, with which getty would show what system this is; leave it out"
    for key, value in params["sysctl_set"].items():
        if not re.fullmatch(r"[a-z0-9_*.-]+(/[a-z0-9_*./-]+)?", key) or not re.fullmatch(r"[^\n]+", str(value)):
            yield f"hardening_sysctl_set: {key!r}: {value!r}; a key is one of sysctl(8), and the value is one line"
    for variable, (pattern, example) in JOURNAL_VALUES.items():
        if not re.fullmatch(pattern, params["journal"][variable]):
            yield f"{variable} is {params['journal'][variable]!r}; it is {example}"


def sshd_problems(params: dict[str, Any]) -> Iterator[str]:
    """Why sshd would not let this run in again."""
    wanted = rf"(?mi)^\s*include\s+{re.escape(str(FOLDER))}/\*\.conf\s*$"
    text = MAIN.read_text()
    include = re.search(wanted, text)
    if not include or re.search(r"(?m)^\s*[^#\s]", text[: include.start()]):
        yield (
            f"{MAIN} does not begin with `Include {FOLDER}/*.conf`, as Debian's does; put it there, or set "
            "hardening_ssh: false"
        )
        return
    if earlier := sorted(path.name for path in FOLDER.glob("*.conf") if path.name < DROP_IN.name):
        yield f"{FOLDER}/{earlier[0]} comes before {DROP_IN.name}, and what comes first counts; give it another name"
    if (came := session()) is None:
        return
    candidate = f"PasswordAuthentication no\nPermitRootLogin {params['root_login']}\n"
    if params["allow_groups"]:
        candidate += f"AllowGroups {' '.join(params['allow_groups'])}\n"
    try:
        yield from lockout_problems(came, method(came), effective(candidate, came))
    except HardeningError as error:
        yield str(error)


def networks() -> int:
    """How many interfaces have an address by which others reach it."""
    shown = run("/usr/sbin/ip", "-json", "-4", "address", "show", "scope", "global").stdout
    return len([entry for entry in json.loads(shown or "[]") if entry.get("addr_info")])


def clock() -> str:
    """The service that sets the clock, or will."""
    return next((name for name, program in CLOCKS.items() if Path(program).exists()), "systemd-timesyncd")


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "ssh": {"type": "bool", "required": True},
            "allow_groups": {"type": "list", "elements": "str", "required": True},
            "root_login": {"type": "str", "required": True},
            "rollback_s": {"type": "int", "required": True},
            "banner": {"type": "str", "required": True},
            "sysctl_set": {"type": "dict", "required": True},
            "journal": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    problems = [*host_problems(), *input_problems(module.params)]
    sshd = Path(SSHD).exists()
    if module.params["ssh"] and sshd and not problems:
        problems += sshd_problems(module.params)
    if problems:
        module.fail_json(msg="\n".join(problems))
    module.exit_json(
        changed=False,
        container=run("/usr/bin/systemd-detect-virt", "--quiet", "--container").returncode == 0,
        machine=os.uname().machine,
        efi=Path("/sys/firmware/efi").exists(),
        networks=networks(),
        sshd=sshd,
        kex=run("/usr/bin/ssh", "-Q", "kex").stdout.split() if sshd else [],
        time=clock(),
    )


if __name__ == "__main__":
    main()
