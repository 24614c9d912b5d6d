"""The bridge's settings, read from a YAML file (`serve`) or from the environment (stdio).

Every error names the key, what was found and what is allowed. A value that may be a secret is never repeated.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from local_llm_bridge import proxy
from local_llm_bridge.errors import ConfigError
from local_llm_bridge.patterns import matcher
from local_llm_bridge.rules import GUIDE_RULES, Rule
from local_llm_bridge.texts import kind as kind_of
from local_llm_bridge.texts import printable, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from local_llm_bridge.proxy import Proxy

DEFAULT_URL = "http://127.0.0.1:8000/v1"
# Claude Code gives up on an HTTP call after 5 minutes without a sign of life: the bridge has to speak before that.
DEFAULT_TIMEOUT_S = 240.0
DEFAULT_MAX_RETRIES = 2
DEFAULT_CONCURRENCY = 5
DEFAULT_QUEUE = 20
DEFAULT_REQUESTS_PER_MINUTE = 120
DEFAULT_CACHE_ENTRIES = 100
DEFAULT_CACHE_TTL_S = 3600.0
DEFAULT_TOOL_ROUNDS = 5
MOST_TOKENS = 1_000_000
_LONGEST_NAME = 256
_LONGEST_SOCKET = 107  # Linux', of the address of a socket
DEFAULT_SANDBOX_SOCKET = "/run/local-llm-sandbox.sock"


@dataclass(frozen=True)
class Engine:
    """One model and the OpenAI-compatible server that runs it."""

    name: str | None
    """The model's name there; None: the only one that the server lists."""
    url: str
    """Base URL, ends in /v1."""
    context: int | None = None
    """Context length in tokens; None: not known, the server will say when it is exceeded."""
    api_key: str | None = field(default=None, repr=False)
    good_at: tuple[str, ...] = ()
    """Strengths by which the router chooses, such as `code`, `maths`, `general`."""
    concurrency: int = DEFAULT_CONCURRENCY
    """How many requests it is sent at once."""
    queue: int = DEFAULT_QUEUE
    """How many calls may wait for it."""
    proxy: Proxy | None = None
    """What it is reached through; None: nothing."""
    max_tokens: int | None = None
    """Its longest answer in tokens, thoughts included; None: the tools' own."""


@dataclass(frozen=True)
class CacheSettings:
    """Which answers are kept."""

    entries: int = DEFAULT_CACHE_ENTRIES
    ttl_s: float = DEFAULT_CACHE_TTL_S
    """How long, in seconds."""
    shared: bool = False
    """Whether one developer may get the answer to another's question."""


@dataclass(frozen=True)
class Settings:
    """What both ways of running need."""

    engines: tuple[Engine, ...]
    default_model: str | None = None
    """Who answers what no rule sends elsewhere; None: the first engine."""
    routing: tuple[Rule, ...] = GUIDE_RULES
    timeout_s: float = DEFAULT_TIMEOUT_S
    """Longest time for one call, waiting and repetitions included, in seconds."""
    max_retries: int = DEFAULT_MAX_RETRIES
    """How often a request that got no answer yet is repeated."""
    requests_per_minute: int = 0
    """How many calls a developer may make; 0 means any number."""
    cache: CacheSettings = field(default_factory=CacheSettings)
    max_tokens: Mapping[str, int] = field(default_factory=dict)
    """By a tool's name: its longest answer in tokens, whatever the model."""
    tools_dir: Path | None = None
    """Folder of the operator's tools, one YAML file each."""
    tool_rounds: int = DEFAULT_TOOL_ROUNDS
    """How often the local model may call tools before it has to answer."""
    execute_python: ExecutePython | None = None
    """None: off."""
    audit_content: bool = False
    """Whether the log holds what was asked and answered."""
    audit_socket: Path | None = None
    """The socket of syslog to which records of calls go; None: to the bridge's own log."""
    files_root: Path | None = None
    """The project's folder, from which tools may read files; None: no files."""


_BASE = re.compile(r"(.*?)(?:/+(chat/completions|completions|models))?/*\Z", re.DOTALL)
_VERSIONED = re.compile(r"/v\d+((alpha|beta)\d*)?(/openai)?$", re.IGNORECASE)
"""A base URL's path that is whole: Google's ends in /v1beta/openai."""


