"""Waiting for what a test has set going."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 900  # seconds: a test is not the place to find a machine slow


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until something is so.

    Args:
        condition: What is asked, at first five times a second, after ten seconds once; true is the end of it.
        seconds: How long; less than that where something would come by itself that must not be taken for it.

    Raises:
        AssertionError: It has not become so in that time.
    """
    begin = time.monotonic()
    while not condition():
        waited = time.monotonic() - begin
        assert waited < seconds, f"not within {seconds} s"
        time.sleep(min(1, max(0.2, waited / 10)))
