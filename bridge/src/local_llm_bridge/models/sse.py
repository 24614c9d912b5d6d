"""Reading a stream of server-sent events: the packets of a chat completion's stream in, its events out.

The framing is that of the HTML standard (its section "Server-sent events"), and of what engines make of it: several
events without a blank line between them, a last one without a line end, errors that are no events. A packet that is
plain, as nearly all are, is split and decoded in one go, which takes a third of the time that going line by line does.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

from pydantic_core import from_json  # a third of the time that json takes, once for every token

from local_llm_bridge.texts import printable

LONGEST_EVENT = 2**20
"""Longest event that is read, in bytes: enough for a tool call that writes a large file."""

Event = dict[str, Any]
"""One event of a chat completion's stream."""

_QUOTED = 100  # bytes of an event that cannot be read
_MOST_STRAY = 4096  # bytes
_DONE = b"[DONE]"
_PLAIN_START = b"data: {"
_PLAIN_DONE = b"data: [DONE]"
# A longer line that has not ended is not copied again for each packet.
_LONGEST_CARRIED = 2**16
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BLANK_LINES = re.compile(rb"([\r\n])\1{2,}")
_BOM = b"\xef\xbb\xbf"
# How an error begins that came as plain text.
_WORDS = re.compile(rb"\[?[A-Za-z]+\b(?!:\s*[{\[])")
_ERROR = re.compile(rb"error:\s*(?=[{\[])", re.IGNORECASE)
# What only keeps a connection open, although it is no comment.
_ALIVE = re.compile(rb"""\s*["'\[(]*(?:ping|pong|keep[-_ ]?alive|heart[-_ ]?beat)["'\])]*\s*|\s*:.*""", re.IGNORECASE)
# All lone surrogates but those that stand for a byte that is not UTF-8.
_NO_CHARACTER = re.compile("[\ud800-\udc7f\udd00-\udfff]")


