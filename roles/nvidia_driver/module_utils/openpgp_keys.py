"""Fingerprints of the keys in an OpenPGP file (RFC 4880), because a host need not have gpg."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator

PUBLIC_KEY = 6  # packet tag of a primary key


class NoKeyError(ValueError):
    """The data is no armoured OpenPGP key."""


def _dearmor(text: str) -> bytes:
    lines = [line.strip() for line in text.strip().splitlines()]
    if not lines or lines[0] != "-----BEGIN PGP PUBLIC KEY BLOCK-----" or "" not in lines:
        raise NoKeyError("it is not an armoured OpenPGP public key")
    body = [line for line in lines[lines.index("") + 1 :] if not line.startswith(("=", "-----"))]
    return base64.b64decode("".join(body))


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        head = data[at]
        at += 1
        if head & 0x40:  # the new format
            tag, first = head & 0x3F, data[at]
            if first < 192:
                size, at = first, at + 1
            elif first < 224:
                size, at = ((first - 192) << 8) + data[at + 1] + 192, at + 2
            else:
                size, at = int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
        else:
            tag, width = head >> 2 & 0x0F, 1 << (head & 3)
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
        yield tag, data[at : at + size]
        at += size


def fingerprints(text: str) -> list[str]:
    """Fingerprints of all primary keys in an armoured file.

    Raises:
        NoKeyError: It is something else, or damaged.
    """
    try:
        keys = [body for tag, body in _packets(_dearmor(text)) if tag == PUBLIC_KEY]
    except (ValueError, IndexError) as error:
        raise NoKeyError(str(error)) from error
    if not keys or any(body[:1] != b"\x04" for body in keys):
        raise NoKeyError("it holds no OpenPGP key of version 4")
    return [
        hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False).hexdigest().upper()
        for body in keys
    ]
