"""Ansible module: the kernel's parameters from one file, which also sees what has been changed since."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.hardening_memory import (
    PROC_SYS,
    HardeningError,
    Topic,
    diff,
    remember_file,
    run,
    sysctl_path,
    sysctl_read,
    undo_sysctl,
    write,
)

DOCUMENTATION = r"""
module: hardening_sysctl
short_description: The kernel's parameters from one file of sysctl.d(5)
description:
  - Writes the file and loads it with one command, if it is new or the kernel has other values.
  - What the kernel does not have is left out. The former values are remembered.
author: local-llm-fleet
options:
  path:
    description: The file.
    type: path
    required: true
  content:
    description: What is in it.
    type: str
    required: true
"""

SYSCTL = "/usr/sbin/sysctl"


def wanted_values(content: str) -> dict[str, str]:
    """What a file of sysctl.d(5) sets, by path under /proc/sys.

    Args:
        content: Its text. A key may have C(*) in it; the last one counts.
    """
    values = {}
    for line in content.splitlines():
        key, sign, value = line.partition("=")
        if not sign or line.lstrip().startswith(("#", ";")):
            continue
        pattern = sysctl_path(key.strip().removeprefix("-")).relative_to(PROC_SYS)
        for path in PROC_SYS.glob(str(pattern)):
            values[str(path.relative_to(PROC_SYS))] = " ".join(value.split())
    return values


def readable(name: str) -> str:
    """A parameter's value, or nothing if it is for writing only."""
    try:
        value: str = sysctl_read(PROC_SYS / name)
        return value
    except OSError:
        return ""


def work(module: AnsibleModule) -> None:
    """Write, load, look again.

    Raises:
        HardeningError: The kernel does not take a value.
    """
    path, content = Path(module.params["path"]), module.params["content"]
    topic = Topic("sysctl")
    wanted = wanted_values(content)
    now = {name: readable(name) for name in wanted}
    other = {name: value for name, value in wanted.items() if now[name] != value}
    dropped = {name: values for name, values in topic.sysctl.items() if name not in wanted}
    file_now = path.read_text() if path.exists() else ""
    diffs = []
    if file_now != content:
        diffs.append(diff(str(path), file_now, content))
    if other:
        lines = ["".join(f"{name} = {values[name]}\n" for name in sorted(other)) for values in (now, wanted)]
        diffs.append(diff("the running kernel", *lines))
    for name, (old, new) in dropped.items():
        for change in undo_sysctl(name, old, new, module.check_mode):
            module.warn(change) if isinstance(change, str) else diffs.append(change)
        del topic.sysctl[name]
    if not diffs or module.check_mode:
        module.exit_json(changed=bool(diffs), diff=diffs)
    topic.files.setdefault(str(path), remember_file(path))
    for name, value in wanted.items():
        topic.sysctl[name] = [topic.sysctl[name][0] if name in topic.sysctl else now[name], value]
    topic.save()
    write(path, content, 0o644)
    loaded = run(SYSCTL, "--quiet", f"--load={path}")
    refused = {name: value for name, value in wanted.items() if readable(name) != value}
    if refused:
        shown = ", ".join(f"{name} is {readable(name)}, not {value}" for name, value in sorted(refused.items()))
        raise HardeningError(
            f"the kernel does not take it: {shown}. {loaded.stderr.strip()} Set hardening_sysctl_set to what it takes"
        )
    module.exit_json(changed=True, diff=diffs)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={"path": {"type": "path", "required": True}, "content": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    try:
        work(module)
    except HardeningError as error:
        module.fail_json(msg=f"sysctl: {error}")


if __name__ == "__main__":
    main()
