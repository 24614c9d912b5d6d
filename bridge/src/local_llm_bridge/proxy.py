"""The proxy on the way to an engine, as the environment names it.

The standard library reads the variables (and the system's settings on macOS and Windows), aiohttp speaks to the proxy.
What is here is what neither does: NO_PROXY as curl, Go and Kubernetes write it (networks, ports, wildcards), loopback
that never goes out, a SOCKS proxy that is refused by name, and a user and password that stay out of every text.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from local_llm_bridge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_OLD_ADDRESS = re.compile(r"[0-9a-fx]+(\.[0-9a-fx]+){0,3}")


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy.

    Args:
        url: its address, without user and password.
        variable: what names it.
        auth: its user and password.
    """

    url: str
    variable: str
    auth: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Its host and port."""
        return urlsplit(self.url).netloc


def for_url(url: str, proxies: Mapping[str, str] | None = None) -> Proxy | None:
    """Return the proxy through which a URL is reached; None: it is reached directly.

    Args:
        url: of an engine.
        proxies: by scheme, as urllib.request.getproxies gives them, which is the default.

    Raises:
        ConfigError: the proxy is not one that can be used; its text holds no password.
    """
    parts = urlsplit(url)
    host, port = (parts.hostname or "").rstrip("."), parts.port or _PORTS[parts.scheme]
    if is_loopback(host):
        return None
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415 - loopback needs none of it

    found = getproxies() if proxies is None else proxies
    kind = parts.scheme if found.get(parts.scheme) else "all"
    value = found.get(kind)
    if not value or is_exempt(host, port, found.get("no", "")):
        return None
    if proxies is None and proxy_bypass(host):  # the system's own exceptions
        return None
    return _proxy(_variable(kind), value.strip(" \t\r\n'\""), host)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself, in any way to write it."""
    if host == "localhost" or host.endswith((".localhost", "localhost.localdomain")):
        return True
    address = _address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY has a host.

    Args:
        host: its name or address, in lower case, without brackets.
        port: of the URL.
        no_proxy: names (with all below them), addresses, networks, `*` and wildcards, each with a port or without.
    """
    address = _address(host)
    return any(_fits(entry, host, port, address) for entry in re.split(r"[,;\s'\"]+", no_proxy.lower()) if entry)


def _fits(entry: str, host: str, port: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    _, is_url, entry = entry.rpartition("://")
    entry = entry.partition("/")[0] if is_url else entry.rstrip("/")
    name, wanted_port = entry, ""
    if with_port := re.fullmatch(r"\[(.+)\](?::([0-9]+))?|([^:]+):([0-9]+)", entry):
        name, wanted_port = with_port[1] or with_port[3], with_port[2] or with_port[4] or ""
    if wanted_port and int(wanted_port) != port:
        return False
    if "*" in name and fnmatchcase(host, name):
        return True
    if address is not None:
        try:
            return address in ipaddress.ip_network(name.replace("[", "").replace("]", ""), strict=False)
        except ValueError:
            return False
    domain = name.removeprefix("*").strip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return a host that is an address, however it is written: 127.1, 0x7f000001 and ::ffff:127.0.0.1 are IPv4, too."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        if not _OLD_ADDRESS.fullmatch(host):
            return None
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    return getattr(address, "ipv4_mapped", None) or address


def _variable(kind: str) -> str:
    """Return the variable that names the proxy of a scheme."""
    lower = f"{kind}_proxy"
    names = sorted((name for name in os.environ if name.lower() == lower), key=lambda name: name != lower)
    return names[0] if names else lower


def _proxy(variable: str, value: str, host: str) -> Proxy:
    """Read a proxy's URL; what is wrong with it is told without it, as it may hold a password.

    Args:
        variable: which names it.
        value: the URL, perhaps without a scheme.
        host: of the engine.
    """
    wrong = ConfigError(
        f"{variable}: is not the address of a proxy; wanted http://host:port or http://user:password@host:port, "
        f"special characters of the password as %XX. To use no proxy for {host}, put it into NO_PROXY."
    )
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        port = parts.port if parts.port is not None else _PORTS.get(parts.scheme, 0)
    except ValueError:
        raise wrong from None
    if parts.scheme.startswith("socks"):
        raise ConfigError(
            f"{variable}: names a SOCKS proxy ({parts.scheme}://), and the bridge speaks to HTTP proxies only. "
            f"Name one of those there, or put {host} into NO_PROXY."
        )
    user = unquote(parts.username or "")
    rest = (parts.path.rstrip("/"), parts.query, parts.fragment)
    if parts.scheme not in _PORTS or not port or not _HOST.fullmatch(parts.hostname or "") or any(rest) or ":" in user:
        raise wrong
    name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    has_auth = parts.username is not None
    auth = (user, unquote(parts.password or "")) if has_auth else None
    return Proxy(f"{parts.scheme}://{name}:{port}", variable, auth)