def _http_url(value: str) -> str:
    """Check a base URL and complete it with /v1.

    Raises:
        ValueError: it is not an http(s) URL of a host, or carries a password.
    """
    if "@" in value:  # before anything repeats it
        raise ValueError("must not hold a user or password; a key belongs into a file")
    _check_utf8(value)
    parts = urlsplit(value.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"found {value!r}; wanted http(s)://host[:port][/v1]")
    _ = parts.port  # raises ValueError when it is not a port
    try:
        parts.hostname.encode("idna")
    except UnicodeError:
        raise ValueError(
            f"found {value!r:.200}, in which the host is no name: a part of it is empty or too long"
        ) from None
    # What people copy is often the address of one of its services; that of questions tells all.
    path: str
    path, service = _BASE.findall(parts.path)[0]
    if service != "chat/completions" and not _VERSIONED.search(path):
        path += "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _check_utf8(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"found {value!r}, which is not UTF-8 text") from None


def _ip_address(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"found {value!r}; wanted an IP address such as 127.0.0.1 or 0.0.0.0") from None
    return value


def _token_digest(value: str) -> str:
    # Somebody may have put the token itself here: say its length, not its text.
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"found a text of {len(value)} characters; wanted the token's SHA-256, 64 digits 0-9a-f")
    return value


def _pattern(value: str) -> str:
    matcher(value)
    return value


def _socket(value: str) -> str:
    if not value.startswith("/") or "\0" in value or len(value.encode(errors="replace")) > _LONGEST_SOCKET:
        raise ValueError(f"found {shown(value)}; wanted a path from / of {_LONGEST_SOCKET} bytes at most")
    return value


def _model_name(value: str) -> str:
    # What engines list: a name, a path, a file's name with blanks. It goes into log lines: nothing that cannot be seen.
    if not value.isprintable() or value != value.strip() or not 1 <= len(value) <= _LONGEST_NAME:
        raise ValueError(
            f"found {shown(value)}; wanted a name of 1 to {_LONGEST_NAME} characters that can all be seen, "
            "without blanks at its ends"
        )
    return value


def _host_header(value: str) -> str:
    if not re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", value):
        raise ValueError(f"found {value!r}; wanted host or host:port")
    return value.lower()


_ModelName = Annotated[str, AfterValidator(_model_name)]
_Socket = Annotated[str, AfterValidator(_socket)]
_MaxTokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
DEVELOPER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
_DeveloperName = Annotated[str, StringConstraints(pattern=DEVELOPER_NAME)]
_Strength = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Listen(_Section):
    """Where HTTP is served."""

    address: Annotated[str, AfterValidator(_ip_address)] = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65535)


class Developer(_Section):
    """Somebody who may call, known by the SHA-256 of a bearer token."""

    name: _DeveloperName
    token_sha256: Annotated[str, AfterValidator(_token_digest)]


class ExecutePython(_Section):
    """Where Python code is run, and within which limits."""

    sandbox: Literal["systemd", "bubblewrap"]
    socket: _Socket = DEFAULT_SANDBOX_SOCKET
    """Of the systemd unit; bubblewrap needs none."""
    time_s: float = Field(default=10, ge=1, le=300)
    memory_mib: int = Field(default=256, ge=32, le=65536)
    processes: int = Field(default=16, ge=1, le=1024)
    output_kib: int = Field(default=64, ge=1, le=1024)


class _Model(_Section):
    name: _ModelName
    url: Annotated[str, AfterValidator(_http_url)]
    context: int = Field(ge=256)
    api_key_file: str | None = Field(default=None, min_length=1)
    good_at: list[_Strength] = []
    concurrency: int = Field(default=DEFAULT_CONCURRENCY, ge=1, le=1024)
    queue: int = Field(default=DEFAULT_QUEUE, ge=0, le=10_000)
    max_tokens: _MaxTokens | None = None


