"""Clients that no library would make: bytes over TLS, and frames of HTTP/2."""

from __future__ import annotations

import socket
import ssl
import time

from gateway import trusted

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS = 1, 4
PATIENCE = 60  # seconds


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """One frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def text(value: bytes) -> bytes:
    """A string of HPACK, as it is."""
    if len(value) < 127:
        return bytes([len(value)]) + value
    rest, coded = len(value) - 127, [127]
    while rest > 127:
        coded.append(rest % 128 + 128)
        rest //= 128
    return bytes([*coded, rest]) + value


def headers(fields: list[tuple[bytes, bytes]]) -> bytes:
    """A block of HPACK that uses no table."""
    return b"".join(b"\x00" + text(name) + text(value) for name, value in fields)


def request(path: bytes) -> list[tuple[bytes, bytes]]:
    """The headers of a request."""
    return [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"llm.test"), (b":path", path)]


def connect(ip: str, *protocols: str) -> ssl.SSLSocket:
    """A connection over TLS, for HTTP/1 or the protocols that are named."""
    context = trusted()
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(list(protocols))
    secure: ssl.SSLSocket = context.wrap_socket(socket.create_connection((ip, 443), timeout=PATIENCE))
    return secure


class Frames:
    """A connection of HTTP/2, and which streams have ended."""

    def __init__(self, ip: str) -> None:
        """Connect.

        Args:
            ip: Address of the gateway.
        """
        self.ended: set[int] = set()
        self._socket = connect(ip, "h2")
        self._buffer = b""
        self._socket.sendall(PREFACE + frame(SETTINGS))

    def send(self, *frames: bytes) -> None:
        """Send frames."""
        self._socket.sendall(b"".join(frames))

    def read(self) -> bool:
        """Take what has come; false if that was the end of the connection."""
        try:
            piece = self._socket.recv(1 << 16)
        except OSError:
            return False
        self._buffer += piece
        while len(self._buffer) >= 9 and len(self._buffer) >= 9 + (size := int.from_bytes(self._buffer[:3], "big")):
            kind, flags, stream = self._buffer[3], self._buffer[4], int.from_bytes(self._buffer[5:9], "big")
            self._buffer = self._buffer[9 + size :]
            if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
                self.ended.add(stream)
        return bool(piece)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def open_for(ip: str, protocol: str | None, first: bytes, more: bytes) -> float:
    """How long a connection stays open, in seconds.

    Args:
        ip: Address of the gateway.
        protocol: ``h2``, ``http/1.1``, or none for no TLS at all.
        first: What is sent at once.
        more: What is sent each second after that.
    """
    start = time.monotonic()
    try:
        plain = connect(ip, protocol) if protocol else socket.create_connection((ip, 443))
        with plain:
            plain.sendall(first)
            plain.settimeout(1)
            while time.monotonic() - start < PATIENCE:
                try:
                    if not plain.recv(1 << 16):
                        break
                except TimeoutError:
                    plain.sendall(more)
    except OSError:
        pass  # hung up on
    return time.monotonic() - start
