"""The configuration of one developer: planned from what is there and what is wanted, then written."""

from __future__ import annotations

import contextlib
import copy
import os
import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.claude_code_entries import (
    CA_VARIABLE,
    RIVALS,
    check_ca,
    check_token,
    gateway_settings,
    server_entries,
)
from ansible.module_utils.claude_code_record import OWN_FOLDER, Change, Record, described, rebase
from ansible.module_utils.home_files import ConfigError, check_folder, check_owner, read, write
from ansible.module_utils.json_additions import Document, DocumentError, Style, lookup, merge, render, unmerge

if TYPE_CHECKING:
    from ansible.module_utils.home_files import Account

CLIENT_FILE = ".claude.json"
SETTINGS_FILE = ".claude/settings.json"
# Claude Code itself writes ~/.claude.json at any time: so often the file is read again before this module gives up.
ATTEMPTS = 5


def wanted_settings(params: dict[str, Any], modes: list[str], token_file: str, ca_file: Path) -> Document:
    """Return the settings of Claude Code; the operator's own come last, so that they win.

    Args:
        params: the module's parameters.
        modes: "tools", "gateway" or both.
        token_file: the token's file, as a word of a shell.
        ca_file: holds the certificates to trust, if params has any.

    Raises:
        ConfigError: the parameters are not usable, or contradict each other.
    """
    wanted: Document = {}
    try:
        if "gateway" in modes:
            merge(wanted, gateway_settings(params["gateway"], token_file))
        if "tools" in modes and params["permissions"]:
            merge(wanted, {"permissions": {"allow": params["permissions"]}})
        if params["ca_certificate"]:
            merge(wanted, {"env": {CA_VARIABLE: str(ca_file)}})
        merge(wanted, params["settings"])
    except DocumentError as error:
        raise ConfigError(f"settings: {error}") from None
    return wanted


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
        self.modes: list[str] = options["modes"] if self.present else []
        name = params["server_name"]
        self.token_path = account.home / OWN_FOLDER / f"{name}.token"
        self.ca_path = account.home / OWN_FOLDER / f"{name}-ca.pem"
        self.record_path = account.home / OWN_FOLDER / f"{name}.json"
        self.wanted: dict[str, Document] = {SETTINGS_FILE: {}, CLIENT_FILE: {}}
        for path in (*(account.home / file for file in self.wanted), self.token_path, self.ca_path, self.record_path):
            check_owner(account, path)
        self.record = self._read_record()
        # Files that only the developer can read, with their contents; None: there shall be none.
        self.private: dict[Path, str | None] = {self.token_path: None, self.ca_path: None}
        if self.present:
            self._want(options, params, check_mode)
        self.private_changed = [path for path, content in self.private.items() if self._read_private(path) != content]
        self.changes = {file: self._plan(file) for file in self.wanted}
        if self.changed:
            written = [change.snapshot.path for change in self.changes.values() if change.needed]
            for path in (*written, self.token_path):
                check_folder(account, path)

    def _want(self, options: dict[str, Any], params: dict[str, Any], check_mode: bool) -> None:
        """Set what shall be in the files."""
        if not self.modes:
            raise ConfigError("modes: expected tools, gateway or both, found none; to take all away, use state absent")
        self.private[self.token_path] = f"{check_token(options['token'])}\n"
        if "tools" in self.modes:
            entries = server_entries(params, options["transport"], self.token_path, self.ca_path)
            if options["transport"] == "stdio" and not check_mode and not os.access(params["stdio_command"], os.X_OK):
                raise ConfigError(f"stdio_command: no program {params['stdio_command']} here; install it first")
            self.wanted[CLIENT_FILE] = {"mcpServers": entries}
        if check_ca(params["ca_certificate"]):
            self.private[self.ca_path] = params["ca_certificate"].strip() + "\n" + self._own_certificates()
        settings = wanted_settings(params, self.modes, shlex.quote(str(self.token_path)), self.ca_path)
        if not params["managed"]:  # else they are in a file for all users of the host
            self.wanted[SETTINGS_FILE] = settings

    def _own_certificates(self) -> str:
        """Return the certificates that the developer's own settings name; Claude Code takes one file only."""
        settings = copy.deepcopy(read(self.account.home / SETTINGS_FILE).document or {})
        unmerge(settings, self.record.additions.get(SETTINGS_FILE, []))
        file = lookup(settings, ("env", CA_VARIABLE))
        if not isinstance(file, str) or not Path(file).is_absolute() or Path(file) == self.ca_path:
            return ""
        try:
            return Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):  # then Claude Code cannot read it, either
            return ""

    def _read_record(self) -> Record:
        stored = read(self.record_path).document
        try:
            return Record.from_json(stored) if stored is not None else Record({}, [])
        except DocumentError as error:
            raise ConfigError(
                f"{self.record_path}: {error}; remove it, and from {CLIENT_FILE} and {SETTINGS_FILE} what it lists"
            ) from None

    def _read_private(self, path: Path) -> str | None:
        """Return the file's text; None where there is none, and an empty one where others could read it."""
        try:
            return path.read_text(errors="replace") if stat.S_IMODE(path.stat().st_mode) == 0o600 else ""
        except FileNotFoundError:
            return None

    def _plan(self, file: str) -> Change:
        path = self.account.home / file
        snapshot = read(path)
        try:
            change = rebase(
                snapshot, self.record.additions.get(file, []), self.wanted[file], file in self.record.created
            )
        except (DocumentError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from None
        if file == SETTINGS_FILE and "gateway" in self.modes:
            rivals = [name for name in RIVALS if lookup(change.document, ("env", name))]
            if rivals:
                raise ConfigError(
                    f"{path}: env.{rivals[0]} goes before the token of gateway mode, or would be sent to the gateway; "
                    "remove it there, or give this developer tools mode only"
                )
        return change

    @property
    def changed(self) -> list[str]:
        """Paths of the files that differ from the plan."""
        paths = [change.snapshot.path for change in self.changes.values() if change.needed]
        return [str(path) for path in (*paths, *self.private_changed)]

    def diff(self) -> list[dict[str, str]]:
        """Return Ansible's diff, without the token."""
        texts = []
        for change in self.changes.values():
            if change.needed:
                places = change.had + change.has
                before, after = described(change.snapshot.document, places), described(change.document, places)
                texts.append((str(change.snapshot.path), before, after))
        for path in self.private_changed:
            kind = "token" if path == self.token_path else "list of certificates"
            before = f"a {kind} (not shown)\n" if path.exists() else ""
            after = f"the {kind} (not shown)\n" if self.private[path] else ""
            texts.append((str(path), before, after))
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
            for path in self.private_changed:
                if content := self.private[path]:
                    write(path, content.encode())
            self._write_record()
        for file in self.changes:
            self._write_file(file)
        for path, content in self.private.items():
            if content is None:
                path.unlink(missing_ok=True)
        if not self.present:
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
