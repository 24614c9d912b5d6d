"""Settings: each error names the key, what was found and what is allowed, and no secret."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_llm_bridge import config
from local_llm_bridge.errors import ConfigError
from tests.services import HERE, PROGRAM

SECRET = "sk-very-secret-0123456789"


def good() -> dict[str, Any]:
    return {
        "listen": {"address": "0.0.0.0", "port": 8080},
        "allowed_hosts": ["gateway1", "Gateway1:8080"],
        "models": [{"name": "coder", "url": "http://model1:8000/v1/", "context": 32768, "api_key_file": "engine-key"}],
        "developers": [{"name": "alice", "token_sha256": "a" * 64}],
        "timeout_s": 120,
        "max_retries": 1,
    }


def change(path: str, value: object) -> dict[str, Any]:
    """Return good settings with one value replaced; the path has dots."""
    content = good()
    place: Any = content
    *steps, last = [int(step) if step.isdecimal() else step for step in path.split(".")]
    for step in steps:
        place = place[step]
    place[last] = value
    return content


def read(folder: Path, content: object) -> config.ServeSettings:
    file = folder / "config.yml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return config.from_file(file, read_keys=False)


def test_good_settings_are_read(tmp_path: Path) -> None:
    settings = read(tmp_path, good())
    assert settings.engines[0] == config.Engine("coder", "http://model1:8000/v1", 32768, None)
    assert settings.allowed_hosts == ("gateway1", "gateway1:8080")
    assert (settings.timeout_s, settings.max_retries) == (120.0, 1)
    assert settings.developers[0].name == "alice"


def test_a_key_is_never_shown() -> None:
    assert SECRET not in repr(config.Engine("coder", "http://e/v1", api_key=SECRET))


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://e:8000", "http://e:8000/v1"),
        ("http://e:8000/", "http://e:8000/v1"),
        ("http://e:8000/v1", "http://e:8000/v1"),
        ("https://e/models/v1/", "https://e/models/v1"),
        ("https://e/api", "https://e/api/v1"),
        ("http://e:8000/v1/chat/completions", "http://e:8000/v1"),
        ("http://e:8000/v1/models/", "http://e:8000/v1"),
        ("https://e/v1beta/openai/", "https://e/v1beta/openai"),
        ("https://e/v1beta/openai/chat/completions", "https://e/v1beta/openai"),
        ("https://e/inference/chat/completions", "https://e/inference"),
        ("https://e/chat/completions/", "https://e"),
        ("https://e/models", "https://e/v1"),
        ("http://e:8000/V1/", "http://e:8000/V1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_a_url_may_end_in_v1_or_not(url: str, wanted: str) -> None:
    assert config.from_environment({"LOCAL_API_URL": url}).engines[0].url == wanted


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("listen: [", ["is not valid YAML", "line"]),
        ("- a\n- b\n", ["the file: found a list"]),
        ("", ["the file: found nothing"]),
        (change("modls", []), ["modls: unknown key", "did you mean 'models'?"]),
        (
            change("models.0.adress", "x"),
            ["models.0.adress: unknown key", "known are name, url, context, api_key_file"],
        ),
        (change("models.0.api_key", SECRET), ["models.0.api_key: unknown key", "did you mean 'api_key_file'?"]),
        (change("models", []), ["models: found a list", "at least 1 item"]),
        (change("models.0", {"name": "coder"}), ["models.0.url: missing", "models.0.context: missing"]),
        (change("models.0.name", "two\nlines"), ["models.0.name: found 'two\\nlines'; wanted a name of 1 to 256"]),
        (change("models.0.url", "model1:8000"), ["models.0.url: found 'model1:8000'; wanted http(s)://host"]),
        (change("models.0.url", f"http://u:{SECRET}@e/v1"), ["models.0.url: must not hold a user or password"]),
        (change("models.0.url", "http://e:99999"), ["models.0.url: Port out of range"]),
        (change("models.0.context", "32k"), ["models.0.context: found '32k'", "valid integer"]),
        (change("models.0.context", 0), ["models.0.context: found 0", "greater than or equal to 256"]),
        (change("listen.port", 70000), ["listen.port: found 70000", "less than or equal to 65535"]),
        (change("listen.address", "gateway1"), ["listen.address: found 'gateway1'; wanted an IP address"]),
        (change("allowed_hosts", ["http://gateway1"]), ["allowed_hosts.0: found 'http://gateway1'; wanted host"]),
        (change("developers.0.token_sha256", SECRET), ["developers.0.token_sha256: found a text of 25 characters"]),
        (change("developers.0.token_sha256", 12345678), ["developers.0.token_sha256: found a number"]),
        (change("developers.0.token", SECRET), ["developers.0.token: unknown key"]),
        (change("developers", None), ["developers: found nothing"]),
        (change("timeout_s", 0), ["timeout_s: found 0"]),
        (change("max_retries", -1), ["max_retries: found -1"]),
        (change("models", good()["models"] * 2), ["models: name: found 'coder' more than once"]),
        (change("developers", good()["developers"] * 2), ["developers: name: found 'alice' more than once"]),
        (
            change("developers", [{"name": name, "token_sha256": "a" * 64} for name in ("alice", "bob")]),
            ["two developers have the same token"],
        ),
        (change("gateway_key_sha256", SECRET), ["gateway_key_sha256: found a text of 25 characters; wanted"]),
        (change("gateway_key_sha256", 12345678), ["gateway_key_sha256: found a number"]),
        (change("gateway_key_sha256", "a" * 64), ["gateway_key_sha256: a developer has it as token_sha256"]),
        (change("former_gateway_keys_sha256", ["a" * 64]), ["gateway_key_sha256: a developer has it as token_sha256"]),
        (change("gateway_key", SECRET), ["gateway_key: unknown key", "did you mean 'gateway_key_sha256'?"]),
    ],
)
def test_wrong_settings_say_what_is_right(tmp_path: Path, content: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, content)
    text = str(raised.value)
    assert text.startswith(str(tmp_path / "config.yml"))
    assert all(word in text for word in words), text
    assert "\n" not in text
    assert SECRET not in text
    assert "12345678" not in text


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yml: cannot be read: No such file or directory"):
        config.from_file(tmp_path / "config.yml")
    (tmp_path / "config.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        config.from_file(tmp_path / "config.yml")


def test_the_guides_names_are_understood() -> None:
    settings = config.from_environment(
        {
            "OPENAI_BASE_URL": "http://e:1/v1",
            "OPENAI_MODEL": "coder",
            "OPENAI_API_KEY": SECRET,
            "OPENAI_TIMEOUT": "60000",
            "OPENAI_MAX_RETRIES": "0",
        }
    )
    assert settings.engines == (config.Engine("coder", "http://e:1/v1", None, SECRET),)
    assert (settings.timeout_s, settings.max_retries) == (60.0, 0)


def test_the_bridges_own_names_come_first() -> None:
    both = {"LOCAL_API_URL": "http://a", "OPENAI_BASE_URL": "http://b", "MODEL_NAME": "a", "OPENAI_MODEL": "b"}
    assert config.from_environment(both).engines == (config.Engine("a", "http://a/v1"),)


def test_nothing_set_means_the_engine_of_this_host() -> None:
    assert config.from_environment({"MODEL_NAME": "m\r"}).engines[0].name == "m"
    assert config.from_environment({"MODEL_NAME": ""}).engines == (config.Engine(None, "http://127.0.0.1:8000/v1"),)


def test_a_key_can_stay_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{SECRET}\n")
    environment = {"OPENAI_API_KEY_FILE": str(file), "OPENAI_API_KEY": "another"}
    assert config.from_environment(environment).engines[0].api_key == SECRET


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OPENAI_TIMEOUT", "60s", "OPENAI_TIMEOUT: found '60s'; wanted whole milliseconds from 1000 to 3600000"),
        ("OPENAI_TIMEOUT", "60", "from 1000 to 3600000"),
        ("OPENAI_MAX_RETRIES", "many", "OPENAI_MAX_RETRIES: found 'many'; wanted whole repetitions from 0 to 10"),
        ("OPENAI_BASE_URL", "ftp://e", "OPENAI_BASE_URL: found 'ftp://e'"),
        ("OPENAI_API_KEY_FILE", "/no/such/file", "OPENAI_API_KEY_FILE: /no/such/file: cannot be read"),
    ],
)
def test_wrong_environment_says_what_is_right(name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config.from_environment({name: value})
    assert words in str(raised.value)


def test_config_check_needs_no_credentials_and_exits_with_2_on_errors(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    for content, code in ((good(), 0), (change("listen.port", 0), 2)):
        file.write_text(yaml.safe_dump(content))
        done = subprocess.run([PROGRAM, "config", "check", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert done.stderr.count("\n") == (code != 0)
        assert done.stdout == ""


def test_both_names_are_the_same_program() -> None:
    for name in (PROGRAM, str(Path(PROGRAM).with_name("mcp-server-openai"))):
        done = subprocess.run([name, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == "local-llm-bridge 0.1.0\n"


def test_hosts_install_what_the_package_asks_for() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    lines = (HERE.parent / "requirements.in").read_text().splitlines()
    assert project["dependencies"] == [line for line in lines if not line.startswith("#")]
