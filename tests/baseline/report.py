"""What the baselines say of a host: a table, the rate, and what nobody has explained."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import testinfra
import yaml
from testinfra.host import Host

from tests.baseline.controls import CONTROLS, Fact, NotApplicableError
from tests.baseline.snapshot import Snapshot, take

EXCEPTIONS = Path(__file__).parent / "exceptions.yml"


@dataclass(frozen=True)
class Result:
    """What came of one control: it passes, it fails, or it does not apply to the host (``n/a``)."""

    id: str
    title: str
    outcome: str
    found: str


def judge(snapshot: Snapshot) -> list[Result]:
    """Hold a host's state to all controls.

    Args:
        snapshot: the host's state.

    Returns:
        One result for each control, in the baselines' order.
    """
    results = []
    for control in CONTROLS:
        try:
            facts: list[Fact] = list(control.check(snapshot))
            failed = [fact for fact in facts if not fact.ok]
            outcome, found = ("fail", "; ".join(map(str, failed))) if failed else ("pass", "")
        except NotApplicableError as reason:
            outcome, found = "n/a", str(reason)
        results.append(Result(control.id, control.title, outcome, found))
    return results


def run(host: Host) -> list[Result]:
    """Hold a host to all controls.

    Args:
        host: the host, as root.

    Returns:
        One result for each control, in the baselines' order.
    """
    return judge(take(host))


def rate(results: Iterable[Result]) -> float:
    """The share of the applicable controls that pass.

    Args:
        results: a host's.

    Returns:
        From 0 to 1.
    """
    outcomes = [result.outcome for result in results if result.outcome != "n/a"]
    return outcomes.count("pass") / len(outcomes)


def summary(results: Iterable[Result]) -> str:
    """The rate in words.

    Args:
        results: a host's.

    Returns:
        Such as ``57 of 119 (47.9%), 11 not applicable``.
    """
    outcomes = [result.outcome for result in results]
    absent = outcomes.count("n/a")
    return f"{outcomes.count('pass')} of {len(outcomes) - absent} ({rate(results):.1%}), {absent} not applicable"


def side_by_side(hosts: Mapping[str, list[Result]]) -> str:
    """A table of all controls, with what the last host still lacks.

    Args:
        hosts: results by the hosts' names.

    Returns:
        A line for each control, and each host's rate.
    """
    width = max(map(len, hosts)) + 2
    lines = [f"{'':12}" + "".join(name.ljust(width) for name in hosts)]
    for row in zip(*hosts.values(), strict=True):
        last = row[-1]
        outcomes = "".join(result.outcome.ljust(width) for result in row)
        lines.append(f"{last.id:12}{outcomes}{last.title}" + (f": {last.found}" if last.found else ""))
    return "\n".join([*lines, *(f"{name}: {summary(results)}" for name, results in hosts.items())])


def unexplained(results: Iterable[Result], exceptions: Path = EXCEPTIONS) -> list[str]:
    """Where the results differ from the exceptions that are explained: one too many is as wrong as one too few.

    Args:
        results: a host's.
        exceptions: a file of the reasons, by outcome and id.

    Returns:
        A line for each difference; none is as it should be.
    """
    reasons = yaml.safe_load(exceptions.read_text())
    explained = dict.fromkeys(reasons["fail"], "fail") | dict.fromkeys(reasons["not_applicable"], "n/a")
    wanted = [(result, explained.pop(result.id, "pass")) for result in results]
    lines = [
        f"{result.id} ({result.title}): {result.outcome}, explained as {outcome}. {result.found}".strip()
        for result, outcome in wanted
        if result.outcome != outcome
    ]
    return lines + [f"{name}: no such control" for name in explained]


if __name__ == "__main__":
    print(side_by_side({address: run(testinfra.get_host(address)) for address in sys.argv[1:]}))
