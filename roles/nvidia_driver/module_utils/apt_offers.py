"""What the host's package sources and NVIDIA's repository offer, asked in a scratch folder: the host stays as it is."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from urllib.error import URLError

from ansible.module_utils.nvidia_packages import number
from ansible.module_utils.openpgp_keys import NoKeyError, fingerprints
from ansible.module_utils.urls import open_url

TIMEOUT = 20  # seconds until a source counts as out of reach
LARGEST_KEY = 1 << 20  # bytes


class SourceError(Exception):
    """A package source cannot be used; the text says why and what to do."""


def fetch_key(url: str, fingerprint: str) -> str:
    """The repository's signing key.

    Args:
        url: Where the repository has it.
        fingerprint: The key's, 40 hex digits.

    Returns:
        The armoured key.

    Raises:
        SourceError: It cannot be had, or is another one.
    """
    try:
        with open_url(url, timeout=TIMEOUT) as answer:
            text = str(answer.read(LARGEST_KEY), "ascii")
        found = fingerprints(text)
    except NoKeyError as error:
        raise SourceError(f"{url} is no key: {error}; check nvidia_driver_repository_url") from error
    except (URLError, OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"cannot read {url}: {error}; check nvidia_driver_repository_url and the way there, use a mirror "
            "(docs/nvidia_driver.md names some), or set nvidia_driver_source: folder"
        ) from error
    if found != [fingerprint.upper()]:
        raise SourceError(
            f"{url} holds the key {', '.join(found)}, and {fingerprint.upper()} is expected; if your mirror signs with "
            "a key of its own, set nvidia_driver_repository_fingerprint to it"
        )
    return text


class Apt:
    """apt's view of package sources.

    With ``own`` it sees that one source alone; without, the host's own sources, and after :meth:`refresh` the newest
    that these offer.
    """

    def __init__(self, scratch: Path, own: Path | None = None) -> None:
        """Make the view.

        Args:
            scratch: An empty folder that apt's own user can read.
            own: File with the one source to look at, in deb822 format.
        """
        self._own = own
        self._scratch = scratch
        self._options: list[str] = []
        self._is_fresh = False
        if own:
            self._see("Dir::Etc::sourcelist", str(own))
            self._see("Dir::Etc::sourceparts", "-")

    def _see(self, key: str, value: str) -> None:
        self._options += ["-o", f"{key}={value}"]

    def _run(self, tool: str, *args: str) -> subprocess.CompletedProcess[str]:
        argv, env = [f"/usr/bin/{tool}", *self._options, *args], {**os.environ, "LC_ALL": "C"}
        return subprocess.run(argv, capture_output=True, text=True, check=False, env=env)  # noqa: S603

    def refresh(self) -> None:
        """Fetch the lists of packages into the scratch folder.

        Raises:
            SourceError: The one source is out of reach or is not signed by its key. The host's own sources may fail
                in part; then the rest counts.
        """
        self._is_fresh = True
        (self._scratch / "lists/partial").mkdir(parents=True)
        (self._scratch / "cache/archives/partial").mkdir(parents=True)
        self._see("Dir::State::lists", str(self._scratch / "lists"))
        self._see("Dir::Cache", str(self._scratch / "cache"))
        self._see("Acquire::http::Timeout", str(TIMEOUT))
        self._see("Acquire::https::Timeout", str(TIMEOUT))
        self._see("Acquire::Retries", "1")
        done = self._run("apt-get", "update", "-q")
        words = "\n".join(line for line in done.stderr.splitlines() if line.startswith(("E:", "W:")))
        if self._own and (done.returncode or words):
            raise SourceError(
                f"apt cannot use this source:\n{self._own.read_text().strip()}\n{words}\nCheck "
                "nvidia_driver_repository_url, and that the mirror is whole and signed"
            )

    def versions(self, name: str) -> list[str]:
        """All versions of a package that are offered, the newest first."""
        found = self._madison(name)
        if not found and not self._is_fresh:
            self.refresh()
            found = self._madison(name)
        return sorted(found, key=number, reverse=True)

    def _madison(self, name: str) -> list[str]:
        rows = [line.split("|") for line in self._run("apt-cache", "madison", name).stdout.splitlines()]
        return list(dict.fromkeys(row[1].strip() for row in rows if row[0].strip() == name and "Packages" in row[2]))

    def names(self, pattern: str) -> list[str]:
        """Packages whose names match a regular expression wholly."""
        return sorted(name for name in self._run("apt-cache", "pkgnames").stdout.split() if re.fullmatch(pattern, name))


class Repository:
    """NVIDIA's repository, or a mirror of it; it is fetched when something is first asked of it."""

    def __init__(self, scratch: Path, text: str, key_url: str, fingerprint: str) -> None:
        """Describe it.

        Args:
            scratch: An empty folder that apt's own user can read.
            text: The source in deb822 format, with a line ``Signed-By:``.
            key_url: Where its key is.
            fingerprint: The key's.
        """
        self._scratch, self._text, self._key_url, self._fingerprint = scratch, text, key_url, fingerprint
        self._apt: Apt | None = None
        self.key = ""

    def fetch(self) -> Apt:
        """Fetch the key and the lists, once.

        Raises:
            SourceError: It is out of reach, or not signed by that key.
        """
        if self._apt is None:
            self.key = fetch_key(self._key_url, self._fingerprint)
            key, source = self._scratch / "own.asc", self._scratch / "own.sources"
            key.write_text(self.key)
            source.write_text(re.sub(r"(?m)^Signed-By: .*$", f"Signed-By: {key}", self._text))
            self._apt = Apt(self._scratch / "own", source)
            self._apt.refresh()
        return self._apt

    def versions(self, name: str) -> list[str]:
        """All versions of a package that it offers, the newest first."""
        return self.fetch().versions(name)


class Folder:
    """A folder of packages."""

    def __init__(self, files: list[str]) -> None:
        """Read the names.

        Args:
            files: Names such as ``nvidia-driver-cuda_580.95.05-1_amd64.deb``, as apt gives them; an epoch's colon
                is ``%3a``.
        """
        parts = (Path(file).name.split("_") for file in files)
        self._versions = {part[0]: part[1].replace("%3a", ":") for part in parts if len(part) == 3}

    def versions(self, name: str) -> list[str]:
        """The version of a package that is in it, or none."""
        return [self._versions[name]] if name in self._versions else []


class Offers:
    """What the chosen source offers and, beside it, the host's own sources."""

    def __init__(self, host: Apt, own: Repository | Folder | None) -> None:
        """Join the sources.

        Args:
            host: The host's own sources.
            own: Where the driver comes from, if that is another source.
        """
        self.host, self._own = host, own

    def driver(self, name: str) -> list[str]:
        """Versions of one of the driver's packages: these come from the chosen source only."""
        return (self._own or self.host).versions(name)

    def any(self, name: str) -> list[str]:
        """Versions of a package that may come from anywhere."""
        return (self._own.versions(name) if self._own else []) or self.host.versions(name)
