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
    failed: tuple[Fact, ...] = ()
    reason: str = ""

    @property
    def found(self) -> str:
        """Why it does not pass."""
        return self.reason or "; ".join(f"{fact}, wanted {fact.wanted}" for fact in self.failed)


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
            failed = tuple(fact for fact in control.check(snapshot) if not fact.ok)
            results.append(Result(control.id, control.title, "fail" if failed else "pass", failed))
        except NotApplicableError as reason:
            results.append(Result(control.id, control.title, "n/a", reason=str(reason)))
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


def unexplained(results: Iterable[Result], exceptions: Path = EXCEPTIONS, also: str = "fail") -> list[str]:
    """Where the results differ from the exceptions that are explained.

    An exception too many is as wrong as one too few, and a control that is explained may fail only as is written there.

    Args:
        results: a host's.
        exceptions: a file of the reasons, by outcome and id.
        also: another part of it with controls that may fail.

    Returns:
        A line for each difference; none is as it should be.
    """
    explained = yaml.safe_load(exceptions.read_text())
    may_fail = explained["fail"] | explained[also]
    outcomes = dict.fromkeys(may_fail, "fail") | dict.fromkeys(explained["not_applicable"], "n/a")
    lines = []
    for result in results:
        outcome = outcomes.pop(result.id, "pass")
        known = may_fail[result.id]["found"] if outcome == "fail" else []
        if result.outcome != outcome or any(str(fact) not in known for fact in result.failed):
            lines.append(
                f"{result.id} ({result.title}): {result.outcome}, explained: {outcome}. {result.found}".strip()
            )
    return lines + [f"{name}: no such control" for name in outcomes]


if __name__ == "__main__":
    print(side_by_side({address: run(testinfra.get_host(address)) for address in sys.argv[1:]}))
