"""Log lines on stderr: plain for people, with a priority and no time for the journal."""

from __future__ import annotations

import logging
import os
import select
import sys
import time

_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class _Formatter(logging.Formatter):
    """Writes the time as logging does, and asks for the time zone once a second."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._second, self._shown = -1, ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        if (second := int(record.created)) != self._second:
            self._second, self._shown = second, time.strftime(self.default_time_format, time.localtime(second))
        return f"{self._shown},{int(record.msecs):03d}"


class _JournalFormatter(logging.Formatter):
    """Puts sd-daemon(3)'s `<6>` before every line: the journal splits a text at its line ends."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


class _WithoutWaiting:
    """Standard error for a client that may never read it: what a full pipe does not take is left out, and counted.

    A write to a pipe that nobody empties would stop the whole program.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._poll.register(2, select.POLLOUT)
        self._left_out = 0

    def write(self, text: str) -> None:
        """Write a message, or as much of it as there is room for."""
        before = f"({self._left_out} messages left out, as nobody read them)\n" if self._left_out else ""
        data = (before + text).encode(errors="backslashreplace")
        for start in range(0, len(data), select.PIPE_BUF):  # so much fits if anything does
            if not self._poll.poll(0):
                self._left_out += 1
                return
            os.write(2, data[start : start + select.PIPE_BUF])
        self._left_out = 0

    def flush(self) -> None:
        """Do nothing: nothing is kept."""


def configure(*, waits: bool = True) -> None:
    """Send the bridge's log to stderr; of the libraries only what went wrong.

    Args:
        waits: whether for whoever reads it; else messages are left out while nobody does.
    """
    # What no line of ours shows need not be found out for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - as the logging HOWTO has it under "Optimization"
    # Nobody reads a complaint of the logging about itself.
    logging.raiseExceptions = False
    handler: logging.Handler = logging.StreamHandler(sys.stderr if waits else _WithoutWaiting())
    if os.environ.get("JOURNAL_STREAM"):
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(_Formatter())
    logging.basicConfig(handlers=[handler], level=logging.ERROR)
    logging.getLogger("local_llm_bridge").setLevel(logging.INFO)
