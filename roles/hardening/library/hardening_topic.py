"""Ansible module: what one topic needs on a host, in one task, remembered so that it can be undone."""

from __future__ import annotations

import grp
import pwd
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.hardening_memory import (
    Diff,
    HardeningError,
    Topic,
    diff,
    mode_of,
    must,
    remember_file,
    run,
    set_mode,
    shown_mode,
    undo_file,
    undo_line,
    undo_mode,
    undo_option,
    with_line,
    with_option,
    write,
    write_over,
)

DOCUMENTATION = r"""
module: hardening_topic
short_description: Files, lines, options of PAM, modes and units of one topic
description:
  - Makes them as wanted, in this order, and remembers how each was before it was changed first.
  - What an earlier run has changed and this one does not want is put back.
author: local-llm-fleet
options:
  topic:
    description: Its name.
    type: str
    required: true
  files:
    description: Whole files, which belong to root.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where.
        type: path
        required: true
      content:
        description: What is in it.
        type: str
        required: true
      mode:
        description: Its mode, in octal.
        type: str
        default: "0644"
      validate:
        description: A command that fails if the file is wrong; C(%s) is a copy of it.
        type: str
  apply:
    description: Commands that make changed files, lines and modes take effect, also after they have been put back.
    type: list
    elements: str
    default: []
  undo:
    description: Commands that come before files are put back.
    type: list
    elements: str
    default: []
  lines:
    description: Lines in files of others.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file.
        type: path
        required: true
      match:
        description: A regular expression; the first line that it matches as a whole is replaced.
        type: str
        required: true
      line:
        description: What is wanted.
        type: str
        required: true
      append:
        description: Whether it comes to the end of the file if no line matches.
        type: bool
        default: true
  options:
    description: Options of modules in files of PAM.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file.
        type: path
        required: true
      kind:
        description: The first word of the line.
        type: str
        required: true
      module:
        description: The module's name.
        type: str
        required: true
      option:
        description: One word.
        type: str
        required: true
      present:
        description: Whether it is wanted.
        type: bool
        required: true
  modes:
    description: Modes and owners of files and directories; those that do not exist are left out.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: A pattern of the shell.
        type: path
        required: true
      mode:
        description: In octal. With a V(-) first, these bits are taken away from the mode that it has.
        type: str
        required: true
      owner:
        description: Who owns it.
        type: str
        default: root
      group:
        description: Which group; without it, the group that it has.
        type: str
      override:
        description: Whether dpkg keeps the mode when the package is upgraded.
        type: bool
        default: false
  units:
    description: Units that are enabled; they are started unless O(container).
    type: list
    elements: str
    default: []
  container:
    description: Whether the host is a container, in which units such as auditd cannot start.
    type: bool
    default: false
"""


