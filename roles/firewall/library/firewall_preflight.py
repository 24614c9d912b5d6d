"""Ansible module: refuses rules that could not work or would lock Ansible out, before anything is changed."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ssh_session import Session, session

DOCUMENTATION = r"""
module: firewall_preflight
short_description: What would keep the firewall's rules from working, and what they need to know of the host
description:
  - Reads the input, sshd's configuration, the host's addresses, and from where this run comes. Changes nothing.
  - Returns C(admins), C(allow) and C(allow_out) with all names looked up, C(ssh_ports), and C(dhcp), by family.
author: local-llm-fleet
options:
  admins:
    description: Who may use ssh, as addresses, networks or names; empty for everybody.
    type: list
    elements: str
    required: true
  allow:
    description: What is let in, with C(name), C(protocol), C(ports) and C(from).
    type: list
    elements: dict
    required: true
  allow_out:
    description: What is let out, with C(name), C(protocol), C(ports) and C(to).
    type: list
    elements: dict
    required: true
  rollback_s:
    description: Seconds after which new rules are undone.
    type: int
    required: true
"""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NAME = r"[A-Za-z0-9][A-Za-z0-9 ._:/-]{0,119}"
EVERYBODY = ["0.0.0.0/0", "::/0"]
SHORTEST_ROLLBACK = 20  # seconds; a new connection takes some
# What the rules are made of.
PROBE = """
table inet probe {
    set s { type ipv4_addr; flags dynamic,timeout; timeout 1m; }
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        update @s { ip saddr limit rate over 1/minute } drop
        limit rate 1/minute log
    }
    chain output {
        type filter hook output priority filter; policy drop;
        meta l4proto tcp reject with tcp reset
        reject with icmpx admin-prohibited
    }
}
"""


def run(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program; what it says is what counts."""
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)  # noqa: S603


def networks_of(entry: str) -> list[Network]:
    """The addresses that an entry means.

    Args:
        entry: An address, a network, or a name that this host can look up.

    Raises:
        ValueError: It means none; the text says why.
    """
    try:
        return [ipaddress.ip_network(entry)]
    except ValueError:
        pass
    if "/" in entry:
        try:
            proper = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            raise ValueError(f"{entry!r} is no network; one is 10.0.0.0/24 or fd00::/64") from None
        raise ValueError(f"{entry} is an address within a network; the network is {proper}")
    # 10.0.0.300 could be looked up, too.
    if not re.fullmatch(r"(?=.*[A-Za-z])[A-Za-z0-9_.-]+", entry):
        raise ValueError(f"{entry!r} is neither an address, nor a network, nor a name")
    try:
        found = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(entry, None)}
    except OSError as error:
        raise ValueError(
            f"{entry} is not known on this host ({error.strerror}); correct it, or the host's DNS, or write addresses"
        ) from None
    networks = [ipaddress.ip_network(address) for address in sorted(found)]
    if any(network.is_loopback for network in networks):
        raise ValueError(f"{entry} leads to this host's own loopback ({', '.join(sorted(found))}); write its address")
    return networks


def by_family(networks: list[Network]) -> dict[str, list[str]]:
    """Networks without overlaps, as nft wants them."""
    four = [network for network in networks if isinstance(network, ipaddress.IPv4Network)]
    six = [network for network in networks if isinstance(network, ipaddress.IPv6Network)]
    return {
        "ipv4": [short(network) for network in ipaddress.collapse_addresses(four)],
        "ipv6": [short(network) for network in ipaddress.collapse_addresses(six)],
    }


def short(network: Network) -> str:
    """A network as nft shows it."""
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def port_ranges(ports: list[str]) -> list[str]:
    """Ports and ranges without overlaps, as nft wants them.

    Args:
        ports: Each V(N) or V(N-M).

    Raises:
        ValueError: One is neither; the text says which.
    """
    ranges: list[tuple[int, int]] = []
    for port in ports:
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", str(port))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= 65535:
            raise ValueError(f"port {port!r}; one is 1 to 65535, or a range such as 6400-6499")
        ranges.append((first, last))
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return [str(first) if first == last else f"{first}-{last}" for first, last in merged]


def read_networks(variable: str, entries: list[str], problems: list[str]) -> list[Network]:
    """The addresses of a list of entries.

    Args:
        variable: What sets them.
        entries: Addresses, networks, names.
        problems: Where to put what is wrong with them.
    """
    networks = []
    for entry in entries:
        try:
            networks += networks_of(entry)
        except ValueError as problem:
            problems.append(f"{variable}: {problem}")
    return networks


