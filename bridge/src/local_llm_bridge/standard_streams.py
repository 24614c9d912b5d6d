"""The process's standard input, output and error, whatever state they are in when the program starts.

A descriptor that is closed is dangerous: the next file or socket that is opened takes its number, and the event loop's
own descriptor may be written to as if it were the log. Text that a terminal cannot show, or that is not in its
encoding, must not end the program.
"""

from __future__ import annotations

import codecs
import fcntl
import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from local_llm_bridge.errors import StreamError

LONGEST_TEXT = 2**26
"""Most that is read from standard input as one text, in bytes."""
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_closed: set[int] = set()
"""The descriptors that were closed at the start."""


def prepare() -> None:
    """Open what is closed, on the null device, and have characters that cannot be shown replaced."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _closed.add(descriptor)
            _open_null(descriptor)
    # None where Python found the descriptor closed. print() writes to standard output where it is given None.
    if sys.stdout is None:
        sys.stdout = _writer(1)
    if sys.stderr is None:
        sys.stderr = _writer(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")


def require(descriptor: int) -> None:
    """Check that standard input (0) or output (1) was open for its use when the program started.

    Raises:
        StreamError: it was closed, or can only be used the other way round.
    """
    name, use, other_way = ("input", "reads", os.O_WRONLY) if descriptor == 0 else ("output", "answers on", os.O_RDONLY)
    # A pipe that is opened the other way round is never ready: the program would wait for ever.
    is_other_way = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == other_way
    if descriptor in _closed or is_other_way:
        problem = "is closed" if descriptor in _closed else "is open for the other direction only"
        raise StreamError(
            f"standard {name} {problem}, and this command {use} it. Start it with a pipe, a file or /dev/null there."
        )


def flush() -> bool:
    """Write what standard output and error still hold; say on standard error why output could not be written.

    Returns: whether all of the output has been written.
    """
    failed = None
    try:
        sys.stdout.flush()
    except OSError as error:
        failed = error
        _open_null(1)  # the interpreter tries again when it ends
    try:
        if failed and not isinstance(failed, BrokenPipeError):  # whoever reads no more has seen enough
            print(f"local-llm-bridge: {unwritable(failed)}", file=sys.stderr)  # noqa: T201
        sys.stderr.flush()
    except OSError:
        _open_null(2)
    return failed is None


def unwritable(error: OSError) -> str:
    """Say that standard output cannot be written."""
    return f"standard output cannot be written: {error.strerror}"


def is_utf8() -> bool:
    """Whether standard output takes every character."""
    return codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"


def read_text() -> str:
    """Read standard input to its end.

    Raises:
        StreamError: it is closed, cannot be read, or has more than LONGEST_TEXT bytes.
    """
    require(0)
    try:
        data = sys.stdin.buffer.read(LONGEST_TEXT + 1)
    except OSError as error:
        raise StreamError(f"standard input cannot be read: {error.strerror}") from None
    if len(data) > LONGEST_TEXT:
        raise StreamError(f"standard input has more than {LONGEST_TEXT >> 20} MiB. Send only the part that matters.")
    text, replaced = decode(data, sys.stdin.encoding)
    if replaced:
        print(  # noqa: T201
            f"local-llm-bridge: standard input is not UTF-8: {replaced} characters of it were replaced by U+FFFD",
            file=sys.stderr,
        )
    return text


def decode(data: bytes, locale_encoding: str) -> tuple[str, int]:
    """Return bytes as text, and how many characters had to be replaced.

    Args:
        data: by a byte order mark, or valid as UTF-8, else in the locale's encoding.
        locale_encoding: where it is another than UTF-8, it is tried before anything is replaced.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return _replacing(data[len(mark) :], encoding)
    try:
        return data.decode(), 0
    except UnicodeDecodeError:
        pass
    # ASCII says nothing of what the other bytes are.
    if codecs.lookup(locale_encoding).name not in {"utf-8", "ascii"}:
        with suppress(UnicodeDecodeError):
            return data.decode(locale_encoding), 0
    return _replacing(data, "utf-8")


def argument(text: str) -> str:
    """Return an argument of the command line without the half surrogates that stand for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text).decode(errors="replace")
    return text


def _replacing(data: bytes, encoding: str) -> tuple[str, int]:
    text = data.decode(encoding, errors="replace")
    return text, text.count("\ufffd") - data.count("\ufffd".encode(encoding))


def _writer(descriptor: int) -> TextIO:
    return open(descriptor, "w", encoding="utf-8", buffering=1, closefd=False)


def _open_null(descriptor: int) -> None:
    """Open the null device as this descriptor; where there is none, a pipe that is empty or that nobody reads."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError:
        reading, writing = os.pipe()
        null, other = (reading, writing) if descriptor == 0 else (writing, reading)
        if descriptor:
            os.dup(reading)  # stays open: a write fails when the pipe is full, and not before
            os.set_blocking(writing, False)
        if other != descriptor:
            os.close(other)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    os.set_inheritable(descriptor, True)  # noqa: FBT003
