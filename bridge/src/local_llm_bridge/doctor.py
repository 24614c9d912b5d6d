"""`doctor`: from the settings to Claude Code's entry, what works, what does not, and what to do about it.

It goes the way of a call with the bridge's own parts, so what it finds is what a call would meet.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_llm_bridge import claude_code, config
from local_llm_bridge.audit import UNKNOWN
from local_llm_bridge.errors import (
    CallError,
    ConfigError,
    EngineBusyError,
    EngineDownError,
    EngineError,
    EngineKeyError,
    EngineLinkError,
    EngineMissingError,
    OnlyThoughtsError,
)
from local_llm_bridge.models.backend import Backend, Request
from local_llm_bridge.models.engine import EngineClient
from local_llm_bridge.models.router import same_name
from local_llm_bridge.tools import Toolbox
from local_llm_bridge.tools.tool import Context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from local_llm_bridge.models.answer import Completion

_LONGEST_S = 60.0
"""How long one request may take, in seconds."""
_LIST_S = 10.0
_MOST_TOKENS = 2000  # what a call of chat may have, unless the model's own setting says otherwise
_TRIES = 3
_QUICK_S = 1.0
"""What came in one piece within this time, in seconds, says nothing: packets that follow each other closely join."""
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_TOOL_HINT = (
    "vLLM: start it with --enable-auto-tool-choice --tool-call-parser PARSER (Qwen2.5: hermes, Qwen3-Coder: qwen3_xml, "
    "DeepSeek-V3: deepseek_v3). llama.cpp: start it with --jinja. Some models cannot call tools at all."
)
_OF_ENGINE = ("engine", "model", "key", "completion", "streaming", "tool calling", "context")
_OF_BRIDGE = ("sandbox", "tools", "Claude Code")
_VARIABLES = (
    "LOCAL_API_URL",
    "OPENAI_BASE_URL",
    "MODEL_NAME",
    "OPENAI_MODEL",
    "OPENAI_API_KEY_FILE",
    "OPENAI_API_KEY",
    "OPENAI_TIMEOUT",
    "OPENAI_MAX_RETRIES",
    "LOCAL_LLM_MAX_TOKENS",
    "LOCAL_LLM_TOOLS_DIR",
    "LOCAL_LLM_EXECUTE_PYTHON",
)


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        check: its name.
        ok: whether all is well; None: not done, or not needed here.
        found: what was found, or why the check was not done.
        todo: what to do next; empty: nothing.
    """

    check: str
    ok: bool | None
    found: str
    todo: str = ""


def _good(check: str, found: str, todo: str = "") -> Finding:
    return Finding(check, ok=True, found=found, todo=todo)


def _bad(check: str, found: str, todo: str) -> Finding:
    return Finding(check, ok=False, found=found, todo=todo)


def _open(check: str, found: str, todo: str = "") -> Finding:
    return Finding(check, ok=None, found=found, todo=todo)


async def examine(
    load: Callable[[], config.Settings], file: Path | None, environment: Mapping[str, str]
) -> AsyncIterator[Finding]:
    """Do all checks, each when the one before is over.

    Args:
        load: reads the settings; raises ConfigError.
        file: where they are read from; None: from the environment.
        environment: the process's.
    """
    names = [name for name in _VARIABLES if environment.get(name)]
    source = str(file or f"environment ({', '.join(names) or 'nothing set: the defaults'})")
    try:
        settings = load()
    except ConfigError as error:
        yield _bad("settings", str(error), _settings_hint(str(error), file))
        for check in (*_OF_ENGINE, *_OF_BRIDGE):
            yield _not_done(check, "settings")
        return
    yield _good("settings", source)
    for engine in settings.engines:
        checks = list(_OF_ENGINE)
        failed = ""
        async for finding in _examine_engine(settings, engine):
            checks.remove(finding.check)
            failed = failed or (finding.check if finding.ok is False else "")
            yield _labelled(finding, settings, engine)
        for check in checks:
            yield _labelled(_not_done(check, failed), settings, engine)
    async for finding in _examine_tools(settings):
        yield finding
    yield _examine_claude_code(settings, file, environment)


