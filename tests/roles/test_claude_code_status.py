"""How the claude_code role finds a developer's client and asks it, with small clients in a scratch home."""

from __future__ import annotations

import os
import time
from pathlib import Path

import claude_code_status as status
import pytest
from ansible.module_utils.home_files import Account


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account("dev", os.getuid(), os.getgid(), tmp_path, "/bin/sh")


def client(path: Path, script: str) -> str:
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def is_running(pid: str) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_client_of_ones_own_is_found_where_the_installer_puts_it(account: Account) -> None:
    path = client(account.home / ".local/bin/claude", "true")
    assert status.find_client(account) == path


def test_a_client_that_the_login_shell_knows_comes_first(account: Account) -> None:
    client(account.home / ".local/bin/claude", "true")
    path = client(account.home / "tools/claude", "true")
    (account.home / ".profile").write_text('echo "Welcome"; PATH="$HOME/tools:$PATH"\n')
    assert status.find_client(account) == path


@pytest.mark.parametrize("shell", ["/usr/sbin/nologin", "/nonexistent"])
def test_an_account_without_a_login_shell_may_have_a_client(account: Account, shell: str) -> None:
    path = client(account.home / ".nvm/versions/node/v24.1.0/bin/claude", "true")
    assert status.find_client(Account("dev", account.uid, account.gid, account.home, shell)) == path


def test_the_client_gets_the_developers_home_and_an_empty_environment(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "of-the-operator")
    words = status.run_as(account, ["/bin/sh", "-c", "pwd; env"], timeout=10).splitlines()
    assert words[0] == str(account.home)
    names = {line.partition("=")[0] for line in words[1:]} - {"PWD"}
    assert names == {"HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"}


def test_a_client_that_hangs_is_ended_with_all_that_it_started(account: Account) -> None:
    pid_file = account.home / "pid"
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 1 s"):
        status.run_as(account, ["/bin/sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait"], timeout=1)
    assert time.monotonic() - begin < 10
    deadline = time.monotonic() + 10
    while is_running(pid_file.read_text().strip()):  # a killed process is there for a moment longer
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("words", "connected"),
    [
        ("local-llm:\n  Status: ✔ Connected\n  Type: http", True),
        ("local-llm:\n  Status: ✘ Failed to connect — Connected to nothing", False),
        ("local-llm:\n  Status: ! Needs authentication", False),
        ("", False),
    ],
)
def test_only_the_clients_word_counts(words: str, connected: bool) -> None:
    assert bool(status.CONNECTED.search(words)) is connected
