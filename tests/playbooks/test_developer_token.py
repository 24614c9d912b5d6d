"""Developers' tokens on the controller: made, rotated, revoked, and kept from others, in a real folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import developer_token
import pytest
from ansible.module_utils.testing import patch_module_args

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = ROOT / "playbooks" / "developer.yml"
HOUR = 3600


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the tokens are to be; it is not there yet."""
    return tmp_path / "fleet" / "tokens"


def run(folder: Path | str, name: str, action: str, check: bool = False, **more: Any) -> dict[str, Any]:
    """Run the module; return its result."""
    arguments = {"folder": str(folder), "name": name, "action": action, "_ansible_check_mode": check, **more}
    output = io.StringIO()
    with patch_module_args(arguments), redirect_stdout(output), pytest.raises(SystemExit):
        developer_token.main()
    result: dict[str, Any] = json.loads(output.getvalue())
    return result


def refused(folder: Path | str, name: str, action: str, **more: Any) -> str:
    """Run the module, which refuses; return why."""
    result = run(folder, name, action, **more)
    assert result["failed"], result
    assert result["msg"].endswith("Nothing was changed")
    return str(result["msg"])


def content(folder: Path, name: str = "alice") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def test_a_token_is_made_for_its_owner_alone(folder: Path) -> None:
    result = run(folder, "alice", "make")
    assert result["changed"]
    assert result["file"] == str(folder / "alice.json")
    kept = content(folder)
    assert kept.keys() == {"name", "token", "created", "former"}
    assert (kept["name"], kept["former"]) == ("alice", [])
    assert re.fullmatch(r"llb_[A-Za-z0-9_-]{43}", kept["token"])
    made = time.strptime(kept["created"], "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(made) - time.mktime(time.gmtime())) < 60
    assert (folder.stat().st_mode & 0o777, (folder / "alice.json").stat().st_mode & 0o777) == (0o700, 0o600)
    assert [path.name for path in folder.iterdir()] == ["alice.json"], "nothing else is left behind"


def test_the_result_holds_no_token(folder: Path) -> None:
    for action in ("make", "rotate", "revoke"):
        result = run(folder, "alice", action)
        assert "llb_" not in json.dumps(result)


def test_every_token_is_another_one(folder: Path) -> None:
    for name in ("alice", "bob"):
        run(folder, name, "make")
    assert content(folder)["token"] != content(folder, "bob")["token"]


def test_a_rotated_token_stays_good_for_a_while(folder: Path) -> None:
    run(folder, "alice", "make")
    first = content(folder)["token"]
    run(folder, "alice", "rotate")
    kept = content(folder)
    assert kept["token"] != first
    (former,) = kept["former"]
    assert former["token_sha256"] == digest(first)
    assert abs(former["expires"] - time.time() - 24 * HOUR) < 60
    assert first not in (folder / "alice.json").read_text(), "a hash is enough to let it in"
    result = run(folder, "alice", "rotate", grace_hours=1)
    assert [entry["token_sha256"] for entry in result["former"]] == [digest(first), digest(kept["token"])]
    assert result["former"] == content(folder)["former"]
    assert abs(result["former"][1]["expires"] - time.time() - HOUR) < 60
    assert ((folder / "alice.json").stat().st_mode & 0o777) == 0o600


def test_without_a_grace_time_the_former_token_ends_at_once(folder: Path) -> None:
    run(folder, "alice", "make")
    assert run(folder, "alice", "rotate", grace_hours=0)["former"] == []


def test_what_has_ended_is_dropped_when_the_file_is_next_written(folder: Path) -> None:
    run(folder, "alice", "make")
    run(folder, "alice", "rotate")
    kept = content(folder)
    kept["former"][0]["expires"] = int(time.time()) - 1
    developer_token.write(folder / "alice.json", kept)
    run(folder, "alice", "rotate")
    assert [former["token_sha256"] for former in content(folder)["former"]] == [digest(kept["token"])]


def test_a_revoked_developer_has_nothing_left(folder: Path) -> None:
    for name in ("alice", "bob"):
        run(folder, name, "make")
    run(folder, "alice", "rotate")
    assert run(folder, "alice", "revoke")["changed"]
    assert [path.name for path in folder.iterdir()] == ["bob.json"]
    run(folder, "alice", "make")
    assert content(folder)["former"] == [], "a new beginning"


@pytest.mark.parametrize("action", ["make", "rotate", "revoke"])
def test_check_mode_changes_nothing(folder: Path, action: str) -> None:
    if action == "make":
        assert run(folder, "alice", action, check=True)["changed"]
        assert not folder.parent.exists()
        return
    run(folder, "alice", "make")
    before = (folder / "alice.json").read_text()
    assert run(folder, "alice", action, check=True)["changed"]
    assert (folder / "alice.json").read_text() == before


def test_a_second_first_token_is_refused(folder: Path) -> None:
    run(folder, "alice", "make")
    before = content(folder)
    text = refused(folder, "alice", "make")
    assert "alice has a token already" in text
    assert "-e rotate=true" in text
    assert content(folder) == before


@pytest.mark.parametrize("action", ["rotate", "revoke"])
def test_an_unknown_name_is_answered_with_the_known_ones(folder: Path, action: str) -> None:
    assert "there are: nobody" in refused(folder, "alice", action)
    for name in ("carol", "bob@example.com"):
        run(folder, name, "make")
    assert "alice has no token" in refused(folder, "alice", action)
    assert "there are: bob@example.com, carol." in refused(folder, "alice", action)


@pytest.mark.parametrize("name", ["", "two words", "-alice", ".alice", "../alice", "a/b", "a" * 65, "älice", "alice\n"])
def test_names_are_those_of_the_bridge(folder: Path, name: str) -> None:
    assert "wanted letters, digits and . _ @ -" in refused(folder, name, "make")
    assert not folder.parent.exists()


def test_the_rule_for_names_is_the_bridges_and_the_gateways() -> None:
    for file, pattern in (
        ("bridge/src/local_llm_bridge/config.py", 'DEVELOPER_NAME = r"\\^(.+)\\$"'),
        ("roles/gateway/library/gateway_preflight.py", 'DEVELOPER = r"(.+)"'),
    ):
        found = re.search(pattern, (ROOT / file).read_text())
        assert found, file
        assert found[1] == developer_token.NAME


@pytest.mark.parametrize("hours", [-1, 8761, "nan", "inf"])
def test_a_grace_time_is_of_this_year(folder: Path, hours: object) -> None:
    assert "wanted 0 to 8760" in refused(folder, "alice", "make", grace_hours=hours)


@pytest.mark.parametrize("marker", ["folder", "file"])
def test_a_folder_in_a_repository_is_refused(tmp_path: Path, marker: str) -> None:
    git = tmp_path / ".git"
    git.mkdir() if marker == "folder" else git.write_text("gitdir: elsewhere")  # as in a worktree
    link = tmp_path.with_name(f"{tmp_path.name}-link")
    link.symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "a" / "tokens", link / "tokens"):
        assert f"which is in the repository {tmp_path}" in refused(folder, "alice", "make")
    assert list(tmp_path.iterdir()) == [git]


