"""Fixtures: one engine and one bridge for all tests that do not hurt them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.services import ENGINE_KEY, MODEL, TINY_MODEL, Bridge, llama_server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def bubblewrap() -> str:
    """Its path; a machine of the CI gets it now."""
    if not shutil.which("bwrap") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-q"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["apt-get", "install", "-y", "-q", "bubblewrap"], check=True, stdout=subprocess.DEVNULL)
    path = shutil.which("bwrap")
    assert path, "these tests need bubblewrap: apt install bubblewrap"
    return path


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """Base URL of a llama.cpp server with the tiny model."""
    with llama_server() as (url, _):
        yield url


@pytest.fixture(scope="session")
def bridge(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """The bridge over HTTP, in front of that engine."""
    with serving(tmp_path_factory.mktemp("bridge"), engine) as running:
        yield running


@pytest.fixture(scope="session")
def environment(engine: str) -> dict[str, str]:
    """The environment for the bridge over stdio, in front of that engine."""
    return {"LOCAL_API_URL": engine, "MODEL_NAME": MODEL, "OPENAI_API_KEY": ENGINE_KEY}


@pytest.fixture(scope="session")
def answers() -> dict[str, Any]:
    """What the tiny model knows."""
    known: dict[str, Any] = json.loads((TINY_MODEL / "answers.json").read_text())
    return known
