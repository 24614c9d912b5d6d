"""The log's lines are as logging itself would write them."""

from __future__ import annotations

import logging

import pytest

from local_llm_bridge.logs import _Formatter


@pytest.mark.parametrize("at", [[0.0], [1_900_000_000.25, 1_900_000_000.999, 1_900_000_001.0], [1_900_000_001.0, 5.5]])
def test_a_line_begins_with_its_own_time(at: list[float]) -> None:
    ours, theirs = _Formatter(), logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    for created in at:
        record = logging.makeLogRecord({"msg": "a line", "levelname": "INFO", "created": created, "msecs": 999.0})
        assert ours.format(record) == theirs.format(record)