class EventReader:
    """Takes in packets, gives the events that are whole."""

    def __init__(self) -> None:
        self.done = False
        """Whether `[DONE]` has come: nothing after it counts."""
        self.broken = ""
        """Why nothing more can be read. What came before it is part of the answer."""
        self.stray = b""
        """The beginning of what has come between events: a proxy's words, where it ended the stream."""
        self._line = bytearray()  # the beginning of a line that has not ended yet
        self._data: list[bytes] = []  # the data lines of an event that has not ended yet
        self._size = 0
        self._kind = b""
        self._first = True
        self._after_cr = False
        self._halves: dict[str, str] = {}

    def feed(self, packet: bytes) -> list[Event]:
        """Take in the next bytes; gives the events that they complete, which may be anything that JSON can hold."""
        pending = self._data or self._kind or self._after_cr or self._halves
        if not pending and len(self._line) < _LONGEST_CARRIED:
            events = self._read_plain(bytes(self._line) + packet if self._line else packet)
            if events is not None:
                return events
        return self._read_lines(packet)

    def end(self) -> list[Event]:
        """Take note that nothing more comes; gives the events that had only no end. A cut one is dropped."""
        events: list[Event] = []
        if not self.done and not self.broken:
            self._end_line(events)
            self._end_event(events)
            self.broken = ""
        if self._halves:
            delta = dict.fromkeys(self._halves, "\ufffd")
            self._halves = {}
            events.append({"choices": [{"index": 0, "delta": delta}]})
        return events

    def _read_plain(self, buffer: bytes) -> list[Event] | None:
        """Read a packet of which each event is one line `data: {…}` and one blank line; None: it is another."""
        if self.done or self.broken or len(buffer) > LONGEST_EVENT or b"\r" in buffer:
            return None
        *blocks, rest = buffer.split(b"\n\n")
        if done := bool(blocks) and blocks[-1] == _PLAIN_DONE:
            blocks.pop()
        texts = [block[6:] for block in blocks if block.startswith(_PLAIN_START)]
        joined = b",".join(texts)
        if len(texts) != len(blocks) or b"\n" in joined:
            return None
        try:
            events: list[Event] = from_json(b"[%b]" % joined)
        except ValueError:
            return None
        if len(events) != len(texts):
            return None
        if texts:
            self._first = False
        self.done = done
        self._line.clear()
        if rest:
            events += self._read_lines(rest)
        return events

    def _read_lines(self, packet: bytes) -> list[Event]:
        if self._after_cr:
            packet = packet.removeprefix(b"\n")  # the second half of a CRLF
            self._after_cr = False
        if packet:
            self._after_cr = packet.endswith(b"\r")
        events: list[Event] = []
        start, *others = _LINE_END.split(_BLANK_LINES.sub(rb"\1\1", packet))
        self._line += start
        for other in others:
            if self.done:
                return events
            self._end_line(events)
            self._line += other
        if len(self._line) + self._size > LONGEST_EVENT:
            self.broken = f"an event of more than {LONGEST_EVENT} bytes"
        return events

    def _end_line(self, events: list[Event]) -> None:
        line = bytes(self._line)
        self._line.clear()
        if self._first:
            line = line.removeprefix(_BOM)
            self._first = False
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"" if not line:
                self._end_event(events)
            case b"data":
                # Some engines leave out the blank line between events.
                if len(self._data) == 1 and self._data[0].endswith(b"}") and _is_json(self._data[0]):
                    self._end_event(events)
                if self._data or self._kind == b"error" or not _ALIVE.fullmatch(value):
                    self._add(value)
            case b"event":
                self._kind = value.strip().lower()
            case b"[DONE]":
                self._end_event(events)
                self.done = not self.broken
            # an error as llama.cpp once sent it; NVIDIA Dynamo has its words in a comment
            case b"error" | b"" if name or (self._kind == b"error" and not self._data):
                self._kind = b"error"
                self._add(value)
            case b"" | b"id" | b"retry":
                pass
            case _:
                self._take_stray(line, events)

    def _take_stray(self, line: bytes, events: list[Event]) -> None:
        """Take in a line that is none of an event's."""
        if line.startswith(b"{") and _is_json(line):  # an error as some proxies put it into a stream
            self._end_event(events)
            self._add(line)
        elif self._kind == b"error" or len(self._data) > 1 or (self._data and not _is_json(self._data[0])):
            self._add(line)  # of several lines, of which the first alone is marked
            return
        self._end_event(events)  # lest each line looked at its data once more
        if len(self.stray) < _MOST_STRAY:
            self.stray += line[:_MOST_STRAY] + b"\n"

    def _add(self, data: bytes) -> None:
        self._data.append(data)
        self._size += len(data) + 8  # as much as a list takes for it
        if self._size > LONGEST_EVENT:
            self.broken = f"an event of more than {LONGEST_EVENT} bytes"

    def _end_event(self, events: list[Event]) -> None:
        last, data, kind = self._data[-1:], b"\n".join(self._data).strip(), self._kind
        self._data, self._kind, self._size = [], b"", 0
        if not data and kind != b"error":
            return
        if data.strip(b'"').upper() == _DONE:
            self.done = not self.broken
            return
        if found := _ERROR.match(data):
            kind, data = b"error", data[found.end() :]
        try:
            event = self._decoded(data)
        except (ValueError, RecursionError):
            if kind != b"error" and not _WORDS.match(data):
                self.broken = (
                    self.broken or f"an event that is not JSON: {printable(data[:_QUOTED].decode(errors='replace'))}"
                )
                if last != [data] and _is_json(last[0]):  # the error of a proxy that cut an event off, in one with it
                    self._data = last
                    self._end_event(events)
                return
            kind, event = b"error", data.decode(errors="replace")
        is_error = isinstance(event, dict) and bool(event.get("error"))
        if (kind == b"error" or isinstance(event, str)) and not is_error:
            event, is_error = {"error": event or ""}, True
        # Where a proxy cuts an event off, its error follows, which says why.
        if event is not None and (is_error or not self.broken):
            events.append(event)

    def _decoded(self, data: bytes) -> Any:  # noqa: ANN401 - it came over the wire
        if not self._halves:
            try:
                return from_json(data)
            except ValueError:
                pass
        # An engine that sends a token at a time may cut a character in two, of which neither is valid JSON.
        return self._with_halves(_loosely(data))

    def _with_halves(self, event: Any) -> Any:  # noqa: ANN401
        """Put the first half of a character before its second one, and keep one at the end for the next event."""
        try:
            delta = event["choices"][0]["delta"]
            texts = {key: text for key, text in delta.items() if isinstance(text, str)}
        except (AttributeError, TypeError, LookupError):
            return _scrubbed(event)
        kept, self._halves = self._halves, {}
        for key in {**kept, **texts}:
            delta[key], half = _cut(kept.get(key, "") + texts.get(key, ""))
            if half:
                self._halves[key] = half
        return _scrubbed(event)


def decoded(data: bytes) -> Any:  # noqa: ANN401 - it came over the wire
    """Return what some JSON says, with U+FFFD for what is no character.

    Raises:
        ValueError: it is none.
    """
    try:
        return from_json(data)
    except ValueError:
        pass
    try:
        return _scrubbed(_loosely(data))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _loosely(data: bytes) -> Any:  # noqa: ANN401
    """Return what some JSON says in whose texts there may be bytes that are not UTF-8, and control characters."""
    return json.loads(data.decode(errors="surrogateescape"), strict=False)


def _is_json(data: bytes) -> bool:
    try:
        from_json(data)
    except ValueError:
        try:
            _loosely(data)
        except (ValueError, RecursionError):
            return False
    return True


def _cut(text: str) -> tuple[str, str]:
    """Join the halves of characters in a text; gives it and the half that is at its end."""
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    if "\ud800" <= text[-1:] <= "\udbff":
        return _scrubbed(text[:-1]), text[-1]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    whole = decoder.decode(_NO_CHARACTER.sub("\ufffd", text).encode(errors="surrogateescape"))
    return whole, decoder.getstate()[0].decode(errors="surrogateescape")


def _scrubbed(value: Any) -> Any:  # noqa: ANN401
    """Return something decoded with U+FFFD for what is no character in its texts."""
    match value:
        case str():
            text = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
            return _NO_CHARACTER.sub("\ufffd", text).encode(errors="surrogateescape").decode(errors="replace")
        case list():
            return [_scrubbed(item) for item in value]
        case dict():
            return {_scrubbed(key): _scrubbed(item) for key, item in value.items()}
    return value
