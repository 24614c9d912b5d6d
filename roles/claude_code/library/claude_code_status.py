#!/usr/bin/python
# Copyright: local-llm-fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Ask developers' Claude Code whether it reaches the local model."""

# ruff: noqa: E402 - Ansible wants the documentation before the imports
from __future__ import annotations

DOCUMENTATION = r"""
module: claude_code_status
short_description: Ask developers' Claude Code whether it reaches the local model
description:
  - Mode V(tools) - runs C(claude mcp get) as each developer, in their home and with an empty environment, and fails
    with the client's own words unless it says that it is connected.
  - Mode V(gateway) - asks the gateway, with the token and the CA in the developer's files, for its models, and fails
    unless those that Claude Code will ask for are among them.
  - The client is looked for as the developer's login shell would find it, then in the usual places. There is a warning
    for a developer without one.
options:
  server_name:
    description: Name of the token's file.
    type: str
    required: true
  servers:
    description: Names of the MCP servers. Without any, O(server_name).
    type: list
    elements: str
    default: []
  developers:
    description: The developers of this host.
    type: list
    elements: dict
    required: true
    suboptions:
      user:
        description: Name of the account.
        type: str
        required: true
      modes:
        description: What the local model is used for.
        type: list
        elements: str
        choices: [tools, gateway]
        default: [tools]
  gateway_url:
    description: Address of the gateway, without C(/v1), for developers with mode V(gateway).
    type: str
    default: ""
  gateway_models:
    description: Models that Claude Code will ask for.
    type: list
    elements: str
    default: []
  timeout:
    description: Longest time for one client to answer, in seconds.
    type: int
    default: 120
attributes:
  check_mode:
    support: full
    description: Changes nothing in any mode. The client itself makes its own files when it runs for the first time.
author: local-llm-fleet
"""

EXAMPLES = r"""
- name: See that alice's Claude Code reaches the local model
  claude_code_status:
    server_name: local-llm
    developers: [{user: alice}]
"""

RETURN = r"""
developers:
  description: What each developer's client said.
  returned: success
  type: list
  elements: dict
  contains:
    user: {description: Name of the account., type: str}
    client: {description: Path of the client; empty where there is none., type: str}
    connected: {description: Whether everything that was asked is well., type: bool}
    output: {description: The client's own words and the gateway's., type: str}
"""

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.claude_code_gateway import problem_of
from ansible.module_utils.claude_code_record import OWN_FOLDER
from ansible.module_utils.home_files import MAX_GROUPS, Account, ConfigError, acting_as, find_account

SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
# Where installers put the client without telling a login shell that is not interactive.
USUAL_PLACES = (
    "~/.local/bin/claude",
    "~/.claude/local/claude",
    "~/.npm-global/bin/claude",
    "~/.nvm/versions/node/*/bin/claude",
    "~/.volta/bin/claude",
    "/usr/local/bin/claude",
    "/opt/homebrew/bin/claude",
    "/usr/bin/claude",
)
SHELL_TIMEOUT = 20  # seconds; a login shell may wait for somebody at the keyboard
CONNECTED = re.compile(r"^\s*Status: ✔ Connected\s*$", re.MULTILINE)