def _labelled(finding: Finding, settings: config.Settings, engine: config.Engine) -> Finding:
    """Say which model's a finding is, where there are several."""
    return finding if len(settings.engines) == 1 else replace(finding, check=f"{finding.check} of {engine.name}")


def _not_done(check: str, failed: str) -> Finding:
    return _open(check, f"not done, as the check before failed: {failed}")


def _settings_hint(text: str, file: Path | None) -> str:
    if "CREDENTIALS_DIRECTORY" in text:
        return (
            "Use those of the running service: sudo CREDENTIALS_DIRECTORY=/run/credentials/local-llm-bridge.service "
            f"local-llm-bridge doctor --config {file}"
        )
    return "Correct it; local-llm-bridge --help lists the variables." if file is None else f"Correct it in {file}."


async def _examine_engine(settings: config.Settings, engine: config.Engine) -> AsyncIterator[Finding]:
    """Check one engine; ends where going on makes no sense."""
    client = EngineClient(engine, 0)
    try:
        async for finding in _Examination(settings, engine, client).findings():
            yield finding
    finally:
        await client.close()


class _Examination:
    """The checks of one engine."""

    def __init__(self, settings: config.Settings, engine: config.Engine, client: EngineClient) -> None:
        timeout_s = min(settings.timeout_s, _LONGEST_S)
        self._settings = replace(
            settings, engines=(engine,), routing=(), default_model=None, max_retries=0, timeout_s=timeout_s
        )
        self._engine = engine
        self._client = client

    async def findings(self) -> AsyncIterator[Finding]:
        engine = self._engine
        try:
            async with asyncio.timeout(_LIST_S):
                names = await self._client.models()
        except TimeoutError:
            yield _bad("engine", f"{engine.url} did not answer within {_LIST_S:g} s", _HOST_HINT)
            return
        except EngineKeyError:
            yield _good("engine", f"{engine.url} answers")
            yield self._bad_key()
            return
        except EngineError as error:
            if engine.name is None or not isinstance(error, EngineMissingError):
                yield _bad("engine", str(error), _engine_hint(error))
                return
            yield _good("engine", f"{engine.url} answers")
            yield _open("model", f"{engine.name}; the engine has no list of models to look it up in")
            names = [engine.name]
        else:
            yield _good("engine", f"{engine.url} answers")
            model = self._model(names)
            yield model
            if not model.ok:
                return
        async for finding in self._answers():
            yield finding
            if finding.ok is False and finding.check != "streaming":  # which nothing below needs
                return
        yield await self._tool_calling()
        yield await self._context(next((name for name in names if same_name(name, engine.name or name)), names[0]))

    def _bad_key(self) -> Finding:
        found = "the engine refuses it" if self._engine.api_key else "the engine wants one, and none is set"
        todo = "Put the engine's key into the file that OPENAI_API_KEY_FILE (stdio) or api_key_file (serve) names."
        return _bad("key", found, todo)

    def _model(self, names: list[str]) -> Finding:
        served = ", ".join(names) or "nothing"
        wanted = self._engine.name
        if wanted is None and len(names) == 1:
            return _good("model", f"{served}, the only one")
        if wanted is None:
            return _bad("model", f"none is named, and the engine serves {served}", "Set MODEL_NAME.")
        if any(same_name(wanted, name) for name in names):
            return _good("model", f"{wanted} is served")
        todo = "Name one of these in MODEL_NAME (stdio) or models[].name (serve), or have the engine serve this one."
        return _bad("model", f"{wanted} is not served; the engine serves {served}", todo)

    async def _answers(self) -> AsyncIterator[Finding]:
        try:
            completion, took_s, _ = await self._ask("Reply with the single word pong.")
        except CallError as error:
            if isinstance(error, EngineKeyError):
                yield self._bad_key()
            else:
                todo = "Look at the engine's log."
                if isinstance(error, OnlyThoughtsError):
                    todo = "A model that thinks first needs longer answers: raise models[].max_tokens (serve) or "
                    todo += "LOCAL_LLM_MAX_TOKENS (stdio), or have the engine turn its thinking off."
                yield _bad("completion", str(error), todo)
            return
        yield _good("key", "accepted" if self._engine.api_key else "none is set, and none is wanted")
        thinking = f", {completion.thinking_tokens} tokens of it thinking" if completion.thinking_tokens else ""
        yield _good("completion", f"{completion.text.strip()[:40]!r} after {took_s:.2f} s{thinking}")
        yield await self._streaming()

    async def _streaming(self) -> Finding:
        """See whether pieces arrive while the answer is being written; of several tries, one is enough."""
        quick = False
        for _ in range(_TRIES):
            try:
                completion, took_s, counts = await self._ask("Count from 1 to 20.")
            except CallError as error:
                return _bad("streaming", str(error), "Look at the engine's log.")
            tokens, first_s = completion.completion_tokens or 0, completion.first_token_s or took_s
            speed = f", {(tokens - 1) / (took_s - first_s):.0f} tokens/s" if tokens > 1 and took_s > first_s else ""
            found = f"{tokens} tokens in {len(counts)} pieces, the first after {first_s:.2f} s{speed}"
            if len(counts) > 1 or tokens <= 1:
                return _good("streaming", found)
            quick = quick or took_s < _QUICK_S
        if quick:
            return _good("streaming", f"{found}: too quick to show whether something on the way holds pieces back")
        todo = "Something on the way keeps the answer until it is whole: turn off its buffering of responses."
        return _bad("streaming", found, todo)

    async def _tool_calling(self) -> Finding:
        needed = bool(self._settings.execute_python or self._settings.tools_dir)
        try:
            completion, _, _ = await self._ask("What is the weather in Paris?", tools=(_TOOL,))
        except CallError as error:
            found = str(error)
        else:
            if any(call.name == "get_weather" for call in completion.tool_calls):
                return _good("tool calling", "the model calls a tool")
            found = f"the model was given a tool, and wrote {completion.text.strip()[:60]!r}"
        if not needed:
            found += " (only execute_python and tools of tools_dir need it)"
        return _bad("tool calling", found, _TOOL_HINT) if needed else _open("tool calling", found, _TOOL_HINT)

    async def _context(self, model: str) -> Finding:
        try:
            served = await self._client.context_of(model)
        except EngineMissingError:
            served = None
        except EngineError as error:
            return _bad("context", str(error), _engine_hint(error))
        configured = self._engine.context
        if served is None:
            return _open("context", "the engine does not tell")
        if configured is None:
            return _good("context", f"the engine has {served} tokens")
        found = f"{configured} tokens in the settings, {served} in the engine"
        if configured > served:
            return _bad("context", found, f"Set context: {served}, or give the engine more.")
        return _good("context", found)

    async def _ask(self, text: str, **more: Any) -> tuple[Completion, float, set[int]]:  # noqa: ANN401 - of Request
        """Ask the model; gives its answer, how long it took in seconds, and the counts of tokens on the way."""
        counts: set[int] = set()
        started = time.monotonic()
        messages = [{"role": "user", "content": text}]
        request = Request(
            messages,
            self._engine.name,
            temperature=0,
            max_tokens=_MOST_TOKENS,
            fresh=True,
            progress=counts.add,
            **more,
        )
        # With a connection of its own: an engine that has just closed the last one would look slow.
        backend = Backend(self._settings)
        try:
            completion = await backend.complete(request)
        finally:
            await backend.close()
        return completion, time.monotonic() - started, counts - {0}


