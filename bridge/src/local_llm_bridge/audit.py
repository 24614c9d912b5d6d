"""Who asked what of which model: one JSON object for every call, as docs/audit.md describes it."""

from __future__ import annotations

import json
import logging
import math
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from local_llm_bridge.models.answer import Completion

log = logging.getLogger(__name__)

ANONYMOUS = "-"
"""Stands for what there is not: a developer (stdio has one user), a model, an address."""
_MOST_CONTENT = 80_000
"""Bytes of JSON that what was asked may take, and what was answered: together they fit into one message to the journal.
"""
_MOST_CHARACTERS = 40_000
"""Of one text in a record: as many as a result may have."""
_DEEPEST = 20
_EXACT = 2**53
"""Numbers up to this are the same in all programs that read JSON."""
_SYSLOG = b"<134>local-llm-audit: "
"""Facility local0, priority info, and the name under which the gateway writes, too."""


@dataclass(frozen=True)
class Caller:
    """Who calls.

    Args:
        developer: their name.
        client: address from which the request came; behind a gateway, the gateway's.
        request_id: by which the gateway's record of the same request is found.
    """

    developer: str = ANONYMOUS
    client: str = ANONYMOUS
    request_id: str = ANONYMOUS


UNKNOWN = Caller()
"""Whoever calls where there is one user alone."""


@dataclass(frozen=True)
class Record:
    """One call when it is over.

    Args:
        caller: who called.
        tool: the tool's name.
        model: the model that was asked.
        outcome: `ok`, `cancelled`, `failed` (a bug), or an error's `outcome`.
        duration_s: how long it took, in seconds.
        completion: the model's answer; None: there is none.
        arguments: what was asked.
        text: what was answered.
    """

    caller: Caller
    tool: str
    model: str
    outcome: str
    duration_s: float
    completion: Completion | None = None
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)
    text: str = field(default="", repr=False)


class Log:
    """Writes records.

    Args:
        path: a socket of syslog; None: to the bridge's own log.
        with_content: whether a record holds what was asked and answered.
    """

    def __init__(self, path: Path | None, *, with_content: bool) -> None:
        self._write: Callable[[str], None] = _Syslog(path) if path else log.info
        self._with_content = with_content

    def __call__(self, record: Record) -> None:
        """Write the record of a call."""
        entry: dict[str, Any] = {
            "what": record.tool,
            "model": record.model,
            "outcome": record.outcome,
            "duration_ms": round(record.duration_s * 1000),
        }
        if completion := record.completion:
            entry["prompt_tokens"] = token_count(completion.prompt_tokens)
            entry["completion_tokens"] = token_count(completion.completion_tokens)
            entry["cached"] = completion.cached
        if self._with_content:
            entry |= {"arguments": _content(record.arguments), "text": _content(record.text)}
        self._add(record.caller, entry)

    def refused(self, caller: Caller, what: str, status: int) -> None:
        """Write the record of a request that did not come through.

        Args:
            caller: as far as is known.
            what: was asked for.
            status: HTTP's, of the answer.
        """
        self._add(caller, {"what": what, "model": ANONYMOUS, "outcome": "refused", "status": status})

    def _add(self, caller: Caller, entry: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        who = {"request_id": caller.request_id, "developer": caller.developer, "client": caller.client}
        # Pure ASCII: a text stays on its line, and nobody can write a line of their own into the log.
        self._write(_json({"time": now, "source": "bridge", **who, **entry}))


_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def token_count(value: object) -> int | None:
    """Return a number of tokens as programs can read it: engines say all kinds of things."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _EXACT:
        return value
    return None


def _content(value: object) -> object:
    """Return what a client or a model has sent as every program can read it, and no more than a record has room for."""
    most = _MOST_CHARACTERS
    while len(_json(plain := _plain(value, most))) > _MOST_CONTENT:
        most //= 2
    return plain


def _plain(value: object, most: int, depth: int = 0) -> object:
    """Return a value without numbers that JSON, or a program, may not know, and cut where it is too long.

    Args:
        value: as json.loads gives it.
        most: characters of a text, and elements of anything else.
        depth: of what it is in.
    """
    match value:
        case dict() | list() if depth == _DEEPEST:
            return "[Cut here: nested too deep.]"
        case dict():
            return {_text(str(key), most): _plain(item, most, depth + 1) for key, item in islice(value.items(), most)}
        case list():
            return [_plain(item, most, depth + 1) for item in islice(value, most)]
        case int() if abs(value) > _EXACT:
            value = hex(value)[:most]
        case float() if not math.isfinite(value):
            value = str(value)
        case str():
            return _text(value, most)
    return value


def _text(text: str, most: int) -> str:
    if len(text) > most:
        text = f"{text[:most]}[Cut here: {len(text)} characters.]"
    # Half of a surrogate pair is no character, and there are programs that read no line which has one.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class _Syslog:
    """A socket of syslog, to which each line is a datagram: whoever reads there may come and go."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)  # as much as the host allows

    def __call__(self, line: str) -> None:
        try:
            self._socket.sendto(_SYSLOG + line.encode(), socket.MSG_DONTWAIT, self._path)
        except OSError as error:
            log.error("%s did not take this record: %s\n%s", self._path, error.strerror, line)  # noqa: TRY400
