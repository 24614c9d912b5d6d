"""One HTTP connection: uvicorn's, with limits of size, time and number that uvicorn does not have.

A connection without a request costs nobody anything: it ends after some seconds, and when there are too many, one of
them makes room for a new one: of the developer who has most of them, or of all who have shown no token yet.
"""

from __future__ import annotations

import fcntl
import functools
import resource
import sys
import termios
from typing import TYPE_CHECKING, Any, ClassVar, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from local_llm_bridge.audit import ANONYMOUS
from local_llm_bridge.server.body import IS_WHOLE
from local_llm_bridge.server.handler import IS_TAKEN, ON_LOSS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    import uvicorn
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

MAX_HEAD = 64 * 2**10
"""Most bytes of request line and headers, and of whatever else belongs to no body, such as trailers."""
_MOST_HEADERS = 200
_WORTH = 2
"""For how many bytes that have come each of a body stands: the rest is sizes of chunks, and counts as MAX_HEAD does."""
HEAD_S = 10.0
"""How long request line and headers may take, from the connection or from their first byte, in seconds."""
_LINGER_S = 5.0
"""How long the rest of a body is read whose request has been answered, in seconds.

A client that still sends sees the answer only if the connection stays.
"""
_UNREAD_S = 10.0
"""How long a client may read nothing of what it is sent, in seconds. Closing a connection waits for it, without end."""
_INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"
_PROBES_S = (0.1, 0.4, 1.5)
"""Pauses between interim answers to a client that sends no more, in seconds; Go's takes five of them at most."""
_MOST_CONNECTIONS = 4096
_MOST_PIPELINED = 64
"""How many requests may wait behind one that is being answered, on one connection."""
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: text/plain\r\n"
    b"content-length: 52\r\n\r\nThe headers have more than 65536 bytes. Send fewer.\n"
)
_TOO_MUCH = "the request is refused"  # which stops the parser
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class _Joining:
    """The transport that an answer is written to: a head that tells its body's length goes out together with it.

    uvicorn writes them one after the other, and each costs a tenth of what a short call does.
    """

    def __init__(self, cycle: RequestResponseCycle, transport: asyncio.Transport) -> None:
        self._cycle = cycle
        self._transport = transport
        self._has_head = False
        self._held = b""

    def write(self, data: bytes) -> None:
        if self._cycle.response_started and not self._has_head:
            self._has_head = True
            if self._cycle.chunked_encoding is False and self._cycle.scope["method"] != "HEAD":
                self._held = data
                return
        self._transport.write(self._held + data)
        self._held = b""

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self.write(b"")  # the body may have failed
        self._transport.close()


