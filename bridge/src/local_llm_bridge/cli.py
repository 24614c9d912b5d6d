"""The command `local-llm-bridge`, also called `mcp-server-openai`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
from pathlib import Path

from local_llm_bridge import __version__
from local_llm_bridge.errors import BridgeError, ConfigError

_EPILOG = """\
environment of stdio:
  LOCAL_API_URL, OPENAI_BASE_URL    the model server (default: http://127.0.0.1:8000/v1)
  MODEL_NAME, OPENAI_MODEL          the model (default: the only one that the server lists)
  OPENAI_API_KEY_FILE, OPENAI_API_KEY
                                    its key
  OPENAI_TIMEOUT                    longest time for a call, in milliseconds (default: 240000)
  OPENAI_MAX_RETRIES                repetitions of a request that got no answer (default: 2)
"""


def main() -> int:
    """Run the command line; return the exit code: 0, 1 when it cannot run, 2 when a setting is wrong."""
    arguments = _parser().parse_args()
    try:
        match arguments.command:
            case "serve":
                _serve(arguments.config)
            case "config":
                _check(arguments.file)
            case _:
                _stdio()
    except ConfigError as error:
        print(f"local-llm-bridge: {error}", file=sys.stderr)
        return 2
    except BridgeError as error:
        print(f"local-llm-bridge: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="local-llm-bridge",
        description="MCP server that gives Claude Code a private local model as tools.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"local-llm-bridge {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("stdio", help="serve MCP on standard input and output (default)")
    serve = commands.add_parser("serve", help="serve MCP over HTTP")
    serve.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings, YAML")
    config = commands.add_parser("config", help="look at settings").add_subparsers(metavar="COMMAND", required=True)
    check = config.add_parser("check", help="say what is wrong with the settings of serve; key files are not read")
    check.add_argument("file", type=Path, metavar="FILE")
    return parser


# What a command needs is imported by that command only, and after the settings have been found good: the client waits
# for stdio to start, and Ansible for `config check`.


def _stdio() -> None:
    gc.disable()  # a tenth of the start would go into looking for garbage among classes that all stay
    from local_llm_bridge import config, logs  # noqa: PLC0415

    settings = config.from_environment(os.environ)
    logs.configure()
    from local_llm_bridge import stdio  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    asyncio.run(stdio.run(settings))


def _serve(path: Path) -> None:
    from local_llm_bridge import config, logs  # noqa: PLC0415

    settings = config.from_file(path)
    logs.configure()
    from local_llm_bridge import http  # noqa: PLC0415

    http.serve(settings)


def _check(path: Path) -> None:
    from local_llm_bridge import config  # noqa: PLC0415

    config.from_file(path, read_keys=False)
