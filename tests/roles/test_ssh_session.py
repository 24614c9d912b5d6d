"""By which session a module runs, however deep below it."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

from ansible.module_utils import ssh_session


def test_the_session_and_its_user_are_found_behind_sudo() -> None:
    """Sudo takes the variable away; the shell that sshd started has it."""
    module_utils = Path(ssh_session.__file__).parent
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
import ansible.module_utils; ansible.module_utils.__path__.append({str(module_utils)!r})
from ansible.module_utils.ssh_session import session; print(session())
"""
    environment = os.environ | {"SSH_CONNECTION": "fe80::9%eth0 50000 10.0.0.5 2222"}
    argv = ["sh", "-c", 'env -u SSH_CONNECTION "$1" -c "$2"; true', "sh", sys.executable, code]
    shown = subprocess.check_output(argv, env=environment, text=True).strip()
    assert shown == str(ssh_session.Session(getpass.getuser(), "fe80::9", "50000", "10.0.0.5", "2222"))
