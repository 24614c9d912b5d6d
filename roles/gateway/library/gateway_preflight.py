"""Ansible module: refuses what the gateway could not serve on this host, before anything is changed."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.service_checks import address_problem, is_of_unit, key_problem, listeners, overlap

DOCUMENTATION = r"""
module: gateway_preflight
short_description: What would keep the gateway from being served here
description:
  - Reads the input, the host's addresses and listeners. Changes nothing.
  - Returns C(virtual_interface), where the virtual address belongs, and C(peers), the other gateways' IPv4 addresses.
  - Returns C(names), under which name a name server knows each host that is to be looked up at run time.
author: local-llm-fleet
options:
  unit:
    description: The gateway's own unit, whose ports are its own.
    type: str
    required: true
  address:
    description: IP address to listen on.
    type: str
    required: true
  ports:
    description: TCP ports, by the variable that sets each.
    type: dict
    required: true
  virtual_address:
    description: Address that the gateways share, if they share one.
    type: str
  peers:
    description: The other gateways, with C(name) and C(address).
    type: list
    elements: dict
    required: true
  models:
    description: The models, with C(name) and C(servers), each with C(name) and C(address).
    type: list
    elements: dict
    required: true
  bridges:
    description: The bridges, with C(name) and C(address).
    type: list
    elements: dict
    required: true
  developers:
    description: The developers, with C(name) and C(token_sha256).
    type: list
    elements: dict
    required: true
  keys:
    description: Keys that are needed, by the variable that sets each.
    type: dict
    required: true
  limits:
    description: Numbers that are at least 1, by the variable that sets each.
    type: dict
    required: true
  certificate:
    description: PEM text, if the certificate is given.
    type: str
  private_key:
    description: PEM text, if the certificate is given.
    type: str
  acme_domain:
    description: The gateway's name, if an authority is asked for the certificate.
    type: str