_LINK_HINT = "Set what is named here, in the environment in which the bridge is started, then run this again."
_HOST_HINT = "On its host: is the server up (systemctl status, journalctl -u)? Does a firewall let this host in?"
_BUSY_HINT = "Wait until it is ready, then run this again. If it stays so, look at the engine's log."
_ANSWER_HINT = "Something answers there: check the address, what stands before the engine, and the engine's log."


def _engine_hint(error: EngineError) -> str:
    match error:
        case EngineLinkError():
            return _LINK_HINT
        case EngineDownError():
            return _HOST_HINT
        case EngineBusyError():
            return _BUSY_HINT
        case _:
            return _ANSWER_HINT


async def _examine_tools(settings: config.Settings) -> AsyncIterator[Finding]:
    """Check the sandbox and the operator's tools."""
    python = settings.execute_python
    if python is None:
        yield _open("sandbox", "execute_python is off")
    else:
        try:
            yield _good("sandbox", await _run_python(replace(settings, tools_dir=None)))
        except (ConfigError, CallError) as error:
            yield _bad("sandbox", str(error), "See docs/sandbox.md, or remove execute_python.")
            yield _not_done("tools", "sandbox")
            return
    if settings.tools_dir is None:
        yield _open("tools", "tools_dir is not set")
        return
    try:
        own = {tool["name"] for tool in Toolbox(replace(settings, tools_dir=None)).listing}
        names = [tool["name"] for tool in Toolbox(settings).listing if tool["name"] not in own]
    except ConfigError as error:
        yield _bad("tools", str(error), "Correct the file.")
        return
    yield _good("tools", f"{settings.tools_dir}: {', '.join(names) or 'none that the bridge does not have'}")


