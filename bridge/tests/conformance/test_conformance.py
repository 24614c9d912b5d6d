"""Conformance: every scenario of the official MCP suite that applies to the bridge, in both generations."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.conformance import suite
from tests.services import ENGINE_KEY, configuration, free_port, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPECTED_FAILURES: dict[str, dict[str, list[str]]] = yaml.safe_load((suite.HERE / "expected-failures.yml").read_text())


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the bridge with the suite's fixtures serves; nothing asks its engine, which therefore is none."""
    folder, port = tmp_path_factory.mktemp("conformance"), free_port()
    (folder / "engine-key").write_text(ENGINE_KEY)
    (folder / "config.yml").write_text(yaml.safe_dump(configuration(port, f"http://127.0.0.1:{free_port()}/v1")))
    log = folder / "log"
    command = [sys.executable, "-m", "tests.conformance.fixture_server", str(folder / "config.yml")]
    environment = {"CREDENTIALS_DIRECTORY": str(folder)}
    root = suite.HERE.parents[1]
    with log.open("w") as stderr, subprocess.Popen(command, env=environment, cwd=root, stderr=stderr) as process:
        try:
            wait_for(lambda: "serving on" in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.kill()


@pytest.fixture(scope="module")
def results(url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[suite.Check]]]:
    """What the suite found, by version and scenario."""
    return {version: suite.run(url, version, tmp_path_factory.mktemp(version)) for version in suite.VERSIONS}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scenario" in metafunc.fixturenames:
        metafunc.parametrize(
            ("version", "scenario"),
            [(version, name) for version in suite.VERSIONS for name in suite.scenarios(version)],
        )


def test_scenario(results: dict[str, dict[str, list[suite.Check]]], version: str, scenario: str) -> None:
    checks = results[version][scenario]
    # A warning is a SHOULD that is not kept. A scenario that finds nothing to check has not passed.
    problems = {
        check["id"]: f"{check['status']} {check['id']}: {check.get('errorMessage') or check.get('details')}"
        for check in checks
        if check["status"] in {"FAILURE", "WARNING"}
    }
    if all(check["status"] in {"INFO", "SKIPPED"} for check in checks):
        problems["no-check"] = f"nothing was checked: {checks}"
    assert set(problems) == set(EXPECTED_FAILURES[version].get(scenario, [])), "\n".join(problems.values())


@pytest.mark.parametrize("version", suite.VERSIONS)
def test_what_is_expected_to_fail_is_in_the_suite(version: str) -> None:
    assert EXPECTED_FAILURES[version].keys() <= set(suite.scenarios(version))