class _Routing(_Section):
    model: _ModelName | None = None
    good_at: _Strength | None = None
    keywords: list[Annotated[str, StringConstraints(min_length=1)]] = []
    patterns: list[Annotated[str, AfterValidator(_pattern)]] = []

    @model_validator(mode="after")
    def _has_one_target_and_a_condition(self) -> _Routing:
        if (self.model is None) == (self.good_at is None):
            raise ValueError("wanted either model or good_at")
        if not self.keywords and not self.patterns:
            raise ValueError("wanted keywords or patterns: a rule without any fits nothing")
        return self


class _Cache(_Section):
    entries: int = Field(default=DEFAULT_CACHE_ENTRIES, ge=0, le=100_000)
    ttl_s: float = Field(default=DEFAULT_CACHE_TTL_S, ge=1)
    shared: bool = False


class _Shared(_Section):
    """What a file for stdio has, too."""

    models: list[_Model] = Field(min_length=1)
    default_model: _ModelName | None = None
    routing: list[_Routing] | None = None
    timeout_s: float = Field(default=DEFAULT_TIMEOUT_S, ge=1, le=3600)
    max_retries: int = Field(default=DEFAULT_MAX_RETRIES, ge=0, le=10)
    cache: _Cache = _Cache()
    max_tokens: dict[str, _MaxTokens] = {}
    tools_dir: str | None = Field(default=None, pattern="^/")
    tool_rounds: int = Field(default=DEFAULT_TOOL_ROUNDS, ge=1, le=50)
    execute_python: ExecutePython | None = None
    audit_content: bool = False
    audit_socket: _Socket | None = None


class _File(_Shared):
    listen: Listen = Listen()
    allowed_hosts: list[Annotated[str, AfterValidator(_host_header)]] = []
    developers: list[Developer]
    tokens_file: str | None = Field(default=None, pattern="^/")
    gateway_key_sha256: Annotated[str, AfterValidator(_token_digest)] | None = None
    former_gateway_keys_sha256: list[Annotated[str, AfterValidator(_token_digest)]] = []
    requests_per_minute: int = Field(default=DEFAULT_REQUESTS_PER_MINUTE, ge=0, le=1_000_000)


_FileT = TypeVar("_FileT", bound=_Shared)
_SECTIONS: dict[str, type[_Section]] = {
    "listen": Listen,
    "models": _Model,
    "developers": Developer,
    "routing": _Routing,
    "cache": _Cache,
    "execute_python": ExecutePython,
}


@dataclass(frozen=True)
class ServeSettings(Settings):
    """What `serve` needs besides."""

    listen: Listen = field(default_factory=Listen)
    allowed_hosts: tuple[str, ...] = ()
    """Host headers that are accepted besides loopback and the listening address."""
    developers: tuple[Developer, ...] = ()
    tokens_file: Path | None = None
    """Further developers, whom the command `token` enters and removes; read again when it changes."""
    gateway_keys: tuple[str, ...] = ()
    """SHA-256 of the keys of a gateway in front, which says whose requests it sends on; none: there is no gateway."""


def from_file(path: Path, *, read_keys: bool = True) -> ServeSettings:
    """Read the settings of `serve`.

    Args:
        path: the YAML file.
        read_keys: False checks all but the key files, which exist only while the service runs.

    Raises:
        ConfigError: the file cannot be read or something in it is wrong.
    """
    file = _validate(path, _File)
    if double := _doubles(developer.name for developer in file.developers):
        raise ConfigError(f"{path}: developers: name: found {double!r} more than once; each must be unique")
    if _doubles(developer.token_sha256 for developer in file.developers):
        raise ConfigError(f"{path}: developers: token_sha256: two developers have the same token; give each their own")
    gateway_keys = [file.gateway_key_sha256] if file.gateway_key_sha256 else []
    gateway_keys += file.former_gateway_keys_sha256
    if {developer.token_sha256 for developer in file.developers} & set(gateway_keys):
        raise ConfigError(
            f"{path}: gateway_key_sha256: a developer has it as token_sha256; give the gateway its own key"
        )
    return ServeSettings(
        **_shared(path, file, read_keys=read_keys),
        requests_per_minute=file.requests_per_minute,
        listen=file.listen,
        allowed_hosts=tuple(file.allowed_hosts),
        developers=tuple(file.developers),
        tokens_file=Path(file.tokens_file) if file.tokens_file else None,
        gateway_keys=tuple(gateway_keys),
    )


