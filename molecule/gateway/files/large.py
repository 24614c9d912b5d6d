#!/usr/bin/python3
"""Sends gateways a large body as httpx does: large.py TOKEN PATH BYTES ADDRESS...; prints what came back."""

import sys
from collections.abc import Iterator

import httpx

token, path, size = sys.argv[1], sys.argv[2], int(sys.argv[3])


def pieces() -> Iterator[bytes]:
    """A body whose length nobody knows."""
    for _ in range(size // 50_000):
        yield b"x" * 50_000


for address in sys.argv[4:]:
    for http2 in (True, False):
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(http2=http2, verify=False, timeout=30, headers=headers) as client:  # noqa: S501
            for body in (b"x" * size, pieces()):
                reply = client.post(f"https://{address}{path}", content=body)
                print(reply.http_version, reply.status_code)
