#!/usr/bin/python
# Copyright: local-llm-fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Write a script with which developers configure their Claude Code themselves."""

# ruff: noqa: E402 - Ansible wants the documentation before the imports
from __future__ import annotations

DOCUMENTATION = r"""
module: claude_code_script
short_description: Write a script with which developers configure their Claude Code themselves
description:
  - Writes one file that Python 3.9 or newer runs on Linux and macOS. It does what M(claude_code_config) does, for
    whoever runs it, and can undo it. It asks for the token; there is none in it.
options:
  path:
    description: Where to write the file.
    type: path
    required: true
  sources:
    description: Folder of the role C(claude_code).
    type: path
    required: true
  settings:
    description: The C(modes) of the developers and the C(params) of M(claude_code_config), without developers.
    type: dict
    required: true
attributes:
  check_mode:
    support: full
    description: Builds the file and does not write it.
author: local-llm-fleet
"""

EXAMPLES = r"""
- name: Write the script for laptops
  claude_code_script:
    path: /srv/www/setup-local-llm
    sources: "{{ role_path }}"
    settings:
      modes: [tools]
      params: {server_name: local-llm, url: https://gateway.example.com/mcp}
"""

RETURN = r""" # """

import io
import json
import zipfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.claude_code_entries import check_ca, gateway_settings, server_entries
from ansible.module_utils.home_files import ConfigError, write

PROGRAM = "files/setup_claude_code.py"
MODULES = (
    "claude_code_entries",
    "claude_code_gateway",
    "claude_code_home",
    "claude_code_record",
    "home_files",
    "json_additions",
)
# A file that is the same whenever it is built from the same sources.
DATE = (1980, 1, 1, 0, 0, 0)


def build(sources: Path, settings: dict[str, Any]) -> bytes:
    """Return the script: a zip file that Python runs, with the role's own modules under their own names.

    Args:
        sources: the role's folder.
        settings: modes and params.

    Raises:
        ConfigError: the settings are not usable.
    """
    params, nowhere = settings["params"], Path("/")
    check_ca(params["ca_certificate"])
    if "tools" in settings["modes"]:
        server_entries(params, "http", nowhere, nowhere)
    if "gateway" in settings["modes"]:
        gateway_settings(params["gateway"], "")
    files = {
        "__main__.py": (sources / PROGRAM).read_bytes(),
        "ansible/settings.json": json.dumps(settings, indent=2, sort_keys=True).encode(),
        "ansible/__init__.py": b"",
        "ansible/module_utils/__init__.py": b"",
        **{f"ansible/module_utils/{name}.py": (sources / f"module_utils/{name}.py").read_bytes() for name in MODULES},
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, DATE), data, zipfile.ZIP_DEFLATED)
    return b"#!/usr/bin/env python3\n" + buffer.getvalue()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "sources": {"type": "path", "required": True},
            "settings": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    try:
        data = build(Path(module.params["sources"]), module.params["settings"])
        changed = not path.exists() or path.read_bytes() != data
        if changed and not module.check_mode:
            write(path, data, mode=0o755)
    except ConfigError as error:
        module.fail_json(msg=f"Claude Code: {error}")
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}; set a path in a folder that exists")
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
