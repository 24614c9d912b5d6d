"""Telling systemd how the service is doing, with nothing but the standard library."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Send a state such as `READY=1` to the service manager; does nothing where there is none.

    Args:
        state: lines of sd_notify(3).
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.sendto(state.encode(), address)


def watchdog_s() -> float:
    """Return how often the service manager wants to hear from the service, in seconds; a minute if it does not say."""
    return int(os.environ.get("WATCHDOG_USEC") or 60_000_000) / 1e6
