"""A host's state, as far as the baselines look at it, taken by one command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from testinfra.host import Host

CRON = ("/etc/crontab", "/etc/cron.hourly", "/etc/cron.daily", "/etc/cron.weekly", "/etc/cron.monthly", "/etc/cron.d")
# Programs that linux-baseline does not want with the setuid or the setgid bit.
NO_SETUID = (
    "/usr/bin/rcp",
    "/usr/bin/rlogin",
    "/usr/bin/rsh",
    "/usr/libexec/openssh/ssh-keysign",
    "/usr/lib/openssh/ssh-keysign",
    "/sbin/netreport",
    "/usr/sbin/usernetctl",
    "/usr/sbin/userisdnctl",
    "/usr/sbin/pppd",
    "/usr/bin/lockfile",
    "/usr/bin/mail-lock",
    "/usr/bin/mail-unlock",
    "/usr/bin/mail-touchlock",
    "/usr/bin/dotlockfile",
    "/usr/bin/arping",
    "/usr/sbin/arping",
    "/usr/sbin/uuidd",
    "/usr/bin/mtr",
    "/usr/lib/evolution/camel-lock-helper-1.2",
    "/usr/lib/pt_chown",
    "/usr/lib/eject/dmcrypt-get-device",
    "/usr/lib/mc/cons.saver",
)
PATHS = (
    "/etc/hosts.equiv",
    "/etc/shadow",
    "/etc/passwd",
    "/etc/login.defs",
    "/var/log",
    "/etc/ssh",
    "/etc/ssh/sshd_config",
    "/etc/ssh/ssh_config",
    "/sys/firmware/efi",
    *CRON,
    *NO_SETUID,
)

# Each part of the output begins with a line of the separator and the part's name.
SEPARATOR = "\x1e"
SCRIPT = rf"""
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
part() {{ printf '\n\036%s\n' "$1"; }}
[ "$(id -u)" = 0 ] || {{ echo 'the baselines need root' >&2; exit 1; }}
part distribution; . /etc/os-release; echo "$ID"
part container; systemd-detect-virt --container
part snapd; systemctl is-active snapd
part files; stat -c '%n %a %U %G %F' {" ".join(PATHS)} 2>/dev/null
part sysctl; cd /proc/sys
grep -d skip -s '' net/ipv4/* net/ipv4/conf/all/* net/ipv4/conf/default/* net/ipv6/conf/all/* net/ipv6/conf/default/* \
  fs/* kernel/* kernel/yama/*
cd /
part mounts; cat /proc/self/mounts
part packages; dpkg-query -W -f '${{Package}} ${{db:Status-Status}}\n'
part login_defs; cat /etc/login.defs
part auditd; cat /etc/audit/auditd.conf 2>/dev/null
part passwd; cat /etc/passwd
part group; cat /etc/group
part modprobe; cat /etc/modprobe.d/*.conf /run/modprobe.d/*.conf /usr/lib/modprobe.d/*.conf 2>/dev/null
part path; env -i HOME=/root USER=root sh -lc 'echo "$PATH"'
part rhosts; find / -maxdepth 3 \( -path /proc -o -path /sys \) -prune -o \( -iname .rhosts -o -iname .netrc \) -print
part cpu_flags; grep -m1 '^flags' /proc/cpuinfo
part vulnerabilities; grep -s '' /sys/devices/system/cpu/vulnerabilities/*
part openssh; if command -v ssh >/dev/null; then ssh -V 2>&1; fi
part ssh; if command -v ssh >/dev/null; then ssh -F /etc/ssh/ssh_config -G host.invalid || exit 1; fi
part sshd; if command -v sshd >/dev/null; then
  effective=$(sshd -T) || exit 1
  echo "$effective"
  # Debian 12's does not print it
  case $effective in *debianbanner*) ;; *)
    cat /etc/ssh/sshd_config.d/*.conf /etc/ssh/sshd_config 2>/dev/null |
      awk 'tolower($1) == "debianbanner" {{print tolower($1 " " $2); exit}}' ;;
  esac
fi
part sshd_processes; pgrep --full --list-full --exact '(sshd: )?(/usr/sbin/)?sshd -D.*'
part small_moduli; awk '$5 ~ /^[0-9]+$/ && $5 < 2047 {{print $5}}' /etc/ssh/moduli 2>/dev/null
part rsa_host_key; ssh-keygen -l -f /etc/ssh/ssh_host_rsa_key 2>/dev/null
exit 0
"""


@dataclass(frozen=True)
class File:
    """What stat says of a file."""

    mode: int
    user: str
    group: str
    kind: str


@dataclass(frozen=True)
class Snapshot:
    """A host's state. Maps lack what the host lacks; of a configuration, each option has all of its values."""

    distribution: str = "debian"
    container: bool = False
    snapd: bool = False
    files: Mapping[str, File] = field(default_factory=dict)
    sysctl: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[str, frozenset[str]] = field(default_factory=dict)
    packages: frozenset[str] = frozenset()
    login_defs: Mapping[str, str] = field(default_factory=dict)
    auditd: Mapping[str, str] = field(default_factory=dict)
    passwd: tuple[tuple[str, ...], ...] = ()
    group: tuple[tuple[str, ...], ...] = ()
    modprobe: str = ""
    path: str = ""
    rhosts: tuple[str, ...] = ()
    cpu_flags: frozenset[str] = frozenset()
    vulnerabilities: Mapping[str, str] = field(default_factory=dict)
    openssh: tuple[int, int] = (0, 0)
    ssh: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sshd: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sshd_processes: tuple[str, ...] = ()
    small_moduli: tuple[str, ...] = ()
    rsa_host_key: int = 0


def take(host: Host) -> Snapshot:
    """Look at a host.

    Args:
        host: the host, as root.

    Returns:
        Its state.

    Raises:
        AssertionError: the user is not root, or ssh or sshd refuses its own configuration.
    """
    return parse(host.check_output("sh -c %s", SCRIPT))


def parse(output: str) -> Snapshot:
    """Read what the command printed.

    Args:
        output: its parts, in any order; a part may be absent.

    Returns:
        The host's state.
    """
    parts = dict(part.partition("\n")[::2] for part in output.split(SEPARATOR)[1:])
    text = {name: body.strip() for name, body in parts.items()}
    lines = {name: tuple(line for line in body.splitlines() if line.strip()) for name, body in text.items()}

    def of(name: str) -> tuple[str, ...]:
        return lines.get(name, ())

    version = re.search(r"OpenSSH_(\d+)\.(\d+)", text.get("openssh", ""))
    return Snapshot(
        distribution=text.get("distribution", ""),
        container=text.get("container", "none") != "none",
        snapd=text.get("snapd") == "active",
        files={
            name: File(int(mode, 8), user, group, kind)
            for name, mode, user, group, kind in (line.split(maxsplit=4) for line in of("files"))
        },
        # of several lines the first one: a lab's copy of a key may have the rest of a longer value behind it
        sysctl={
            key.replace("/", "."): value for key, _, value in (line.partition(":") for line in reversed(of("sysctl")))
        },
        # the last one lies on top
        mounts={point: frozenset(options.split(",")) for _, point, _, options, *_ in map(str.split, of("mounts"))},
        packages=frozenset(line.split()[0] for line in of("packages") if line.endswith(" installed")),
        login_defs={
            key: value.strip()
            for key, value in (line.split(maxsplit=1) for line in of("login_defs") if re.match(r"[A-Z]\w+\s+\S", line))
        },
        auditd={
            key.strip(): value.strip()
            for key, sign, value in (line.partition("=") for line in of("auditd") if not line.startswith("#"))
            if sign
        },
        passwd=tuple(tuple(line.split(":")) for line in of("passwd")),
        group=tuple(tuple(line.split(":")) for line in of("group")),
        modprobe=text.get("modprobe", ""),
        path=text.get("path", ""),
        rhosts=of("rhosts"),
        cpu_flags=frozenset(text.get("cpu_flags", "").partition(":")[2].split()),
        vulnerabilities={
            path.rpartition("/")[2]: state for path, _, state in (line.partition(":") for line in of("vulnerabilities"))
        },
        openssh=(int(version[1]), int(version[2])) if version else (0, 0),
        ssh=_options(of("ssh")),
        sshd=_options(of("sshd")),
        sshd_processes=of("sshd_processes"),
        small_moduli=of("small_moduli"),
        rsa_host_key=int(text["rsa_host_key"].split()[0]) if text.get("rsa_host_key") else 0,
    )


def _options(lines: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Options by name, as ``sshd -T`` and ``ssh -G`` print them: one a line, in lower case."""
    options: dict[str, tuple[str, ...]] = {}
    for line in lines:
        name, _, value = line.partition(" ")
        options[name] = (*options.get(name, ()), value)
    return options
