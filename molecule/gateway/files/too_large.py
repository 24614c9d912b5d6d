#!/usr/bin/python3
"""Sends each gateway that is named bodies that are too large, as httpx does; prints what came back."""

import sys
from collections.abc import Iterator

import httpx


def pieces() -> Iterator[bytes]:
    """A body whose length nobody knows."""
    for _ in range(100):
        yield b"x" * 50_000


for address in sys.argv[1:]:
    for http2 in (True, False):
        headers = {"Authorization": "Bearer molecule-token-of-alice"}
        with httpx.Client(http2=http2, verify=False, timeout=30, headers=headers) as client:  # noqa: S501
            for path in ("/v1/chat/completions", "/mcp"):
                for body in (b"x" * 5_000_000, pieces()):
                    reply = client.post(f"https://{address}{path}", content=body)
                    print(reply.http_version, reply.status_code)