def run_as(account: Account, command: list[str], timeout: int) -> str:
    """Run a command as the account, in its home and with an empty environment; nothing that it started lives on.

    Returns:
        What the command wrote to stdout and stderr, whatever its exit status.

    Raises:
        TimeoutError: it ran for longer than timeout seconds.
        OSError: it could not be started.
    """
    environment = {
        "HOME": str(account.home),
        "USER": account.user,
        "LOGNAME": account.user,
        "SHELL": account.shell,
        "PATH": SEARCH_PATH,
        "LANG": "C.UTF-8",
        # A check is no occasion for updates and statistics.
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        groups = os.getgrouplist(account.user, account.gid)[:MAX_GROUPS]
        identity = {"user": account.uid, "group": account.gid, "extra_groups": groups}
    process = subprocess.Popen(  # noqa: S603 - the program is the client that was looked for, or the account's own shell
        command,
        cwd=account.home,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        **identity,
    )
    try:
        output: str = process.communicate(timeout=timeout)[0]
        return output
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"no answer within {timeout} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def find_client(account: Account) -> str:
    """Return the path of the account's Claude Code; empty where there is none."""
    candidates: list[str] = []
    with contextlib.suppress(OSError):  # no login, or a shell that waits for somebody: the usual places are left
        words = run_as(account, [account.shell or "/bin/sh", "-lc", "command -v claude"], SHELL_TIMEOUT)
        candidates = words.splitlines()
    with acting_as(account):
        for place in USUAL_PLACES:
            pattern = place.replace("~", str(account.home), 1).lstrip("/")
            candidates += sorted(map(str, Path("/").glob(pattern)), reverse=True)
        return next((path for path in candidates if path.startswith("/") and os.access(path, os.X_OK)), "")


def ask_client(account: Account, client: str, server: str, timeout: int) -> str:
    """Return what a client says about an MCP server."""
    try:
        return run_as(account, [client, "mcp", "get", server], timeout).strip()
    except OSError as error:
        return f"{server}: {error}"


def ask_gateway(account: Account, params: dict[str, Any]) -> str:
    """Return what keeps the account's Claude Code from running on the gateway's models; nothing if all is well."""
    folder, name = account.home / OWN_FOLDER, params["server_name"]
    with acting_as(account):
        try:
            token = (folder / f"{name}.token").read_text().strip()
        except OSError as error:
            return f"{error.filename}: {error.strerror}; configure Claude Code first"
        ca_file = folder / f"{name}-ca.pem"
        return str(problem_of(params["gateway_url"], params["gateway_models"], token, ca_file))


def ask(developer: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """Return how a developer's Claude Code is doing.

    Args:
        developer: user and modes.
        params: the module's parameters.

    Raises:
        ConfigError: there is no such account, or it cannot be used.
    """
    account = find_account(developer["user"])
    client = find_client(account)
    connected, words = True, []
    if "tools" in developer["modes"] and client:
        for server in params["servers"] or [params["server_name"]]:
            words.append(ask_client(account, client, server, params["timeout"]))
            connected = connected and bool(CONNECTED.search(words[-1]))
    if "gateway" in developer["modes"]:
        problem = ask_gateway(account, params)
        connected = connected and not problem
        words.append(problem or f"{params['gateway_url']} serves {', '.join(params['gateway_models'])}")
    # Where there is nobody to ask, nobody has said that it works.
    connected = connected and bool(words)
    return {"user": account.user, "client": client, "connected": connected, "output": "\n".join(words)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "server_name": {"type": "str", "required": True},
            "servers": {"type": "list", "elements": "str", "default": []},
            "developers": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "user": {"type": "str", "required": True},
                    "modes": {
                        "type": "list",
                        "elements": "str",
                        "choices": ["tools", "gateway"],
                        "default": ["tools"],
                    },
                },
            },
            "gateway_url": {"type": "str", "default": ""},
            "gateway_models": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    try:
        developers = [ask(developer, module.params) for developer in module.params["developers"]]
    except ConfigError as error:
        module.fail_json(msg=f"Claude Code: {error}")
    for developer in developers:
        if not developer["client"]:
            module.warn(f"{developer['user']} is configured, but has no Claude Code on this host to ask.")
    failures = [developer for developer in developers if developer["output"] and not developer["connected"]]
    if failures:
        said = "\n".join(f"{one['user']} ({one['client'] or 'no client'}):\n{one['output']}" for one in failures)
        module.fail_json(msg=f"Claude Code does not reach the local model. For\n{said}", developers=developers)
    module.exit_json(changed=False, developers=developers)


if __name__ == "__main__":
    main()
