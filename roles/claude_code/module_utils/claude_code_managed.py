"""Settings of Claude Code for all users of a host, which users cannot overrule."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.claude_code_home import wanted_settings
from ansible.module_utils.claude_code_record import OWN_FOLDER
from ansible.module_utils.home_files import ConfigError, write
from ansible.module_utils.json_additions import Document, Style, merge, render

FOLDER = Path("/Library/Application Support/ClaudeCode" if sys.platform == "darwin" else "/etc/claude-code")


class Managed:
    """The files for all users: planned first, written when every developer's plan is sound, too."""

    def __init__(self, params: dict[str, Any], folder: Path = FOLDER) -> None:
        """Plan what to change.

        Args:
            params: the module's parameters.
            folder: where Claude Code looks for managed settings.

        Raises:
            ConfigError: the parameters are not usable.
        """
        name = params["server_name"]
        self.folder = folder
        settings_file, ca_file = folder / "managed-settings.d" / f"{name}.json", folder / f"{name}-ca.pem"
        self.files: dict[Path, bytes | None] = {ca_file: None, settings_file: None}
        if params["state"] == "present" and params["managed"]:
            settings = self._settings(params, ca_file)
            # Invalid JSON here would stop every claude of the host; this is made from an object, so it cannot be.
            self.files[settings_file] = render(settings, Style())
            if params["ca_certificate"]:
                self.files[ca_file] = (params["ca_certificate"].strip() + "\n").encode()
        # Without the option, absence takes away what is one developer's, not what is everybody's.
        stays = params["state"] == "absent" and not params["managed"]
        self.changed = [path for path, data in self.files.items() if not stays and _read(path) != data]

    def _settings(self, params: dict[str, Any], ca_file: Path) -> Document:
        modes = params["developers"][0]["modes"] if params["developers"] else []
        if any(set(developer["modes"]) != set(modes) for developer in params["developers"]):
            raise ConfigError("managed: is for all users of this host, so all its developers need the same modes")
        # Each user's own file, whoever runs Claude Code.
        token_file = f'"$HOME/{OWN_FOLDER}/{params["server_name"]}.token"'
        settings = wanted_settings(params, modes, token_file, ca_file)
        if params["managed_servers_only"]:
            allowed: list[Document] = []
            if any(developer["transport"] == "http" for developer in params["developers"]):
                parts = urlsplit(params["url"])
                allowed.append({"serverUrl": f"{parts.scheme}://{parts.netloc}/*"})
            if any(developer["transport"] == "stdio" for developer in params["developers"]):
                allowed.append({"serverCommand": [params["stdio_command"]]})
            merge(settings, {"allowManagedMcpServersOnly": True, "allowedMcpServers": allowed})
        return settings

    def diff(self) -> list[dict[str, str]]:
        """Return Ansible's diff; no secret is in these files."""
        return [
            {
                "before_header": str(path),
                "after_header": str(path),
                "before": (_read(path) or b"").decode(errors="replace"),
                "after": (self.files[path] or b"").decode(),
            }
            for path in self.changed
        ]

    def write(self) -> None:
        """Make the files as planned.

        Raises:
            OSError: a file cannot be written.
        """
        for path in self.changed:
            data = self.files[path]
            if data is None:
                path.unlink()
                for folder in (self.folder / "managed-settings.d", self.folder):
                    with contextlib.suppress(OSError):  # there is something of others in it
                        folder.rmdir()
                continue
            for folder in reversed(path.parents):
                if not folder.exists():
                    folder.mkdir()
                    folder.chmod(0o755)
            write(path, data, mode=0o644)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
