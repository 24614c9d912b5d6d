"""Run the real Claude Code as one user of this host and let it call one tool: ``call_tool.py USER TOOL ARGUMENTS``.

The client gets an empty environment and the user's own home, so that everything it knows comes from the configuration
there; its cloud is the stand-in of anthropic_messages.py. Prints one JSON object: ``{"is_error": …, "text": …}`` as the
client has passed it on to the model, or ``{"error": …}``.
"""

from __future__ import annotations

import json
import pwd
import subprocess
import sys

import anthropic_messages

TIMEOUT = 180  # seconds


def call_tool(user: str, tool: str, arguments: str) -> dict[str, object]:
    """Return what the client passed on as the tool's result.

    Args:
        user: an account of this host; this process must be allowed to act for it.
        tool: the tool's full name, such as ``mcp__local-llm__chat``.
        arguments: a JSON object.
    """
    account = pwd.getpwnam(user)
    with anthropic_messages.running() as messages:
        environment = {
            "HOME": account.pw_dir,
            "USER": user,
            "PATH": f"{account.pw_dir}/.local/bin:/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
        }
        # By itself the client waits some 6 s for its MCP servers, which is too little on a busy machine.
        patience = {"MCP_CONNECTION_NONBLOCKING": "0", "MCP_CONNECT_TIMEOUT_MS": str(TIMEOUT * 1000)}
        # Settings of the command line come before those of a user whose Claude Code runs on a local model itself.
        cloud = {"ANTHROPIC_BASE_URL": messages.url, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", **patience}
        settings = json.dumps({"apiKeyHelper": "echo scripted", "env": cloud})
        client = subprocess.run(
            ["claude", "-p", f"CALL {tool} {arguments}", "--output-format", "json", "--settings", settings],
            cwd=account.pw_dir,
            env=environment,
            user=user,
            group=account.pw_gid,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    try:
        answer = json.loads(json.loads(client.stdout)["result"])
    except (ValueError, KeyError, TypeError):
        return {"error": f"the client gave no answer (exit status {client.returncode}): {client.stdout}{client.stderr}"}
    return dict(answer)


if __name__ == "__main__":
    print(json.dumps(call_tool(*sys.argv[1:4])))
