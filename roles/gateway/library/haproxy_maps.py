"""Ansible module: HAProxy's maps, in their files and in the running process, without a reload."""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: haproxy_maps
short_description: Maps of HAProxy, on the disk and in the running process
description:
  - Writes each map as C(<folder>/<name>.map), and makes the running HAProxy use it from the next request on. Requests
    that are being answered go on.
  - Without a running HAProxy only the files are written; it reads them when it starts.
author: local-llm-fleet
options:
  folder:
    description: Where the files are.
    type: path
    required: true
  socket:
    description: HAProxy's admin socket.
    type: path
    required: true
  maps:
    description: Keys and values of each map. Neither has line breaks, and keys have no blanks.
    type: dict
    required: true
  group:
    description: Group that may read the files; root owns them.
    type: str
    required: true
"""

HEAD = "# Written by Ansible. HAProxy has it in memory as well: a change by hand is seen after a reload.\n"


class Refused(Exception):
    """HAProxy did not take a command."""


def ask(path: str, command: str) -> str:
    """Send a command to HAProxy's admin socket; return what it says.

    Args:
        path: The socket.
        command: With the lines that belong to it.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(path)
        connection.sendall(command.encode() + b"\n")
        answer = b""
        while block := connection.recv(65536):
            answer += block
    return answer.decode().strip()


def loaded(path: str, file: Path) -> dict[str, str] | None:
    """What the running HAProxy has of a map; None if it does not use that file.

    Args:
        path: The socket.
        file: The map's file, by which HAProxy knows it.
    """
    answer = ask(path, f"show map {file}")
    if answer.startswith("Unknown map"):
        return None
    return dict(line.split(" ", 2)[1:] for line in answer.splitlines() if line.startswith("0x"))


def load(path: str, file: Path, entries: dict[str, str]) -> None:
    """Give a map to the running HAProxy, all of it in one step.

    Args:
        path: The socket.
        file: The map's file, by which HAProxy knows it.
        entries: Its keys and values.

    Raises:
        Refused: It did not take it.
    """
    words = ask(path, f"prepare map {file}")
    if "version created:" not in words:
        raise Refused(words)
    version = words.rpartition(" ")[2]
    lines = "".join(f"{key} {value}\n" for key, value in entries.items())
    if entries and (words := ask(path, f"add map @{version} {file} <<\n{lines}")):
        raise Refused(words)
    if words := ask(path, f"commit map @{version} {file}"):
        raise Refused(words)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "socket": {"type": "path", "required": True},
            "maps": {"type": "dict", "required": True},
            "group": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not (folder := Path(params["folder"])).is_dir() and not module.check_mode:
        module.fail_json(msg=f"{folder} is not there, so there is no gateway here yet: run playbooks/gateway.yml first")
    running = Path(params["socket"]).is_socket()
    changed, diff = False, []
    for name, entries in params["maps"].items():
        wanted = {str(key): str(value) for key, value in entries.items()}
        file = folder / f"{name}.map"
        text = HEAD + "".join(f"{key} {value}\n" for key, value in wanted.items())
        before = file.read_text() if file.exists() else ""
        if before != text:
            changed = True
            diff.append({"before_header": str(file), "after_header": str(file), "before": before, "after": text})
            if not module.check_mode:
                with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as new:
                    new.write(text)
                shutil.chown(new.name, group=params["group"])
                Path(new.name).chmod(0o640)
                Path(new.name).replace(file)
        if not running:
            continue
        try:
            known = loaded(params["socket"], file)
            if known is not None and known != wanted:
                changed = True
                if not module.check_mode:
                    load(params["socket"], file, wanted)
        except (OSError, Refused) as error:
            module.fail_json(
                msg=f"{file} was written, but the running HAProxy did not take it: {error}. "
                "`systemctl reload local-llm-gateway` makes it read the file"
            )
    module.exit_json(changed=changed, diff=diff)


if __name__ == "__main__":
    main()