class Work:
    """One run of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        """Begin with what is remembered."""
        self.check: bool = module.check_mode
        self.topic = Topic(module.params["topic"])
        self.diffs: list[Diff] = []
        self.units: list[str] = []

    def changing(self, change: Diff) -> bool:
        """Note a change; whether it is to be made."""
        self.diffs.append(change)
        if self.check:
            return False
        self.topic.pending = True
        self.topic.save()  # before the change: what is not remembered cannot be put back
        return True

    def file(self, wanted: dict[str, Any]) -> None:
        """Make a whole file."""
        path, content, mode = Path(wanted["path"]), wanted["content"], int(wanted["mode"], 8)
        now = path.read_text() if path.exists() else ""
        right = path.exists() and now == content and mode_of(path) == {"mode": mode, "uid": 0, "gid": 0}
        if right:
            return
        if not self.check or shutil.which((wanted["validate"] or "").split(" ")[0]):
            validate(wanted["validate"], path, content)
        if str(path) not in self.topic.files:
            self.topic.files[str(path)] = remember_file(path)
        if not path.parent.exists() and str(path.parent) not in self.topic.folders:
            self.topic.folders.append(str(path.parent))
        change = diff(str(path), now, content)
        if path.exists() and now == content:
            change = diff(str(path), shown_mode(mode_of(path)), shown_mode({"mode": mode, "uid": 0, "gid": 0}))
        if self.changing(change):
            write(path, content, mode)
            set_mode(path, {"mode": mode, "uid": 0, "gid": 0})

    def line(self, wanted: dict[str, Any]) -> None:
        """Set a line in a file of somebody else."""
        path = Path(wanted["path"])
        text = self.text(path)
        if text is None:
            return
        key = f"{path}\n{wanted['match']}"
        former = self.topic.lines.get(key)
        new, old = with_line(text, wanted["match"], wanted["line"], wanted["append"])
        if new == text:
            return
        self.topic.lines[key] = {
            "path": str(path),
            "old": former["old"] if former and former["new"] == old else old,
            "new": wanted["line"],
        }
        if self.changing(diff(str(path), text, new)):
            write_over(path, new)

    def option(self, wanted: dict[str, Any]) -> None:
        """Set or take away an option of a module of PAM."""
        path = Path(wanted["path"])
        text = self.text(path)
        if text is None:
            return
        words = [wanted[key] for key in ("kind", "module", "option", "present")]
        if (new := with_option(text, *words)) == text:
            return
        self.topic.options[option_key(wanted)] = wanted
        if self.changing(diff(str(path), text, new)):
            write_over(path, new)

    def text(self, path: Path) -> str | None:
        """What a file of somebody else has.

        Raises:
            HardeningError: It is not there, though its package was just installed.
        """
        if path.exists():
            return path.read_text()
        if self.check:
            return None
        raise HardeningError(f"{path} does not exist, though its package is installed")

    def mode(self, path: Path, wanted: dict[str, Any]) -> None:
        """Give a file its mode."""
        now = mode_of(path)
        mode = int(wanted["mode"].lstrip("-"), 8)
        new = {
            "mode": now["mode"] & ~mode if wanted["mode"].startswith("-") else mode,
            "uid": pwd.getpwnam(wanted["owner"]).pw_uid,
            "gid": grp.getgrnam(wanted["group"]).gr_gid if wanted["group"] else now["gid"],
        }
        if now == new:
            return
        former = self.topic.modes.get(str(path))
        old = former["old"] if former and former["new"] == now else now
        self.topic.modes[str(path)] = {"old": old, "new": new, "override": wanted["override"]}
        if self.changing(diff(str(path), shown_mode(now), shown_mode(new))):
            if wanted["override"]:
                owner, group = pwd.getpwuid(new["uid"]).pw_name, grp.getgrgid(new["gid"]).gr_name
                run("/usr/bin/dpkg-statoverride", "--force-all", "--add", owner, group, f"{new['mode']:04o}", str(path))
            set_mode(path, new)

    def forget(self, params: dict[str, Any], paths: set[str]) -> None:
        """Put back what this run does not want any more."""
        topic = self.topic
        wanted = {
            "files": {entry["path"] for entry in params["files"]},
            "lines": {f"{entry['path']}\n{entry['match']}" for entry in params["lines"]},
            "options": {option_key(entry) for entry in params["options"]},
            "modes": paths,
        }
        ways = {
            "files": undo_file,
            "lines": lambda _, entry, check: undo_line(entry, check),
            "options": lambda _, entry, check: undo_option(entry, check),
            "modes": undo_mode,
        }
        for kind, way in ways.items():
            memory: dict[str, Any] = getattr(topic, kind)
            for key in [key for key in memory if key not in wanted[kind]]:
                if not self.check:
                    topic.pending = True
                self.diffs += way(key, memory.pop(key), self.check)
        if topic.pending:
            topic.save()

    def unit(self, name: str, container: bool) -> None:
        """Enable a unit, and start it where it can run."""
        enabled = run("/usr/bin/systemctl", "is-enabled", name).stdout.strip()
        active = run("/usr/bin/systemctl", "is-active", name).stdout.strip()
        want = [] if enabled == "enabled" else ["enable"]
        if not container and active not in ("active", "activating"):
            want.append("start")
        if not want:
            return
        if "enable" in want and enabled == "disabled" and name not in self.topic.units:
            self.topic.units.append(name)
        after = "enabled, not started: a container\n" if container else "enabled, active\n"
        if self.changing(diff(name, f"{enabled or 'not installed'}, {active}\n", after)):
            for verb in want:
                must(f"/usr/bin/systemctl {verb} --quiet {name}")


def found(pattern: str) -> list[str]:
    """The files that a pattern means."""
    return sorted(str(path) for path in Path("/").glob(pattern.lstrip("/")))


def option_key(entry: dict[str, Any]) -> str:
    """What tells one option from another."""
    return " ".join(entry[key] for key in ("path", "kind", "module", "option"))


def validate(command: str | None, path: Path, content: str) -> None:
    """See that a file is right before it is used.

    Raises:
        HardeningError: It is not.
    """
    if command:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            copy.write_text(content)
            copy.chmod(0o440)
            must(command.replace("%s", str(copy)))


def work(module: AnsibleModule) -> list[Diff]:
    """Do all of it.

    Args:
        module: What is wanted.

    Returns:
        The changes.
    """
    params, doing = module.params, Work(module)
    topic = doing.topic
    paths = {path: wanted for wanted in params["modes"] for path in found(wanted["path"])}
    doing.forget(params, set(paths))
    if not doing.check:
        topic.apply, topic.undo = params["apply"], params["undo"]
    for wanted in params["files"]:
        doing.file(wanted)
    for name, wanted in paths.items():
        doing.mode(Path(name), wanted)
    if params["options"]:  # PAM's files are written by the commands, then changed
        apply(doing)
    for wanted in params["lines"]:
        doing.line(wanted)
    for wanted in params["options"]:
        doing.option(wanted)
    for name in params["units"]:
        doing.unit(name, params["container"])
    if not params["options"]:
        apply(doing)
    elif topic.pending and not doing.check:
        topic.pending = False
        topic.save()
    return doing.diffs


def apply(doing: Work) -> None:
    """Let changes take effect."""
    if doing.topic.pending and not doing.check:
        for command in doing.topic.apply:
            must(command)
        doing.topic.pending = False
        doing.topic.save()


def main() -> None:
    """Run as an Ansible module."""
    file = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True},
        "mode": {"type": "str", "default": "0644"},
        "validate": {"type": "str"},
    }
    line = {
        "path": {"type": "path", "required": True},
        "match": {"type": "str", "required": True},
        "line": {"type": "str", "required": True},
        "append": {"type": "bool", "default": True},
    }
    option = {
        "path": {"type": "path", "required": True},
        "kind": {"type": "str", "required": True},
        "module": {"type": "str", "required": True},
        "option": {"type": "str", "required": True},
        "present": {"type": "bool", "required": True},
    }
    mode = {
        "path": {"type": "path", "required": True},
        "mode": {"type": "str", "required": True},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str"},
        "override": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={
            "topic": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "dict", "default": [], "options": file},
            "apply": {"type": "list", "elements": "str", "default": []},
            "undo": {"type": "list", "elements": "str", "default": []},
            "lines": {"type": "list", "elements": "dict", "default": [], "options": line},
            "options": {"type": "list", "elements": "dict", "default": [], "options": option},
            "modes": {"type": "list", "elements": "dict", "default": [], "options": mode},
            "units": {"type": "list", "elements": "str", "default": []},
            "container": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        diffs = work(module)
    except HardeningError as error:
        module.fail_json(msg=f"{module.params['topic']}: {error}")
    module.exit_json(changed=bool(diffs), diff=diffs)


if __name__ == "__main__":
    main()
