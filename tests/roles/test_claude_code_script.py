"""The script for developers whose machines cannot be reached: built as the role does it, and run in a scratch home."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import claude_code_script as script
import pytest
from ansible.module_utils.home_files import ConfigError

ROLE = Path(script.__file__).resolve().parents[1]
TOKEN = "s3cr3t-Token.42"  # noqa: S105
SETTINGS: dict[str, Any] = {
    "modes": ["tools"],
    "params": {
        "server_name": "local-llm",
        "servers": [],
        "url": "https://llm.example.com/mcp",
        "timeout_ms": 600000,
        "gateway": {
            "url": "https://127.0.0.1:9",
            "model": "qwen3-coder",
            "models": {},
            "context": 65536,
            "max_output": 8192,
            "thinking": False,
        },
        "ca_certificate": "",
        "permissions": ["mcp__local-llm"],
        "settings": {},
        "managed": False,
    },
}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "setup-local-llm"
    path.write_bytes(script.build(ROLE, SETTINGS))
    path.chmod(0o755)
    return path


def run(program: Path, *arguments: str, token: str = TOKEN, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script with an empty environment in a home beside it."""
    home = program.parent / "home"
    home.mkdir(exist_ok=True)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"HOME": str(home), "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [str(program), *arguments], input=token + "\n", env=environment, capture_output=True, text=True, check=False
    )


def read(program: Path, file: str) -> Any:
    return json.loads((program.parent / "home" / file).read_text())


def test_it_configures_whoever_runs_it_and_undoes_that(program: Path) -> None:
    home = program.parent / "home"
    result = run(program)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Claude Code is configured. Start it again." in result.stdout
    assert read(program, ".claude.json")["mcpServers"]["local-llm"]["url"] == "https://llm.example.com/mcp"
    assert (home / ".config/local-llm-fleet/local-llm.token").read_text() == TOKEN + "\n"
    assert run(program).stdout.startswith("Claude Code is configured")
    result = run(program, "--undo")
    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "All that was added is gone.")
    assert list(home.iterdir()) == []
    assert run(program, "--undo").stdout == "There was nothing to undo.\n"


def test_a_gateway_that_does_not_answer_is_told(program: Path) -> None:
    result = run(program, "--mode", "gateway")
    assert result.returncode == 1
    assert "Claude Code is configured, but https://127.0.0.1:9/v1/models cannot be reached: connection refused" in (
        result.stderr
    )
    assert read(program, ".claude/settings.json")["env"]["ANTHROPIC_MODEL"] == "qwen3-coder"
    assert not (program.parent / "home/.claude.json").exists()


@pytest.mark.parametrize(
    ("token", "environment", "message"),
    [
        ("two words", {}, "the token has a blank or a line break at position 4"),
        ("", {}, "the token is missing or empty"),
        pytest.param(
            TOKEN,
            {"SUDO_USER": "alice"},
            "run it as yourself, without sudo",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can have come by sudo"),
        ),
    ],
)
def test_what_it_refuses_changes_nothing(program: Path, token: str, environment: dict[str, str], message: str) -> None:
    result = run(program, token=token, **environment)
    assert result.returncode == 1
    assert message in result.stderr
    assert list((program.parent / "home").iterdir()) == []


def test_the_same_sources_make_the_same_file_without_a_secret(program: Path) -> None:
    assert script.build(ROLE, SETTINGS) == program.read_bytes()
    assert TOKEN.encode() not in program.read_bytes()


def test_settings_that_cannot_work_are_refused_where_it_is_built() -> None:
    with pytest.raises(ConfigError, match="url: expected an address like"):
        script.build(ROLE, {**SETTINGS, "params": {**SETTINGS["params"], "url": ""}})


@pytest.mark.parametrize("file", [script.PROGRAM, *(f"module_utils/{name}.py" for name in script.MODULES)])
def test_its_syntax_is_that_of_the_oldest_python(file: str) -> None:
    ast.parse((ROLE / file).read_text(), feature_version=(3, 9))
