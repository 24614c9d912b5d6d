"""MCP over standard input and output, one JSON message a line.

People pipe `{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}` into a server to see whether it works: that gets an
answer without a handshake, as does a line that is not JSON, and what was asked before the input ended is answered
before the program ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import stat
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from local_llm_bridge import standard_streams
from local_llm_bridge.errors import BadMessageError, StreamError
from local_llm_bridge.server.dispatch import Dispatcher
from local_llm_bridge.server.fast_path import (
    CAPABILITIES_KEY,
    MODERN_VERSION,
    FastPath,
    FastPathRequest,
    encode,
    read,
    unsupported,
)
from local_llm_bridge.server.message import VERSION_KEY, cancelled, checked, decode, version_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Self

    from local_llm_bridge.config import Settings
    from local_llm_bridge.server.dispatch import Wire
    from local_llm_bridge.server.sdk_session import SdkSession

log = logging.getLogger(__name__)

LONGEST_LINE = 2**26
"""In bytes. What is longer ends the conversation: nobody can tell where the next message begins."""
_LINES_AHEAD = 64
"""How many lines are read of a file before the first of them has been taken in."""
_TOLD_TOOLS: Wire = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}


async def run(settings: Settings) -> None:
    """Serve the process's standard input and output until the input ends or SIGTERM or SIGINT comes.

    Args:
        settings: the engine and its limits.

    Raises:
        ConfigError: a tool cannot be had.
        StreamError: standard input cannot be read, or standard output cannot be written.
    """
    if settings.files_root is None:
        log.warning("the working folder was deleted: tools take no files. Start the bridge in the project's folder.")
    dispatcher = Dispatcher(settings)
    serving = asyncio.ensure_future(_serve(dispatcher))
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, serving.cancel)
    try:
        await serving
    except (asyncio.CancelledError, BrokenPipeError):
        pass  # told to stop, or the client has gone without a word
    finally:
        await dispatcher.close()


async def _serve(dispatcher: Dispatcher) -> None:
    is_polled = not _is_one_socket(0, 1)
    wire = os.dup(1)
    os.dup2(2, 1)  # whatever prints goes to stderr: the wire holds nothing but messages
    writer = await Writer.to(wire, is_polled=is_polled)
    session = Session(dispatcher, writer.write)
    watching = asyncio.ensure_future(dispatcher.watch_tools())
    conversation = asyncio.ensure_future(_converse(session, is_polled=is_polled))
    try:
        await asyncio.wait((writer.closed, conversation), return_when=asyncio.FIRST_COMPLETED)
        if conversation.done():
            await conversation
            await writer.finish()
        if writer.closed.done():
            await writer.closed
    finally:
        for task in (watching, conversation):
            task.cancel()
        await session.close()


async def _converse(session: Session, *, is_polled: bool) -> None:
    async for line in _lines(is_polled=is_polled):
        if line.strip():
            await session.receive(line)
    await session.settle()


class Session:
    """One conversation: how it began, and what is still owed.

    Args:
        dispatcher: runs the tools.
        write: sends bytes to the client.
    """

    def __init__(self, dispatcher: Dispatcher, write: Callable[[bytes], None]) -> None:
        self._dispatcher = dispatcher
        self._fast_path = FastPath(dispatcher, announces=True)
        self._write = write
        self._running: dict[str | int, asyncio.Task[None]] = {}
        self._is_modern: bool | None = None  # until a request of either era has succeeded, neither has begun
        self._handshake: Wire | None = None
        self._is_ready = False
        self._sdk: SdkSession | None = None
        self._sdk_that_shakes: SdkSession | None = None
        self._sdks: list[SdkSession] = []
        dispatcher.on_new_tools.append(self._tell_of_new_tools)

    async def receive(self, line: bytes) -> None:
        """Take in one line."""
        try:
            message = self._completed(given := decode(line))
            request = read(message)
            if request is None:
                message = checked(message)
            self._check_era(message)
        except BadMessageError as error:
            self._send(error.reply)
            return
        if request and self._is_in_order(request):
            if request.modern and message is given:
                self._is_modern = True
            self._answer(request)
        elif self._is_modern is None and message.get("method") == "initialize" and "id" in message:
            await self._shake_hands(message)
        elif not self._is_told(message):
            await self._to_sdk(message)

    async def settle(self) -> None:
        """Wait until all that was asked has been answered."""
        while self._running:
            await asyncio.wait(self._running.values())
        for sdk in self._sdks:
            await sdk.settle()

    async def close(self) -> None:
        """Stop what is running."""
        for task in self._running.values():
            task.cancel()
        if self._running:
            await asyncio.wait(self._running.values())
        for sdk in self._sdks:
            await sdk.close()

    def _completed(self, message: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
        """Let a request without handshake and envelope through, as one of the protocol that needs no handshake."""
        method = message.get("method") if isinstance(message, dict) else None
        if not isinstance(method, str) or "id" not in message:
            return message
        if method in {"ping", "initialize"} or self._is_modern is False:
            return message
        params = {} if message.get("params") is None else message["params"]
        if not isinstance(params, dict):
            return message
        meta = {} if params.get("_meta") is None else params["_meta"]
        if not isinstance(meta, dict) or VERSION_KEY in meta:
            return message
        envelope = {VERSION_KEY: MODERN_VERSION, CAPABILITIES_KEY: {}}
        return {**message, "params": {**params, "_meta": {**meta, **envelope}}}

    def _is_in_order(self, request: FastPathRequest) -> bool:
        """Whether it is the time for a request: the SDK tells those that come at the wrong one."""
        if request.modern or request.id in self._running:
            return self._is_modern is not False and request.id not in self._running
        if request.method == "initialize":
            return self._is_modern is None
        return self._handshake is not None or request.method == "ping"

    def _answer(self, request: FastPathRequest) -> None:
        if request.method == "tools/call":
            task = asyncio.ensure_future(self._call(request))
            self._running[request.id] = task
            task.add_done_callback(lambda _: self._running.pop(request.id, None))
            return
        if request.method == "initialize":
            self._handshake = request.params
            self._is_modern = False
            self._sdk = None  # another has taken what came before, and serves no handshake any more
        self._send(self._fast_path.answer(request))

    def _check_era(self, message: Wire) -> None:
        """Check that a request is of a version that is spoken here, and by this client.

        Raises:
            BadMessageError: it is not.
        """
        if self._is_modern is False or "id" not in message:
            return
        if message.get("method") == "initialize":
            if self._is_modern:
                wanted = str((message.get("params") or {}).get("protocolVersion"))[:60]
                found = f"a handshake for {wanted!r} came after a request of {MODERN_VERSION}, which has none"
                raise unsupported(found, wanted, message["id"])
            return
        version = version_of(message)
        if isinstance(version, str) and version != MODERN_VERSION:
            raise unsupported(f"_meta names {version[:60]!r}", version[:60], message["id"])

    async def _shake_hands(self, message: Wire) -> None:
        """Have the SDK answer an `initialize` that the fast path does not take; if it refuses, nothing has begun."""
        if self._sdk_that_shakes is None:
            self._sdk_that_shakes = await self._begin_sdk()
        await self._sdk_that_shakes.receive(message)
        await self._sdk_that_shakes.settle()
        if self._is_modern is False:
            self._sdk = self._sdk_that_shakes

    async def _call(self, request: FastPathRequest) -> None:
        async def send(notification: Wire) -> None:
            self._send(notification)

        self._send(await self._fast_path.call(request, send))

    def _is_told(self, message: Wire) -> bool:
        """Take in a notification; returns whether it was one for the fast path."""
        match message.get("method"):
            case "notifications/initialized" if "id" not in message and self._handshake and self._sdk is None:
                self._is_ready = True
                return True
            case "notifications/cancelled" if (request_id := cancelled(message)) is not None:
                task = self._running.get(request_id)
                if task:
                    task.cancel()
                return task is not None
            case _:
                return False

    async def _to_sdk(self, message: Wire) -> None:
        if self._sdk is None:
            self._sdk = await self._begin_sdk()
        await self._sdk.receive(message)

    async def _begin_sdk(self) -> SdkSession:
        from local_llm_bridge.server.sdk_session import SdkSession  # noqa: PLC0415 - its import takes most of a second

        sdk = await SdkSession.begin(self._dispatcher, self._from_sdk, self._handshake, is_ready=self._is_ready)
        self._sdks.append(sdk)
        return sdk

    def _from_sdk(self, message: Wire) -> None:
        result = message.get("result") or {}
        if self._is_modern is None and ("protocolVersion" in result or "resultType" in result):
            self._is_modern = "resultType" in result
        self._send(message)

    async def _tell_of_new_tools(self) -> None:
        # Without a handshake, clients subscribe: the SDK tells those.
        if self._is_ready:
            self._send(_TOLD_TOOLS)

    def _send(self, message: Wire) -> None:
        self._write(encode(message) + b"\n")


class Writer(asyncio.BaseProtocol):
    """Writes to a file descriptor; to a pipe without waiting for whoever reads it."""

    def __init__(self, wire: int) -> None:
        self._wire = wire
        self._transport: asyncio.WriteTransport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Is done when nobody reads any more."""

    @classmethod
    async def to(cls, wire: int, *, is_polled: bool = True) -> Self:
        """Return what writes to a file descriptor.

        Args:
            wire: the descriptor.
            is_polled: whether the event loop waits for it, where it can.
        """
        writer = cls(wire)
        if is_polled and _is_pipe(wire):
            pipe = os.fdopen(wire, "wb", buffering=0)
            writer._transport, _ = await asyncio.get_running_loop().connect_write_pipe(lambda: writer, pipe)
        return writer

    def write(self, data: bytes) -> None:
        """Write some bytes, in time; what fails ends `closed`."""
        if self._transport:
            self._transport.write(data)
            return
        while data and not self.closed.done():
            try:
                data = data[os.write(self._wire, data) :]
            except BlockingIOError:  # somebody else has made a terminal non-blocking
                select.select([], [self._wire], [])
            except OSError as error:
                self.connection_lost(error)

    async def finish(self) -> None:
        """Wait until all has been written."""
        if self._transport:
            self._transport.close()
            await self.closed

    def connection_lost(self, error: Exception | None) -> None:
        """Take note that nobody reads any more, or that what is read cannot be written."""
        if self.closed.done():
            return
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError | ConnectionResetError):
            self.closed.set_exception(StreamError(standard_streams.unwritable(error)))
        else:
            self.closed.set_result(None)