def test_this_very_repository_is_refused() -> None:
    assert f"in the repository {ROOT}" in refused(ROOT / "tokens", "alice", "make")


def test_a_relative_folder_is_refused() -> None:
    assert "'tokens'; it is an absolute path" in refused("tokens", "alice", "make")


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("")
    assert "which is no folder" in refused(tmp_path / "tokens", "alice", "make")


@pytest.mark.parametrize("action", ["make", "rotate", "revoke"])
@pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o755, 0o1777])
def test_a_folder_that_others_may_enter_is_refused(folder: Path, action: str, mode: int) -> None:
    run(folder, "alice", "make")
    before = content(folder)
    folder.chmod(mode)
    text = refused(folder, "alice", action)
    assert f"{folder} has the mode {mode:04o}" in text
    assert f"chmod 700 {folder}" in text
    assert content(folder) == before


def test_a_file_that_others_may_read_is_refused(folder: Path) -> None:
    run(folder, "alice", "make")
    (folder / "alice.json").chmod(0o640)
    assert f"chmod 600 {folder / 'alice.json'}" in refused(folder, "alice", "rotate")


def test_another_users_folder_is_refused(folder: Path) -> None:
    if os.geteuid() == 0:
        run(folder, "alice", "make")
        os.chown(folder, 1234, 1234)
    else:
        folder = Path("/usr")  # root's
    owner = folder.stat().st_uid
    assert f"{folder} belongs to the user with the id {owner}" in refused(folder, "bob", "make")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"llb_secret-secret-secret"',
        '{"name": "alice", "token": "llb_secret-secret-secret", "created": ""}',
        '{"name": "bob", "token": "llb_secret-secret-secret", "created": "", "former": []}',
        '{"name": "alice", "token": "short", "created": "", "former": []}',
        '{"name": "alice", "token": 12345678901234567890, "created": "", "former": []}',
        '{"name": "alice", "token": "llb_secret-secret-secret", "created": "", "former": 5}',
        '{"name": "alice", "token": "llb_secret-secret-secret", "created": "", "former": [{"token_sha256": "x"}]}',
    ],
)
def test_a_broken_file_is_named_not_shown_and_can_be_revoked(folder: Path, text: str) -> None:
    run(folder, "alice", "make")
    (folder / "alice.json").write_text(text)
    why = refused(folder, "alice", "rotate")
    assert f"{folder / 'alice.json'} is not as this playbook writes it" in why
    assert "secret" not in why
    assert (folder / "alice.json").read_text() == text
    run(folder, "alice", "revoke")
    assert not (folder / "alice.json").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "tokens"
    assert f"{folder}: Not a directory" in refused(folder, "alice", "make")


