"""The controls of dev-sec linux-baseline 2.10 and ssh-baseline 2.8.1 (Apache-2.0): facts only, in their order.

Where we read them otherwise than they are written:

- Options of ssh and sshd count as they are in effect (``ssh -G``, ``sshd -T``), not as they are written in a file.
- Of ciphers, MACs, key exchanges and host keys a host may have fewer than the list, and key exchanges under the names
  that OpenSSH has given them since, with mlkem768x25519-sha256, which is younger than the baseline.
- sshd-09 wants an address: the baseline is content with a configuration that says 0.0.0.0.
- os-06 finds the bits of any mode, os-10 the lines in any file under modprobe.d.
- A control of which a host has nothing to look at does not apply, and so do options that OpenSSH no longer has; the
  baselines let them pass. ``kernel.*`` and ``fs.*`` in a container are the machine's, unless it has its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from tests.baseline.snapshot import CRON, NO_SETUID, Snapshot


class NotApplicableError(Exception):
    """A host has nothing that the control could look at; the text says what is not there."""


@dataclass(frozen=True)
class Fact:
    """One thing that a control looks at."""

    what: str
    found: str
    wanted: str
    ok: bool

    def __str__(self) -> str:
        """What was found."""
        return f"{self.what} is {self.found or 'absent'}"


Check = Callable[[Snapshot], Iterable[Fact]]


@dataclass(frozen=True)
class Control:
    """A control by its upstream id and title."""

    id: str
    title: str
    check: Check


# --- kinds of checks ---


def one_of(what: str, found: str, *wanted: str) -> Fact:
    """A value that is to be one of some."""
    return Fact(what, found, " or ".join(wanted), found in wanted)


def none_of(what: str, found: Iterable[str]) -> Fact:
    """A list that is to be empty."""
    found = sorted(found)
    return Fact(what, ", ".join(found) or "none", "none", not found)


def all_of(*checks: Check) -> Check:
    """Several checks as one."""
    return lambda host: [fact for check in checks for fact in check(host)]


def no_file(path: str) -> Check:
    """A file that is not to be there."""
    return lambda host: [none_of(path, [path] if path in host.files else [])]


def file(path: str, has: int = 0, lacks: int = 0, *, kind: str = "regular file", group: str = "root") -> Check:
    """A file of root's that has some bits of a mode and lacks others; ``group`` may name several, with a bar."""

    def check(host: Snapshot) -> Iterator[Fact]:
        found = host.files.get(path)
        if not found:
            yield Fact(path, "", kind, False)
            return
        yield one_of(path, found.kind, kind)
        yield one_of(f"owner of {path}", found.user, "root")
        yield one_of(f"group of {path}", found.group, *group.split("|"))
        ok = found.mode & has == has and not found.mode & lacks
        wanted = " and ".join([f"all of {has:04o}"] * bool(has) + [f"none of {lacks:04o}"] * bool(lacks))
        yield Fact(f"mode of {path}", f"{found.mode:04o}", wanted, ok)

    return check


def no_package(*names: str) -> Check:
    """Packages that are not to be installed."""
    return lambda host: [none_of("installed", host.packages.intersection(names))]


def sysctl(*keys_and_values: str) -> Check:
    """Keys, the last argument being the values that they may have, with a bar; ``{}`` stands for all and default."""
    *patterns, values = keys_and_values
    keys = [pattern.replace("{}", name) for pattern in patterns for name in ("all", "default")]

    def check(host: Snapshot) -> Iterator[Fact]:
        for key in dict.fromkeys(keys):
            top = key.split(".")[0]
            if host.container and top != "net" and f"/proc/sys/{top}" not in host.mounts:
                raise NotApplicableError(f"{key} belongs to the machine that carries the container")
            if key.startswith("net.ipv6.") and not any(name.startswith("net.ipv6.") for name in host.sysctl):
                raise NotApplicableError("no IPv6")
            yield one_of(key, host.sysctl.get(key, ""), *values.split("|"))

    return check


def mount_option(option: str, *points: str) -> Check:
    """An option that those of the mount points have which are mounted."""

    def check(host: Snapshot) -> list[Fact]:
        facts = [
            one_of(
                point, f"mounted with{'' if option in host.mounts[point] else 'out'} {option}", f"mounted with {option}"
            )
            for point in points
            if point in host.mounts
        ]
        if not facts:
            raise NotApplicableError("nothing is mounted there")
        return facts

    return check