def read_rules(variable: str, key: str, rules: list[dict[str, Any]], problems: list[str]) -> list[dict[str, Any]]:
    """Rules as the template writes them.

    Args:
        variable: What sets them.
        key: Where their addresses are, ``from`` or ``to``.
        rules: As they are given.
        problems: Where to put what is wrong with them.
    """
    names = [rule["name"] for rule in rules]
    problems += [
        f"{variable}: {name} is there more than once; give each entry a name of its own"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    read = []
    for rule in rules:
        where = f"{variable}: {rule['name']}"
        if not re.fullmatch(NAME, rule["name"]):
            problems.append(
                f"{variable}: name {rule['name']!r}: use letters, digits, blanks and . _ : / - (120 at most)"
            )
        if not rule[key]:
            problems.append(f"{where}: `{key}` is empty, so it would be for nobody; name addresses, or leave it out")
        protocol, ports = rule.get("protocol") or "tcp", rule.get("ports") or []
        if protocol not in ("tcp", "udp", "vrrp"):
            problems.append(f"{where}: protocol is {protocol!r}; use tcp, udp or vrrp")
        elif protocol == "vrrp" and ports:
            problems.append(f"{where}: vrrp has no ports")
        elif protocol != "vrrp" and not ports:
            problems.append(f"{where}: no ports; 1-65535 are all")
        try:
            ports = port_ranges(ports)
        except ValueError as problem:
            problems.append(f"{where}: {problem}")
        networks = read_networks(where, rule[key], problems)
        read.append({"name": rule["name"], "protocol": protocol, "ports": ports} | by_family(networks))
    return read


def sshd_ports(sshd: str) -> set[str]:
    """The ports that sshd is set to listen on.

    Args:
        sshd: Path of sshd(8).

    Raises:
        ValueError: It does not say.
    """
    shown = run(sshd, "-T")
    ports = set(re.findall(r"^listenaddress .*:(\d+)$", shown.stdout, re.MULTILINE))
    if not ports:
        raise ValueError(f"`sshd -T` does not say on which port sshd listens: {shown.stderr.strip()}")
    return ports


def lockout_problems(came: Session | None, admins: dict[str, list[str]], allow: list[dict[str, Any]]) -> Iterator[str]:
    """Why these rules would cut off whoever runs this.

    Args:
        came: The session.
        admins: Who may use ssh, by family.
        allow: What is let in, as read.
    """
    if came is None:
        return
    client, port = ipaddress.ip_address(came.client), int(came.server_port)
    family = f"ipv{client.version}"
    let_in = list(admins[family])
    for rule in allow:
        bounds = [[int(bound) for bound in ports.split("-")] for ports in rule["ports"]]
        if rule["protocol"] == "tcp" and any(first[0] <= port <= first[-1] for first in bounds):
            let_in += rule[family]
    if not any(client in ipaddress.ip_network(network) for network in let_in):
        yield (
            f"firewall_admins does not have {client}, from which this run comes by ssh: it would lock itself out. "
            "Add the address, or its network"
        )


def dhcp() -> dict[str, bool]:
    """Whether the host has its address from a DHCP server, by family."""
    interfaces = json.loads(run("/usr/sbin/ip", "-json", "-4", "address").stdout or "[]")
    addresses = [address for interface in interfaces for address in interface.get("addr_info", [])]
    return {
        "ipv4": any(address.get("dynamic", False) for address in addresses),
        "ipv6": bool(run("/usr/bin/ss", "-Hlnu", "sport = :546").stdout),
    }


def kernel_problems(nft: str | None) -> Iterator[str]:
    """What the kernel lacks; asked in a network namespace of its own."""
    if nft and (tried := run("/usr/bin/unshare", "--net", nft, "--file", "-", stdin=PROBE)).returncode != 0:
        yield f"nftables does not work on this host; its kernel needs nf_tables and its modules: {tried.stderr.strip()}"


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "admins": {"type": "list", "elements": "str", "required": True},
            "allow": {"type": "list", "elements": "dict", "required": True},
            "allow_out": {"type": "list", "elements": "dict", "required": True},
            "rollback_s": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    problems: list[str] = []
    allow = read_rules("firewall_allow", "from", params["allow"], problems)
    allow_out = read_rules("firewall_allow_out", "to", params["allow_out"], problems)
    admins = by_family(read_networks("firewall_admins", params["admins"] or EVERYBODY, problems))
    if params["rollback_s"] < SHORTEST_ROLLBACK:
        problems.append(f"firewall_rollback_s is {params['rollback_s']}; it is at least {SHORTEST_ROLLBACK}")
    came = session()
    ssh_ports = {came.server_port} if came else set()
    if sshd := module.get_bin_path("sshd", opt_dirs=["/usr/sbin"]):
        try:
            ssh_ports |= sshd_ports(sshd)
        except ValueError as problem:
            problems.append(str(problem))
    if not problems:
        problems += lockout_problems(came, admins, allow)
    problems += kernel_problems(module.get_bin_path("nft", opt_dirs=["/usr/sbin"]))
    if problems:
        module.fail_json(msg="\n".join(problems))
    module.exit_json(
        changed=False,
        admins=admins,
        allow=allow,
        allow_out=allow_out,
        ssh_ports=sorted(ssh_ports, key=int),
        dhcp=dhcp(),
    )


if __name__ == "__main__":
    main()
