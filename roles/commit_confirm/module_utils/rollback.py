"""A timer of systemd that undoes what is tried on a host, unless it is ended before."""

from __future__ import annotations

import subprocess
from pathlib import Path


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603


class Rollback:
    """The timer of one role."""

    def __init__(self, unit: str, folder: Path) -> None:
        """Name it; nothing is started.

        Args:
            unit: Name of the unit, without a suffix.
            folder: Where it leaves word in the file C(undone) that, and when, it has undone something.
        """
        self.unit = unit
        self._undone = folder / "undone"

    def arm(self, seconds: int, description: str, script: str) -> str:
        """Have something undone after a time.

        Args:
            seconds: How long.
            description: Of the unit.
            script: What sh(1) does then.

        Returns:
            Why the timer cannot be started; empty if it is.
        """
        self._undone.unlink(missing_ok=True)
        argv = ["systemd-run", "--quiet", "--collect", "--service-type=oneshot", f"--unit={self.unit}"]
        argv += [f"--on-active={seconds}", "--timer-property=AccuracySec=1s", f"--description={description}"]
        armed = _run(*argv, "sh", "-c", f"{script}; date > {self._undone}")
        return "" if armed.returncode == 0 else armed.stderr.strip() or f"exit status {armed.returncode}"

    def end(self) -> None:
        """Disarm it, and end what it has started."""
        _run("systemctl", "stop", f"{self.unit}.timer")
        _run("systemctl", "stop", f"{self.unit}.service")

    def go_back(self) -> None:
        """Undo now what an earlier run has left undecided."""
        if _run("systemctl", "is-active", "--quiet", f"{self.unit}.timer").returncode == 0:
            _run("systemctl", "start", f"{self.unit}.service")  # returns when it has done so
            self.end()

    def undone(self) -> str:
        """When it has undone the last try; empty if it has not."""
        return self._undone.read_text().strip() if self._undone.exists() else ""