def login_defs(wanted: Mapping[str, str]) -> Check:
    """Settings of login.defs."""
    return lambda host: [one_of(key, host.login_defs.get(key, ""), value) for key, value in wanted.items()]


def sshd(option: str, *wanted: str) -> Check:
    """An option of the server; one that may be there more than once is to be right each time."""
    return lambda host: [one_of(option, value, *wanted) for value in host.sshd.get(option, ("",))]


def ssh(option: str, *wanted: str) -> Check:
    """An option of the client."""
    return lambda host: [one_of(option, value, *wanted) for value in host.ssh.get(option, ("",))]


def algorithms(side: str, option: str) -> Check:
    """A list of algorithms that is to have none but strong ones."""

    def check(host: Snapshot) -> list[Fact]:
        options = host.sshd if side == "sshd" else host.ssh
        return [none_of(f"weak {option}", set(options.get(option, ("all",))[0].split(",")) - STRONG[option])]

    return check


def before(version: tuple[int, int], check: Check) -> Check:
    """A check of an option that OpenSSH has had until a version."""

    def only_before(host: Snapshot) -> Iterable[Fact]:
        if host.openssh >= version:
            raise NotApplicableError("OpenSSH has the option no longer")
        return check(host)

    return only_before


def only_with(side: str, control: Control) -> Control:
    """A control for hosts that have sshd, or ssh."""

    def check(host: Snapshot) -> Iterable[Fact]:
        if not (host.sshd if side == "sshd" else host.ssh):
            raise NotApplicableError(f"no {side}")
        return control.check(host)

    return replace(control, check=check)


# --- what they look at ---

STRONG = {
    "ciphers": {
        "chacha20-poly1305@openssh.com",
        "aes256-gcm@openssh.com",
        "aes128-gcm@openssh.com",
        "aes256-ctr",
        "aes192-ctr",
        "aes128-ctr",
    },
    "kexalgorithms": {
        "sntrup761x25519-sha512@openssh.com",
        "curve25519-sha256@libssh.org",
        "diffie-hellman-group-exchange-sha256",
        # since then
        "sntrup761x25519-sha512",
        "curve25519-sha256",
        "mlkem768x25519-sha256",
    },
    "macs": {
        "hmac-sha2-512-etm@openssh.com",
        "hmac-sha2-256-etm@openssh.com",
        "umac-128-etm@openssh.com",
        "hmac-sha2-512",
        "hmac-sha2-256",
    },
}
SEARCH_PATHS = {
    "ENV_SUPATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "ENV_PATH": "/usr/local/bin:/usr/bin:/bin",
}
LOGIN_DEFS = {
    "UMASK": "027",
    "PASS_MAX_DAYS": "60",
    "PASS_MIN_DAYS": "7",
    "PASS_WARN_AGE": "7",
    "LOGIN_RETRIES": "5",
    "LOGIN_TIMEOUT": "60",
    "UID_MIN": "1000",
    "GID_MIN": "1000",
}
AUDITD = {
    "log_file": "/var/log/audit/audit.log",
    "log_format": "raw",
    "flush": "incremental|incremental_async",
    "max_log_file_action": "keep_logs",
    "space_left": "75",
    "action_mail_acct": "root",
    "space_left_action": "syslog",
    "admin_space_left": "50",
    "admin_space_left_action": "suspend",
    "disk_full_action": "suspend",
    "disk_error_action": "suspend",
}
FILESYSTEMS = ("cramfs", "freevxfs", "jffs2", "hfs", "hfsplus", "squashfs", "udf", "vfat")


def password_hashes(host: Snapshot) -> list[Fact]:
    """os-03b."""
    return [none_of("a password in /etc/passwd of", (entry[0] for entry in host.passwd if entry[1] not in ("x", "*")))]


def root_path(host: Snapshot) -> list[Fact]:
    """os-04."""
    return [none_of("relative in root's PATH", (repr(part) for part in host.path.split(":") if part in ("", ".")))]


