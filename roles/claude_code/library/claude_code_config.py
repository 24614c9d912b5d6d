#!/usr/bin/python
# Copyright: local-llm-fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Merge MCP servers, permissions and settings into developers' Claude Code configuration."""

# ruff: noqa: E402 - Ansible wants the documentation before the imports
from __future__ import annotations

DOCUMENTATION = r"""
module: claude_code_config
short_description: Merge a local model into developers' Claude Code configuration
description:
  - Adds MCP servers to C(~/.claude.json) and settings to C(~/.claude/settings.json) of each developer. Every other
    key, the order of the keys, the layout, the owner, the group and the mode of the files stay as they are.
  - In mode V(tools) Claude Code stays as it is and gets the local model as MCP tools. In mode V(gateway) Claude Code
    itself runs on the local model.
  - The token goes into a file of its own, C(~/.config/local-llm-fleet/<server_name>.token), which only the developer
    can read.
  - What was added is recorded beside the token, in C(<server_name>.json), so that O(state=absent) takes out that and
    only that. A value that the developer had before comes back; one that was changed since then stays.
  - All developers are checked before the first file is written. Files are written with the developer's own rights.
options:
  state:
    description: Whether the entries are in the configuration.
    type: str
    choices: [present, absent]
    default: present
  server_name:
    description: Name of the MCP server, as in C(mcp__<server_name>__<tool>), and of the files beside.
    type: str
    required: true
  servers:
    description: The MCP servers. Without any, there is one with O(server_name).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the server.
        type: str
        required: true
      model:
        description:
          - Model that answers what this server is asked, unless the call names another.
          - It goes into C(?model=) of the URL (transport V(http)) or into C(OPENAI_MODEL) (V(stdio)).
        type: str
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
      token:
        description:
          - Bearer token for the server (transport V(http)) and the gateway, or the API key for the engine (transport
            V(stdio)).
          - Needed for O(state=present).
        type: str
      transport:
        description: How Claude Code reaches the server.
        type: str
        choices: [http, stdio]
        default: http
      modes:
        description: What the local model is used for.
        type: list
        elements: str
        choices: [tools, gateway]
        default: [tools]
  url:
    description: Address of the server's MCP endpoint, for developers with transport V(http).
    type: str
    default: ""
  stdio_command:
    description: Absolute path of the program that Claude Code starts, for developers with transport V(stdio).
    type: str
    default: ""
  stdio_env:
    description: Environment variables of that program. C(OPENAI_API_KEY_FILE) is added; it names the token's file.
    type: dict
    default: {}
  timeout_ms:
    description: Longest time for one tool call, in milliseconds. Progress does not extend it.
    type: int
    default: 600000
  gateway:
    description: The local model on which Claude Code itself runs, for developers with mode V(gateway).
    type: dict
    default: {}
    suboptions:
      url:
        description: Address of the gateway, without C(/v1).
        type: str
        default: ""
      model:
        description: Name of the model.
        type: str
        default: ""
      models:
        description: Models behind the names C(opus), C(sonnet), C(haiku) and C(fable). The default is the model.
        type: dict
        default: {}
      context:
        description: Context of the model, in tokens.
        type: int
        default: 0
      max_output:
        description: Longest answer, in tokens; a part of the context.
        type: int
        default: 8192
      thinking:
        description: Whether the model can think before it answers.
        type: bool
        default: false
  ca_certificate:
    description: The CA, in PEM, that has signed the certificates of the URLs. Without it, the usual ones are trusted.
    type: str
    default: ""
  permissions:
    description: Rules to add to C(permissions.allow) in mode V(tools).
    type: list
    elements: str
    default: []
  managed:
    description:
      - Puts the settings into a file for all users of the host, which users cannot overrule, instead of their own.
      - With O(state=absent), that file goes only if this is V(true).
    type: bool
    default: false
  managed_servers_only:
    description: Whether the users of the host can use no other MCP server than these, if O(managed).
    type: bool
    default: false
  settings:
    description:
      - Settings to merge into C(~/.claude/settings.json).
      - Objects are merged key by key, lists item by item; other values are set.
      - Not for secrets, as Ansible may print them.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Checks everything and changes nothing.
  diff_mode:
    support: full
    description: Shows what is added and removed, without the token, environment variables and the rest of the files.
author: local-llm-fleet
"""

