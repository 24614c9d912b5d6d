"""By which ssh session a module runs on its host."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Session:
    """An ssh session.

    Args:
        user: Who came in.
        client: From which address.
        client_port: From which port.
        server: To which address.
        server_port: To which port.
    """

    user: str
    client: str
    client_port: str
    server: str
    server_port: str


def session() -> Session | None:
    """The ssh session in which this runs; nothing if it is none.

    The programs above this one are asked, since sudo takes the variable away.
    """
    pid = os.getpid()
    while pid > 1:
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return None
        for variable in variables:
            if variable.startswith(b"SSH_CONNECTION="):
                client, client_port, server, port = variable.decode().partition("=")[2].split()
                uid = int(status.partition("\nUid:")[2].split()[0])
                return Session(
                    pwd.getpwuid(uid).pw_name, client.partition("%")[0], client_port, server.partition("%")[0], port
                )
        pid = int(status.partition("\nPPid:")[2].split()[0])
    return None