def search_paths(host: Snapshot) -> Iterator[Fact]:
    """os-05."""
    for key, wanted in SEARCH_PATHS.items():
        found = host.login_defs.get(key, "")
        yield Fact(key, found, wanted, wanted in found)


def redhat_login_defs(host: Snapshot) -> list[Fact]:
    """os-05b."""
    raise NotApplicableError(f"for Red Hat; this is {host.distribution}")


def setuid(host: Snapshot) -> list[Fact]:
    """os-06."""
    found = [path for path in NO_SETUID if path in host.files and host.files[path].mode & 0o6000]
    return [none_of("setuid or setgid", found)]


def unique_ids(host: Snapshot) -> list[Fact]:
    """os-07."""
    uids, gids = [entry[2] for entry in host.passwd], [entry[2] for entry in host.group]
    return [
        none_of(f"double {what}", {n for n in ids if ids.count(n) > 1}) for what, ids in (("uid", uids), ("gid", gids))
    ]


def blocked_filesystems(host: Snapshot) -> Iterator[Fact]:
    """os-10."""
    # snaps are squashfs, and EFI boots from vfat
    needed = {"squashfs": host.snapd, "vfat": "/sys/firmware/efi" in host.files}
    for name in FILESYSTEMS:
        if not needed.get(name):
            blocked = re.search(rf"^\s*install\s+{name}\s+(/usr)?/bin/(true|false)\s*$", host.modprobe, re.MULTILINE)
            yield one_of(name, "blocked" if blocked else "not blocked", "blocked")


def cpu_vulnerabilities(host: Snapshot) -> list[Fact]:
    """os-12."""
    if host.container:
        raise NotApplicableError("the CPU's state belongs to the machine that carries the container")
    vulnerable = [f"{name} ({state})" for name, state in host.vulnerabilities.items() if "vulnerable" in state.lower()]
    return [none_of("vulnerable", vulnerable)]


def cron_files(host: Snapshot) -> list[Fact]:
    """os-13."""
    present = [path for path in CRON if path in host.files]
    if not present:
        raise NotApplicableError("no cron")
    return [fact for path in present for fact in file(path, lacks=0o066, kind=host.files[path].kind)(host)]


def auditd(host: Snapshot) -> Iterator[Fact]:
    """package-08."""
    yield one_of("auditd", "installed" if "auditd" in host.packages else "", "installed")
    for key, wanted in AUDITD.items():
        yield one_of(key, host.auditd.get(key, "").lower(), *wanted.split("|"))


def core_pattern(host: Snapshot) -> list[Fact]:
    """sysctl-31b."""
    (dumpable,) = sysctl("fs.suid_dumpable", "0|1|2")(host)
    if dumpable.found != "2":
        raise NotApplicableError(f"fs.suid_dumpable is {dumpable.found}, not 2")
    found = host.sysctl.get("kernel.core_pattern", "")
    return [Fact("kernel.core_pattern", found, "a full path", bool(re.match(r"\|?/", found)))]


def no_execute(host: Snapshot) -> list[Fact]:
    """sysctl-33."""
    return [one_of("the CPU's flag nx", "nx" if "nx" in host.cpu_flags else "", "nx")]


def listen_address(host: Snapshot) -> list[Fact]:
    """sshd-09."""
    everywhere = [address for address in host.sshd["listenaddress"] if address.startswith(("0.0.0.0:", "[::]:"))]
    return [none_of("listening on all addresses", everywhere)]


def moduli(host: Snapshot) -> list[Fact]:
    """sshd-48."""
    return [none_of("DH primes of less than 2048 bits", {f"{bits} bits" for bits in host.small_moduli})]


def crypto_policy(host: Snapshot) -> list[Fact]:
    """sshd-49."""
    if not host.sshd_processes:
        raise NotApplicableError("no sshd is running")
    overridden = [
        line for line in host.sshd_processes if re.search(r"-o(Ciphers|KexAlgorithms|HostKeyAlgorithms)", line)
    ]
    return [
        one_of("number of listening sshd", str(len(host.sshd_processes)), "1"),
        none_of("sshd with algorithms on its command line", overridden),
    ]


