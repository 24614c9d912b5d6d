"""Who is calling: bearer tokens, of which the bridge knows only the SHA-256."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from local_llm_bridge.config import Developer


def developer_of(authorization: str | None, developers: Sequence[Developer]) -> str | None:
    """Return the name of the developer whose token the Authorization header holds, or None.

    Args:
        authorization: the header's value, None when there is none.
        developers: those who may call.
    """
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    digest = hashlib.sha256(token.strip().encode()).hexdigest()
    found = None
    # All are compared, each in constant time: how long it takes says nothing about any token.
    for developer in developers:
        if hmac.compare_digest(digest, developer.token_sha256):
            found = developer.name
    return found