async def _run_python(settings: config.Settings) -> str:
    """Run a line of Python in the sandbox; gives what was found.

    Raises:
        ConfigError: there is no sandbox.
        CallError: it does not work.
    """
    tool = Toolbox(settings).find("execute_python")
    backend = Backend(settings)
    started = time.monotonic()
    result = await tool.run(Context(backend, UNKNOWN, started + _LONGEST_S), {"code": "print(1)"})
    if result.details.get("exit_code") != 0:
        raise CallError(f"print(1) did not work: {result.text}")
    return f"print(1) ran in {time.monotonic() - started:.2f} s"


def _examine_claude_code(settings: config.Settings, file: Path | None, environment: Mapping[str, str]) -> Finding:
    check = "Claude Code"
    if isinstance(settings, config.ServeSettings):
        return _open(check, f"not looked for: {file} is a server's, Claude Code is on the developers' machines")
    try:
        entry = claude_code.find_entry(environment, settings.files_root)
    except FileNotFoundError as error:
        return _open(check, f"not here: there is no {error.filename}")
    except ConfigError as error:
        return _bad(check, str(error), "Correct the file; Claude Code cannot read it either.")
    if entry is None:
        todo = "Run: " + claude_code.add_stdio(_program(), _arguments(file), dict(_portable(environment)))
        return _bad(check, "it has no entry for the bridge", todo)
    return _examine_entry(entry, settings, environment)


def _examine_entry(entry: claude_code.Entry, settings: config.Settings, environment: Mapping[str, str]) -> Finding:
    where = f"{entry.name} in {entry.file}"
    if problem := claude_code.problem_of(entry, environment, settings.engines[0]):
        return _bad("Claude Code", f"{where}: {problem[0]}", problem[1])
    if not entry.content.get("alwaysLoad"):
        todo = 'Add "alwaysLoad": true to the entry: without it Claude Code may not show the tools to its model.'
        return _good("Claude Code", where, todo)
    return _good("Claude Code", where)


def _program() -> str:
    """Return the whole path of this program: Claude Code may be started where PATH is another one."""
    return str(Path(sys.argv[0]).absolute())


def _arguments(file: Path | None) -> list[str]:
    return [] if file is None else ["stdio", "--config", str(file.absolute())]


def _portable(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Return the bridge's variables that are set; of the key only its variable."""
    for name in _VARIABLES:
        if value := environment.get(name):
            yield name, f"${{{name}}}" if name == "OPENAI_API_KEY" else value
