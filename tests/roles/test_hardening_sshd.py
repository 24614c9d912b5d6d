"""Whether whoever runs the role would get in again by ssh, and what else is refused beforehand."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import hardening_preflight as preflight
import hardening_sysctl
import hardening_topic
import pytest
from ansible.module_utils import hardening_memory as memory
from ansible.module_utils import hardening_sshd as sshd
from ansible.module_utils.ssh_session import Session

ME = getpass.getuser()
CAME = Session(ME, "10.0.0.9", "50000", "10.0.0.5", "22")
OPEN = {"permitrootlogin": ["prohibit-password"], "trustedusercakeys": ["/etc/ssh/ca.pub"]}


@pytest.mark.parametrize(
    ("how", "change", "words"),
    [
        ("publickey", {}, None),
        (None, {}, None),
        ("password", {}, f"This run came in as {ME} by password, and with hardening_ssh only keys are let in"),
        ("keyboard-interactive", {}, f"came in as {ME} by keyboard-interactive"),
        (None, {"trustedusercakeys": ["none"]}, "has no key on this host (none-at-all)"),
        ("publickey", {"allowgroups": ["nosuchgroup"]}, "would let in only the groups nosuchgroup"),
        ("publickey", {"allowusers": ["nobody"]}, "would let in only the users nobody"),
        ("publickey", {"allowusers": ["nobody", f"{ME[:-1]}?@10.*"]}, None),
        ("publickey", {"denyusers": [ME]}, f"sshd's denyusers ({ME}) has {ME}"),
        ("publickey", {"denygroups": ["nosuchgroup"]}, None),
    ],
)
def test_who_would_not_get_in(how: str | None, change: dict[str, list[str]], words: str | None) -> None:
    problems = list(sshd.lockout_problems(CAME, how, OPEN | {"authorizedkeysfile": ["none-at-all"]} | change))
    assert len(problems) == bool(words)
    if words:
        assert words in problems[0]


def test_root_does_not_shut_root_out() -> None:
    came = Session("root", "10.0.0.9", "50000", "10.0.0.5", "22")
    for value, refused in (("no", True), ("forced-commands-only", True), ("prohibit-password", False)):
        problems = list(sshd.lockout_problems(came, "publickey", OPEN | {"permitrootlogin": [value]}))
        assert bool(problems) is refused


def test_a_key_is_looked_for_where_sshd_does(tmp_path: Path) -> None:
    config = {"authorizedkeysfile": [f"{tmp_path}/%u .ssh/nothing-here"]}
    keys = tmp_path / ME
    assert not sshd.has_key(ME, config)
    keys.write_text("# none yet\n\n")
    assert not sshd.has_key(ME, config)
    keys.write_text("# one\nssh-ed25519 AAAA\n")
    assert sshd.has_key(ME, config)


PARAMS: dict[str, Any] = {
    "rollback_s": 60,
    "banner": "",
    "sysctl_set": {},
    "journal": {"hardening_journal_size": "2G", "hardening_journal_keep": "90days"},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"sysctl_set": {"net.ipv4.conf.eth0/5.rp_filter": 0, "kernel.printk": "3 4 1 3"}}, None),
        ({"rollback_s": 5}, "hardening_rollback_s is 5; it is at least 20"),
        ({"banner": "\\S \\r"}, "hardening_banner has a backslash"),
        ({"sysctl_set": {"kernel.x": "1\n2"}}, "hardening_sysctl_set: 'kernel.x': '1\\n2'"),
        ({"sysctl_set": {"kernel x": "1"}}, "hardening_sysctl_set: 'kernel x'"),
        ({"journal": {"hardening_journal_size": "a lot", "hardening_journal_keep": "90days"}}, "it is a size"),
        ({"journal": {"hardening_journal_size": "2G", "hardening_journal_keep": "ever"}}, "it is a time such as"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], words: str | None) -> None:
    problems = list(preflight.input_problems(PARAMS | change))
    assert len(problems) == bool(words)
    if words:
        assert words in problems[0]


def test_a_file_of_sysctl_sets_what_the_kernel_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (memory, hardening_sysctl):
        monkeypatch.setattr(module, "PROC_SYS", tmp_path)
    for name in ("all", "default", "eth0"):
        (path := tmp_path / f"net/ipv6/conf/{name}/accept_ra").parent.mkdir(parents=True)
        path.write_text("1\n")
    text = "# net.ipv6.conf.all.accept_ra = 7\nnet.ipv6.conf.*.accept_ra = 0\n-kernel.gone = 1\n"
    wanted = hardening_sysctl.wanted_values(text + "net.ipv6.conf.eth0.accept_ra =   2\n")
    assert wanted == {
        "net/ipv6/conf/all/accept_ra": "0",
        "net/ipv6/conf/default/accept_ra": "0",
        "net/ipv6/conf/eth0/accept_ra": "2",
    }


def test_a_file_that_its_program_does_not_take_is_not_used() -> None:
    hardening_topic.validate("grep --quiet right %s", Path("/etc/x"), "right\n")
    with pytest.raises(memory.HardeningError, match=r"`grep right .*/x` failed"):
        hardening_topic.validate("grep right %s", Path("/etc/x"), "wrong\n")
