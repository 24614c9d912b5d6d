"""Who is calling: bearer tokens, of which the bridge knows only the SHA-256."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from typing import TYPE_CHECKING

from local_llm_bridge.config import DEVELOPER_NAME
from local_llm_bridge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from local_llm_bridge.config import Developer

log = logging.getLogger(__name__)

NAME_HEADER = "x-local-llm-developer"
"""In this header a gateway in front of the bridge names the developer whose token it has checked."""
_GATEWAY = ""  # stands among the names for whoever holds the gateway's key


class Authenticator:
    """The developers who may call: those of the settings, and those of a file that may change at any time.

    Args:
        developers: those of the settings.
        tokens_file: the others are in; None: there are no others. While the file is wrong, those who were in it before
            may call.
        gateway_keys: SHA-256 of each key by which a gateway in front is known; none: there is no gateway.
    """

    def __init__(
        self, developers: Sequence[Developer], tokens_file: Path | None, gateway_keys: Sequence[str] = ()
    ) -> None:
        self._fixed = {developer.token_sha256: developer.name for developer in developers}
        self._fixed.update(dict.fromkeys(gateway_keys, _GATEWAY))
        self._names = self._fixed
        self._file = tokens_file
        self._state: tuple[int, ...] = ()
        self._refresh()

    def developer_of(self, authorization: str | None, named: str | None = None) -> str | None:
        """Return whose request this is: the developer's name; None: the token is not known.

        With the gateway's key it is the developer whom the gateway names; empty if it names none as it should.

        Args:
            authorization: value of the Authorization header, None when there is none.
            named: that of NAME_HEADER, which says nothing unless it comes from the gateway.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        self._refresh()
        # How long this takes says nothing about any token: a dictionary looks at digests through a keyed hash, whose
        # key is this process's own.
        name = self._names.get(hashlib.sha256(token.strip().encode()).hexdigest())
        if name != _GATEWAY:
            return name
        return named if named and re.fullmatch(DEVELOPER_NAME, named) else ""

    def _refresh(self) -> None:
        if self._file is None:
            return
        # Looked at before it is read: if it changes in between, it is read once more.
        state = _state(self._file)
        if state == self._state:
            return
        from local_llm_bridge import tokens  # noqa: PLC0415 - most bridges have no such file

        self._state = state
        try:
            entries = tokens.read(self._file)
        except ConfigError as error:
            log.error("tokens stay as they were: %s", error)  # noqa: TRY400 - the text says it all
            return
        self._names = {**{entry.token_sha256: entry.name for entry in entries}, **self._fixed}
        log.info("tokens read: %d developer(s) in %s", len(entries), self._file)


def _state(path: Path) -> tuple[int, ...]:
    """Return what is another thing when the file has changed."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a third of the time that Path.stat() takes, in every call
    except OSError as error:
        return (error.errno or 0,)
    return (status.st_ino, status.st_ctime_ns, status.st_size)  # ctime, as a change of rights counts, too
