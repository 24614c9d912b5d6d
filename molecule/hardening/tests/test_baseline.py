"""The public dev-sec baselines: hardened hosts beside a fresh one. What they do not pass is explained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.baseline import report

PROJECT = Path(__file__).resolve().parent.parent.parent.parent


def test_hardened_hosts_pass_what_applies_or_it_says_why_not(
    guest: Callable[..., Host], capsys: pytest.CaptureFixture[str]
) -> None:
    results = {name: report.run(guest(name)) for name in ("fresh", "debian12", "debian13")}
    with capsys.disabled():
        print(f"\n{report.side_by_side(results)}")
    assert report.rate(results["fresh"]) < 0.6
    # One host with each level.
    assert report.rate(results["debian12"]) >= 0.85
    assert not report.unexplained(results["debian12"], also="fail_at_baseline")
    assert report.rate(results["debian13"]) >= 0.95
    assert not report.unexplained(results["debian13"])
