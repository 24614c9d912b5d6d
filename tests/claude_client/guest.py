"""Let a user's Claude Code in a guest call a tool or answer a question, from a testinfra test."""

from __future__ import annotations

import base64
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testinfra.host import Host

FOLDER = "/run/claude-client"
FILES = ("anthropic_messages.py", "call_tool.py")


@dataclass(frozen=True)
class ToolResult:
    """A tool's result as Claude Code passes it on to the model."""

    text: str
    is_error: bool


def call_tool(host: Host, user: str, tool: str, **arguments: Any) -> ToolResult:
    """Let the real client call a tool, with nothing but what is configured in the user's home.

    Args:
        host: the guest, as root.
        user: the developer's account there.
        tool: the tool's full name, such as ``mcp__local-llm__chat``.
        **arguments: the tool's arguments.

    Returns:
        The tool's result.

    Raises:
        AssertionError: the client did not call the tool; the text is the client's own or says which tools it has.
    """
    for name in FILES:
        data = base64.b64encode((Path(__file__).parent / name).read_bytes()).decode()
        host.check_output(f"mkdir -p {FOLDER} && echo %s | base64 -d > {FOLDER}/{name}", data)
    output = host.check_output(f"python3 {FOLDER}/call_tool.py %s %s %s", user, tool, json.dumps(arguments))
    answer = json.loads(output)
    assert "error" not in answer, answer["error"]
    return ToolResult(answer["text"], answer["is_error"])


def ask(host: Host, user: str, question: str, *options: str) -> str:
    """Let the real client answer a question in gateway mode, with nothing but what is configured for the user.

    Without options the client sends what it always does: about 80 KB of instructions and tools, 35,000 tokens of the
    tiny model's. ``--tools ""`` makes it 8 KB; ``--bare`` and a short ``--system-prompt`` besides make it less than
    1 KB, so that the tiny model knows the question. ``--bare`` needs ``--settings FILE``: a bare client takes the key
    helper from there only.

    Args:
        host: the guest, as root.
        user: the developer's account there.
        question: what to ask.
        *options: of the client.

    Returns:
        The answer.

    Raises:
        AssertionError: the client failed; the text has its words.
    """
    command = f"claude -p {shlex.join([question, *options])} </dev/null"
    result = host.run("su -l %s -c %s", user, command)
    assert result.rc == 0, f"the client failed (exit status {result.rc}): {result.stdout}{result.stderr}"
    return str(result.stdout).strip()
