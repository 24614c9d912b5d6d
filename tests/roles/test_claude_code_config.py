"""What the claude_code role does to a developer's files, on real files in a scratch home."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import claude_code_config as config
import pytest
from ansible.module_utils import claude_code_home
from ansible.module_utils.claude_code_home import Home
from ansible.module_utils.home_files import Account, ConfigError
from ansible.module_utils.json_additions import DocumentError, parse, render

TOKEN = "s3cr3t-Token.42"  # noqa: S105
RICH = """{
    "numStartups": 41,
    "zeta": {"é": "ü", "half": "\\ud83d"},
    "mcpServers": {
        "github": {"type": "stdio", "command": "gh-mcp", "env": {"GITHUB_TOKEN": "user-secret"}}
    },
    "alpha": [1, 2.50, true, null]
}
"""
SETTINGS = '{"permissions": {"deny": ["Bash"], "allow": ["Read", "Edit"]}, "env": {"EDITOR": "vi"}, "model": "opus"}'


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account("dev", os.getuid(), os.getgid(), tmp_path, "/bin/sh")


def params(**changes: Any) -> dict[str, Any]:
    return {
        "state": "present",
        "server_name": "local-llm",
        "url": "https://gateway.example.com/mcp",
        "stdio_command": "/bin/true",
        "stdio_env": {},
        "timeout_ms": 600000,
        "servers": [],
        "permissions": ["mcp__local-llm"],
        "settings": {},
        "gateway": {"url": "", "model": "", "models": {}, "context": 0, "max_output": 8192, "thinking": False},
        "ca_certificate": "",
        "managed": False,
        "managed_servers_only": False,
        **changes,
    }


def plan(
    account: Account,
    token: str | None = TOKEN,
    transport: str = "http",
    modes: tuple[str, ...] = ("tools",),
    **changes: Any,
) -> Home:
    options = {"token": token, "transport": transport, "modes": list(modes)}
    return Home(account, options, params(**changes), False)


def apply(account: Account, **changes: Any) -> Home:
    home = plan(account, **changes)
    home.write()
    return home


def tree(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}


def put(account: Account, client: str = RICH, settings: str = SETTINGS) -> None:
    (account.home / ".claude").mkdir()
    (account.home / ".claude.json").write_text(client)
    (account.home / ".claude/settings.json").write_text(settings)


def client_file(account: Account) -> Any:
    return json.loads((account.home / ".claude.json").read_text())


def settings_file(account: Account) -> Any:
    return json.loads((account.home / ".claude/settings.json").read_text())


class TestPresent:
    """What is added, and what stays as it was."""

    def test_fresh_home_gets_the_entry_the_rule_and_the_token_in_private_files(self, account: Account) -> None:
        apply(account)
        assert client_file(account)["mcpServers"]["local-llm"]["url"] == "https://gateway.example.com/mcp"
        assert settings_file(account) == {"permissions": {"allow": ["mcp__local-llm"]}}
        assert (account.home / ".config/local-llm-fleet/local-llm.token").read_text() == TOKEN + "\n"
        assert {path.stat().st_mode & 0o777 for path in account.home.rglob("*") if path.is_file()} == {0o600}

    def test_the_token_is_in_its_own_file_only(self, account: Account) -> None:
        put(account)
        apply(account)
        assert [name for name, data in tree(account.home).items() if TOKEN.encode() in data] == [
            ".config/local-llm-fleet/local-llm.token"
        ]

    def test_the_headers_helper_prints_the_token_as_a_bearer_header(self, account: Account) -> None:
        home = account.home / "a home with 'quotes' and $signs"
        home.mkdir()
        account = Account("dev", account.uid, account.gid, home, "/bin/sh")
        apply(account)
        helper = client_file(account)["mcpServers"]["local-llm"]["headersHelper"]
        printed = subprocess.run(["/bin/sh", "-c", helper], capture_output=True, check=True, env={}).stdout
        assert json.loads(printed) == {"Authorization": f"Bearer {TOKEN}"}

    def test_stdio_names_the_token_file_in_the_environment(self, account: Account) -> None:
        apply(account, transport="stdio", stdio_env={"OPENAI_MODEL": "m", "OPENAI_TIMEOUT": 1000})
        assert client_file(account)["mcpServers"]["local-llm"] == {
            "type": "stdio",
            "command": "/bin/true",
            "args": [],
            "env": {
                "OPENAI_MODEL": "m",
                "OPENAI_TIMEOUT": "1000",
                "OPENAI_API_KEY_FILE": f"{account.home}/.config/local-llm-fleet/local-llm.token",
            },
            "timeout": 600000,
            "alwaysLoad": True,
        }

    def test_other_keys_their_order_the_indentation_and_the_mode_stay(self, account: Account) -> None:
        put(account)
        (account.home / ".claude.json").chmod(0o640)
        before = json.loads(RICH)
        apply(account)
        text, after = (account.home / ".claude.json").read_text(), client_file(account)
        assert list(after) == list(before)
        assert list(after["mcpServers"]) == ["github", "local-llm"]
        del after["mcpServers"]["local-llm"]
        assert after == before
        assert text.startswith('{\n    "numStartups": 41,\n') and text.endswith("}\n")
        assert (account.home / ".claude.json").stat().st_mode & 0o777 == 0o640
        assert (account.home / ".claude/settings.json").read_text().startswith('{"permissions": {"deny": ["Bash"], ')
        assert settings_file(account)["permissions"]["allow"] == ["Read", "Edit", "mcp__local-llm"]

    def test_a_second_run_changes_nothing(self, account: Account) -> None:
        put(account)
        assert apply(account).changed
        before = tree(account.home)
        again = apply(account)
        assert (again.changed, again.diff()) == ([], [])
        assert tree(account.home) == before

    def test_a_list_that_the_developer_goes_on_editing_keeps_its_order(self, account: Account) -> None:
        put(account)
        apply(account)
        settings = settings_file(account)
        settings["permissions"]["allow"].append("Grep")
        (account.home / ".claude/settings.json").write_text(json.dumps(settings))
        assert plan(account).changed == []

    def test_drift_of_the_entry_is_mended(self, account: Account) -> None:
        apply(account)
        drifted = client_file(account)
        drifted["mcpServers"]["local-llm"]["url"] = "http://elsewhere/mcp"
        (account.home / ".claude.json").write_text(json.dumps(drifted))
        apply(account)
        assert client_file(account)["mcpServers"]["local-llm"]["url"] == "https://gateway.example.com/mcp"

    def test_an_entry_whose_record_was_lost_is_recorded_again(self, account: Account) -> None:
        apply(account)
        (account.home / ".config/local-llm-fleet/local-llm.json").unlink()
        assert apply(account).changed == []
        apply(account, state="absent")
        assert "local-llm" not in client_file(account).get("mcpServers", {})

    def test_what_is_no_longer_wanted_goes(self, account: Account) -> None:
        put(account)
        apply(account, settings={"env": {"EDITOR": "emacs"}}, permissions=["A", "Read"])
        apply(account, permissions=["B"])
        assert settings_file(account)["env"] == {"EDITOR": "vi"}
        assert settings_file(account)["permissions"]["allow"] == ["Read", "Edit", "B"]

    def test_a_new_token_replaces_the_old_one(self, account: Account) -> None:
        apply(account)
        assert apply(account, token=TOKEN.upper()).changed == [
            f"{account.home}/.config/local-llm-fleet/local-llm.token"
        ]
        assert (account.home / ".config/local-llm-fleet/local-llm.token").read_text() == TOKEN.upper() + "\n"

    def test_a_token_file_that_others_can_read_is_made_private(self, account: Account) -> None:
        apply(account)
        path = account.home / ".config/local-llm-fleet/local-llm.token"
        path.chmod(0o644)
        assert apply(account).changed == [str(path)]
        assert path.stat().st_mode & 0o777 == 0o600

    def test_linked_files_stay_links(self, account: Account) -> None:
        dotfiles = account.home / "dotfiles"
        dotfiles.mkdir()
        (dotfiles / "claude.json").write_text(RICH)
        (account.home / ".claude.json").symlink_to("dotfiles/claude.json")
        apply(account)
        assert (account.home / ".claude.json").is_symlink()
        assert "local-llm" in json.loads((dotfiles / "claude.json").read_text())["mcpServers"]

    def test_a_file_that_changes_meanwhile_is_read_again(self, account: Account) -> None:
        put(account)
        home = plan(account)
        (account.home / ".claude.json").write_text(RICH.replace("41", "42"))
        home.write()
        assert client_file(account)["numStartups"] == 42
        assert "local-llm" in client_file(account)["mcpServers"]

    def test_a_file_that_never_stands_still_is_given_up(
        self, account: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(account)
        home = plan(account)
        numbers = iter(range(100, 200))
        read = claude_code_home.read

        def read_and_rewrite(path: Path) -> Any:
            snapshot = read(path)
            if path.name == ".claude.json":
                path.write_text(RICH.replace("41", str(next(numbers))))
            return snapshot

        (account.home / ".claude.json").write_text(RICH.replace("41", "42"))
        monkeypatch.setattr(claude_code_home, "read", read_and_rewrite)
        with pytest.raises(ConfigError, match="close Claude Code and try again"):
            home.write()
        assert "local-llm" not in client_file(account)["mcpServers"]

    def test_no_temporary_file_is_left(self, account: Account) -> None:
        put(account)
        apply(account)
        assert sorted(tree(account.home)) == [
            ".claude.json",
            ".claude/settings.json",
            ".config/local-llm-fleet/local-llm.json",
            ".config/local-llm-fleet/local-llm.token",
        ]


class TestAbsent:
    """What is taken out again, and what stays."""

    def test_a_fresh_home_is_empty_again(self, account: Account) -> None:
        apply(account)
        assert apply(account, state="absent").changed
        assert list(account.home.iterdir()) == []
        assert plan(account, state="absent").changed == []

    def test_rich_files_are_the_same_json_in_the_same_layout(self, account: Account) -> None:
        client = json.dumps(json.loads(RICH), indent=4) + "\n"
        put(account, client)
        apply(account, settings={"permissions": {"allow": ["mcp__local-llm", "Read"]}, "model": "haiku", "a": {"b": 1}})
        assert settings_file(account)["model"] == "haiku"
        apply(account, state="absent")
        assert tree(account.home) == {".claude.json": client.encode(), ".claude/settings.json": SETTINGS.encode()}

    def test_what_was_there_before_or_has_been_changed_since_stays(self, account: Account) -> None:
        put(account, settings='{"permissions": {"allow": ["mcp__local-llm"]}}')
        apply(account, settings={"permissions": {"allow": ["mcp__local-llm"]}, "theme": "dark"})
        (account.home / ".claude/settings.json").write_text(
            '{"permissions": {"allow": ["mcp__local-llm"]}, "theme": "light"}'
        )
        apply(account, state="absent")
        assert settings_file(account) == {"permissions": {"allow": ["mcp__local-llm"]}, "theme": "light"}

    def test_what_claude_code_has_written_since_stays(self, account: Account) -> None:
        apply(account)
        document = client_file(account)
        (account.home / ".claude.json").write_text(json.dumps({**document, "userID": "x"}))
        (account.home / ".claude/history.jsonl").write_text("{}")
        apply(account, state="absent")
        assert client_file(account) == {"userID": "x"}
        assert sorted(tree(account.home)) == [".claude.json", ".claude/history.jsonl"]

    def test_the_developers_own_server_is_not_touched(self, account: Account) -> None:
        put(account, '{"mcpServers": {"local-llm": {"type": "http", "url": "http://mine/mcp"}}}')
        assert plan(account, state="absent", token=None).changed == []


class TestRefusals:
    """What is refused before anything is written."""

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"a": 1,\n  "b" 2}', r"\.claude\.json: invalid JSON at line 2, column 7: Expecting ':' delimiter"),
            ("", r"\.claude\.json: invalid JSON at line 1, column 1"),
            ('{"a": NaN}', r"\.claude\.json: invalid JSON: NaN is not a JSON value"),
            ("[1]", r"\.claude\.json: expected a JSON object, found a list"),
            ('{"mcpServers": []}', r"\.claude\.json: mcpServers: expected an object, found a list"),
            ('{"mcpServers": {"local-llm": {"url": "u"}}}', r"claude\.json: has an MCP server 'local-llm' of its own"),
        ],
    )
    def test_client_file(self, account: Account, text: str, message: str) -> None:
        put(account, text)
        before = tree(account.home)
        with pytest.raises(ConfigError, match=message):
            plan(account)
        assert tree(account.home) == before

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"permissions": "all"}', r"settings\.json: permissions: expected an object, found a string"),
            ('{"permissions": {"allow": {}}}', r"permissions\.allow: expected a list, found an object"),
        ],
    )
    def test_settings_file(self, account: Account, text: str, message: str) -> None:
        put(account, settings=text)
        with pytest.raises(ConfigError, match=message):
            plan(account)

    def test_not_utf8(self, account: Account) -> None:
        (account.home / ".claude.json").write_bytes(b'{"a": "\xff"}')
        with pytest.raises(ConfigError, match=r"claude\.json: not UTF-8 at byte 7"):
            plan(account)

    def test_broken_record(self, account: Account) -> None:
        apply(account)
        (account.home / ".config/local-llm-fleet/local-llm.json").write_text('{"version": 1, "additions": {"a": [1]}}')
        with pytest.raises(ConfigError, match=r"local-llm\.json: expected an object 'additions' and a list 'created'"):
            plan(account)

    def test_link_into_nowhere(self, account: Account) -> None:
        (account.home / ".claude.json").symlink_to("gone/claude.json")
        with pytest.raises(ConfigError, match=r"is a link into .*/gone, which does not exist"):
            plan(account)

    @pytest.mark.parametrize("token", [None, "", "two words", "sesame\n", 'quote"', "ключ"])
    def test_token(self, account: Account, token: str | None) -> None:
        with pytest.raises(ConfigError, match="the token") as refusal:
            plan(account, token=token)
        assert not token or token.strip() not in str(refusal.value)
        assert list(account.home.iterdir()) == []

    @pytest.mark.parametrize("url", ["", "gateway/mcp", "ftp://gateway/mcp", "https://", "http://a b/", "http://a:x/"])
    def test_url(self, account: Account, url: str) -> None:
        with pytest.raises(ConfigError, match="url: expected an address like"):
            plan(account, url=url)

    def test_url_with_a_password(self, account: Account) -> None:
        with pytest.raises(ConfigError, match="must not hold a user or a password") as refusal:
            plan(account, url="https://me:hunter2@gateway/mcp")
        assert "hunter2" not in str(refusal.value)

    @pytest.mark.parametrize("command", ["", "local-llm-bridge", "/nonexistent/bridge"])
    def test_stdio_command(self, account: Account, command: str) -> None:
        with pytest.raises(ConfigError, match="stdio_command"):
            plan(account, transport="stdio", stdio_command=command)

    def test_key_in_the_environment(self, account: Account) -> None:
        with pytest.raises(ConfigError, match="OPENAI_API_KEY would be readable"):
            plan(account, transport="stdio", stdio_env={"OPENAI_API_KEY": "x"})

    def test_all_developers_are_named_at_once(self) -> None:
        developers = [{"user": user, "token": "t", "transport": "http"} for user in ("nobody-1", "nobody-2")]
        with pytest.raises(ConfigError, match=r"nobody-1: no such account(.|\n)*nobody-2: no such account"):
            config.plan_all(params(developers=developers), False)


class TestDiff:
    """What Ansible shows."""

    def test_shows_the_entry_but_no_secret(self, account: Account) -> None:
        put(account, settings='{"env": {"ANTHROPIC_API_KEY": "user-secret"}}')
        home = plan(account, transport="stdio", stdio_env={"A": "b"}, settings={"env": {"ANTHROPIC_API_KEY": "new"}})
        shown = json.dumps(home.diff())
        assert "mcpServers.local-llm" in shown and "/bin/true" in shown and "env.ANTHROPIC_API_KEY" in shown
        assert not any(secret in shown for secret in (TOKEN, "user-secret", '"new"', "github"))


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"b":[1,2]}',
        '{"a": 1, "b": [1, 2]}',
        '{\n\t"a": 1\n}',
        '{\n  "a": {\n    "b": "ü"\n  }\n}\n',
        "{}",
        "{}\n",
    ],
)
def test_layout_is_kept(text: str) -> None:
    assert render(*parse(text)).decode() == text


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(DocumentError, match="invalid JSON: nested too deeply"):
        parse('{"a":' * 100_000)
