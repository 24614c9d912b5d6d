"""Ansible module: a folder of packages is a source that apt can read."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: nvidia_driver_folder
short_description: Index of a folder of packages
description:
  - Writes C(Packages), the index of all C(.deb) files in the folder, for a flat repository in it.
author: local-llm-fleet
options:
  path:
    description: The folder.
    type: path
    required: true
"""


def stanza(package: Path) -> str:
    """What the index says about a package."""
    argv = ["/usr/bin/dpkg-deb", "--field", str(package)]
    control = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    with package.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else ""
    if not digest:  # Python 3.10
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
    return f"{control}\nFilename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {digest}\n"


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(argument_spec={"path": {"type": "path", "required": True}}, supports_check_mode=True)
    folder = Path(module.params["path"])
    index = folder / "Packages"
    text = "\n".join(stanza(package) for package in sorted(folder.glob("*.deb")))
    changed = not index.exists() or index.read_text() != text
    if changed and not module.check_mode:
        index.write_text(text)
        index.chmod(0o644)
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
