"""Tokens: how developers are let in and kept out while the bridge runs."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import yaml

from local_llm_bridge import tokens
from local_llm_bridge.auth import Authenticator
from local_llm_bridge.config import Developer
from local_llm_bridge.errors import ConfigError
from tests.services import PROGRAM, TOKEN, Bridge, records, serving, wait_for
from tests.test_http import HEADERS, LIST

if TYPE_CHECKING:
    from pathlib import Path

ALICE = Developer(name="alice", token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest())


def token(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `local-llm-bridge token`."""
    return subprocess.run([PROGRAM, "token", *arguments], capture_output=True, text=True, timeout=30, check=False)


def new(name: str, file: Path) -> str:
    """Make a token with the real program."""
    done = token("new", name, "--file", str(file), "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["token"])


def status(bridge: Bridge, bearer: str) -> int:
    """Ask the bridge something with a token; gives the HTTP status."""
    headers = {**HEADERS, "Authorization": f"Bearer {bearer}"}
    return bridge.http("/mcp", method="POST", headers=headers, data=LIST)[0]


def test_a_new_token_is_good_at_once_and_a_revoked_one_no_more(engine: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens.yml"
    with serving(tmp_path / "bridge", engine, tokens_file=str(file)) as bridge:
        bob = new("bob", file)
        assert status(bridge, bob) == 200
        assert status(bridge, TOKEN) == 200, "the settings' own developers stay"
        carol = new("carol", file)
        assert (status(bridge, bob), status(bridge, carol)) == (200, 200)
        assert token("revoke", "bob", "--file", str(file)).returncode == 0
        assert (status(bridge, bob), status(bridge, carol)) == (401, 200)
        file.unlink()
        assert (status(bridge, carol), status(bridge, TOKEN)) == (401, 200)
        log = bridge.log.read_text()
    assert bob not in log
    assert carol not in log


def test_the_log_names_those_of_the_tokens_file(engine: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens.yml"
    bob = new("bob", file)
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list_models", "arguments": {}}}
    with serving(tmp_path / "bridge", engine, tokens_file=str(file)) as bridge:
        headers = {**HEADERS, "Authorization": f"Bearer {bob}"}
        bridge.http("/mcp", method="POST", headers=headers, data=json.dumps(call).encode())
        wait_for(lambda: bool(records(bridge.log.read_text())), 5)
    (record,) = records(bridge.log.read_text())
    assert (record["developer"], record["what"]) == ("bob", "list_models")


def test_a_broken_file_leaves_all_as_it_was_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "tokens.yml"
    bob = tokens.create(file, "bob")
    authenticator = Authenticator([ALICE], file)
    for broken in ("developers: [", "developers: 5", "bob: llb_secret", "developers: [{name: bob, token: llb_secret}]"):
        caplog.clear()
        file.write_text(broken)
        for _ in range(3):
            assert authenticator.developer_of(f"Bearer {bob}") == "bob"
            assert authenticator.developer_of(f"Bearer {TOKEN}") == "alice"
        (record,) = caplog.records
        assert record.getMessage().startswith(f"tokens stay as they were: {file}: ")
        assert "llb_secret" not in caplog.text
    file.write_text("developers: []")
    assert authenticator.developer_of(f"Bearer {bob}") is None


def test_a_file_that_comes_later_is_read(tmp_path: Path) -> None:
    file = tmp_path / "tokens.yml"
    authenticator = Authenticator([], file)
    assert authenticator.developer_of("Bearer x") is None
    assert authenticator.developer_of(f"Bearer {tokens.create(file, 'bob')}") == "bob"


def test_the_file_holds_no_token_and_is_not_for_all(tmp_path: Path) -> None:
    file = tmp_path / "tokens.yml"
    bob = new("bob", file)
    assert bob.startswith("llb_")
    assert len(bob) == len("llb_") + 43
    text = file.read_text()
    assert bob not in text
    (entry,) = yaml.safe_load(text)["developers"]
    assert (entry["name"], entry["token_sha256"]) == ("bob", hashlib.sha256(bob.encode()).hexdigest())
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.yml"], "nothing else is left behind"


def test_owner_group_and_link_stay(tmp_path: Path) -> None:
    file, link = tmp_path / "there" / "tokens.yml", tmp_path / "tokens.yml"
    file.parent.mkdir()
    file.write_text("")
    # Only root can give files away; others still have a group besides their first one, or at least that.
    owner, group = (1234, 2345) if os.geteuid() == 0 else (os.geteuid(), os.getgroups()[-1])
    os.chown(file, owner, group)
    link.symlink_to(file)
    new("bob", link)
    assert link.is_symlink()
    assert (file.stat().st_uid, file.stat().st_gid) == (owner, group)


def test_many_at_once_lose_nobody(tmp_path: Path) -> None:
    file = tmp_path / "tokens.yml"
    names = [f"d{number}" for number in range(6)]
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda name: new(name, file), names))
    authenticator = Authenticator([], file)
    assert [authenticator.developer_of(f"Bearer {bearer}") for bearer in made] == names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("new", "bob"), "bob has a token already, made on 20"),
        (("new", "two words"), "NAME: found 'two words'; wanted letters, digits and . _ @ -"),
        (("revoke", "carol"), "found no 'carol'; in the file: bob"),
    ],
)
def test_mistakes_are_told_with_what_to_do(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    file = tmp_path / "tokens.yml"
    tokens.create(file, "bob")
    before = file.read_text()
    done = token(*arguments, "--file", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert file.read_text() == before


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none: cannot be opened: No such file or directory; make the folder first"):
        tokens.create(tmp_path / "none" / "tokens.yml", "bob")


def test_a_broken_file_is_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "tokens.yml"
    file.write_text("developers: [\n")
    with pytest.raises(ConfigError, match=r"tokens\.yml: line 2: is not valid YAML"):
        tokens.create(file, "bob")
    assert file.read_text() == "developers: [\n"


def test_the_list_has_names_and_days(tmp_path: Path) -> None:
    file = tmp_path / "tokens.yml"
    assert json.loads(token("list", "--file", str(file), "--json").stdout) == []
    new("bob", file)
    (entry,) = tokens.read(file)
    assert token("list", "--file", str(file)).stdout == f"{entry.created}  bob\n"
    shown = json.loads(token("list", "--file", str(file), "--json").stdout)
    assert shown == [{"name": "bob", "created": entry.created.isoformat()}]


def settings(folder: Path, **more: object) -> str:
    content = {
        "models": [{"name": "coder", "url": "http://model1:8000", "context": 4096, "api_key_file": "engine-key"}],
        "developers": [{"name": "alice", "token_sha256": ALICE.token_sha256}],
        **more,
    }
    file = folder / "config.yml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


def test_the_bridges_settings_tell_file_and_address(tmp_path: Path) -> None:
    file = tmp_path / "tokens.yml"
    config = settings(tmp_path, tokens_file=str(file), listen={"port": 8090}, allowed_hosts=["gateway1"])
    done = token("new", "bob", "--config", config)
    assert done.returncode == 0
    assert [entry.name for entry in tokens.read(file)] == ["bob"]
    bearer = next(word for word in done.stdout.split() if word.startswith("llb_"))
    command = next(line.strip() for line in done.stdout.splitlines() if "claude mcp" in line)
    assert command.startswith("claude mcp add-json --scope user local-llm '{")
    assert bearer not in command, "command lines can be seen by others"
    entry = json.loads(command[command.index("{") : command.rindex("}") + 1])
    assert entry == {
        "type": "http",
        "url": "http://gateway1:8090/mcp",
        "headers": {"Authorization": "Bearer ${LOCAL_LLM_TOKEN}"},
        "timeout": 600000,
        "alwaysLoad": True,
    }
    url = "https://gateway.example.com/mcp"
    assert url in token("new", "carol", "--config", config, "--url", url).stdout


def test_names_of_the_settings_are_taken(tmp_path: Path) -> None:
    config = settings(tmp_path, tokens_file=str(tmp_path / "tokens.yml"))
    done = token("new", "alice", "--config", config)
    assert done.returncode == 2
    assert "developers: alice has a token there already" in done.stderr
    done = token("revoke", "alice", "--config", config)
    assert done.returncode == 2
    assert "take the entry out and restart the bridge" in done.stderr


def test_settings_without_a_tokens_file_say_what_to_add(tmp_path: Path) -> None:
    done = token("list", "--config", settings(tmp_path))
    assert done.returncode == 2
    assert f"tokens_file: missing; add for example tokens_file: {tmp_path}/tokens.yml" in done.stderr
