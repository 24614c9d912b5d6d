"""What keeps an engine, llama.cpp or vLLM, from serving its models on this host: the input, addresses and ports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.service_checks import address_problem, key_problem, listeners, overlap

CONTEXT = 512  # tokens; less does not hold a question and an answer
PORTS = range(1024, 65536)  # the service may not bind lower ones


def memory_bytes() -> int:
    """Memory of the host."""
    found = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else 0


def common_problems(role: str, models: list[dict[str, Any]], address: str, api_key: str) -> Iterator[str]:
    """What is wrong with the input, apart from single models.

    Args:
        role: The engine's role, with whose name its variables begin.
        models: Entries of ``<role>_models``.
        address: Where it is to listen.
        api_key: What clients have to send.
    """
    problems = key_problem(f"{role}_api_key", api_key), address_problem(f"{role}_address", address)
    yield from filter(None, problems)
    for key in ("name", "port"):
        values = [model[key] for model in models]
        for value in sorted({value for value in values if values.count(value) > 1}, key=str):
            users = ", ".join(model["name"] for model in models if model[key] == value)
            yield f"{role}_models: {key} {value} is used by more than one model ({users})"


def model_problems(model: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one entry by itself, whichever engine serves it."""
    name = model["name"]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", name):
        yield f"name {name!r} of a model: use letters, digits, '.', '_' and '-', beginning with a letter or digit"
    if model["port"] not in PORTS:
        yield f"{name}: port is {model['port']}; choose one from {PORTS[0]} to {PORTS[-1]}"
    if model["context"] < CONTEXT:
        yield f"{name}: context is {model['context']} tokens; it needs at least {CONTEXT}, Claude Code itself 32768"
    if model["parallel"] < 1:
        yield f"{name}: parallel is {model['parallel']}; it is the number of requests at once, at least 1"


def port_problems(
    unit: str, model: dict[str, Any], models: list[dict[str, Any]], address: str, ss: str
) -> Iterator[str]:
    """Who has the model's port already.

    Args:
        unit: Name of the engine's unit before the ``@``.
        model: The entry.
        models: All entries; a model of this engine that is not among them is removed by this run.
        address: Where it is to listen.
        ss: Path of ss(8).
    """
    names = {other["name"] for other in models}
    for taken, process, pid in listeners(ss, model["port"]):
        if not overlap(address, taken):
            continue
        owner = _served_model(unit, pid)
        if owner == model["name"] or (owner and owner not in names):
            continue
        who = f"the model {owner}, which has to be moved first" if owner else f"{process} (pid {pid})"
        yield f"{model['name']}: port {model['port']} on {taken} is taken by {who}; stop it, or choose another port"


def _served_model(unit: str, pid: int) -> str | None:
    """Name of the model that a process serves as one of the engine's units."""
    try:
        found = re.search(rf"/{re.escape(unit)}@([^/]+)\.service", Path(f"/proc/{pid}/cgroup").read_text())
    except OSError:
        return None
    return found[1] if found else None
