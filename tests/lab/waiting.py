"""Waiting for what a test has set going."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 300  # seconds: a test is not the place to find a machine slow


def until(condition: Callable[[], object]) -> None:
    """Wait until something is so.

    Args:
        condition: What is asked, five times a second; true is the end of it.

    Raises:
        AssertionError: It has not become so within five minutes.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s"
        time.sleep(0.2)
