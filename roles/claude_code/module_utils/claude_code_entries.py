"""What Claude Code is told: entries of MCP servers, and the settings with which it runs on the local model itself."""

from __future__ import annotations

import re
import shlex
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from ansible.module_utils.home_files import ConfigError
from ansible.module_utils.json_additions import Document, Whole

if TYPE_CHECKING:
    from pathlib import Path

# Claude Code reads it also from the env of its settings, there even before the shell's, for MCP and for the model.
# It takes one absolute path, and adds the file's certificates to those that it trusts anyway (measured on 2.1.330).
CA_VARIABLE = "NODE_EXTRA_CA_CERTS"
# The model names that users and agents say instead of a model's own.
ALIASES = ("opus", "sonnet", "haiku", "fable")
# With these in its env, Claude Code would send the gateway a key of the developer's own, or ask another cloud.
RIVALS = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_FOUNDRY",
    "CLAUDE_CODE_USE_VERTEX",
)
# Claude Code's first request, in tokens: 78 to 92 KB of instructions and tools, at about 4 bytes a token.
FIRST_REQUEST = 24576


def check_token(token: str | None) -> str:
    """Return the token if it can be sent as a bearer token.

    Raises:
        ConfigError: it is missing, empty or has a character that RFC 6750 does not allow.
    """
    if not token:
        raise ConfigError("the token is missing or empty; set 'token'")
    unfit = re.search(r"[^A-Za-z0-9._~+/=-]", token)
    if unfit:
        kind = "a blank or a line break" if unfit.group().isspace() else "a character that bearer tokens cannot have"
        raise ConfigError(
            f"the token has {kind} at position {unfit.start() + 1}; allowed are letters, digits and . _ ~ + / = -"
        )
    return token


def check_url(name: str, url: str, example: str) -> str:
    """Return the URL if it is a complete http or https address.

    Args:
        name: what the address is set by.
        url: the address.
        example: a right one.

    Raises:
        ConfigError: it is not, or it holds a password.
    """
    try:
        parts = urlsplit(url)
        complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        complete = False
    if not complete or re.search(r"\s", url):
        raise ConfigError(f"{name}: expected an address like {example}, found {url!r}")
    if parts.username or parts.password:
        raise ConfigError(f"{name}: must not hold a user or a password; the token belongs into 'token'")
    return url


def check_ca(certificates: str) -> str:
    """Return the text if it is one or more certificates in PEM; an empty one is fine.

    Raises:
        ConfigError: it is something else.
    """
    if "PRIVATE KEY-----" in certificates:
        raise ConfigError("ca_certificate: holds a private key; give the CA's certificate alone")
    if certificates:
        try:
            ssl.create_default_context(cadata=certificates)
        except (ssl.SSLError, ValueError) as error:
            first = (certificates.strip().splitlines() or [certificates])[0][:60]
            raise ConfigError(
                "ca_certificate: expected the text of a PEM file, -----BEGIN CERTIFICATE----- and so on; found one "
                f"that begins with {first!r} and cannot be read ({error})"
            ) from None
    return certificates


def server_entries(params: dict[str, Any], transport: str, token_file: Path, ca_file: Path) -> Document:
    """Return the entries for mcpServers by name. The token is not in them: it is read from token_file.

    Args:
        params: the module's parameters.
        transport: "http" or "stdio".
        token_file: holds the developer's token.
        ca_file: holds the certificates to trust, if params has any.

    Raises:
        ConfigError: the URL, the command, the environment or a server's model is not usable.
    """
    entries: Document = {}
    for server in params["servers"] or [{"name": params["server_name"]}]:
        name, model = server["name"], server.get("model")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ConfigError(f"servers: expected a name of letters, digits, - and _, found {name!r}")
        if name in entries:
            raise ConfigError(f"servers: {name!r} is listed more than once")
        # Without alwaysLoad, Claude Code's tool search hides the tools from the model, and it waits only 2 s.
        common = {"timeout": params["timeout_ms"], "alwaysLoad": True}
        if transport == "http":
            url = check_url("url", params["url"], "https://gateway.example.com/mcp")
            if model:  # the bridge takes it for calls that name none
                url += f"{'&' if urlsplit(url).query else '?'}model={quote(model, safe='')}"
            # Claude Code gives this to a shell, also when started from a desktop that has read no shell profile.
            helper = f"""printf '{{"Authorization": "Bearer %s"}}' "$(cat {shlex.quote(str(token_file))})\""""
            entries[name] = Whole({"type": "http", "url": url, "headersHelper": helper, **common})
        else:
            environment = _stdio_environment(params, model, token_file, ca_file)
            command = params["stdio_command"]
            if not command.startswith("/"):
                raise ConfigError(f"stdio_command: expected an absolute path, found {command!r}")
            entries[name] = Whole({"type": "stdio", "command": command, "args": [], "env": environment, **common})
    return entries