EXAMPLES = r"""
- name: Give alice and bob the local model
  claude_code_config:
    server_name: local-llm
    url: https://gateway.example.com/mcp
    developers:
      - user: alice
        token: "{{ vault_alice_token }}"
      - user: bob
        token: "{{ vault_bob_token }}"
    settings:
      permissions:
        allow: [mcp__local-llm]

- name: Let alice's Claude Code run on the local model
  claude_code_config:
    server_name: local-llm
    ca_certificate: "{{ lookup('ansible.builtin.file', 'ca.pem') }}"
    gateway:
      url: https://gateway.example.com
      model: qwen3-coder
      context: 131072
    developers:
      - user: alice
        token: "{{ vault_alice_token }}"
        modes: [gateway]

- name: Take it away from bob
  claude_code_config:
    state: absent
    server_name: local-llm
    developers: [{user: bob}]
"""

RETURN = r"""
developers:
  description: What was changed for each developer.
  returned: success
  type: list
  elements: dict
  contains:
    user: {description: Name of the account., type: str}
    changed: {description: Paths of the files that were written or removed., type: list, elements: str}
managed:
  description: Paths of the files for all users of the host that were written or removed.
  returned: success
  type: list
  elements: str
"""

import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.claude_code_home import Home
from ansible.module_utils.claude_code_managed import Managed
from ansible.module_utils.home_files import ConfigError, acting_as, find_account


def plan_all(params: dict[str, Any], check_mode: bool) -> tuple[Managed, list[Home]]:
    """Plan the changes for all users of the host and for every developer.

    Raises:
        ConfigError: something is wrong for at least one developer; the text has a line for each of them.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", params["server_name"]):
        raise ConfigError(f"server_name: expected letters, digits, - and _, found {params['server_name']!r}")
    managed = Managed(params)
    homes, problems = [], []
    users = [options["user"] for options in params["developers"]]
    for options in params["developers"]:
        user = options["user"]
        try:
            if users.count(user) > 1:
                raise ConfigError("is listed more than once")
            account = find_account(user)
            with acting_as(account):
                homes.append(Home(account, options, params, check_mode))
        except ConfigError as error:
            problems.append(f"{user}: {error}")
        except OSError as error:
            problems.append(f"{user}: {error.filename}: {error.strerror}")
    if problems:
        raise ConfigError("nothing was changed, because of:\n" + "\n".join(dict.fromkeys(problems)))
    return managed, homes


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "server_name": {"type": "str", "required": True},
            "servers": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": {"type": "str", "required": True}, "model": {"type": "str"}},
            },
            "developers": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "user": {"type": "str", "required": True},
                    "token": {"type": "str", "no_log": True},
                    "transport": {"type": "str", "choices": ["http", "stdio"], "default": "http"},
                    "modes": {
                        "type": "list",
                        "elements": "str",
                        "choices": ["tools", "gateway"],
                        "default": ["tools"],
                    },
                },
            },
            "url": {"type": "str", "default": ""},
            "stdio_command": {"type": "str", "default": ""},
            "stdio_env": {"type": "dict", "default": {}},
            "timeout_ms": {"type": "int", "default": 600000},
            "gateway": {
                "type": "dict",
                "default": {},
                "apply_defaults": True,
                "options": {
                    "url": {"type": "str", "default": ""},
                    "model": {"type": "str", "default": ""},
                    "models": {"type": "dict", "default": {}},
                    "context": {"type": "int", "default": 0},
                    "max_output": {"type": "int", "default": 8192},
                    "thinking": {"type": "bool", "default": False},
                },
            },
            "ca_certificate": {"type": "str", "default": ""},
            "permissions": {"type": "list", "elements": "str", "default": []},
            "managed": {"type": "bool", "default": False},
            "managed_servers_only": {"type": "bool", "default": False},
            "settings": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        managed, homes = plan_all(module.params, module.check_mode)
        results = [{"user": home.account.user, "changed": home.changed} for home in homes]
        diff = [entry for plan in (managed, *homes) for entry in plan.diff()] if module._diff else []
        if not module.check_mode:
            try:
                managed.write()
            except OSError as error:
                raise ConfigError(f"{error.filename}: {error.strerror}; run the play with become: true") from error
            for home in homes:
                try:
                    with acting_as(home.account):
                        home.write()
                except (ConfigError, OSError) as error:
                    raise ConfigError(f"{home.account.user}: {error}") from error
    except ConfigError as error:
        module.fail_json(msg=f"Claude Code: {error}")
    paths = [str(path) for path in managed.changed]
    changed = bool(paths) or any(result["changed"] for result in results)
    module.exit_json(changed=changed, managed=paths, developers=results, diff=diff)


if __name__ == "__main__":
    main()
