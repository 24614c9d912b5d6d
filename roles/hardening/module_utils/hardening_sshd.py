"""What sshd would do with a configuration that is not in use yet, and whether this session's user gets in again."""

from __future__ import annotations

import fnmatch
import grp
import pwd
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.hardening_memory import HardeningError, run
from ansible.module_utils.ssh_session import Session

SSHD = "/usr/sbin/sshd"
ETC = Path("/etc/ssh")
MAIN = ETC / "sshd_config"
FOLDER = ETC / "sshd_config.d"
DROP_IN = FOLDER / "00-local-llm-hardening.conf"
JOURNAL_LINES = 20000


def method(came: Session) -> str | None:
    """How the session proved who it is, from sshd's log: V(publickey), V(password); nothing if the log does not say."""
    argv = [
        "/usr/bin/journalctl",
        "--quiet",
        "--output=cat",
        f"--lines={JOURNAL_LINES}",
        "-t",
        "sshd",
        "-t",
        "sshd-session",
    ]
    pattern = rf"^Accepted (\S+) for {re.escape(came.user)} from \S+ port {came.client_port} "
    found = re.findall(pattern, run(*argv).stdout, re.MULTILINE)
    return found[-1].partition("/")[0] if found else None


def effective(drop_in: str, came: Session | None) -> dict[str, list[str]]:
    """The configuration of sshd with another drop-in.

    Args:
        drop_in: The drop-in's text.
        came: For whose connection; for any without it.

    Returns:
        The values of each keyword, in lower case.

    Raises:
        HardeningError: sshd does not take it.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "sshd_config.d"
        folder.mkdir()
        for path in FOLDER.glob("*.conf"):
            (folder / path.name).write_text(path.read_text())
        (folder / DROP_IN.name).write_text(drop_in)
        main = Path(name) / "sshd_config"
        main.write_text(MAIN.read_text().replace(str(FOLDER), str(folder)))
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it even for a look
        argv = [SSHD, "-T", "-f", str(main)]
        if came:
            argv += [
                "-C",
                f"user={came.user},host={came.client},addr={came.client},laddr={came.server},lport={came.server_port}",
            ]
        shown = run(*argv)
        if shown.returncode != 0:
            why = shown.stderr.strip().replace(name, str(ETC))
            raise HardeningError(f"sshd does not take this configuration, so nothing was changed: {why}")
    values: dict[str, list[str]] = {}
    for line in shown.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        values.setdefault(keyword, []).append(value)
    return values


def groups_of(user: str) -> set[str]:
    """Names of a user's groups."""
    entry = pwd.getpwnam(user)
    return {group.gr_name for group in grp.getgrall() if user in group.gr_mem or group.gr_gid == entry.pw_gid}


def matches(names: set[str], patterns: list[str]) -> bool:
    """Whether one of the names is meant; a part after C(@) says from where, and is not looked at."""
    words = [word.partition("@")[0] for pattern in patterns for word in pattern.split()]
    return any(fnmatch.fnmatchcase(name, word) for name in names for word in words)


def has_key(user: str, config: dict[str, list[str]]) -> bool:
    """Whether a user can come in by key, as far as this host can tell."""
    for keyword in ("authorizedkeyscommand", "trustedusercakeys"):
        if config.get(keyword, ["none"]) != ["none"]:
            return True
    entry = pwd.getpwnam(user)
    tokens = {"%h": entry.pw_dir, "%u": user, "%U": str(entry.pw_uid), "%%": "%"}
    for word in " ".join(config.get("authorizedkeysfile", [])).split():
        path = re.sub(r"%[huU%]", lambda token: tokens[token[0]], word)
        try:
            if re.search(r"^\s*[^#\s]", (Path(entry.pw_dir) / path).read_text(), re.MULTILINE):
                return True
        except OSError:
            continue
    return False


def lockout_problems(came: Session, how: str | None, config: dict[str, list[str]]) -> Iterator[str]:
    """Why this session's user would not get in again.

    Args:
        came: The session.
        how: How it proved who it is.
        config: What sshd would do.
    """
    user, groups = came.user, groups_of(came.user)
    if how not in (None, "publickey"):
        yield (
            f"This run came in as {user} by {how}, and with hardening_ssh only keys are let in. Give {user} a key on "
            "this host (ssh-copy-id), and run it with that"
        )
    elif not has_key(user, config):
        files = " ".join(config.get("authorizedkeysfile", []))
        yield (
            f"{user}, as whom this run came in, has no key on this host ({files}), and with hardening_ssh only keys "
            "are let in. Give it one (ssh-copy-id)"
        )
    root = config.get("permitrootlogin", [""])[0]
    if user == "root" and root in ("no", "forced-commands-only"):
        yield (
            f"This run came in as root, and hardening_ssh_root_login is {root!r}. Come in as a user with sudo, or set "
            "hardening_ssh_root_login to prohibit-password"
        )
    for keyword, names, what in (("allowgroups", groups, "groups"), ("allowusers", {user}, "users")):
        if keyword in config and not matches(names, config[keyword]):
            yield (
                f"sshd would let in only the {what} {', '.join(config[keyword])}, and {user}, as whom this run came "
                f"in, is not among them (its groups: {', '.join(sorted(groups))}). Add it to one, or change "
                f"{'hardening_ssh_allow_groups' if what == 'groups' else 'AllowUsers in /etc/ssh'}"
            )
    for keyword, names in (("denygroups", groups), ("denyusers", {user})):
        if keyword in config and matches(names, config[keyword]):
            refused = ", ".join(config[keyword])
            yield f"sshd's {keyword} ({refused}) has {user}, as whom this run came in. Change it in /etc/ssh"