def _stdio_environment(params: dict[str, Any], model: str | None, token_file: Path, ca_file: Path) -> dict[str, str]:
    if "OPENAI_API_KEY" in params["stdio_env"]:
        raise ConfigError(
            "stdio_env: OPENAI_API_KEY would be readable in ~/.claude.json; set it as the developer's 'token'"
        )
    environment = {name: str(value) for name, value in params["stdio_env"].items()}
    if model:
        environment.pop("MODEL_NAME", None)  # goes before
        environment["OPENAI_MODEL"] = model
    engine = environment.get("LOCAL_API_URL") or environment.get("OPENAI_BASE_URL", "")
    if params["ca_certificate"] and engine.startswith("https:"):
        environment.setdefault("SSL_CERT_FILE", str(ca_file))  # Python's ssl reads it, so every HTTP client does
    environment["OPENAI_API_KEY_FILE"] = str(token_file)
    return environment


def gateway_settings(gateway: dict[str, Any], token_file: str) -> Document:
    """Return the settings with which Claude Code itself runs on a local model.

    Args:
        gateway: url, model, models (by alias), context and max_output (both in tokens), thinking.
        token_file: the token's file, as a word of a shell.

    Raises:
        ConfigError: something is missing, or the model has too little context to be of use.
    """
    url = check_url("gateway.url", gateway["url"], "https://llm.example.com").rstrip("/")
    if urlsplit(url).path.rstrip("/").endswith("/v1"):
        raise ConfigError(f"gateway.url: Claude Code adds /v1/messages itself; take /v1 off {url!r}")
    model, context, output = gateway["model"], gateway["context"], gateway["max_output"]
    if not model:
        raise ConfigError("gateway.model: expected the name of a model that the gateway serves, found nothing")
    if output < 1 or context - output < FIRST_REQUEST:
        raise ConfigError(
            f"gateway.context: Claude Code needs {FIRST_REQUEST} tokens for its first request and room for the answer; "
            f"found a context of {context} and {output} of it for the answer. Serve the model with more context, or "
            f"lower gateway.max_output"
        )
    models = {alias: gateway["models"].get(alias) or model for alias in ALIASES}
    environment = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_MODEL": model,
        **{f"ANTHROPIC_DEFAULT_{alias.upper()}_MODEL": name for alias, name in models.items()},
        # Claude Code takes a model that it does not know for one with a context of a million tokens.
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(context),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(output),
        # "Default" of /model would be <model>[1m]: a million tokens again, and no compaction.
        "CLAUDE_CODE_DISABLE_1M_CONTEXT": "1",
        # A block that differs in every call; the engine could not use its prefix cache.
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        # At its first start it would fetch a list of plugins from downloads.claude.ai, then github.com.
        "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
        **({} if gateway["thinking"] else {"CLAUDE_CODE_DISABLE_THINKING": "1"}),
    }
    return {
        "apiKeyHelper": f"cat {token_file}",
        "env": environment,
        "permissions": {
            # Engines do not search. They ignore the request, and Claude Code shows what the model invents as results.
            "deny": ["WebSearch"],
            # Claude Code would ask the model whether a tool may run, with 31,000 tokens of instructions.
            "disableAutoMode": "disable",
        },
        # WebFetch would tell api.anthropic.com the name of each host that it fetches from.
        "skipWebFetchPreflight": True,
    }
