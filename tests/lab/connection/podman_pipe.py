"""Ansible's connection to the lab's guests: every command and file goes through the stdin of ``podman exec -i``."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import IO

from ansible import constants
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.connection import ConnectionBase
from ansible.utils.display import Display

DOCUMENTATION = r"""
name: podman_pipe
short_description: podman exec with pipelining
description:
  - Runs commands in a running podman container and sends modules through stdin, so that a task is one C(podman exec).
  - The plugin of containers.podman cannot do that; it copies each module, which takes twice as long.
author: local-llm-fleet
options:
  remote_addr:
    description: Name of the container.
    type: str
    default: inventory_hostname
    vars: [{name: inventory_hostname}, {name: ansible_podman_host}]
  remote_user:
    description: User inside the container.
    type: str
    default: root
    vars: [{name: ansible_user}]
extends_documentation_fragment:
  - connection_pipelining
"""

PROJECT = Path(__file__).resolve().parent.parent.parent.parent
PODMAN = PROJECT / "tests/lab/bin/podman"
# Modules as Ansible packs them, which takes a third of the controller's time if each run does it again.
PACKED = Path("/var/cache/local-llm-fleet/modules")
# What podman itself says when the command could not be run at all; the exit status of that differs between versions.
UNREACHABLE = re.compile(rb"Error: .*(container state improper|no such container|no container with name)")

Stream = IO[bytes] | int | None

display = Display()


def share_packed_modules() -> None:
    """Let this run use what others have packed with the same Ansible and the same modules of this project."""
    here = Path(constants.DEFAULT_LOCAL_TMP) / "ansiballz_cache"  # where Ansible itself shares them, within a run
    if here.exists() or not os.access(PACKED.parent, os.W_OK):
        return
    state = [sys.executable, str(Path(constants.__file__).stat().st_mtime_ns)]
    for folder in ("library", "module_utils"):
        for file in sorted(PROJECT.glob(f"*/{folder}/*.py")) + sorted(PROJECT.glob(f"roles/*/{folder}/*.py")):
            state.append(f"{file} {file.stat().st_mtime_ns}")
    packed = PACKED / hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    packed.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # another process of this run was quicker
        here.symlink_to(packed)


share_packed_modules()


class Connection(ConnectionBase):
    """One guest, addressed by the name of its container."""

    transport = "podman_pipe"
    has_pipelining = True

    def _connect(self) -> Connection:
        """Do nothing: each command is a process of its own."""
        self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run a shell command in the guest.

        Args:
            cmd: Command line for ``/bin/sh``.
            in_data: What the command reads from stdin.
            sudoable: Unused; a become password cannot be asked for here.

        Returns:
            Exit status, stdout and stderr.

        Raises:
            AnsibleConnectionFailure: The guest is not running, or podman itself failed.
        """
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        return self._exec(cmd, input=in_data or b"")

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a file from the controller to the guest.

        Args:
            in_path: Path on the controller.
            out_path: Path in the guest; its directory exists.

        Raises:
            AnsibleError: The file could not be written.
        """
        super().put_file(in_path, out_path)
        with Path(in_path).open("rb") as source:
            self._copy(f"cat > {self._shell.quote(out_path)}", stdin=source)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file from the guest to the controller.

        Args:
            in_path: Path in the guest.
            out_path: Path on the controller; its directory exists.

        Raises:
            AnsibleError: The file could not be read.
        """
        super().fetch_file(in_path, out_path)
        with Path(out_path).open("wb") as target:
            self._copy(f"cat {self._shell.quote(in_path)}", stdin=subprocess.DEVNULL, stdout=target)

    def close(self) -> None:
        """Do nothing: no process outlives its command."""
        self._connected = False

    def _copy(self, cmd: str, *, stdin: Stream = None, stdout: Stream = subprocess.PIPE) -> None:
        status, _, stderr = self._exec(cmd, stdin=stdin, stdout=stdout)
        if status != 0:
            raise AnsibleError(f"{self.get_option('remote_addr')}: {cmd}: {stderr.decode(errors='replace').strip()}")

    def _exec(
        self, cmd: str, *, input: bytes | None = None, stdin: Stream = None, stdout: Stream = subprocess.PIPE
    ) -> tuple[int, bytes, bytes]:
        guest = self.get_option("remote_addr")
        argv = [str(PODMAN), "exec", "-i", "--user", self.get_option("remote_user"), guest, "/bin/sh", "-c", cmd]
        display.vvv(f"EXEC {argv}", host=guest)
        done = subprocess.run(argv, input=input, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, check=False)
        if UNREACHABLE.match(done.stderr):
            raise AnsibleConnectionFailure(
                f"guest {guest} is not running ({done.stderr.decode(errors='replace').strip()}); "
                "tests/lab/create.yml starts the guests of an inventory"
            )
        return done.returncode, done.stdout or b"", done.stderr
