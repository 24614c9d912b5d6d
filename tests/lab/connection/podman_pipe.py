"""Ansible's connection to the lab's guests: every command and file goes through the stdin of ``podman exec -i``."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import IO

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
  podman_executable:
    description: Podman program. By default the lab's own.
    type: path
    vars: [{name: ansible_podman_executable}]
  pipelining:
    description: Send modules through stdin.
    type: bool
    default: true
    vars: [{name: ansible_pipelining}]
"""

PODMAN = Path(__file__).resolve().parent.parent / "bin" / "podman"
PODMAN_FAILED = 125  # podman's own exit status when it could not run the command at all

display = Display()


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
        return self._exec(cmd, input=in_data or b"", stdout=subprocess.PIPE)

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a file from the controller to the guest.

        Args:
            in_path: Path on the controller.
            out_path: Path in the guest; its directory exists.

        Raises:
            AnsibleError: The file could not be written.
        """
        super().put_file(in_path, out_path)
        with open(in_path, "rb") as source:
            self._copy(f"cat > {self._shell.quote(out_path)}", stdin=source, stdout=subprocess.DEVNULL)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file from the guest to the controller.

        Args:
            in_path: Path in the guest.
            out_path: Path on the controller; its directory exists.

        Raises:
            AnsibleError: The file could not be read.
        """
        super().fetch_file(in_path, out_path)
        with open(out_path, "wb") as target:
            self._copy(f"cat {self._shell.quote(in_path)}", stdin=subprocess.DEVNULL, stdout=target)

    def close(self) -> None:
        """Do nothing: no process outlives its command."""
        self._connected = False

    def _copy(self, cmd: str, *, stdin: IO[bytes] | int, stdout: IO[bytes] | int) -> None:
        status, _, stderr = self._exec(cmd, stdin=stdin, stdout=stdout)
        if status != 0:
            raise AnsibleError(f"{self.get_option('remote_addr')}: {cmd}: {stderr.decode(errors='replace').strip()}")

    def _exec(self, cmd: str, **streams: IO[bytes] | int | bytes) -> tuple[int, bytes, bytes]:
        container = self.get_option("remote_addr")
        podman = self.get_option("podman_executable") or str(PODMAN)
        argv = [podman, "exec", "-i", "--user", self.get_option("remote_user"), container, "/bin/sh", "-c", cmd]
        display.vvv(f"EXEC {argv}", host=container)
        done = subprocess.run(argv, stderr=subprocess.PIPE, check=False, **streams)
        if done.returncode == PODMAN_FAILED and done.stderr.startswith(b"Error:"):
            raise AnsibleConnectionFailure(
                f"guest {container} cannot be reached: {done.stderr.decode(errors='replace').strip()}\n"
                "Guests are started by tests/lab/create.yml."
            )
        return done.returncode, done.stdout or b"", done.stderr