"""

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
ACME = "gateway_tls: acme"
DEVELOPER = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"  # as the bridge has it


def doubles(values: list[str]) -> list[str]:
    """What is in a list more than once."""
    return sorted({value for value in values if values.count(value) > 1})


def place_problems(address: str, ports: dict[str, Any], unit: str, ss: str) -> Iterator[str]:
    """What is wrong with where the gateway is to listen.

    Args:
        address: IP address.
        ports: TCP ports, by variable.
        unit: The gateway's unit.
        ss: Path of ss(8).
    """
    if problem := address_problem("gateway_address", address):
        yield problem
        return
    for double in doubles([str(port) for port in ports.values()]):
        names = [variable for variable, port in ports.items() if str(port) == double]
        yield f"{' and '.join(names)} are the same port, {double}; choose another"
    for variable, port in ports.items():
        if not 1 <= int(port) <= 65535:
            yield f"{variable} is {port}; choose a port from 1 to 65535"
            continue
        for taken, process, pid in listeners(ss, int(port)):
            wanted = "127.0.0.1" if variable == "gateway_internal_port" else address
            if overlap(wanted, taken) and not is_of_unit(pid, unit):
                advice = "on that port the authority asks" if variable == ACME else "or choose another"
                yield f"{variable}: port {port} on {taken} is taken by {process} (pid {pid}); stop it, {advice}"


def interface_of(address: str) -> str:
    """The interface that has an address, or would have it.

    Args:
        address: IPv4 address that gateways share.

    Raises:
        ValueError: It is no address for that; the text says why.
    """
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        raise ValueError(f"gateway_virtual_address is {address!r}; it is an IPv4 address") from None
    for interface in ip_json("-4", "address"):
        if any(entry["local"] == address for entry in interface["addr_info"]):
            if is_shared():
                return str(interface["ifname"])
            raise ValueError(
                f"gateway_virtual_address is {address}, which this host has as its own; take one in the same network "
                "that no host has"
            )
    routes = ip_json("route", "get", address)
    if not routes or "gateway" in routes[0]:
        raise ValueError(
            f"gateway_virtual_address is {address}, which is in no network of this host; take one that is in a network "
            "of all gateways (`ip -4 address` shows them)"
        )
    return str(routes[0]["dev"])


def ip_json(*args: str) -> list[dict[str, Any]]:
    """What ip(8) says; nothing if it fails."""
    shown = subprocess.run(["/usr/sbin/ip", "-json", *args], capture_output=True, check=False).stdout  # noqa: S603
    return [entry for entry in json.loads(shown or b"[]") if entry]


def is_shared() -> bool:
    """Whether this host shares an address already, so that one of its addresses may be that."""
    argv = ["/usr/bin/systemctl", "is-active", "--quiet", "local-llm-gateway-address.service"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0  # noqa: S603


def resolved(peers: list[dict[str, Any]]) -> list[str]:
    """The IPv4 addresses of other gateways.

    Args:
        peers: Each with ``name`` and ``address``.

    Raises:
        ValueError: One has none; the text says which.
    """
    if not peers:
        raise ValueError("gateway_virtual_address needs a second gateway; name the others in gateway_peers")
    addresses = []
    for peer in peers:
        try:
            addresses += [socket.getaddrinfo(peer["address"], None, socket.AF_INET)[0][4][0]]
        except OSError as error:
            raise ValueError(
                f"gateway_peers: {peer['name']}: {peer['address']} is not known on this host as an IPv4 address "
                f"({error.strerror}); correct it, or the host's DNS"
            ) from None
    return [str(address) for address in addresses]


def settings(path: str) -> list[list[str]]:
    """The lines of a file such as /etc/hosts, in words, without comments; none if there is no such file."""
    file = Path(path)
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    return [words for line in lines if (words := re.split("[#;]", line)[0].split())]


def names_of_dns(hosts: Iterable[str]) -> dict[str, str]:
    """Under which name HAProxy asks the name servers for each host while it runs.

    HAProxy reads neither /etc/hosts nor the domains that are searched. A host that is in that file stays with libc,
    which is asked when HAProxy starts; one that no name server knows now is asked for as it is.

    Args:
        hosts: Names and IP addresses.

    Returns:
        The full name of each host that is to be looked up at run time.
    """
    configuration = settings("/etc/resolv.conf")
    if not any(words[0] == "nameserver" for words in configuration):
        return {}
    domains = [words[1:] for words in configuration if words[0] in ("search", "domain")]
    listed = {name.lower() for words in settings("/etc/hosts") for name in words[1:]}
    os.environ["RES_OPTIONS"] = "timeout:2 attempts:1"  # a name server that is away is not waited for
    names = {}
    for host in set(hosts):
        if ":" in host or re.fullmatch("[0-9.]+", host) or host.lower() in listed:
            continue
        searched = [f"{host}.{domain}" for domain in (domains[-1] if domains else [])]
        candidates = [host, *searched] if "." in host else [*searched, host]
        names[host] = next(filter(is_in_dns, candidates), host)
    return names


def is_in_dns(name: str) -> bool:
    """Whether a full name has an address."""
    try:
        return bool(socket.getaddrinfo(f"{name}.", None))
    except (OSError, UnicodeError):
        return False


def name_problems(where: str, kind: str, entries: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with the names in a list.

    Args:
        where: What sets the list.
        kind: What is in it.
        entries: Each with ``name``.
    """
    for name in doubles([entry["name"] for entry in entries]):
        yield f"{where}: {name} is there more than once; give each {kind} a name of its own"
    for entry in entries:
        if not re.fullmatch(NAME, entry["name"]):
            yield f"{where}: name {entry['name']!r} of a {kind}: use letters, digits, '.', '_' and '-'"


