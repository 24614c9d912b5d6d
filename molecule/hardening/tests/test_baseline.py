"""The public dev-sec baselines: a hardened host beside a fresh one. What it does not pass is explained."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra.host import Host

PROJECT = Path(__file__).resolve().parent.parent.parent.parent
sys.path.insert(0, str(PROJECT))

from tests.baseline import report  # noqa: E402

Guest = Callable[..., Host]


@pytest.mark.parametrize("name", ["debian12", "debian13"])
def test_a_hardened_host_passes_what_applies_or_says_why_not(
    guest: Guest, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = report.run(guest("fresh")), report.run(guest(name))
    with capsys.disabled():
        print(f"\n{report.side_by_side({'fresh': before, name: after})}")
    assert report.rate(before) < 0.6
    assert report.rate(after) >= 0.95
    assert not report.unexplained(after)
