#!/usr/bin/python
# Copyright: local-llm-fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Merge one MCP server, permissions and settings into developers' Claude Code configuration."""

# ruff: noqa: E402 - Ansible wants the documentation before the imports
from __future__ import annotations

DOCUMENTATION = r"""
module: claude_code_config
short_description: Merge one MCP server into developers' Claude Code configuration
description:
  - Adds one MCP server to C(~/.claude.json) and settings to C(~/.claude/settings.json) of each developer. Every other
    key, the order of the keys, the layout, the owner, the group and the mode of the files stay as they are.
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
    description: Name of the MCP server, as in C(mcp__<server_name>__<tool>).
    type: str
    required: true
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
          - Bearer token for the server (transport V(http)), or the API key for the engine (transport V(stdio)).
          - Needed for O(state=present).
        type: str
      transport:
        description: How Claude Code reaches the server.
        type: str
        choices: [http, stdio]
        default: http
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
"""

import contextlib
import copy
import json
import os
import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.home_files import (
    Account,
    ConfigError,
    Snapshot,
    acting_as,
    check_folder,
    check_owner,
    find_account,
    read,
    write,
)
from ansible.module_utils.json_additions import (
    Addition,
    Document,
    DocumentError,
    Style,
    Whole,
    dotted,
    in_order_of,
    lookup,
    merge,
    render,
    same,
    unmerge,
)

CLIENT_FILE = ".claude.json"
SETTINGS_FILE = ".claude/settings.json"
OWN_FOLDER = ".config/local-llm-fleet"
RECORD_VERSION = 1
# Claude Code itself writes ~/.claude.json at any time: so often the file is read again before this module gives up.
ATTEMPTS = 5
HIDDEN = "(not shown)"


@dataclass(frozen=True)
class Record:
    """What this module has put into a developer's home: additions by file, and the files and folders it made."""

    additions: dict[str, list[Addition]]
    created: list[str]

    def to_json(self) -> Document:
        """Return the form that `from_json` reads."""
        additions = {file: [addition.to_json() for addition in added] for file, added in self.additions.items()}
        return {"version": RECORD_VERSION, "created": self.created, "additions": additions}

    @classmethod
    def from_json(cls, data: Document) -> Record:
        """Read what `to_json` wrote.

        Raises:
            DocumentError: data is not such a record.
        """
        if data.get("version") != RECORD_VERSION:
            raise DocumentError(f"expected a record of version {RECORD_VERSION}, found {data.get('version')!r}")
        added, created = data.get("additions"), data.get("created")
        if not (
            isinstance(added, dict)
            and all(isinstance(value, list) for value in added.values())
            and isinstance(created, list)
            and all(isinstance(name, str) for name in created)
        ):
            raise DocumentError("expected an object 'additions' and a list 'created'")
        return cls({file: [Addition.from_json(item) for item in items] for file, items in added.items()}, created)


@dataclass(frozen=True)
class Change:
    """A JSON file as it is and as it shall be (document None: no file), with our additions before and after."""

    snapshot: Snapshot
    document: Document | None
    had: list[Addition]
    has: list[Addition]

    @property
    def needed(self) -> bool:
        """Whether the file is not yet as it shall be."""
        return not same(self.snapshot.document, self.document)


def check_token(token: str | None) -> str:
    """Return the token if it can be sent as a bearer token.

    Raises:
        ConfigError: it is missing, empty or has a character that RFC 6750 does not allow.
    """
    if not token:
        raise ConfigError("the token is missing or empty; set 'token'")
    unfit = re.search(r"[^A-Za-z0-9._~+/=-]", token)
    if unfit:
        kind = "a blank or a line break" if unfit.group().isspace() else "a character that bearer tokens cannot have"
        raise ConfigError(
            f"the token has {kind} at position {unfit.start() + 1}; allowed are letters, digits and . _ ~ + / = -"
        )
    return token


def check_url(url: str) -> str:
    """Return the URL if it is a complete http or https address.

    Raises:
        ConfigError: it is not, or it holds a password.
    """
    try:
        parts = urlsplit(url)
        complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        complete = False
    if not complete or re.search(r"\s", url):
        raise ConfigError(f"url: expected an address like https://gateway.example.com/mcp, found {url!r}")
    if parts.username or parts.password:
        raise ConfigError("url: must not hold a user or a password; the token belongs into 'token'")
    return url


def server_entry(params: dict[str, Any], transport: str, token_file: Path) -> Document:
    """Return the entry for mcpServers. The token is not in it: Claude Code or the bridge reads it from token_file.

    Raises:
        ConfigError: the URL, the command or the environment is not usable.
    """
    # Without alwaysLoad, Claude Code's tool search hides the tools from the model, and it waits only 2 s for a server.
    common = {"timeout": params["timeout_ms"], "alwaysLoad": True}
    if transport == "http":
        # Claude Code gives this to a shell, also when it was started from a desktop that has read no shell profile.
        helper = f"""printf '{{"Authorization": "Bearer %s"}}' "$(cat {shlex.quote(str(token_file))})\""""
        return {"type": "http", "url": check_url(params["url"]), "headersHelper": helper, **common}
    command = params["stdio_command"]
    if not command.startswith("/"):
        raise ConfigError(f"stdio_command: expected an absolute path, found {command!r}")
    if "OPENAI_API_KEY" in params["stdio_env"]:
        raise ConfigError(
            "stdio_env: OPENAI_API_KEY would be readable in ~/.claude.json; set it as the developer's 'token'"
        )
    environment = {name: str(value) for name, value in params["stdio_env"].items()}
    environment["OPENAI_API_KEY_FILE"] = str(token_file)
    return {"type": "stdio", "command": command, "args": [], "env": environment, **common}