def target_problems(models: list[dict[str, Any]], bridges: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with those whom the gateway asks."""
    if not models and not bridges:
        yield "gateway_models and gateway_bridges are empty, so nothing is behind the gateway; name models or bridges"
    for name in doubles([model["name"] for model in models]):
        yield f"gateway_models: {name} is there more than once; give all its servers in one entry"
    for model in models:
        if not re.fullmatch(NAME, model["name"]):
            yield f"gateway_models: name {model['name']!r}: use letters, digits, '.', '_' and '-'"
        if not model["servers"]:
            yield f"gateway_models: {model['name']} has no servers"
    groups = [(f"gateway_models: {model['name']}", model["servers"]) for model in models]
    for where, servers in [*groups, ("gateway_bridges", bridges)]:
        yield from name_problems(where, "server", servers)
        for server in servers:
            if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):\d{1,5}", server["address"]):
                yield f"{where}: {server['name']}: address is {server['address']!r}; it is host:port, without http://"


def caller_problems(developers: list[dict[str, Any]], keys: dict[str, str]) -> Iterator[str]:
    """What is wrong with tokens and keys. No secret is in what it says."""
    for developer in developers:
        if not re.fullmatch(DEVELOPER, developer["name"]):
            yield (
                f"gateway_developers: name {developer['name']!r}: use letters, digits, '.', '_', '@' and '-' (64 at "
                "most), the first a letter or digit"
            )
        digest = developer["token_sha256"]
        if not re.fullmatch("[0-9a-f]{64}", digest):
            yield (
                f"gateway_developers: token_sha256 of {developer['name']} has {len(digest)} characters; it is the "
                "token's SHA-256, 64 digits 0-9a-f. `printf %s TOKEN | sha256sum` shows it"
            )
    for digest in doubles([developer["token_sha256"] for developer in developers]):
        names = ", ".join(developer["name"] for developer in developers if developer["token_sha256"] == digest)
        yield f"gateway_developers: {names} have the same token; give each their own"
    yield from filter(None, (key_problem(variable, key) for variable, key in keys.items()))


def certificate_problems(certificate: str, private_key: str) -> Iterator[str]:
    """What is plainly wrong with a certificate that is given; HAProxy itself sees whether the key belongs to it."""
    if "-----BEGIN CERTIFICATE-----" not in certificate:
        yield "gateway_certificate has no PEM certificate (-----BEGIN CERTIFICATE-----); gateway_tls: files needs one"
    if not re.search("-----BEGIN (EC |RSA )?PRIVATE KEY-----", private_key):
        yield (
            "gateway_private_key has no PEM private key without a passphrase (-----BEGIN PRIVATE KEY-----); "
            "`openssl pkey -in FILE` takes a passphrase away"
        )


def acme_problems(domain: str) -> Iterator[str]:
    """Why no authority could give a certificate for a name, as it asks at that name."""
    if not re.fullmatch(r"([A-Za-z0-9_-]+\.)+[A-Za-z][A-Za-z0-9-]*", domain):
        yield (
            f"gateway_domain is {domain!r}; {ACME} needs a name of DNS with a dot, such as llm.example.com, that leads "
            "to the gateways. For a fleet it is fleet_domain"
        )


def peer_problems(peers: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with the list of the other gateways."""
    yield from name_problems("gateway_peers", "gateway", peers)
    for peer in peers:
        if not re.fullmatch(r"[A-Za-z0-9.-]+|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*", peer["address"]):
            yield (
                f"gateway_peers: {peer['name']}: address is {peer['address']!r}; it is a name or an IP address, "
                "without a port"
            )


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "ports": {"type": "dict", "required": True},
            "virtual_address": {"type": "str"},
            "peers": {"type": "list", "elements": "dict", "required": True},
            "models": {"type": "list", "elements": "dict", "required": True},
            "bridges": {"type": "list", "elements": "dict", "required": True},
            "developers": {"type": "list", "elements": "dict", "required": True},
            "keys": {"type": "dict", "required": True, "no_log": True},
            "limits": {"type": "dict", "required": True},
            "certificate": {"type": "str"},
            "private_key": {"type": "str", "no_log": True},
            "acme_domain": {"type": "str"},
        },
        supports_check_mode=True,
    )
    params = module.params
    ss = module.get_bin_path("ss", required=True)
    problems = [
        *place_problems(params["address"], params["ports"], params["unit"], ss),
        *target_problems(params["models"], params["bridges"]),
        *caller_problems(params["developers"], params["keys"]),
        *peer_problems(params["peers"]),
    ]
    problems += [f"{name} is {value}; it is at least 1" for name, value in params["limits"].items() if int(value) < 1]
    if params["certificate"] is not None:
        problems += certificate_problems(params["certificate"], params["private_key"])
    if params["acme_domain"] is not None:
        problems += acme_problems(params["acme_domain"])
    shared = {}
    if params["virtual_address"] is not None:
        try:
            shared = {
                "virtual_interface": interface_of(params["virtual_address"]),
                "peers": resolved(params["peers"]),
            }
        except ValueError as problem:
            problems.append(str(problem))
    if problems:
        module.fail_json(msg="\n".join(problems))
    addresses = [server["address"] for model in params["models"] for server in model["servers"]]
    addresses += [bridge["address"] for bridge in params["bridges"]]
    hosts = [address.rpartition(":")[0] for address in addresses] + [peer["address"] for peer in params["peers"]]
    module.exit_json(changed=False, names=names_of_dns(hosts), **shared)


if __name__ == "__main__":
    main()