class Connection(HttpToolsProtocol):
    """The protocol of one connection; asyncio and uvicorn call its methods."""

    _waiting: ClassVar[dict[str, dict[Connection, None]]] = {}
    """All connections without a request by their developers; of each, the one that has waited longest comes first."""
    _most = min(_MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._developer = ANONYMOUS
        self._unread = 0
        self._in_message = False
        self._in_head = False
        self._is_timed = False
        self._is_half_closed = False
        self._running: tuple[RequestResponseCycle, Callable[[], object]] | None = None

    # asyncio's

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request; if there are too many connections, end the one that has waited longest."""
        super().connection_made(transport)
        if len(self.connections) > self._most:
            self._make_room()
        self._look()
        if not transport.is_closing():
            self._wait(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up, and tell the call that is running."""
        self._stop_waiting()
        if self._looking:
            self._looking.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # which uvicorn leaves after a reset, and with it all of the last request
        if self._running:
            cycle, end = self._running
            cycle.disconnected = True  # uvicorn says so to the last request alone, which may wait behind this one
            end()

    def data_received(self, data: bytes) -> None:
        """Hand bytes to the parser, and see whether it makes anything of them."""
        self._unread += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_without_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._is_timed or (self._in_message and not self._in_head):
            pass
        elif self.cycle is None or self.cycle.response_complete:
            self._is_timed = True  # not for each request: nearly all heads come at once
            self._wait(HEAD_S)
        if self._unread > MAX_HEAD and not self.transport.is_closing():
            self._refuse(_TOO_LARGE)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Take note that the client sends no more; return whether it may still wait for an answer.

        Whoever has closed the whole connection looks the same, until something is sent: that is answered by a reset.
        HTTP has interim answers, and HTTP/1.0 has none.
        """
        if not self._is_working() or self._in_message or self.scope["http_version"] != "1.1":
            return False
        self._is_half_closed = True
        self._probe(_PROBES_S)
        return True

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, unless it has been answered."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    # the parser's

    def on_message_begin(self) -> None:
        """Take note of a request's first byte."""
        self._in_message = self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Have the request answered."""
        if self.parser.should_upgrade():
            return  # read again without it
        # What has come is counted in whole packets, of which the last may have a body, too.
        if len(self.headers) > _MOST_HEADERS or (self._unread > MAX_HEAD and self._head_size() > MAX_HEAD):
            self._refuse(_TOO_LARGE)
            raise ValueError(_TOO_MUCH)
        self._unread = 0
        self._in_head = self._is_timed = False
        self._stop_waiting()
        if len(self.pipeline) >= _MOST_PIPELINED:
            self.transport.close()
            raise ValueError(_TOO_MUCH)
        if b"://" in self.url and not self.url.startswith(b"/"):
            # What the target says counts, whatever the header (RFC 9112, 3.2.2).
            others = [header for header in self.headers if header[0] != b"host"]
            self.headers[:] = [*others, (b"host", self.url.partition(b"://")[2].partition(b"/")[0])]
        super().on_headers_complete()
        self.headers: list[tuple[bytes, bytes]] = []  # trailers, too, would become headers of the request
        self.cycle.transport = cast("asyncio.Transport", _Joining(self.cycle, self.transport))
        cast("dict[str, Any]", self.scope)[ON_LOSS] = functools.partial(self._set_on_loss, self.cycle)
        cast("dict[str, Any]", self.scope)[IS_TAKEN] = self.flow.drain

    def on_body(self, body: bytes) -> None:
        """Take a part of the body. Those of a few bytes, in chunks of their own, cost more than they bring."""
        self._unread = max(self._unread - _WORTH * len(body), 0)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take note of a request's end."""
        if self.parser.should_upgrade():
            return
        self._unread = 0
        self._in_message = False
        cast("dict[str, Any]", self.scope)[IS_WHOLE] = True
        if self.cycle.response_complete and not self.transport.is_closing():
            self._wait(self.timeout_keep_alive)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Take note of an answer's end."""
        super().on_response_complete()
        if caller := cast("dict[str, Any]", self.scope).get("caller"):
            self._stop_waiting()
            self._developer = caller.developer
        if not self.cycle.response_complete or self.transport.is_closing():
            return
        if self._is_half_closed:
            self.transport.close()
        elif self._in_message:
            self._wait(_LINGER_S)
        else:
            self._line_up()  # uvicorn has set the time already

    # ours

    def _set_on_loss(self, cycle: RequestResponseCycle, end: Callable[[], object] | None) -> None:
        self._running = (cycle, end) if end else None

    def _is_working(self) -> bool:
        """Whether there is a request of which nothing has been answered."""
        return self.cycle is not None and not self.cycle.response_started and not self.transport.is_closing()

    def _probe(self, pauses: tuple[float, ...]) -> None:
        if self._is_working():
            self.transport.write(_INTERIM)
            if pauses:
                self.loop.call_later(pauses[0], self._probe, pauses[1:])

    def _read_without_upgrade(self, rest: bytes) -> None:
        """Read a request again as if it had not asked for another protocol, such as h2c: curl and Java do by default.

        The parser takes what follows such a request's headers, so its body, for that protocol.

        Args:
            rest: what has come after the headers.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            self.send_400_response("There is no proxy here.")
            return
        lines = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.data_received(b"\r\n".join((*lines, b"", b"")) + rest)

    def _make_room(self) -> None:
        """End a connection that waits; if there is none, this one."""
        most: dict[Connection, None] = max(self._waiting.values(), key=len, default={})
        next(iter(most), self).end()

    def end(self) -> None:
        """End the connection, whatever it waits for."""
        self._stop_waiting()
        self.transport.abort()

    def _look(self, before: int = 0) -> None:
        """End the connection if the client has read nothing since the last look."""
        unread = self.transport.get_write_buffer_size()
        if unread:  # what the kernel holds besides can be megabytes, and has to become less before this does
            held = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            unread += int.from_bytes(held, sys.byteorder)
        if unread and unread == before:
            self.transport.abort()
        else:
            self._looking = self.loop.call_later(_UNREAD_S, self._look, unread)

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _wait(self, seconds: float) -> None:
        """Have no request, and end unless one comes in time."""
        self._stop_waiting()
        self._line_up()
        self._timer = self.loop.call_later(seconds, self._end)

    def _line_up(self) -> None:
        self._waiting.setdefault(self._developer, {})[self] = None

    def _stop_waiting(self) -> None:
        if waiting := self._waiting.get(self._developer):
            waiting.pop(self, None)
            if not waiting:
                del self._waiting[self._developer]
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        if self._in_head:
            self._refuse(_TOO_SLOW)
        else:
            self.transport.close()

    def _refuse(self, answer: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(answer)
        self.transport.close()