def rsa_host_key(host: Snapshot) -> list[Fact]:
    """sshd-50."""
    if "/etc/ssh/ssh_host_rsa_key" not in host.sshd.get("hostkey", ()):
        raise NotApplicableError("sshd has no RSA key")
    return [Fact("bits of the RSA host key", str(host.rsa_host_key), "4096", host.rsa_host_key >= 4096)]


NET4, NET6 = "net.ipv4.conf.{}", "net.ipv6.conf.{}"
DEFAULT6 = "net.ipv6.conf.default"

LINUX = [
    Control("os-01", "Trusted hosts login", no_file("/etc/hosts.equiv")),
    Control(
        "os-02",
        "Check owner and permissions for /etc/shadow",
        file("/etc/shadow", has=0o640, lacks=0o115, group="shadow"),
    ),
    Control("os-03", "Check owner and permissions for /etc/passwd", file("/etc/passwd", has=0o644, lacks=0o133)),
    Control("os-03b", "Check passwords hashes in /etc/passwd", password_hashes),
    Control("os-04", "Dot in PATH variable", root_path),
    Control(
        "os-05",
        "Check login.defs",
        all_of(
            file("/etc/login.defs", has=0o444, lacks=0o111),
            search_paths,
            login_defs(LOGIN_DEFS),
        ),
    ),
    Control("os-05b", "Check login.defs - RedHat specific", redhat_login_defs),
    Control("os-06", "Check for SUID/ SGID blacklist", setuid),
    Control("os-07", "Unique uid and gid", unique_ids),
    Control("os-09", "Check for .rhosts and .netrc file", lambda host: [none_of("found", host.rhosts)]),
    Control("os-10", "CIS: Disable unused filesystems", blocked_filesystems),
    Control("os-11", "Protect log-directory", file("/var/log", kind="directory", group="root|syslog")),
    Control("os-12", "Detect vulnerabilities in the cpu-vulnerability-directory", cpu_vulnerabilities),
    Control("os-13", "Protect cron directories and files", cron_files),
    Control(
        "os-14",
        "Check mountpoints for noexec mount options",
        mount_option("noexec", "/boot", "/dev", "/dev/shm", "/tmp", "/var/log", "/var/log/audit", "/var/tmp"),
    ),
    Control(
        "os-15",
        "Check mountpoints for nosuid mount options",
        mount_option(
            "nosuid",
            *("/boot", "/dev", "/dev/shm", "/home", "/run", "/tmp"),
            *("/var", "/var/log", "/var/log/audit", "/var/tmp"),
        ),
    ),
    Control(
        "os-16",
        "Check mountpoints for nodev mount options",
        mount_option(
            "nodev",
            *("/boot", "/dev/shm", "/home", "/run", "/tmp"),
            *("/var", "/var/log", "/var/log/audit", "/var/tmp"),
        ),
    ),
    Control("package-01", "Do not run deprecated inetd or xinetd", no_package("inetd", "xinetd")),
    Control("package-02", "Do not install Telnet server", no_package("telnetd")),
    Control("package-03", "Do not install rsh server", no_package("rsh-server")),
    Control("package-05", "Do not install ypserv server (NIS)", no_package("ypserv")),
    Control("package-06", "Do not install tftp server", no_package("tftp-server")),
    Control("package-08", "Install auditd", auditd),
    Control("package-09", "CIS: Additional process hardening", no_package("prelink")),
    Control("sysctl-01", "IPv4 Forwarding", sysctl("net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding", "0")),
    Control("sysctl-02", "Reverse path filtering", sysctl(f"{NET4}.rp_filter", "1")),
    Control(
        "sysctl-03",
        "ICMP ignore bogus error responses",
        sysctl("net.ipv4.icmp_ignore_bogus_error_responses", "1"),
    ),
    Control("sysctl-04", "ICMP echo ignore broadcasts", sysctl("net.ipv4.icmp_echo_ignore_broadcasts", "1")),
    Control("sysctl-05", "ICMP ratelimit", sysctl("net.ipv4.icmp_ratelimit", "100")),
    Control("sysctl-06", "ICMP ratemask", sysctl("net.ipv4.icmp_ratemask", "88089")),
    Control("sysctl-07", "TCP timestamps", sysctl("net.ipv4.tcp_timestamps", "0")),
    Control("sysctl-08", "ARP ignore", sysctl("net.ipv4.conf.all.arp_ignore", "1|2")),
    Control("sysctl-09", "ARP announce", sysctl("net.ipv4.conf.all.arp_announce", "2")),
    Control("sysctl-10", "TCP RFC1337 Protect Against TCP Time-Wait", sysctl("net.ipv4.tcp_rfc1337", "1")),
    Control("sysctl-11", "Protection against SYN flood attacks", sysctl("net.ipv4.tcp_syncookies", "1")),
    Control("sysctl-12", "Shared Media IP Architecture", sysctl(f"{NET4}.shared_media", "1")),
    Control(
        "sysctl-13",
        "Disable Source Routing",
        sysctl(f"{NET4}.accept_source_route", f"{NET6}.accept_source_route", "0"),
    ),
    Control(
        "sysctl-14",
        "Disable acceptance of all IPv4 redirected packets",
        sysctl(f"{NET4}.accept_redirects", "0"),
    ),
    Control(
        "sysctl-15",
        "Disable acceptance of all secure redirected packets",
        sysctl(f"{NET4}.secure_redirects", "0"),
    ),
    Control("sysctl-16", "Disable sending of redirects packets", sysctl(f"{NET4}.send_redirects", "0")),
    Control("sysctl-17", "Disable log martians", sysctl(f"{NET4}.log_martians", "1")),  # it wants them logged
    Control("sysctl-19", "IPv6 Forwarding", sysctl("net.ipv6.conf.all.forwarding", "0")),
    Control(
        "sysctl-20",
        "Disable acceptance of all IPv6 redirected packets",
        sysctl(f"{NET6}.accept_redirects", "0"),
    ),
    Control(
        "sysctl-21",
        "Disable acceptance of IPv6 router solicitations messages",
        sysctl(f"{NET6}.router_solicitations", "0"),
    ),
    Control(
        "sysctl-22",
        "Disable Accept Router Preference from router advertisement",
        sysctl(f"{DEFAULT6}.accept_ra_rtr_pref", "0"),
    ),
    Control(
        "sysctl-23",
        "Disable learning Prefix Information from router advertisement",
        sysctl(f"{DEFAULT6}.accept_ra_pinfo", "0"),
    ),
    Control(
        "sysctl-24",
        "Disable learning Hop limit from router advertisement",
        sysctl(f"{DEFAULT6}.accept_ra_defrtr", "0"),
    ),
    Control(
        "sysctl-25",
        "Disable the system`s acceptance of router advertisement",
        sysctl(f"{NET6}.accept_ra", "0"),
    ),
    Control("sysctl-26", "Disable IPv6 autoconfiguration", sysctl(f"{NET6}.autoconf", "0")),
    Control(
        "sysctl-27",
        "Disable neighbor solicitations to send out per address",
        sysctl(f"{DEFAULT6}.dad_transmits", "0"),
    ),
    Control(
        "sysctl-28",
        "Assign one global unicast IPv6 addresses to each interface",
        sysctl(f"{DEFAULT6}.max_addresses", "1"),
    ),
    Control("sysctl-29", "Disable loading kernel modules", sysctl("kernel.modules_disabled", "0")),  # its default input
    Control("sysctl-30", "Magic SysRq", sysctl("kernel.sysrq", "0")),
    Control("sysctl-31a", "Secure Core Dumps - dump settings", sysctl("fs.suid_dumpable", "0|2")),
    Control("sysctl-31b", "Secure Core Dumps - dump path", core_pattern),
    Control("sysctl-32", "kernel.randomize_va_space", sysctl("kernel.randomize_va_space", "2")),
    Control("sysctl-33", "CPU No execution Flag or Kernel ExecShield", no_execute),
    Control(
        "sysctl-34",
        "Ensure links are protected",
        all_of(
            sysctl("fs.protected_fifos", "1|2"),
            sysctl("fs.protected_regular", "2"),
            sysctl("fs.protected_hardlinks", "fs.protected_symlinks", "1"),
        ),
    ),
    Control("sysctl-35", "Restrict ptrace attach to privileged users", sysctl("kernel.yama.ptrace_scope", "2|3")),
]

