"""Ansible module: the firewall's table, tried with a timer that undoes it, then kept; or absent."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.rollback import Rollback

DOCUMENTATION = r"""
module: firewall_table
short_description: One table of nftables, tried before it is kept
description:
  - V(tried) arms a timer that restores the table as it is now, and then loads the rules in one transaction. If they
    are in use and on the disk already, it does nothing.
  - V(kept) ends the timer and writes the rules to the disk, from which they are loaded when the host starts.
  - V(absent) removes the table. Other tables are never touched.
author: local-llm-fleet
options:
  state:
    description: What is wanted.
    type: str
    choices: [tried, kept, absent]
    required: true
  rules:
    description: A file of nft(8) that replaces the table.
    type: str
  rollback_s:
    description: Seconds after which V(tried) is undone.
    type: int
"""

NFT = "/usr/sbin/nft"
TABLE = ("inet", "local_llm_fleet")
NO_TABLE = f"table {' '.join(TABLE)} {{}}\ndelete table {' '.join(TABLE)}\n"
KEPT = Path("/etc/local-llm-firewall/rules.nft")
RUN = Path("/run/local-llm-firewall")
TRIED = RUN / "tried.nft"
BEFORE = RUN / "before.nft"
ROLLBACK = Rollback("local-llm-firewall-rollback", RUN)
# The way back must not fail.
UNDO = f"{NFT} --file {BEFORE} || {NFT} delete table {' '.join(TABLE)}"


def run(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program; what it says is what counts."""
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)  # noqa: S603


def problem(*argv: str, stdin: str = "") -> str:
    """Run a program that has nothing to say unless it fails; what went wrong. A warning is nothing wrong."""
    ran = run(*argv, stdin=stdin)
    return "" if ran.returncode == 0 else ran.stderr.strip() or f"exit status {ran.returncode}"


def listed() -> str:
    """The table as nft shows it, without counters and without the sets that fill themselves; empty if there is none."""
    return run(NFT, "--stateless", "--terse", "list", "table", *TABLE).stdout


def as_listed(rules: str) -> tuple[str, str]:
    """How nft shows rules that are loaded into a network namespace of their own.

    Args:
        rules: The file's text.

    Returns:
        The rules, and an error instead of them.
    """
    script = f"{NFT} --file - && {NFT} --stateless --terse list table {' '.join(TABLE)}"
    shown = run("unshare", "--net", "sh", "-c", script, stdin=rules)
    return shown.stdout, "" if shown.returncode == 0 else shown.stderr.strip()


def write(path: Path, text: str) -> None:
    """Write a file that root alone reads, as a whole or not at all."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(path)


def try_rules(module: AnsibleModule, rules: str, seconds: int) -> None:
    """Load rules, to be undone after a time.

    Args:
        module: Where to report.
        rules: The file's text.
        seconds: How long they have to prove themselves.
    """
    kept = KEPT.read_text() if KEPT.exists() else ""
    diff = {"before": kept, "after": rules, "before_header": str(KEPT), "after_header": str(KEPT)}
    if not Path(NFT).exists():
        module.exit_json(changed=True, diff=diff)  # only check mode comes so far
    if not module.check_mode:
        ROLLBACK.go_back()
    if undone := ROLLBACK.undone():
        module.warn(f"The rules of an earlier run were undone at {undone}, because Ansible had not come in again")
    wanted, error = as_listed(rules)
    if error := error or problem(NFT, "--check", "--file", "-", stdin=rules):
        module.fail_json(msg=f"nft does not take these rules, so nothing was changed:\n{error}\n{rules}")
    now = listed()
    if now == wanted and kept == rules:
        if not module.check_mode:
            shutil.rmtree(RUN, ignore_errors=True)
        module.exit_json(changed=False)
    if kept == rules:  # somebody has changed the table itself
        headers = {"before_header": "the table in use", "after_header": str(KEPT)}
        diff = {"before": now, "after": wanted, **headers}
    if module.check_mode:
        module.exit_json(changed=True, diff=diff)
    write(TRIED, rules)
    write(BEFORE, NO_TABLE + now)
    if error := problem(NFT, "--check", "--file", str(BEFORE)):
        module.fail_json(msg=f"The present table could not be restored from {BEFORE}, so nothing was changed:\n{error}")
    if error := ROLLBACK.arm(seconds, "Restore the firewall as it was before", UNDO):
        module.fail_json(msg=f"The timer that would undo the rules cannot be started, so nothing was changed:\n{error}")
    if error := problem(NFT, "--file", str(TRIED)):
        ROLLBACK.end()
        module.fail_json(msg=f"nft does not take these rules ({TRIED}), so nothing was changed:\n{error}")
    module.exit_json(changed=True, diff=diff)


def keep_rules(module: AnsibleModule, rules: str, seconds: int) -> None:
    """Make tried rules permanent.

    Args:
        module: Where to report.
        rules: The file's text.
        seconds: How long they had to prove themselves.
    """
    ROLLBACK.end()
    if listed() != as_listed(rules)[0]:
        module.fail_json(
            msg=f"The host had gone back to the former rules before this was done, after {seconds} s. Run it again "
            "with more time: firewall_rollback_s"
        )
    write(KEPT, rules)
    shutil.rmtree(RUN)
    module.exit_json(changed=True)


def remove(module: AnsibleModule) -> None:
    """Let everything in.

    Args:
        module: Where to report.
    """
    present = bool(Path(NFT).exists() and listed())
    if not module.check_mode:
        ROLLBACK.end()
        if present and (error := problem(NFT, "delete", "table", *TABLE)):
            module.fail_json(msg=error)
    module.exit_json(changed=present)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["tried", "kept", "absent"], "required": True},
            "rules": {"type": "str"},
            "rollback_s": {"type": "int"},
        },
        required_if=[("state", "tried", ["rules", "rollback_s"]), ("state", "kept", ["rules", "rollback_s"])],
        supports_check_mode=True,
    )
    params = module.params
    if params["state"] == "absent":
        remove(module)
    elif params["state"] == "tried":
        try_rules(module, params["rules"], params["rollback_s"])
    else:
        keep_rules(module, params["rules"], params["rollback_s"])


if __name__ == "__main__":
    main()
