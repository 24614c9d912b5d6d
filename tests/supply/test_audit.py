"""`make audit` with stand-ins for the two databases of advisories, and the real pip-audit and npm audit."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

PROJECT = Path(__file__).resolve().parents[2]
ACCEPTED = "- {id: CVE-2026-1, package: six, reason: 'it is not used', date: 2026-11-27}\n"


class StandIn(ThreadingHTTPServer):
    """Both databases; they know the old packages' advisories, and those of ``vulnerable``."""

    vulnerable: set[str]
    status: int


class Handler(BaseHTTPRequestHandler):
    """OSV's query, npm's bulk endpoint."""

    server: StandIn

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        if self.path == "/osv":
            name = asked["package"]["name"]
            affected = {"package": asked["package"], "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "99"}]}]}
            found: dict[str, object] = {
                "id": "PYSEC-1",
                "aliases": ["CVE-2026-1"],
                "summary": "It breaks",
                "affected": [affected],
            }
            answer: dict[str, object] = {"vulns": [found]} if name in self.server.vulnerable else {}
        else:
            url = "https://github.com/advisories/GHSA-1"
            advisory = {"id": 1, "url": url, "title": "It breaks", "severity": "high", "vulnerable_versions": "<99"}
            answer = {name: [advisory] for name in asked if name in self.server.vulnerable}
        text = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def databases() -> Iterator[StandIn]:
    with StandIn(("127.0.0.1", 0), Handler) as server:
        server.vulnerable, server.status = {"requests", "minimist"}, 200
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with two small locks, and nothing accepted."""
    (tmp_path / "supply").mkdir()
    (tmp_path / "supply/accepted.yml").write_text("---\n")
    (tmp_path / "requirements.txt").write_text("six==1.17.0 \\\n    --hash=sha256:00\n")
    package = {"name": "x", "version": "1.0.0", "dependencies": {"left-pad": "1.3.0"}}
    entry = {"version": "1.3.0", "integrity": "sha512-AAAA"}
    lock = {"name": "x", "lockfileVersion": 3, "packages": {"": package, "node_modules/left-pad": entry}}
    (tmp_path / "package.json").write_text(json.dumps(package))
    (tmp_path / "package-lock.json").write_text(json.dumps(lock))
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    return tmp_path


def audit(project: Path, server: StandIn) -> tuple[int, str]:
    url = f"http://127.0.0.1:{server.server_port}"
    environment = os.environ | {"PIP_AUDIT_VULNERABILITY_SERVICE": "osv", "PIP_AUDIT_OSV_URL": f"{url}/osv"}
    environment |= {"npm_config_registry": url, "npm_config_fetch_retries": "0", "no_proxy": "127.0.0.1"}
    argv = [sys.executable, str(PROJECT / "supply/audit.py")]
    done = subprocess.run(argv, cwd=project, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_nothing_is_known(project: Path, databases: StandIn) -> None:
    assert audit(project, databases) == (0, "No known vulnerability in 2 packages\n")


def test_a_vulnerability_is_named_and_fails(project: Path, databases: StandIn) -> None:
    databases.vulnerable |= {"six", "left-pad"}
    code, text = audit(project, databases)
    assert code == 1
    assert "VULNERABLE: six 1.17.0 PYSEC-1 CVE-2026-1\n  It breaks\n  in requirements.txt; repaired in: 99\n" in text
    assert "VULNERABLE: left-pad  GHSA-1\n  It breaks\n  in package-lock.json; repaired in: all but <99\n" in text
    assert "2 known vulnerabilities" in text


def test_an_accepted_one_is_shown_with_its_reason(project: Path, databases: StandIn) -> None:
    databases.vulnerable.add("six")
    (project / "supply/accepted.yml").write_text(ACCEPTED)
    code, text = audit(project, databases)
    assert code == 0
    assert "accepted: six 1.17.0" in text
    assert "2026-11-27: it is not used" in text


def test_what_nothing_has_any_more_need_not_be_accepted(project: Path, databases: StandIn) -> None:
    (project / "supply/accepted.yml").write_text(ACCEPTED)
    code, text = audit(project, databases)
    assert code == 0
    assert "six has no CVE-2026-1 any more; take it out" in text


WITHOUT_REASON = "- {id: CVE-2026-1, package: six, date: 2026-11-27}"


@pytest.mark.parametrize("entry", [WITHOUT_REASON, ACCEPTED.replace("2026-11-27", "soon"), "- six"])
def test_nothing_is_accepted_without_a_reason_and_a_date(project: Path, databases: StandIn, entry: str) -> None:
    (project / "supply/accepted.yml").write_text(entry)
    code, text = audit(project, databases)
    assert code == 2
    assert "wanted id, package, reason, and a date" in text


def test_databases_that_refuse_are_no_clean_audit(project: Path, databases: StandIn) -> None:
    databases.status = 405
    code, text = audit(project, databases)
    assert code == 3
    assert "Python's database of advisories could not be asked: " in text
    assert "npm's database of advisories could not be asked: 405 Method Not Allowed" in text


def test_databases_without_advisories_are_no_clean_audit(project: Path, databases: StandIn) -> None:
    databases.vulnerable.clear()
    code, text = audit(project, databases)
    assert code == 3
    assert "has no advisory for requests 2.19.0, which has one" in text
    assert "has no advisory for minimist 0.0.8, which has one" in text


def test_a_vulnerability_counts_where_the_other_database_is_silent(project: Path, databases: StandIn) -> None:
    databases.vulnerable = {"requests", "six"}
    code, text = audit(project, databases)
    assert code == 1
    assert "npm's database of advisories could not be asked" in text