def stdio_from_file(path: Path) -> Settings:
    """Read the settings of stdio from a file: those of `serve` without listener and developers.

    Raises:
        ConfigError: the file cannot be read or something in it is wrong.
    """
    return Settings(**_shared(path, _validate(path, _Shared), read_keys=True), files_root=_project())


def _validate(path: Path, kind: type[_FileT]) -> _FileT:
    content = _parse(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(_explain(item, kind) for item in error.errors())}") from None


def _shared(path: Path, file: _Shared, *, read_keys: bool) -> dict[str, Any]:
    """Return the settings that both ways of running have; check what one value alone cannot tell."""
    names = [model.name for model in file.models]
    if double := _doubles(names):
        raise ConfigError(f"{path}: models: name: found {double!r} more than once; each must be unique")
    wanted = {"default_model": file.default_model}
    wanted |= {f"routing.{number}.model": rule.model for number, rule in enumerate(file.routing or [])}
    for key, name in wanted.items():
        if name and name not in names:
            raise ConfigError(f"{path}: {key}: found {name!r}, which is not among models: {', '.join(names)}")
    strengths = {strength for model in file.models for strength in model.good_at}
    for number, rule in enumerate(file.routing or []):
        if rule.good_at and rule.good_at not in strengths:
            raise ConfigError(
                f"{path}: routing.{number}.good_at: found {rule.good_at!r}; no model has it under good_at, "
                f"which are: {', '.join(sorted(strengths)) or 'none'}"
            )
    return {
        "engines": tuple(
            Engine(
                name=model.name,
                url=model.url,
                context=model.context,
                api_key=_key_from_file(model.api_key_file, f"{path}: models: {model.name}: api_key_file")
                if read_keys and model.api_key_file
                else None,
                good_at=tuple(model.good_at),
                concurrency=model.concurrency,
                queue=model.queue,
                # The environment of whoever checks a file is not the service's.
                proxy=proxy.for_url(model.url) if read_keys else None,
                max_tokens=model.max_tokens,
            )
            for model in file.models
        ),
        "default_model": file.default_model,
        "routing": GUIDE_RULES
        if file.routing is None
        else tuple(Rule(rule.model, rule.good_at, tuple(rule.keywords), tuple(rule.patterns)) for rule in file.routing),
        "timeout_s": file.timeout_s,
        "max_retries": file.max_retries,
        "cache": CacheSettings(file.cache.entries, file.cache.ttl_s, file.cache.shared),
        "max_tokens": file.max_tokens,
        "tools_dir": Path(file.tools_dir) if file.tools_dir else None,
        "tool_rounds": file.tool_rounds,
        "execute_python": file.execute_python,
        "audit_content": file.audit_content,
        "audit_socket": Path(file.audit_socket) if file.audit_socket else None,
    }


