"""`make sbom`: the bill is valid, or it is not written; and it has what the roles install."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def run(*argv: str) -> str:
    return subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True).stdout


def test_the_bill_has_what_is_installed_and_who_wants_it() -> None:
    path = run("supply/.venv/bin/python", "supply/sbom.py").strip()
    bill = json.loads((PROJECT / path).read_text())
    parts = {part["bom-ref"]: part for part in bill["components"]}
    wants = {each["ref"]: each["dependsOn"] for each in bill["dependencies"]}
    debian = ["certbot", "curl", "haproxy", "keepalived", "python3-cryptography"]

    assert wants["roles/gateway"] == [f"pkg:deb/debian/{name}" for name in debian]
    assert "pkg:deb/debian/gcc" in wants["roles/vllm"]
    assert {lock for lock in run("git", "grep", "-l", "--", "--hash=").split() if lock.endswith(".txt")} < wants.keys()
    for role, name in [("vllm", "vllm"), ("litellm", "litellm"), ("llama_cpp", "xllamacpp")]:
        lock = wants[f"roles/{role}/files/requirements.txt"]
        (found,) = (ref for ref in lock if ref.startswith(f"pkg:pypi/{name}@"))
        assert parts[found]["scope"] == "required"
        assert {digest["alg"] for digest in parts[found]["hashes"]} == {"SHA-256"}
    assert len(wants["roles/claude_code/vars/main.yml"]) == 4
    assert all(parts[ref]["scope"] == "excluded" for ref in wants["bridge/bench/node/package-lock.json"])
    assert {ref for refs in wants.values() for ref in refs} == parts.keys()
