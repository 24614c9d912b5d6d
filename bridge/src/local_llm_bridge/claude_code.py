"""Claude Code's side: the entry with which it finds the bridge, and what is wrong with the one that is there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_llm_bridge import config
from local_llm_bridge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

NAME = "local-llm"
TOKEN_VARIABLE = "LOCAL_LLM_TOKEN"  # noqa: S105 - its name
_PROGRAMS = {"local-llm-bridge", "mcp-server-openai"}
_MANAGED = Path("/etc/claude-code/managed-mcp.json")
_VARIABLE = re.compile(r"\$\{(\w+)(:-[^}]*)?\}")
# Without alwaysLoad, Claude Code's tool search hides the tools from its model, and it waits only 2 s for the bridge.
_COMMON = {"timeout": 600_000, "alwaysLoad": True}


@dataclass(frozen=True)
class Entry:
    """One of Claude Code's MCP servers.

    Args:
        name: its name there.
        file: where it stands.
        content: command, args and env, or url and headers.
    """

    name: str
    file: Path
    content: Mapping[str, Any]


def add_http(url: str) -> str:
    """Return the command that tells Claude Code of a bridge over HTTP. The token stays in the environment."""
    headers = {"Authorization": f"Bearer ${{{TOKEN_VARIABLE}}}"}
    return _add({"type": "http", "url": url, "headers": headers, **_COMMON})


def add_stdio(program: str, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the command that tells Claude Code to start the bridge itself."""
    entry = {"type": "stdio", "command": program, "args": list(arguments), "env": dict(environment)}
    return _add({**entry, **_COMMON})


def _add(entry: Mapping[str, Any]) -> str:
    return f"claude mcp add-json --scope user {NAME} {shlex.quote(json.dumps(entry))}"


def find_entry(environment: Mapping[str, str], project: Path | None) -> Entry | None:
    """Return the bridge's entry that counts in a project's folder; None: there is none.

    Args:
        environment: tells where Claude Code keeps its settings.
        project: the folder; None: it was deleted.

    Raises:
        FileNotFoundError: there is no Claude Code here.
        ConfigError: one of its files is wrong.
    """
    if _MANAGED.exists():  # shuts out all others
        return next(_bridges(_MANAGED, _read(_MANAGED)), None)
    home = environment.get("CLAUDE_CONFIG_DIR") or environment.get("HOME") or _home()
    user_file = Path(home, ".claude.json")
    user = _read(user_file)
    local = _mapping(_mapping(user.get("projects")).get(str(project)))
    found = [(user_file, local), (user_file, user)]
    if project and (project_file := project / ".mcp.json").exists():
        found.insert(1, (project_file, _read(project_file)))
    return next((entry for file, content in found for entry in _bridges(file, content)), None)


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user without an entry in passwd, and no HOME
        raise ConfigError("HOME: not set, and this user has no home folder; set HOME") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: is no JSON object")
    return content


def _bridges(file: Path, content: Mapping[str, Any]) -> Iterator[Entry]:
    for name, found in _mapping(content.get("mcpServers")).items():
        entry = _mapping(found)
        words = [str(entry.get("command", "")), *map(str, entry.get("args") or ())]
        starts_it = any(Path(word).name in _PROGRAMS or word == "local_llm_bridge" for word in words)
        if starts_it or ("url" in entry and name.startswith(NAME)):
            yield Entry(name, file, entry)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def problem_of(entry: Entry, environment: Mapping[str, str], engine: config.Engine) -> tuple[str, str] | None:
    """Return what is wrong with an entry and what to do; None: nothing that its text shows.

    Args:
        entry: the bridge's.
        environment: in which Claude Code is started.
        engine: the one that the bridge should ask.
    """
    content = entry.content
    missing = sorted(_missing(content, environment))
    if missing:
        names = ", ".join(missing)
        return f"it uses {names}, not set here", f"Set {names} in the environment in which Claude Code is started."
    if "url" in content:
        return _http_problem(content)
    command = _expanded(str(content.get("command", "")), environment)
    if not shutil.which(command):
        return (
            f"its command {command!r} is not there or cannot be run",
            f"Put the program's whole path into {entry.file}: {shutil.which('local-llm-bridge') or 'local-llm-bridge'}",
        )
    return _stdio_problem(entry, environment, engine)


def _http_problem(content: Mapping[str, Any]) -> tuple[str, str] | None:
    if content.get("type") not in {"http", "streamable-http"}:
        return 'it has no "type": "http", so Claude Code skips it', 'Add "type": "http" to the entry.'
    if "headersHelper" in content:
        return None
    headers = {key.lower(): str(value) for key, value in _mapping(content.get("headers")).items()}
    if not headers.get("authorization", "").lower().startswith("bearer "):
        wanted = f'"headers": {{"Authorization": "Bearer ${{{TOKEN_VARIABLE}}}"}}'
        return "it sends no token", f"Add {wanted}; whoever runs the bridge makes a token: local-llm-bridge token new."
    return None


def _stdio_problem(entry: Entry, environment: Mapping[str, str], engine: config.Engine) -> tuple[str, str] | None:
    """Say whether the bridge that this entry starts is the one that the checks before were about."""
    arguments = [_expanded(str(argument), environment) for argument in entry.content.get("args") or ()]
    own = {name: _expanded(str(value), environment) for name, value in _mapping(entry.content.get("env")).items()}
    try:
        if "--config" in arguments[:-1]:
            settings = config.stdio_from_file(Path(arguments[arguments.index("--config") + 1]))
        else:
            settings = config.from_environment(own)
    except ConfigError as error:
        return f"its bridge would not start: {error}", f"Correct it in {entry.file}."
    theirs = settings.engines[0]
    if (theirs.url, theirs.name, bool(theirs.api_key)) != (engine.url, engine.name, bool(engine.api_key)):
        return (
            f"its bridge asks {_described(theirs)}; these checks asked {_described(engine)}",
            f"Put what the bridge needs into its env in {entry.file}, or run these checks with what is there.",
        )
    return None


def _described(engine: config.Engine) -> str:
    return f"{engine.url} for {engine.name or 'its only model'} {'with' if engine.api_key else 'without'} a key"


def _missing(value: Any, environment: Mapping[str, str]) -> set[str]:  # noqa: ANN401 - JSON
    """Return the variables that an entry uses and that are neither set nor have a default."""
    if isinstance(value, str):
        return {name for name, default in _VARIABLE.findall(value) if not default and name not in environment}
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {name for item in values for name in _missing(item, environment)}


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda found: environment.get(found[1]) or (found[2] or "")[2:], text)
