"""Ansible module: sshd's configuration, tried with a timer that undoes it, then kept."""

from __future__ import annotations

import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.hardening_memory import HardeningError, Topic, diff, must, remember_file, write
from ansible.module_utils.hardening_sshd import DROP_IN, SSHD, effective
from ansible.module_utils.rollback import Rollback
from ansible.module_utils.ssh_session import session

DOCUMENTATION = r"""
module: hardening_ssh
short_description: sshd's drop-in, tried before it is kept
description:
  - V(tried) looks at the configuration with C(sshd -T), arms a timer that restores the drop-in as it is now, writes the
    new one and reloads sshd. If it is in place already, it does nothing.
  - V(kept) ends the timer.
author: local-llm-fleet
options:
  state:
    description: What is wanted.
    type: str
    choices: [tried, kept]
    required: true
  content:
    description: The drop-in.
    type: str
    required: true
  rollback_s:
    description: Seconds after which V(tried) is undone.
    type: int
    required: true
"""

RUN = Path("/run/local-llm-hardening")
BEFORE = RUN / "before.conf"
TRIED = RUN / "tried.conf"
ROLLBACK = Rollback("local-llm-hardening-rollback", RUN)
RELOAD = "/usr/bin/systemctl try-reload-or-restart ssh.service"
UNDO = f"if [ -e {BEFORE} ]; then cp -p {BEFORE} {DROP_IN}; else rm -f {DROP_IN}; fi; {RELOAD}"


def try_it(module: AnsibleModule, content: str, seconds: int) -> None:
    """Put the drop-in in place, to be undone after a time.

    Args:
        module: Where to report.
        content: The drop-in.
        seconds: How long it has to prove itself.

    Raises:
        HardeningError: sshd, or systemd, does not take it.
    """
    if not Path(SSHD).exists():
        module.exit_json(changed=True, diff=diff(str(DROP_IN), "", content))  # only check mode comes so far
    if not module.check_mode:
        ROLLBACK.go_back()
    if undone := ROLLBACK.undone():
        module.warn(f"The sshd_config of an earlier run was undone at {undone}, because Ansible had not come in again")
    effective(content, session())
    now = DROP_IN.read_text() if DROP_IN.exists() else ""
    if now == content and DROP_IN.stat().st_mode & 0o7777 == 0o600:
        if not module.check_mode:
            shutil.rmtree(RUN, ignore_errors=True)
        module.exit_json(changed=False)
    if module.check_mode:
        module.exit_json(changed=True, diff=diff(str(DROP_IN), now, content))
    topic = Topic("ssh")
    topic.files.setdefault(str(DROP_IN), remember_file(DROP_IN))
    topic.apply = [RELOAD]
    topic.save()
    RUN.mkdir(mode=0o700, exist_ok=True)
    BEFORE.unlink(missing_ok=True)
    if DROP_IN.exists():
        shutil.copy2(DROP_IN, BEFORE)
    write(TRIED, content, 0o600)
    if error := ROLLBACK.arm(seconds, "Restore sshd as it was before", UNDO):
        raise HardeningError(f"the timer that would undo it cannot be started, so nothing was changed: {error}")
    write(DROP_IN, content, 0o600)
    must(RELOAD)
    module.exit_json(changed=True, diff=diff(str(DROP_IN), now, content))


def keep_it(module: AnsibleModule, content: str, seconds: int) -> None:
    """Make what was tried permanent.

    Args:
        module: Where to report.
        content: The drop-in.
        seconds: How long it had to prove itself.
    """
    ROLLBACK.end()
    if not DROP_IN.exists() or DROP_IN.read_text() != content:
        module.fail_json(
            msg=f"The host had gone back to the former sshd_config before this was done, after {seconds} s. Run it "
            "again with more time: hardening_rollback_s"
        )
    shutil.rmtree(RUN)
    module.exit_json(changed=True)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["tried", "kept"], "required": True},
            "content": {"type": "str", "required": True},
            "rollback_s": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        (try_it if params["state"] == "tried" else keep_it)(module, params["content"], params["rollback_s"])
    except HardeningError as error:
        module.fail_json(msg=f"ssh: {error}")


if __name__ == "__main__":
    main()