def _project() -> Path | None:
    """Return the project's folder: the client tells it, and starts the bridge in it; None: that folder was deleted."""
    if told := os.environ.get("CLAUDE_PROJECT_DIR"):
        return Path(told)
    try:
        return Path.cwd()
    except OSError:
        return None


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Read the settings of stdio from the guide's environment names; an empty value counts as not set.

    Raises:
        ConfigError: a value is wrong.
    """

    def first(*names: str) -> tuple[str, str | None]:
        return next(((name, environment[name]) for name in names if environment.get(name)), (names[0], None))

    url_name, url = first("LOCAL_API_URL", "OPENAI_BASE_URL")
    try:
        url = _http_url(url) if url else DEFAULT_URL
    except ValueError as error:
        raise ConfigError(f"{url_name}: {error}") from None
    model_name, model = first("MODEL_NAME", "OPENAI_MODEL")
    model = (model or "").strip() or None
    try:
        _check_utf8(model or "")
    except ValueError as error:
        raise ConfigError(f"{model_name}: {error}") from None
    _, key_file = first("OPENAI_API_KEY_FILE")
    _, key = first("OPENAI_API_KEY")
    if key_file:
        key = _key_from_file(key_file, "OPENAI_API_KEY_FILE")
    elif key:
        key = _key(key, "OPENAI_API_KEY")
    tools_dir = first("LOCAL_LLM_TOOLS_DIR")[1]
    timeout_ms = _number("OPENAI_TIMEOUT", first("OPENAI_TIMEOUT")[1], 1000, 3_600_000, "milliseconds")
    max_retries = _number("OPENAI_MAX_RETRIES", first("OPENAI_MAX_RETRIES")[1], 0, 10, "repetitions")
    max_tokens = _number("LOCAL_LLM_MAX_TOKENS", first("LOCAL_LLM_MAX_TOKENS")[1], 1, MOST_TOKENS, "tokens")
    return Settings(
        engines=(Engine(name=model, url=url, api_key=key, max_tokens=max_tokens, proxy=proxy.for_url(url)),),
        timeout_s=DEFAULT_TIMEOUT_S if timeout_ms is None else timeout_ms / 1000,
        max_retries=DEFAULT_MAX_RETRIES if max_retries is None else max_retries,
        tools_dir=Path(tools_dir) if tools_dir else None,
        execute_python=_python_of(first("LOCAL_LLM_EXECUTE_PYTHON")[1]),
        files_root=_project(),
    )


def _python_of(value: str | None) -> ExecutePython | None:
    if value not in {None, "0", "1"}:
        raise ConfigError(f"LOCAL_LLM_EXECUTE_PYTHON: found {value!r}; wanted 1 (run Python in bubblewrap) or 0")
    return ExecutePython(sandbox="bubblewrap") if value == "1" else None


def _parse(path: Path) -> object:
    import yaml  # noqa: PLC0415 - settings from the environment need none

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = re.sub("'.*'", "'…'", str(error.problem))  # what it quotes may be a secret
        raise ConfigError(f"{path}: line {line}: is not valid YAML: {problem}") from None
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError):
        # PyYAML's own; the others it lets through for a value such as 2001-13-45, for lists in lists in lists.
        raise ConfigError(f"{path}: is not valid YAML") from None


def _explain(error: Any, kind: type[_Section]) -> str:  # noqa: ANN401 - pydantic's ErrorDetails holds anything
    """Say one of pydantic's findings in the words of the file: key, found, allowed."""
    location: tuple[str | int, ...] = error["loc"]
    key = printable(".".join(str(part) for part in location)) or "the file"
    if error["type"] == "extra_forbidden":
        section = _SECTIONS.get(str(location[0]), kind) if len(location) > 1 else kind
        known = list(section.model_fields)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        if location[:1] == ("developers",) and not re.fullmatch("[a-z_]{1,20}", str(location[-1])):
            key = f"{location[0]}.{location[1]}"  # somebody may have put a token here
        return f"{key}: unknown key; " + (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}")
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}"
    secret = "token" in key or "key" in key or (location[:1] == ("developers",) and location[-1] != "name")
    return f"{key}: found {kind_of(error['input']) if secret else shown(error['input'])}; {_lower_first(error['msg'])}"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _doubles(values: Iterable[str]) -> str | None:
    return next((value for value, count in Counter(values).items() if count > 1), None)


def _number(name: str, value: str | None, least: int, most: int, unit: str) -> int | None:
    if value is None:
        return None
    if not re.fullmatch(r"\d{1,10}", value.strip()) or not least <= int(value) <= most:
        raise ConfigError(f"{name}: found {value!r}; wanted whole {unit} from {least} to {most}")
    return int(value)


def _key_from_file(name: str, setting: str) -> str:
    """Read a key; a relative name means a systemd credential.

    Raises:
        ConfigError: the file cannot be read or does not hold a key.
    """
    path = Path(name)
    if not path.is_absolute():
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise ConfigError(
                f"{setting}: {name!r} is relative to $CREDENTIALS_DIRECTORY, which is not set; "
                f"give the service LoadCredential={name}:/path, or write an absolute path"
            )
        path = Path(directory, name)
    source = f"{setting}: {printable(str(path))}"
    try:
        key = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        key = ""
    except ValueError:
        raise ConfigError(f"{source}: is no name of a file") from None
    return _key(key, source)


def _key(text: str, source: str) -> str:
    key = text.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigError(f"{source}: must hold one key: one line of printable characters without blanks")
    return key
