"""Let the Claude Code of whoever runs this use the team's local model. Undo it with --undo.

It needs Python 3.9 or newer on Linux or macOS, and nothing else. It adds to ~/.claude.json and ~/.claude/settings.json,
keeps what is there, and puts your token into a file that only you can read.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import pkgutil
import pwd
import sys
from pathlib import Path
from typing import Any

from ansible.module_utils.claude_code_gateway import problem_of
from ansible.module_utils.claude_code_home import Home
from ansible.module_utils.home_files import Account, ConfigError


def main(arguments: list[str]) -> int:
    """Configure this user's Claude Code, or undo that.

    Args:
        arguments: of the command line.

    Returns:
        Exit status: 1 if nothing could be done, or the gateway does not let this user in.
    """
    settings: dict[str, Any] = json.loads(pkgutil.get_data("ansible", "settings.json") or b"")
    options = read_options(arguments, settings["modes"])
    if os.geteuid() == 0 and "SUDO_USER" in os.environ:
        return fail("This is for your own files: run it as yourself, without sudo.")
    entry = pwd.getpwuid(os.getuid())
    account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid, Path.home(), entry.pw_shell)
    params = {**settings["params"], "state": "absent" if options.undo else "present"}
    modes = options.mode or settings["modes"]
    token = "" if options.undo else read_token()
    try:
        home = Home(account, {"token": token, "transport": "http", "modes": modes}, params, check_mode=False)
        changed = home.changed
        home.write()
    except ConfigError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}")
    for path in changed:
        print(f"changed: {path}")
    if options.undo:
        print("All that was added is gone." if changed else "There was nothing to undo.")
        return 0
    if "gateway" in modes:
        gateway = params["gateway"]
        asked = list(dict.fromkeys([gateway["model"], *gateway["models"].values()]))
        problem = problem_of(gateway["url"], asked, token, home.ca_path)
        if problem:
            return fail(f"Claude Code is configured, but {problem}.")
    print("Claude Code is configured. Start it again.")
    if "tools" in modes:
        print(f"Is it connected? claude mcp get {params['server_name']}")
    return 0


def read_options(arguments: list[str], modes: list[str]) -> argparse.Namespace:
    """Return what the command line says.

    Args:
        arguments: of the command line.
        modes: the default.
    """
    parser = argparse.ArgumentParser(prog=Path(sys.argv[0]).name, description=__doc__)
    parser.add_argument("--undo", action="store_true", help="take out what this has added, and nothing else")
    parser.add_argument(
        "--mode",
        action="append",
        choices=["tools", "gateway"],
        help="tools: Claude Code can ask the local model; gateway: Claude Code itself runs on it. May be given twice. "
        f"The default is {' and '.join(modes)}.",
    )
    return parser.parse_args(arguments)


def read_token() -> str:
    """Return the token, which is asked for without showing it; or the first line of what is piped in."""
    text = getpass.getpass("Your token: ") if sys.stdin.isatty() else sys.stdin.readline()
    return text.strip()


def fail(message: str) -> int:
    """Say what is wrong.

    Returns:
        The exit status.
    """
    print(message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
