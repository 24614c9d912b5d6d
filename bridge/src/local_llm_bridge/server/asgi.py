"""Plain HTTP answers, sent the ASGI way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Send


@dataclass(frozen=True)
class Response:
    """An answer that is known as a whole."""

    status: int
    body: bytes = b""
    media_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)

    async def send(self, send: Send) -> None:
        """Send it."""
        headers = {"content-type": self.media_type, "content-length": str(len(self.body)), **self.headers}
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        await send({"type": "http.response.body", "body": self.body})


def text(status: int, line: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer of one line for people."""
    return Response(status, f"{line}\n".encode(errors="backslashreplace"), headers=headers or {})