async def _lines(*, is_polled: bool) -> AsyncIterator[bytes]:
    """Yield the lines of standard input.

    Args:
        is_polled: whether the event loop waits for them, where it can.

    Raises:
        StreamError: it cannot be read.
    """
    lines = _lines_of_pipe() if is_polled and _is_pipe(0) else _lines_of_file()
    try:
        async for line in lines:
            if len(line) > LONGEST_LINE:
                log.error("a line is longer than %d bytes: the conversation ends", LONGEST_LINE)
                return
            yield line
    except OSError as error:
        raise StreamError(f"standard input cannot be read: {error.strerror}") from None


async def _lines_of_pipe() -> AsyncIterator[bytes]:
    """Yield lines; one that is too long as soon as that is known."""
    reader = asyncio.StreamReader()
    pipe = os.fdopen(os.dup(0), "rb", buffering=0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    parts: list[bytes] = []
    size = 0
    # Not readline(): it costs as much as the rest of reading, for each of the lines that come together.
    while data := await reader.read(2**18):
        end, *others = data.split(b"\n")
        parts.append(end)
        size += len(end)
        if size > LONGEST_LINE:
            break
        for other in others:
            yield b"".join(parts)
            parts, size = [other], len(other)
    yield b"".join(parts)


async def _lines_of_file() -> AsyncIterator[bytes]:
    """Yield lines of what cannot be polled: a file or a terminal."""
    queue: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    room = threading.Semaphore(_LINES_AHEAD)
    loop = asyncio.get_running_loop()

    def put(item: bytes | OSError) -> None:
        room.acquire()
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def read_lines() -> None:
        try:
            with open(0, "rb", closefd=False) as wire:
                while line := wire.readline(LONGEST_LINE + 1):
                    put(line)
        except ConnectionResetError:
            pass  # the client has gone
        except OSError as error:
            put(error)
        put(b"")

    # A daemon, because its read cannot be interrupted.
    threading.Thread(target=read_lines, daemon=True).start()
    while line := await queue.get():
        room.release()
        if isinstance(line, OSError):
            raise line
        yield line


def _is_pipe(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _is_one_socket(descriptor: int, other: int) -> bool:
    """Whether two descriptors are the same socket, as socat gives: the event loop reads from one that it writes to."""
    return stat.S_ISSOCK(os.fstat(descriptor).st_mode) and os.path.sameopenfile(descriptor, other)
