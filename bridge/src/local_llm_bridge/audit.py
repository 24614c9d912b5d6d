"""Who asked what of which model: one JSON object for every call, as docs/audit.md describes it."""

from __future__ import annotations

import json
import logging
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from local_llm_bridge.backend import Completion

log = logging.getLogger(__name__)

NOBODY = "-"
"""Stands for what there is not: a developer (stdio has one user), a model, an address."""
_SYSLOG = b"<134>local-llm-audit: "
"""Facility local0, priority info, and the name under which the door writes, too."""


@dataclass(frozen=True)
class Caller:
    """Who calls.

    Args:
        developer: their name.
        client: address from which the request came; behind a door, the door's.
        request_id: by which the door's record of the same request is found.
    """

    developer: str = NOBODY
    client: str = NOBODY
    request_id: str = NOBODY


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
            entry["prompt_tokens"] = completion.prompt_tokens
            entry["completion_tokens"] = completion.completion_tokens
            entry["cached"] = completion.cached
        if self._with_content:
            entry |= {"arguments": record.arguments, "text": record.text}
        self._add(record.caller, entry)

    def refused(self, caller: Caller, what: str, status: int) -> None:
        """Write the record of a request that did not come through.

        Args:
            caller: as far as is known.
            what: was asked for.
            status: HTTP's, of the answer.
        """
        self._add(caller, {"what": what, "model": NOBODY, "outcome": "refused", "status": status})

    def _add(self, caller: Caller, entry: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        who = {"request_id": caller.request_id, "developer": caller.developer, "client": caller.client}
        # Pure ASCII: a text stays on its line, and nobody can write a line of their own into the log.
        self._write(json.dumps({"time": now, "source": "bridge", **who, **entry}, separators=(",", ":")))


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
