"""Drive the interactive Claude Code of one user of this host: ``session.py USER PROMPT STEPS``.

STEPS is a JSON list of pairs: a text to wait for on the screen, and the keys to press then. The client runs in a
terminal with a copy of the user's settings, so that nothing of the session stays. Its gateway is the stand-in of
anthropic_messages.py, called gateway.test. The only name server that it knows is in here: it answers 127.0.0.1 for
every name and notes the name. Needs root. Prints one JSON object: ``{"screen": …, "requests": […], "names": […]}``,
and in ``error`` the text that did not come, if any.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import pwd
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import anthropic_messages

TIMEOUT = 180  # seconds, for each step
GATEWAY = "gateway.test"
SIZE = (50, 160)  # lines and columns
CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)|[\x00-\x08\x0e-\x1f]", re.DOTALL)
DNS_PORT = 53
PATH = "/usr/local/bin:/usr/bin:/bin"


def visible(text: str) -> str:
    """Return what a terminal was sent without control sequences and blanks; some blanks are moves of the cursor."""
    return re.sub(r"\s+", "", CONTROL.sub("", text))


@contextlib.contextmanager
def name_server() -> Iterator[set[str]]:
    """Answer DNS queries on 127.0.0.1 for as long as the context lasts, and collect the names that were asked for."""
    names: set[str] = set()
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", DNS_PORT))

    def serve() -> None:
        while True:
            query, client = server.recvfrom(4096)
            if not query:
                return
            labels, end = [], 12
            while query[end]:
                labels.append(query[end + 1 : end + 1 + query[end]].decode())
                end += 1 + query[end]
            names.add(".".join(labels).lower())
            question = query[12 : end + 5]
            answers = int(question[-4:-2] == b"\0\1")  # to A, but none to AAAA
            header = query[:2] + struct.pack("!5H", 0x8180, 1, answers, 0, 0)
            answer = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton("127.0.0.1")
            server.sendto(header + question + answer * answers, client)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield names
    finally:
        server.sendto(b"", server.getsockname())
        thread.join()
        server.close()


def prepare_home(account: pwd.struct_passwd, folder: Path) -> None:
    """Make a folder the home of a user who has the account's settings and has started Claude Code there before."""
    shutil.copytree(Path(account.pw_dir, ".claude"), folder / ".claude")
    state = {"hasCompletedOnboarding": True, "projects": {str(folder): {"hasTrustDialogAccepted": True}}}
    (folder / ".claude.json").write_text(json.dumps(state))
    subprocess.run(["chown", "-R", f"{account.pw_uid}:{account.pw_gid}", folder], check=True)


def drive(client: subprocess.Popen[bytes], terminal: int, steps: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Go through the steps and yield what the client writes.

    Raises:
        TimeoutError: a text did not come in time, or the client has ended.
    """
    for text, keys in steps:
        deadline, new = time.monotonic() + TIMEOUT, ""
        while visible(text) not in visible(new):
            if time.monotonic() > deadline or client.poll() is not None:
                raise TimeoutError(f"{text!r} did not come")
            if select.select([terminal], [], [], 1)[0]:
                with contextlib.suppress(OSError):  # the client has closed its side
                    part = os.read(terminal, 65536).decode(errors="replace")
                    new += part
                    yield part
        os.write(terminal, keys.encode())


def hold(user: str, prompt: str, steps: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Return what was on the screen, what was asked of the gateway, and which names were looked up.

    Args:
        user: an account of this host.
        prompt: what the user says first.
        steps: texts to wait for, and the keys to press then.
    """
    account = pwd.getpwnam(user)
    answer: dict[str, object] = {}
    screen: list[str] = []
    with tempfile.TemporaryDirectory() as folder, anthropic_messages.running() as messages, name_server() as names:
        home, resolver = Path(folder, "home"), Path(folder, "resolv.conf")
        Path(folder).chmod(0o755)
        home.mkdir()
        prepare_home(account, home)
        resolver.write_text("nameserver 127.0.0.1\n")
        gateway = f"http://{GATEWAY}:{messages.url.rpartition(':')[2]}"
        settings = json.dumps({"env": {"ANTHROPIC_BASE_URL": gateway}, "prefersReducedMotion": True})
        as_user = ["setpriv", f"--reuid={user}", f"--regid={account.pw_gid}", "--clear-groups"]
        command = ["sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', str(resolver), *as_user]
        terminal, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("4H", *SIZE, 0, 0))
        environment = {"HOME": str(home), "USER": user, "PATH": PATH, "LANG": "C.UTF-8", "TERM": "xterm"}
        client = subprocess.Popen(
            ["unshare", "--mount", *command, "claude", "--settings", settings, "--", prompt],
            cwd=home,
            env=environment,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
        os.close(inner)
        try:
            for part in drive(client, terminal, steps):
                screen.append(part)
        except TimeoutError as error:
            answer["error"] = str(error)
        finally:
            client.kill()
            client.wait()
            os.close(terminal)
    return {**answer, "screen": visible("".join(screen)), "requests": messages.requests, "names": sorted(names)}


if __name__ == "__main__":
    print(json.dumps(hold(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))
