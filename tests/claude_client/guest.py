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
FILES = ("anthropic_messages.py", "call_tool.py", "session.py")


@dataclass(frozen=True)
class ToolResult:
    """A tool's result as Claude Code passes it on to the model."""

    text: str
    is_error: bool


@dataclass(frozen=True)
class Session:
    """A session of the interactive Claude Code: what it showed (without blanks), asked of the gateway and looked up."""

    screen: str
    requests: list[dict[str, Any]]
    names: list[str]


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
    answer = _run(host, "call_tool.py", user, tool, json.dumps(arguments))
    assert "error" not in answer, answer["error"]
    return ToolResult(answer["text"], answer["is_error"])


def hold_session(host: Host, user: str, prompt: str, *steps: tuple[str, str]) -> Session:
    """Let a user talk to the interactive client in gateway mode, with the settings in the user's home and no others.

    The gateway is scripted (`anthropic_messages.py`), so that the client sends all that it always does, calls the tool
    that the prompt names, and its requests can be looked at.

    Args:
        host: the guest, as root.
        user: the developer's account there.
        prompt: what the user says first, ``CALL <tool> <arguments as JSON>``.
        *steps: texts to wait for on the screen, and the keys that the user presses then.

    Returns:
        The session, when the last step's text has come.

    Raises:
        AssertionError: a text did not come; the message has what was on the screen.
    """
    answer = _run(host, "session.py", user, prompt, json.dumps(steps))
    assert "error" not in answer, f"{answer['error']}; the screen had: {answer['screen'][-3000:]}"
    return Session(answer["screen"], answer["requests"], answer["names"])


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


def _run(host: Host, program: str, *arguments: str) -> Any:
    """Run one of the programs beside this module in the guest and return what it prints."""
    for name in FILES:
        data = base64.b64encode((Path(__file__).parent / name).read_bytes()).decode()
        host.check_output(f"mkdir -p {FOLDER} && echo %s | base64 -d > {FOLDER}/{name}", data)
    return json.loads(host.check_output(f"python3 {FOLDER}/{program}" + " %s" * len(arguments), *arguments))