def test_many_at_once_lose_nothing(folder: Path) -> None:
    developer_token.change_in(folder, "alice", "make", 0, dry=False)
    before = content(folder)["token"]
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: developer_token.change_in(folder, "alice", "rotate", HOUR, dry=False), range(40)):
            pass
    kept = content(folder)
    digests = [former["token_sha256"] for former in kept["former"]]
    assert len(digests) == len(set(digests)) == 40
    assert digests[0] == digest(before)
    assert digest(kept["token"]) not in digests


# --- the playbook, on the controller alone: what the gateway does with it is in molecule/gateway ---


@pytest.fixture
def inventory(tmp_path: Path, folder: Path) -> Path:
    """A fleet in which alice's token is in the inventory."""
    developers = [{"name": "alice", "token": "alices-token-0123456789"}, {"name": "bob"}]
    variables = {"fleet_tokens": str(folder), "fleet_domain": "llm.example.com", "fleet_developers": developers}
    groups = {"all": {"vars": variables}, "gateways": {"hosts": {}}}
    file = tmp_path / "hosts.yml"
    file.write_text(json.dumps(groups))
    return file


def play(inventory: Path, *options: str, **environment: str) -> tuple[int, str]:
    """Run the playbook; gives its exit code, and its words with single blanks between them."""
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    # There is no gateway to ask for its developers; test_controller_secrets.py has what comes of that.
    fleet = {"fleet_gateways": ["gateway1"], "fleet_secrets_checked": True}
    command = [program, "-i", str(inventory), str(PLAYBOOK), "-e", json.dumps(fleet)]
    done = subprocess.run(
        [*command, *(word for option in options for word in ("-e", option))],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join(f"{done.stdout} {done.stderr}".split())


def test_the_playbook_makes_rotates_and_revokes(inventory: Path, folder: Path) -> None:
    code, text = play(inventory, "name=bob")
    first = content(folder, "bob")["token"]
    assert code == 0, text
    assert text.count(first) == 1
    assert 'claude mcp add-json --scope user local-llm \'{"type": "http", "url": "https://llm.example.com/mcp"' in text
    assert '"Authorization": "Bearer ${LOCAL_LLM_TOKEN}"' in text
    code, text = play(inventory, "name=bob")
    assert code != 0
    assert "-e rotate=true" in text
    code, text = play(inventory, "name=bob", "rotate=true", "grace_hours=0.5")
    assert code == 0, text
    assert text.count(content(folder, "bob")["token"]) == 1
    assert first not in text
    assert "A former token ends at 20" in text
    assert abs(content(folder, "bob")["former"][0]["expires"] - time.time() - HOUR / 2) < 60
    code, text = play(inventory, "name=bob", "revoke=true")
    assert code == 0, text
    assert "bob has no token any more" in text
    assert list(folder.iterdir()) == []


def test_where_ansible_keeps_a_log_the_token_is_not_shown(inventory: Path, folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "ansible.log"
    code, text = play(inventory, "name=bob", ANSIBLE_LOG_PATH=str(log))
    assert code == 0, text
    assert f"bob's token is in {folder / 'bob.json'}; it is not shown" in text
    assert "PLAY RECAP" in log.read_text()
    for shown in (text, log.read_text()):
        assert content(folder, "bob")["token"] not in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("name=alice",), "The token of alice is in the inventory"),
        (("name=alice", "revoke=true"), "Change it there (ansible-vault edit"),
        ((), "Found: name missing, fleet_tokens set."),
        (
            ("name=bob", "rotate=true", "revoke=true"),
            "Found: name set, fleet_tokens set, rotate and revoke.",
        ),
    ],
)
def test_the_playbook_refuses_before_it_changes_anything(
    inventory: Path, folder: Path, options: tuple[str, ...], words: str
) -> None:
    code, text = play(inventory, *options)
    assert code != 0
    assert words in text
    assert not folder.exists()
