"""The command `local-llm-bridge`, also called `mcp-server-openai`.

What a command needs is imported by that command only: the client waits for stdio to start, and Ansible for
`config check`.
"""

from __future__ import annotations

import gc
import os
import re
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO, TypeGuard

from local_llm_bridge import standard_streams
from local_llm_bridge.errors import BridgeError, ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from local_llm_bridge.config import ServeSettings, Settings

_NAMES = ("local-llm-bridge", "mcp-server-openai")
_FAILED, _WRONG, _INTERRUPTED = 1, 2, 130
_COMMANDING = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")
"""What a terminal may take for a command: control characters but the tab and the line's end."""
_ENVIRONMENT = """\
environment of stdio, doctor, ask and config check, where no file is given:
  LOCAL_API_URL, OPENAI_BASE_URL    the model server (default: http://127.0.0.1:8000/v1)
  MODEL_NAME, OPENAI_MODEL          the model (default: the only one that the server lists)
  OPENAI_API_KEY_FILE, OPENAI_API_KEY
                                    its key
  OPENAI_TIMEOUT                    longest time for a call, in milliseconds (default: 240000)
  OPENAI_MAX_RETRIES                repetitions of a request that got no answer (default: 2)
  LOCAL_LLM_MAX_TOKENS              longest answer in tokens, thinking included (default: the tools' own)
  LOCAL_LLM_TOOLS_DIR               folder of your own tools, one YAML file each
  LOCAL_LLM_EXECUTE_PYTHON          1: the tool execute_python runs code in bubblewrap (default: 0)

exit codes: 0, 1 something failed, 2 a setting or an argument is wrong
"""


def main() -> int:
    """Run the command line; return the exit code: 0, 1 when something failed, 2 when a setting is wrong."""
    standard_streams.prepare()
    code = _guarded()
    return code if standard_streams.flush() else code or _FAILED