def rebase(snapshot: Snapshot, had: list[Addition], wanted: Document, created: bool) -> Change:
    """Replace this module's earlier additions to a file by what is wanted now.

    Args:
        snapshot: the file as it is.
        had: what an earlier run has added to it.
        wanted: what shall be in it besides its other contents.
        created: whether an earlier run made the file, so that it goes when nothing is left in it.

    Raises:
        DocumentError: the file has another kind of value where an object or a list is needed.
        ConfigError: the file has a server of the same name that an earlier run did not add.
    """
    document = copy.deepcopy(snapshot.document or {})
    unmerge(document, had)
    recorded = {addition.path for addition in had}
    for name in wanted.get("mcpServers", {}):
        servers = document.get("mcpServers")
        if not isinstance(servers, dict) or name not in servers:
            continue
        # Without a record (a home that was restored, say), the entry still names the token's file.
        if ("mcpServers", name) not in recorded and OWN_FOLDER not in json.dumps(servers[name]):
            raise ConfigError(
                f"has an MCP server {name!r} of its own; remove it (claude mcp remove --scope user {name}) "
                "or choose another server_name"
            )
        del servers[name]
    has = merge(document, wanted)
    document = in_order_of(document, snapshot.document)
    obsolete = not document and (created or snapshot.document is None)
    return Change(snapshot, None if obsolete else document, had, has)


def described(document: Document | None, additions: list[Addition]) -> str:
    """Return the lines of a diff: what the document has at the places of the additions. Environments are not shown."""
    lines: dict[str, None] = {}  # a set that keeps the order
    for addition in additions:
        present = lookup(document, addition.path)
        if (
            addition.kind == "item"
            and isinstance(present, list)
            and any(same(addition.value, item) for item in present)
        ):
            lines[f"{dotted(addition.path)}: {json.dumps(addition.value)}"] = None
        elif addition.kind == "value" and present is not None:
            shown = HIDDEN if "env" in addition.path else present
            if isinstance(shown, dict) and isinstance(shown.get("env"), dict):
                shown = {**shown, "env": dict.fromkeys(shown["env"], HIDDEN)}
            lines[f"{dotted(addition.path)} = {json.dumps(shown)}"] = None
    return "".join(f"{line}\n" for line in lines)