SERVER = [
    Control("sshd-01", "Server: Check for secure ssh ciphers", algorithms("sshd", "ciphers")),
    Control("sshd-02", "Server: Check for secure ssh Key-Exchange Algorithm", algorithms("sshd", "kexalgorithms")),
    Control("sshd-03", "Server: Check for secure ssh Message Authentication Codes", algorithms("sshd", "macs")),
    Control(
        "sshd-04",
        "Server: Check SSH folder owner, group and permissions.",
        file("/etc/ssh", has=0o755, lacks=0o022, kind="directory"),
    ),
    Control(
        "sshd-05",
        "Server: Check sshd_config owner, group and permissions.",
        file("/etc/ssh/sshd_config", has=0o600, lacks=0o177),
    ),
    Control(
        "sshd-06",
        "Server: Do not permit root-based login or do not allow password and keyboard-interactive authentication",
        sshd("permitrootlogin", "no", "without-password", "prohibit-password"),
    ),
    Control("sshd-07", "Server: Specify the listen ssh Port", sshd("port", "22")),
    Control("sshd-08", "Server: Specify the AddressFamily to your need", sshd("addressfamily", "inet", "inet6", "any")),
    Control("sshd-09", "Server: Specify ListenAddress", listen_address),
    Control("sshd-10", "Server: Specify protocol version 2", before((7, 6), sshd("protocol", "2"))),
    Control("sshd-11", "Server: Enable StrictModes", sshd("strictmodes", "yes")),
    Control("sshd-12", "Server: Specify SyslogFacility to AUTH", sshd("syslogfacility", "AUTH")),
    Control("sshd-13", "Server: Specify LogLevel to VERBOSE", sshd("loglevel", "VERBOSE")),
    Control(
        "sshd-14",
        "Server: Specify SSH HostKeys",
        sshd("hostkey", *(f"/etc/ssh/ssh_host_{kind}_key" for kind in ("rsa", "ecdsa", "ed25519"))),
    ),
    Control("sshd-15", "Server: Specify UseLogin to NO", before((7, 4), sshd("uselogin", "no"))),
    Control("sshd-16", "Server: Use privilege separation", before((7, 5), sshd("useprivilegeseparation", "sandbox"))),
    Control("sshd-17", "Server: Disable PermitUserEnvironment", sshd("permituserenvironment", "no")),
    Control("sshd-18", "Server: Specify LoginGraceTime", sshd("logingracetime", "30")),
    Control("sshd-19", "Server: Specify Limit for maximum authentication retries", sshd("maxauthtries", "2")),
    Control("sshd-20", "Server: Specify maximum sessions", sshd("maxsessions", "10")),
    Control("sshd-21", "Server: Specify maximum startups", sshd("maxstartups", "10:30:60")),
    Control("sshd-22", "Server: Enable PubkeyAuthentication", sshd("pubkeyauthentication", "yes")),
    Control("sshd-23", "Server: Enable IgnoreRhosts", sshd("ignorerhosts", "yes")),
    Control("sshd-24", "Server: Enable IgnoreUserKnownHosts", sshd("ignoreuserknownhosts", "yes")),
    Control("sshd-25", "Server: Disable HostbasedAuthentication", sshd("hostbasedauthentication", "no")),
    Control("sshd-27", "Server: Disable password-based authentication", sshd("passwordauthentication", "no")),
    Control("sshd-28", "Server: Disable PermitEmptyPasswords", sshd("permitemptypasswords", "no")),
    # by its name since OpenSSH 8.7
    Control("sshd-29", "Server: Disable ChallengeResponseAuthentication", sshd("kbdinteractiveauthentication", "no")),
    Control("sshd-30", "Server: Disable Kerberos", sshd("kerberosauthentication", "no")),
    Control("sshd-31", "Server: Disable Kerberos or Local Password", sshd("kerberosorlocalpasswd", "no")),
    Control("sshd-32", "Server: Enable KerberosTicketCleanup", sshd("kerberosticketcleanup", "yes")),
    Control("sshd-33", "Server: Disable GSSAPIAuthentication", sshd("gssapiauthentication", "no")),
    Control("sshd-34", "Server: Enable GSSAPICleanupCredentials", sshd("gssapicleanupcredentials", "yes")),
    Control("sshd-35", "Server: Disable TCPKeepAlive", sshd("tcpkeepalive", "no")),
    Control("sshd-36", "Server: Set a client alive interval", sshd("clientaliveinterval", "300")),
    Control("sshd-37", "Server: Configure a few client alive counters", sshd("clientalivecountmax", "3")),
    Control("sshd-38", "Server: Disable tunnels", sshd("permittunnel", "no")),
    Control("sshd-39", "Server: Disable TCP forwarding", sshd("allowtcpforwarding", "no")),
    Control("sshd-40", "Server: Disable Agent forwarding", sshd("allowagentforwarding", "no")),
    Control("sshd-41", "Server: Disable gateway ports", sshd("gatewayports", "no")),
    Control("sshd-42", "Server: Disable X11Forwarding", sshd("x11forwarding", "no")),
    Control("sshd-43", "Server: Enable X11UseLocalhost", sshd("x11uselocalhost", "yes")),
    Control("sshd-44", "Server: Disable PrintMotd", sshd("printmotd", "no")),
    Control("sshd-45", "Server: PrintLastLog", sshd("printlastlog", "no")),
    Control("sshd-46", "Server: Banner", sshd("banner", "none")),
    Control("sshd-47", "Server: DebianBanner", sshd("debianbanner", "no")),
    Control("sshd-48", "Server: DH primes", moduli),
    Control("sshd-49", "Server: CRYPTO_POLICY", crypto_policy),
    Control("sshd-50", "Server: RSA HostKey size", rsa_host_key),
]

