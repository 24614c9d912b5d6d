"""Whatever stands in a settings file or the environment: settings, or one line that names the place and no secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local_llm_bridge import config
from local_llm_bridge.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "llb_SENTINEL-that-no-error-may-show"
DIGEST = "5e" * 32
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the quicker one
KEYS = [
    "listen",
    "address",
    "port",
    "allowed_hosts",
    "models",
    "name",
    "url",
    "context",
    "api_key_file",
    "good_at",
    "concurrency",
    "queue",
    "developers",
    "token_sha256",
    "tokens_file",
    "gateway_key_sha256",
    "former_gateway_keys_sha256",
    "routing",
    "model",
    "keywords",
    "patterns",
    "default_model",
    "timeout_s",
    "max_retries",
    "requests_per_minute",
    "cache",
    "entries",
    "ttl_s",
    "shared",
    "tools_dir",
    "tool_rounds",
    "execute_python",
    "sandbox",
    "socket",
    "time_s",
    "memory_mib",
    "processes",
    "output_kib",
    "audit_content",
    "audit_socket",
]

Place = tuple[str | int, ...]

# The folder may be the same for all examples: each writes its files anew.
often = settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(),
    st.dates(),
    st.binary(max_size=9),
    st.text(max_size=20),
    st.sampled_from(["127.0.0.1", "http://e/v1", DIGEST, "systemd", "bubblewrap", "coder", "code"]),
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | printable, inner, max_size=6),
    max_leaves=12,
)


def good() -> dict[str, Any]:
    """Return settings without a mistake and with something in every section."""
    return {
        "listen": {"address": "127.0.0.1", "port": 8080},
        "allowed_hosts": ["gateway1"],
        "models": [{"name": "coder", "url": "http://e/v1", "context": 4096, "good_at": ["code"]}],
        "developers": [{"name": "alice", "token_sha256": DIGEST}],
        "routing": [{"good_at": "code", "keywords": ["python"]}],
        "default_model": "coder",
        "timeout_s": 60,
        "cache": {"entries": 5, "ttl_s": 60, "shared": False},
        "execute_python": {"sandbox": "systemd", "time_s": 5},
    }


def places(value: object, path: Place = ()) -> list[Place]:
    """Return the paths of all values inside a document."""
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [found for key, inner in items for found in ((*path, key), *places(inner, (*path, key)))]


def changed(path: Place, value: object) -> dict[str, Any]:
    """Return good settings with one value replaced."""
    content = good()
    inside: Any = content
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return content


def read(folder: Path, content: object) -> config.ServeSettings | str:
    """Return the settings, or what is wrong with them: one line that names the file.

    Args:
        folder: where the file is written.
        content: a document, or the file's bytes as `yaml_of` gives them.
    """
    file = folder / "config.yml"
    file.write_bytes(content if isinstance(content, bytes) else yaml_of(content))
    try:
        return config.from_file(file)
    except ConfigError as error:
        text = str(error)
    assert text.startswith(f"{file}: ")
    assert text.isprintable(), text
    return text


def yaml_of(content: object) -> bytes:
    return yaml.dump(content, Dumper=DUMPER, allow_unicode=True).encode()


@often
@given(content=documents)
def test_any_document_gives_settings_or_one_line(tmp_path: Path, content: object) -> None:
    read(tmp_path, {"": content} if isinstance(content, bytes) else content)


@often
@given(path=st.sampled_from(places(good())), value=documents)
def test_any_value_in_any_place_gives_settings_or_one_line(tmp_path: Path, path: Place, value: object) -> None:
    read(tmp_path, changed(path, value))


@often
@given(
    cuts=st.lists(
        st.tuples(
            st.floats(0, 1),
            st.integers(0, 9),
            st.sampled_from([*"[]{}:,-?&*#|>@`%'\"\t\n\0\x07", "---\n", "...\n", "<<: ", "&a [*a]", "*b"]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_file_with_slips_of_the_pen_gives_settings_or_one_line(
    tmp_path: Path, cuts: list[tuple[float, int, str]]
) -> None:
    text = yaml_of(good()).decode()
    for where, length, instead in cuts:
        start = int(where * len(text))
        text = text[:start] + instead + text[start + length :]
    read(tmp_path, text.encode())


@often
@given(content=st.binary(max_size=200))
def test_any_bytes_give_settings_or_one_line(tmp_path: Path, content: bytes) -> None:
    assert isinstance(read(tmp_path, content), str)


@often
@given(
    token=st.sampled_from(
        [SECRET, f" {SECRET}", f"{SECRET}\n", f"Bearer {SECRET}", [SECRET], {SECRET: 1}, {"sha256": SECRET}]
    ),
    path=st.sampled_from(places(good())),
    value=documents,
)
def test_a_token_in_place_of_its_digest_is_never_shown(
    tmp_path: Path, token: object, path: Place, value: object
) -> None:
    content = changed(path, value)
    if isinstance(content["developers"], list):
        content["developers"].append({"name": "bob", "token_sha256": token})
    text = read(tmp_path, content)
    assert isinstance(text, str) or content["developers"] == good()["developers"]
    assert SECRET not in str(text)


@often
@given(path=st.sampled_from([path for path in places(good()) if path[0] != "developers"]), value=documents)
def test_a_digest_is_never_shown(tmp_path: Path, path: Place, value: object) -> None:
    content = changed(path, value if value != DIGEST else None)
    content["developers"].append({"name": "bob", "token_sha256": DIGEST})
    text = read(tmp_path, content)
    assert isinstance(text, str), "two developers have the same token"
    assert text.count(DIGEST) == repr(value).count(DIGEST) == 0 or DIGEST in repr(value)


@often
@given(path=st.sampled_from(places(good())), value=documents, spoilt=st.sampled_from(["", " x", "\nx", "\0", "\udcff"]))
def test_what_a_key_file_holds_is_never_shown(tmp_path: Path, path: Place, value: object, spoilt: str) -> None:
    key = tmp_path / "key"
    key.write_bytes(f"{SECRET}{spoilt}".encode(errors="surrogateescape"))
    content = changed(path, value)
    if isinstance(content["models"], list):
        model = {"name": "other", "url": "http://e/v1", "context": 4096, "api_key_file": str(key)}
        content["models"].append(model)
    found = read(tmp_path, content)
    if isinstance(found, str):
        assert SECRET not in found
    else:
        assert [engine.api_key for engine in found.engines][1:] in ([SECRET], [])
        assert SECRET not in repr(found)


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,20}", fullmatch=True)
strengths = st.from_regex(r"[a-z][a-z0-9_-]{0,9}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
models: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "name": names,
        "url": st.builds("http://{}:{}/v1".format, st.sampled_from(["e", "10.0.0.1", "[::1]"]), st.integers(0, 65535)),
        "context": st.integers(256, 10**9),
        "good_at": st.lists(strengths, min_size=1, max_size=3),
        "concurrency": st.integers(1, 1024),
        "queue": st.integers(0, 10_000),
    }
)
developers: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"name": names, "token_sha256": st.from_regex("[0-9a-f]{64}", fullmatch=True)}
)
several_models = st.lists(models, min_size=1, max_size=3, unique_by=lambda model: model["name"])
several_developers = st.lists(
    developers,
    max_size=3,
    unique_by=(lambda developer: developer["name"], lambda developer: developer["token_sha256"]),
)
valid = st.fixed_dictionaries(
    {
        "listen": st.fixed_dictionaries(
            {"address": st.ip_addresses().map(str), "port": st.integers(1, 65535)},
        ),
        "allowed_hosts": st.lists(st.from_regex(r"[a-z0-9._-]{1,9}(:[0-9]{1,5})?", fullmatch=True), max_size=3),
        "models": several_models,
        "developers": several_developers,
        "timeout_s": st.floats(1, 3600) | st.integers(1, 3600),
        "max_retries": st.integers(0, 10),
        "requests_per_minute": st.integers(0, 1_000_000),
        "cache": st.fixed_dictionaries(
            {"entries": st.integers(0, 100_000), "ttl_s": st.floats(1, 1e9), "shared": st.booleans()}
        ),
        "tool_rounds": st.integers(1, 50),
        "audit_content": st.booleans(),
        "audit_socket": st.just("/run/audit"),
        "keywords": st.lists(texts, min_size=1, max_size=3),
    }
)


@often
@given(content=valid, by_name=st.booleans())
def test_what_is_valid_arrives_as_it_was_given(tmp_path: Path, content: dict[str, Any], *, by_name: bool) -> None:
    keywords = content.pop("keywords")
    first = content["models"][0]
    target = {"model": first["name"]} if by_name else {"good_at": first["good_at"][0]}
    found = read(tmp_path, {**content, "routing": [{**target, "keywords": keywords}]})
    assert not isinstance(found, str), found
    (rule,) = found.routing
    assert (rule.model, rule.good_at) == (target.get("model"), target.get("good_at"))
    assert list(rule.keywords) == keywords
    for model, engine in zip(content["models"], found.engines, strict=True):
        assert {**model, "good_at": tuple(model["good_at"])} == {key: getattr(engine, key) for key in model}
    assert found.listen.model_dump() == content["listen"]
    assert [developer.model_dump() for developer in found.developers] == content["developers"]
    assert list(found.allowed_hosts) == content["allowed_hosts"]
    assert {key: getattr(found.cache, key) for key in content["cache"]} == content["cache"]
    for key in ("timeout_s", "max_retries", "requests_per_minute", "tool_rounds", "audit_content"):
        assert getattr(found, key) == content[key]
    assert str(found.audit_socket) == content["audit_socket"]


VARIABLES = [
    "LOCAL_API_URL",
    "OPENAI_BASE_URL",
    "MODEL_NAME",
    "OPENAI_MODEL",
    "OPENAI_API_KEY_FILE",
    "LOCAL_LLM_TOOLS_DIR",
    "OPENAI_TIMEOUT",
    "OPENAI_MAX_RETRIES",
    "LOCAL_LLM_EXECUTE_PYTHON",
]
values = (
    st.text(st.characters(exclude_characters="\0"), max_size=30)  # which no environment can hold
    | st.sampled_from(["0", "1", "5000", "http://e", "https://e:1/v1", "http://[", "http://e:x", "/", "/etc/shadow"])
)


@often
@given(environment=st.dictionaries(st.sampled_from(VARIABLES), values), with_file=st.booleans())
def test_any_environment_gives_settings_or_an_error_without_the_key(
    tmp_path: Path, environment: dict[str, str], *, with_file: bool
) -> None:
    (tmp_path / "key").write_text(f"{SECRET} two words")
    environment["OPENAI_API_KEY"] = SECRET
    if with_file:
        environment["OPENAI_API_KEY_FILE"] = str(tmp_path / "key")
    try:
        found = config.from_environment(environment)
    except ConfigError as error:
        text = str(error)
    else:
        text = ""
    assert SECRET not in text
    if text:
        assert text.partition(":")[0] in VARIABLES
        return
    assert not with_file, "its file holds no key"
    assert found.engines[0].api_key == SECRET
    assert SECRET not in repr(found)


@pytest.mark.parametrize("name", VARIABLES)
def test_an_empty_variable_counts_as_not_set(name: str) -> None:
    assert config.from_environment({name: ""}) == config.from_environment({})


def with_pattern(pattern: str) -> bytes:
    return yaml_of({**good(), "routing": [{"good_at": "code", "patterns": [pattern]}]})


@pytest.mark.parametrize(
    "content",
    [
        *(f"listen: {value}".encode() for value in ("2001-13-45", "2001-01-01T99:00:00Z", "0x_", "9" * 5000)),
        *(f"listen: {value}".encode() for value in ("!!int x", "!!float x", "!!bool x", '!!timestamp "x"')),
        b"[" * 20_000,
        b"- " * 5_000 + b"x",
        b"listen: {port: 0x" + b"f" * 5000 + b"}",
        with_pattern("a{99999999999}"),
        with_pattern("(" * 5000 + ")" * 5000),
        with_pattern("(?<!a)b"),
        with_pattern(r"(a)\1"),
        with_pattern("(a{1,1000}){1,1000}"),
        yaml_of({**good(), "models": [{"name": "m", "url": "http://e", "context": 4096, "api_key_file": "/a\0b"}]}),
        yaml_of({**good(), "models": [{"name": "m", "url": "http://e", "context": 4096, "api_key_file": "/a\nb"}]}),
        yaml_of({**good(), "a\nb": 1}),
        yaml_of({**good(), "a\ufeffb": 1}),
        yaml_of({**good(), "a\x1bb": 1}),
    ],
)
def test_what_a_parser_chokes_on_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    assert isinstance(read(tmp_path, content), str)


@pytest.mark.parametrize(
    "content",
    [
        {"developers": SECRET},
        {"developers": [SECRET]},
        {"developers": [{SECRET: "alice"}]},
        {"developers": [{"name": "alice", "token_sha256": [SECRET]}]},
        f"token_sha256: *{SECRET}".encode(),
        f"token_sha256: !{SECRET} x".encode(),
        *(
            {"models": [{"name": "m", "url": url, "context": 4096}]}
            for url in (f"http://u:{SECRET}@e\u2100/v1", f"u:{SECRET}@e/v1", f"http:/u:{SECRET}@e/v1")
        ),
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path: Path, content: dict[str, Any] | bytes) -> None:
    told = read(tmp_path, content if isinstance(content, bytes) else {**good(), **content})
    assert isinstance(told, str)
    assert SECRET not in told