class Home:
    """The configuration of one developer: planned first, written only when every developer's plan is sound."""

    def __init__(self, account: Account, options: dict[str, Any], params: dict[str, Any], check_mode: bool) -> None:
        """Read the developer's files and plan what to change. Call it with the developer's rights.

        Args:
            account: the developer's account.
            options: the developer's entry in the module's parameters.
            params: the module's parameters.
            check_mode: whether other things may be missing because they were not made either.

        Raises:
            ConfigError: the parameters are not usable, or the files cannot be read, understood or written.
            OSError: a file cannot be read.
        """
        self.account = account
        self.present = params["state"] == "present"
        name = params["server_name"]
        self.token_path = account.home / OWN_FOLDER / f"{name}.token"
        self.record_path = account.home / OWN_FOLDER / f"{name}.json"
        self.token: str | None = None
        self.wanted: dict[str, Document] = {SETTINGS_FILE: {}, CLIENT_FILE: {}}
        if self.present:
            self.token = check_token(options["token"])
            entry = server_entry(params, options["transport"], self.token_path)
            if entry["type"] == "stdio" and not check_mode and not os.access(entry["command"], os.X_OK):
                raise ConfigError(f"stdio_command: no program {entry['command']} here; install it first")
            self.wanted = {SETTINGS_FILE: params["settings"], CLIENT_FILE: {"mcpServers": {name: Whole(entry)}}}
        for path in (*(account.home / file for file in self.wanted), self.token_path, self.record_path):
            check_owner(account, path)
        self.record = self._read_record()
        self.token_changed = self._read_token() != self.token
        self.changes = {file: self._plan(file) for file in self.wanted}
        if self.changed:
            written = [change.snapshot.path for change in self.changes.values() if change.needed]
            for path in (*written, self.token_path):
                check_folder(account, path)

    def _read_record(self) -> Record:
        stored = read(self.record_path).document
        try:
            return Record.from_json(stored) if stored is not None else Record({}, [])
        except DocumentError as error:
            raise ConfigError(
                f"{self.record_path}: {error}; remove it, and from {CLIENT_FILE} and {SETTINGS_FILE} what it lists"
            ) from None

    def _read_token(self) -> str | None:
        """Return the stored token; None where there is none, and an empty one where others could read it."""
        try:
            private = stat.S_IMODE(self.token_path.stat().st_mode) == 0o600
            return self.token_path.read_text(errors="replace").strip() if private else ""
        except FileNotFoundError:
            return None

    def _plan(self, file: str) -> Change:
        path = self.account.home / file
        snapshot = read(path)
        try:
            return rebase(snapshot, self.record.additions.get(file, []), self.wanted[file], file in self.record.created)
        except (DocumentError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from None

    @property
    def changed(self) -> list[str]:
        """Paths of the files that differ from the plan."""
        paths = [str(change.snapshot.path) for change in self.changes.values() if change.needed]
        return [*paths, str(self.token_path)] if self.token_changed else paths

    def diff(self) -> list[dict[str, str]]:
        """Return Ansible's diff, without the token."""
        texts = []
        for change in self.changes.values():
            if change.needed:
                places = change.had + change.has
                before, after = described(change.snapshot.document, places), described(change.document, places)
                texts.append((str(change.snapshot.path), before, after))
        if self.token_changed:
            before = "a token (not shown)\n" if self.token_path.exists() else ""
            after = "the token (not shown)\n" if self.present else ""
            texts.append((str(self.token_path), before, after))
        return [
            {"before_header": path, "after_header": path, "before": before, "after": after}
            for path, before, after in texts
        ]

    def write(self) -> None:
        """Make the files as planned. Call it with the developer's rights.

        Raises:
            ConfigError: a file is rewritten by others again and again.
            OSError: a file cannot be written.
        """
        if self.present:
            # The token and the record come first: an interrupted run leaves nothing that the next one does not know.
            self._make_folders()
            if self.token_changed:
                write(self.token_path, f"{self.token}\n".encode())
            self._write_record()
        for file in self.changes:
            self._write_file(file)
        if not self.present:
            self.token_path.unlink(missing_ok=True)
            self.record_path.unlink(missing_ok=True)
            for folder in reversed([name for name in self.record.created if name not in self.wanted]):
                with contextlib.suppress(OSError):  # somebody else has put something into it, so it stays
                    (self.account.home / folder).rmdir()

    def _make_folders(self) -> None:
        """Make the missing folders, and note what was made here and what the files' writing will make."""
        new = [file for file, change in self.changes.items() if change.needed and change.snapshot.document is None]
        needed = [self.token_path, *(self.account.home / file for file in new)]
        for folder in [parent for path in needed for parent in reversed(path.parents)]:
            if not folder.exists():
                folder.mkdir(mode=0o700)
                self.record.created.append(str(folder.relative_to(self.account.home)))
        self.record.created.extend(file for file in new if file not in self.record.created)

    def _write_record(self) -> None:
        additions = {file: change.has for file, change in self.changes.items()}
        data = render(Record(additions, self.record.created).to_json(), Style())
        if not self.record_path.exists() or self.record_path.read_bytes() != data:
            write(self.record_path, data)

    def _write_file(self, file: str) -> None:
        for _ in range(ATTEMPTS):
            change = self.changes[file]
            path, document = change.snapshot.path, change.document
            if not change.needed:
                return
            if document is None:
                path.unlink()
                return
            if write(path, render(document, change.snapshot.style), change.snapshot.identity):
                return
            self.changes[file] = self._plan(file)
            if self.present:
                self._write_record()
        raise ConfigError(f"{path} was rewritten {ATTEMPTS} times meanwhile; close Claude Code and try again")


def plan_all(params: dict[str, Any], check_mode: bool) -> list[Home]:
    """Plan the changes for every developer.

    Raises:
        ConfigError: something is wrong for at least one developer; the text has a line for each of them.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", params["server_name"]):
        raise ConfigError(f"server_name: expected letters, digits, - and _, found {params['server_name']!r}")
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
    return homes


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "server_name": {"type": "str", "required": True},
            "developers": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "user": {"type": "str", "required": True},
                    "token": {"type": "str", "no_log": True},
                    "transport": {"type": "str", "choices": ["http", "stdio"], "default": "http"},
                },
            },
            "url": {"type": "str", "default": ""},
            "stdio_command": {"type": "str", "default": ""},
            "stdio_env": {"type": "dict", "default": {}},
            "timeout_ms": {"type": "int", "default": 600000},
            "settings": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        homes = plan_all(module.params, module.check_mode)
        results = [{"user": home.account.user, "changed": home.changed} for home in homes]
        diff = [entry for home in homes for entry in home.diff()] if module._diff else []
        if not module.check_mode:
            for home in homes:
                try:
                    with acting_as(home.account):
                        home.write()
                except (ConfigError, OSError) as error:
                    raise ConfigError(f"{home.account.user}: {error}") from error
    except ConfigError as error:
        module.fail_json(msg=f"Claude Code: {error}")
    module.exit_json(changed=any(result["changed"] for result in results), developers=results, diff=diff)


if __name__ == "__main__":
    main()