CLIENT = [
    Control(
        "ssh-01",
        "client: Check ssh_config owner, group and permissions.",
        file("/etc/ssh/ssh_config", has=0o644, lacks=0o133),
    ),
    Control("ssh-02", "Client: Specify the AddressFamily to your need", ssh("addressfamily", "inet", "inet6", "any")),
    Control("ssh-03", "Client: Specify expected ssh port", ssh("port", "22")),
    Control("ssh-04", "Client: Specify protocol version 2", before((7, 6), ssh("protocol", "2"))),
    Control("ssh-05", "Client: Disable batch mode", ssh("batchmode", "no")),
    Control("ssh-06", "Client: Check Host IPs", ssh("checkhostip", "yes")),
    Control("ssh-07", "Client: Ask when checking host keys", ssh("stricthostkeychecking", "ask", "yes", "true")),
    Control("ssh-08", "Client: Check for secure ssh ciphers", algorithms("ssh", "ciphers")),
    Control("ssh-09", "Client: Check for secure ssh Key-Exchange Algorithm", algorithms("ssh", "kexalgorithms")),
    Control("ssh-10", "Client: Check for secure ssh Message Authentication Codes", algorithms("ssh", "macs")),
    Control("ssh-11", "Client: Disable agent forwarding", ssh("forwardagent", "no")),
    Control("ssh-12", "Client: Disable X11Forwarding", ssh("forwardx11", "no")),
    Control("ssh-13", "Client: Disable HostbasedAuthentication", ssh("hostbasedauthentication", "no")),
    Control(
        "ssh-14", "Client: Disable rhosts-based authentication", before((7, 6), ssh("rhostsrsaauthentication", "no"))
    ),
    Control("ssh-15", "Client: Enable RSA authentication", before((7, 6), ssh("rsaauthentication", "yes"))),
    Control("ssh-16", "Client: Disable password-based authentication", ssh("passwordauthentication", "no")),
    Control("ssh-17", "Client: Disable GSSAPIAuthentication", ssh("gssapiauthentication", "no")),
    Control("ssh-18", "Client: Disable GSSAPIDelegateCredentials", ssh("gssapidelegatecredentials", "no")),
    Control("ssh-19", "Client: Disable tunnels", ssh("tunnel", "no", "false")),
    Control("ssh-20", "Client: Do not permit local commands", ssh("permitlocalcommand", "no")),
    Control("ssh-21", "Client: Do not allow Roaming", before((7, 2), ssh("useroaming", "no"))),
    Control(
        "ssh-22",
        "Client: CRYPTO_POLICY",
        all_of(*(algorithms("ssh", option) for option in STRONG)),
    ),
]

CONTROLS = [
    *LINUX,
    *(only_with("sshd", control) for control in SERVER),
    *(only_with("ssh", control) for control in CLIENT),
]
