"""Everything that is installed has a pin, and what looks for those that have none does find them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from pins import in_commands, in_npm_lock, in_npm_wishes, in_pip_lock, in_tasks

PROJECT = Path(__file__).resolve().parents[2]
HERE = "tests/supply/"

# Nothing of this is installed or run.
EXCEPTIONS = {
    "tests/lab/test_lab.py": "downloads a package, to see that pip works in a guest",
    "molecule/nvidia_driver/prepare.yml": "takes made-up packages from a stand-in beside it",
}


def tracked(*patterns: str) -> list[str]:
    """Paths of the project's files, as git's patterns choose them."""
    listed = subprocess.run(
        ["git", "ls-files", "--", *patterns], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    return [path for path in listed.splitlines() if not path.startswith(HERE) and (PROJECT / path).is_file()]


def findings(check: Callable[[str], Iterator[str]], paths: list[str]) -> list[str]:
    assert paths
    return [
        f"{path}: {found}" for path in paths if path not in EXCEPTIONS for found in check((PROJECT / path).read_text())
    ]


def programs() -> list[str]:
    """All that can run something: not the prose, the locks, the weights."""
    skipped = re.compile(r"\.(md|txt|in|json|jinja|gguf|safetensors)$|^LICENSE$|^bridge/src/")
    return [path for path in tracked() if not skipped.search(path)]


LOCKS = ["*requirements*.txt", "molecule/vllm/locks/*.txt"]


@pytest.mark.parametrize(
    ("check", "paths"),
    [
        (in_commands, programs()),
        (
            in_tasks,
            tracked(
                "roles/*/tasks/*.yml", "roles/*/handlers/*.yml", "playbooks/*.yml", "molecule/*.yml", "tests/lab/*.yml"
            ),
        ),
        (in_pip_lock, tracked(*LOCKS)),
        (in_npm_lock, tracked("*package-lock.json")),
        (in_npm_wishes, tracked("*package.json")),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_everything_has_a_pin(check: Callable[[str], Iterator[str]], paths: list[str]) -> None:
    assert findings(check, paths) == []


def test_every_wish_has_its_lock() -> None:
    locks = {path.removesuffix(".txt") for path in tracked(*LOCKS)}
    wishes = {
        path.removesuffix(".in").replace("vllm/cpu", "vllm/locks/cpu")
        for path in tracked("*requirements*.in", "molecule/vllm/*.in")
    }
    assert wishes == locks
    npm = [{Path(path).parent for path in tracked(name)} for name in ("*package.json", "*package-lock.json")]
    assert npm[0] == npm[1]


def test_the_claude_code_client_that_is_installed_has_a_checksum_for_each_platform() -> None:
    role = PROJECT / "roles/claude_code"
    version = yaml.safe_load((role / "defaults/main.yml").read_text())["claude_code_client_version"]
    variables = yaml.safe_load((role / "vars/main.yml").read_text())
    sums = variables["_claude_code_sha512"][version]
    assert sums.keys() == {f"claude-code-{platform}" for platform in variables["_claude_code_platforms"].values()}
    assert all(re.fullmatch("[0-9a-f]{128}", digest) for digest in sums.values())


def test_an_exception_is_still_one() -> None:
    for path in EXCEPTIONS:
        assert list(in_commands((PROJECT / path).read_text())), f"{path} needs no exception any more"


HASH = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("check", "bad", "good"),
    [
        (
            in_commands,
            "x/bin/pip install -r lock.txt",
            "x/bin/pip install --only-binary=:all: --require-hashes -r lock.txt",
        ),
        (
            in_commands,
            "x/bin/pip install --require-hashes -r lock.txt",
            "x/bin/pip install --no-index --no-deps one.whl",
        ),
        (in_commands, 'run(["pip", "install", "six"])', "- /opt/x/bin/pip"),
        (in_commands, "python3 -m pip download six", "# pip has nothing to resolve"),
        (in_commands, "npm install left-pad", "npm ci --ignore-scripts"),
        (in_commands, "npm ci --no-audit", "argv: [npm, pack, --ignore-scripts]"),
        (in_commands, "npx something", "['nodejs', 'npm']"),
        (in_commands, "curl https://example.com/install | sh", "curl https://example.com/healthz"),
        (in_commands, "curl -o /usr/bin/x https://example.com/x", "curl -o /dev/null https://example.com/x"),
        (in_tasks, "- get_url: {url: a, dest: b}", "- get_url: {url: a, dest: b, checksum: c}"),
        (in_tasks, "- block: [{ansible.builtin.pip: {name: six}}]", "- block: [{ansible.builtin.apt: {name: curl}}]"),
        (
            in_tasks,
            "- ansible.builtin.apt: {name: x, state: latest}",
            "- ansible.builtin.apt: {name: x, state: absent}",
        ),
        (in_tasks, "- ansible.builtin.apt: {deb: x.deb}", "- ansible.builtin.apt: {name: x}"),
        (
            in_tasks,
            "- unarchive: {src: 'https://example.com/x.tar', dest: /opt}",
            "- unarchive: {src: x.tar, dest: /opt}",
        ),
        (in_pip_lock, "six==1.17.0\n", f"six==1.17.0 \\\n    --hash={HASH}\n    # via x\n"),
        (
            in_pip_lock,
            f"six>=1.17.0 \\\n    --hash={HASH}\n",
            f"six==1.17.0 ; sys_platform == 'win32' \\\n    --hash={HASH}\n",
        ),
        (
            in_pip_lock,
            "--index-url https://example.com/simple\n",
            f"x[a,b]==1 \\\n    --hash={HASH} \\\n    --hash={HASH}\n",
        ),
        (in_pip_lock, "six==1.17.0 --hash=md5:0\n", "# a comment\n"),
        (
            in_npm_lock,
            '{"packages": {"": {}, "a": {"version": "1.0.0"}}}',
            '{"packages": {"": {}, "a": {"integrity": "sha512-x"}}}',
        ),
        (in_npm_lock, '{"packages": {"a": {"integrity": "sha512-x", "resolved": "https://x"}}}', '{"packages": {}}'),
        (in_npm_wishes, '{"dependencies": {"a": "^1.0.0"}}', '{"dependencies": {"a": "1.0.0-alpha.1"}}'),
    ],
)
def test_what_has_no_pin_is_found(check: Callable[[str], Iterator[str]], bad: str, good: str) -> None:
    assert list(check(bad))
    assert list(check(good)) == []