def _guarded() -> int:
    """Run the command line; whatever goes wrong outside the program ends in a sentence and an exit code."""
    try:
        if sys.argv[1:] in ([], ["stdio"]):
            return _stdio()  # what clients start, so without a parser of arguments
        arguments = _parser().parse_args()
        run: Callable[[argparse.Namespace], int] = arguments.run
        return run(arguments)
    except SystemExit as end:  # argparse's, after --help or a wrong argument
        return end.code if isinstance(end.code, int) else _WRONG
    except BridgeError as error:
        _say(str(error))
        return _WRONG if isinstance(error, ConfigError) else _FAILED
    except OSError as error:
        if standard_streams.flush() and not isinstance(error, BrokenPipeError):
            _say(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED


def _say(text: str) -> None:
    with suppress(OSError):  # nobody reads the errors
        print(f"local-llm-bridge: {text}", file=sys.stderr)


def _stdio(file: Path | None = None) -> int:
    standard_streams.require(0)
    standard_streams.require(1)
    gc.disable()  # a tenth of the start would go into looking for garbage among classes that all stay
    from local_llm_bridge import config, logs  # noqa: PLC0415

    settings = config.from_environment(os.environ) if file is None else config.stdio_from_file(file)
    logs.configure(waits=False)
    import uvloop  # noqa: PLC0415

    from local_llm_bridge.server import stdio  # noqa: PLC0415

    _collect_rarely()
    uvloop.run(stdio.run(settings))
    return 0


def _collect_rarely() -> None:
    """Look for garbage after tens of thousands of objects: every few hundred, that took a fifth of a call."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)


def _parser() -> argparse.ArgumentParser:
    import argparse  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    from local_llm_bridge import __version__  # noqa: PLC0415

    called = Path(sys.argv[0]).name
    prog = called if called in _NAMES else _NAMES[0]

    def add(
        commands: argparse._SubParsersAction[argparse.ArgumentParser],
        name: str,
        run: Callable[[argparse.Namespace], int],
        text: str,
        *examples: str,
    ) -> argparse.ArgumentParser:
        epilog = "\n".join(["examples:", *(f"  {example.format(prog=prog)}" for example in examples)])
        parser = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run)
        return parser

    def add_config(parser: argparse.ArgumentParser, text: str = "settings, YAML (default: the environment)") -> None:
        parser.add_argument("--config", type=Path, metavar="FILE", help=text)

    def add_json(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON")

    parser = argparse.ArgumentParser(
        prog=prog,
        description="MCP server that gives Claude Code a private local model as tools.",
        epilog=f"examples:\n  LOCAL_API_URL=http://127.0.0.1:8000 {prog}\n  {prog} serve --config FILE\n"
        f"  {prog} doctor\n  {prog} COMMAND --help\n\n{_ENVIRONMENT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{_NAMES[0]} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    stdio = add(
        commands,
        "stdio",
        lambda arguments: _stdio(arguments.config),
        "serve MCP on standard input and output (default)",
        """echo '{{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}}' | {prog}""",
        "{prog} stdio --config ~/.config/local-llm-bridge.yml",
    )
    add_config(stdio)

    serve = add(
        commands, "serve", _serve, "serve MCP over HTTP", "{prog} serve --config /etc/local-llm-bridge/config.yml"
    )
    serve.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings, YAML")

    doctor = add(
        commands,
        "doctor",
        _doctor,
        "check all that a call needs, and say what to do",
        "LOCAL_API_URL=http://127.0.0.1:8000 {prog} doctor",
        "sudo CREDENTIALS_DIRECTORY=/run/credentials/local-llm-bridge.service \\",
        "    {prog} doctor --config /etc/local-llm-bridge/config.yml",
        "{prog} doctor --json | jq '.[] | select(.ok == false)'",
    )
    add_config(doctor)
    add_json(doctor)

    ask = add(
        commands,
        "ask",
        _ask,
        "ask the model once, as a client would",
        "{prog} ask 'What does git rebase --onto do?'",
        "git diff | {prog} ask --tool review_code -",
    )
    ask.add_argument("--model", help="which model (default: chosen by the bridge)")
    ask.add_argument("--system", help="how to answer")
    ask.add_argument("--tool", default="chat", help="which tool gets the text (default: chat)")
    add_config(ask)
    add_json(ask)
    ask.add_argument("text", metavar="TEXT", help="the question; - reads it from standard input")

    token = commands.add_parser("token", help="let developers in, and keep them out").add_subparsers(
        metavar="COMMAND", required=True
    )
    new = add(
        token,
        "new",
        _token_new,
        "make a developer's token and show it once",
        "sudo {prog} token new alice --config /etc/local-llm-bridge/config.yml --url https://gateway.example.com/mcp",
    )
    new.add_argument("--url", help="where developers reach the bridge (default: as far as FILE tells)")
    revoke = add(
        token,
        "revoke",
        _token_revoke,
        "make a developer's token worthless, at once",
        "sudo {prog} token revoke alice --config /etc/local-llm-bridge/config.yml",
    )
    listing = add(
        token,
        "list",
        _token_list,
        "show who has a token",
        "sudo {prog} token list --config /etc/local-llm-bridge/config.yml",
    )
    for command in (new, revoke, listing):
        place = command.add_mutually_exclusive_group(required=True)
        place.add_argument("--file", type=Path, metavar="FILE", help="the file that tokens_file names, YAML")
        place.add_argument("--config", type=Path, metavar="FILE", help="settings of serve, which have tokens_file")
        add_json(command)
        if command is not listing:
            command.add_argument("name", metavar="NAME", help="the developer")

    config = commands.add_parser("config", help="look at settings").add_subparsers(metavar="COMMAND", required=True)
    check = add(
        config,
        "check",
        _config_check,
        "say what is wrong with settings; key files of serve are not read",
        "{prog} config check /etc/local-llm-bridge/config.yml",
        "OPENAI_TIMEOUT=60s {prog} config check",
    )
    add_json(check)
    check.add_argument("file", type=Path, nargs="?", metavar="FILE", help="YAML (default: the environment)")
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    gc.disable()
    from local_llm_bridge import config, logs  # noqa: PLC0415

    settings = config.from_file(arguments.config)
    logs.configure()
    from local_llm_bridge.server import http  # noqa: PLC0415

    _collect_rarely()
    http.serve(settings)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    import asyncio  # noqa: PLC0415
    import dataclasses  # noqa: PLC0415

    from local_llm_bridge import doctor  # noqa: PLC0415

    async def examine() -> list[doctor.Finding]:
        findings = []
        marks = {True: "ok  ", False: "FAIL", None: "--  "}
        async for finding in doctor.examine(lambda: _settings(arguments.config), arguments.config, os.environ):
            findings.append(finding)
            if not arguments.json:
                todo = f"\n        → {finding.todo}" if finding.todo else ""
                print(f"{marks[finding.ok]}  {finding.check}: {finding.found}{todo}", flush=True)
        return findings

    findings = asyncio.run(examine())
    if arguments.json:
        _print_json([dataclasses.asdict(finding) for finding in findings])
    return _FAILED if any(finding.ok is False for finding in findings) else 0


def _ask(arguments: argparse.Namespace) -> int:
    import asyncio  # noqa: PLC0415

    from local_llm_bridge.errors import BadArgumentsError  # noqa: PLC0415
    from local_llm_bridge.server.dispatch import Call, Dispatcher, Wire  # noqa: PLC0415

    standard_streams.require(1)
    text = standard_streams.read_text() if arguments.text == "-" else standard_streams.argument(arguments.text)

    async def ask() -> Wire:
        dispatcher = Dispatcher(_settings(arguments.config))
        tool = dispatcher.tools.find(standard_streams.argument(arguments.tool))
        required = tool.schema.get("required") or [*tool.schema["properties"]]
        into = tool.files_into or next(iter(required), None)
        if into is None:
            raise BadArgumentsError(f"{tool.name} takes no text. Choose another tool.")
        given = {into: text, "model": arguments.model, "system": arguments.system}
        told = {key: standard_streams.argument(value) for key, value in given.items() if value is not None}
        try:
            return await dispatcher.run(Call(tool.name, told))
        finally:
            await dispatcher.close()

    result = asyncio.run(ask())
    failed: bool = result["isError"]
    if arguments.json:
        _print_json(result)
        return _FAILED if failed else 0
    answer, *notes = [content["text"] for content in result["content"]]
    _show(answer, sys.stderr if failed else sys.stdout)
    for note in notes:
        with suppress(OSError):  # nobody reads the notes
            _show(note, sys.stderr)
    return _FAILED if failed else 0


def _show(text: str, stream: TextIO) -> None:
    """Print what an engine has written; to a terminal without what would command it."""
    if stream.isatty():
        text = _COMMANDING.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    print(text, file=stream)


def _token_new(arguments: argparse.Namespace) -> int:
    from local_llm_bridge import claude_code, tokens  # noqa: PLC0415

    standard_streams.require(1)
    settings, file = _tokens_file(arguments)
    fixed = settings.developers if settings else ()
    if any(developer.name == arguments.name for developer in fixed):
        raise ConfigError(
            f"{arguments.config}: developers: {arguments.name} has a token there already; choose another name, or take "
            "the entry out of developers first"
        )
    token = tokens.create(file, arguments.name)
    command = claude_code.add_http(arguments.url or _url(settings))
    try:
        if arguments.json:
            _print_json({"name": arguments.name, "token": token, "file": str(file), "claude_code": command})
        else:
            print(
                f"The token of {arguments.name}. It is kept nowhere and not shown again:\n\n  {token}\n\n"
                f"{arguments.name} sets it in the environment ({claude_code.TOKEN_VARIABLE}) and then runs once:\n\n"
                f"  {command}\n"
            )
        sys.stdout.flush()
    except OSError:
        tokens.revoke(file, arguments.name)  # nobody has seen it
        raise
    return 0


def _token_revoke(arguments: argparse.Namespace) -> int:
    from local_llm_bridge import tokens  # noqa: PLC0415

    settings, file = _tokens_file(arguments)
    if settings and any(developer.name == arguments.name for developer in settings.developers):
        raise ConfigError(
            f"{arguments.config}: developers: {arguments.name} is entered there; take the entry out and restart the "
            "bridge"
        )
    tokens.revoke(file, arguments.name)
    if arguments.json:
        _print_json({"name": arguments.name, "file": str(file)})
    else:
        print(f"{arguments.name} is out.")
    return 0


def _token_list(arguments: argparse.Namespace) -> int:
    from local_llm_bridge import tokens  # noqa: PLC0415

    _, file = _tokens_file(arguments)
    entries = tokens.read(file)
    if arguments.json:
        _print_json([{"name": entry.name, "created": entry.created.isoformat()} for entry in entries])
        return 0
    for entry in entries:
        print(f"{entry.created}  {entry.name}")
    return 0


def _tokens_file(arguments: argparse.Namespace) -> tuple[ServeSettings | None, Path]:
    """Return the settings, if they are given, and the tokens file."""
    if arguments.file:
        return None, arguments.file
    from local_llm_bridge import config  # noqa: PLC0415

    settings = config.from_file(arguments.config, read_keys=False)
    if settings.tokens_file is None:
        raise ConfigError(
            f"{arguments.config}: tokens_file: missing; add for example tokens_file: "
            f"{arguments.config.absolute().with_name('tokens.yml')} and restart the bridge"
        )
    return settings, settings.tokens_file


def _url(settings: ServeSettings | None) -> str:
    """Return where developers reach the bridge, as far as its own settings tell."""
    from local_llm_bridge.config import Listen  # noqa: PLC0415

    listen = settings.listen if settings else Listen()
    address = f"[{listen.address}]" if ":" in listen.address else listen.address
    host = settings.allowed_hosts[0] if settings and settings.allowed_hosts else address
    has_port = host.rpartition(":")[2].isdecimal() and not host.endswith("]")
    return f"http://{host if has_port else f'{host}:{listen.port}'}/mcp"


def _config_check(arguments: argparse.Namespace) -> int:
    file: Path | None = arguments.file
    source = "environment" if file is None else str(file)
    try:
        settings = _settings(file, read_keys=False)
        _check_files(settings)
    except ConfigError as error:
        if not arguments.json:
            raise
        _print_json({"settings": source, "ok": False, "problem": str(error)})
        return _WRONG
    if arguments.json:
        _print_json({"settings": source, "ok": True, "problem": None})
    elif file and not _is_of_serve(settings):
        print(f"{file}: good for stdio; serve wants developers, too")
    return 0


def _is_of_serve(settings: Settings) -> TypeGuard[ServeSettings]:
    from local_llm_bridge import config  # noqa: PLC0415

    return isinstance(settings, config.ServeSettings)


def _check_files(settings: Settings) -> None:
    """Check the tokens, the tools and the audit socket; whether the sandbox works is seen when the bridge starts."""
    if _is_of_serve(settings) and settings.tokens_file:
        from local_llm_bridge import tokens  # noqa: PLC0415

        tokens.read(settings.tokens_file)
    if audit := settings.audit_socket:
        with suppress(OSError):  # it may come later
            if not stat.S_ISSOCK(audit.stat().st_mode):
                raise ConfigError(f"audit_socket: {audit} is no socket; wanted that of syslog, such as /dev/log")
    import dataclasses  # noqa: PLC0415
    import socket  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    from local_llm_bridge.tools import Toolbox  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as stand_in:
        if python := settings.execute_python:
            # Tools may want execute_python, so there has to be one: a socket that nobody listens on.
            stand_in.bind(path := f"{folder}/sandbox")
            python = python.model_copy(update={"sandbox": "systemd", "socket": path})
        Toolbox(dataclasses.replace(settings, execute_python=python))


def _settings(file: Path | None, *, read_keys: bool = True) -> Settings:
    """Read settings from the environment, or from a file of either kind.

    Raises:
        ConfigError: something is wrong.
    """
    import dataclasses  # noqa: PLC0415

    from local_llm_bridge import config  # noqa: PLC0415

    if file is None:
        return config.from_environment(os.environ)
    import yaml  # noqa: PLC0415

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        content = None  # said below
    common = {field.name for field in dataclasses.fields(config.Settings)}
    own = {field.name for field in dataclasses.fields(config.ServeSettings)} - common
    if isinstance(content, dict) and "models" in content and not own & content.keys():
        return config.stdio_from_file(file)
    return config.from_file(file, read_keys=read_keys)


def _print_json(value: object) -> None:
    import json  # noqa: PLC0415

    print(json.dumps(value, ensure_ascii=not standard_streams.is_utf8(), indent=2))
