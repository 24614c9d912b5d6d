"""Ansible module: refuses what LiteLLM could not serve on this host, before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.model_server import CONTEXT, PORTS
from ansible.module_utils.service_checks import KEY_LENGTH, address_problem, is_of_unit, key_problem, listeners, overlap

DOCUMENTATION = r"""
module: litellm_preflight
short_description: What would keep LiteLLM from serving these models here
description:
  - Reads the input, the host's addresses and listeners. Changes nothing, and asks no engine.
author: local-llm-fleet
options:
  models:
    description: The models, with C(name), C(replicas), C(context), C(max_output), C(aliases) and C(fallbacks).
    type: list
    elements: dict
    required: true
  engine_key:
    description: The engines' key.
    type: str
    required: true
  master_key:
    description: The key that callers have to send.
    type: str
    required: true
  address:
    description: IP address to listen on.
    type: str
    required: true
  port:
    description: TCP port to listen on.
    type: int
    required: true
  timeout_s:
    description: Seconds of silence after which a request has failed.
    type: int
    required: true
  database_url:
    description: URL of a PostgreSQL database, or empty.
    type: str
    required: true
"""

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
HOST = r"[A-Za-z0-9._-]+|[0-9a-fA-F:.]+(%[A-Za-z0-9._-]+)?"  # a name, or an address of either kind
PREFIX = "sk-"  # LiteLLM takes no caller's key without it
TIMEOUTS = range(10, 86401)  # seconds
UNIT = "litellm.service"


def key_problems(engine_key: str, master_key: str) -> Iterator[str]:
    """What is wrong with the two keys; neither is in the texts."""
    if problem := key_problem("litellm_engine_key", engine_key):
        yield problem
    if not re.fullmatch(rf"{PREFIX}[!-~]{{{KEY_LENGTH},}}", master_key):
        begins = "begins with sk-" if master_key.startswith(PREFIX) else "does not begin with sk-"
        yield (
            f"litellm_master_key has {len(master_key)} characters and {begins}; it needs sk- and at least {KEY_LENGTH} "
            'more, ASCII without blanks. `echo "sk-$(openssl rand -hex 32)"` makes one'
        )
    if master_key and master_key == engine_key:
        yield "litellm_master_key is the engines' key; callers must not know that one: make another"


def replica_problems(model: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the base URLs of one model."""
    name, replicas = model["name"], model["replicas"]
    if not replicas:
        yield f"{name}: replicas is empty; it needs the base URL of at least one engine, such as http://model1:8000/v1"
    for url in sorted({url for url in replicas if replicas.count(url) > 1}):
        yield f"{name}: {url} is in replicas more than once; name each engine once"
    for url in replicas:
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and re.fullmatch(HOST, parts.hostname or "")
            usable = known and (parts.port is None or parts.port > 0) and re.fullmatch(r"\S+", url)
        except ValueError:  # a port that is none
            usable = False
        path = parts.path if usable else ""
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/v1", path) or parts.query or parts.fragment or parts.username:
            yield f"{name}: {url!r} in replicas is not an engine's base URL; it looks like http://model1:8000/v1"


def model_problems(model: dict[str, Any], names: set[str]) -> Iterator[str]:
    """What is wrong with one entry.

    Args:
        model: Entry of ``litellm_models``.
        names: Names of all entries.
    """
    name = model["name"]
    for kind, value in [("name", name), *(("alias", alias) for alias in model.get("aliases") or [])]:
        if not re.fullmatch(NAME, value):
            yield (
                f"{kind} {value!r} of a model: use letters, digits, '.', '_' and '-', beginning with a letter or digit"
            )
    yield from replica_problems(model)
    if model["context"] < CONTEXT:
        yield f"{name}: context is {model['context']} tokens; it needs at least {CONTEXT}, Claude Code itself 32768"
    longest = model.get("max_output")
    if longest is not None and not 1 <= longest <= model["context"]:
        yield f"{name}: max_output is {longest} tokens; it is at least 1 and at most context ({model['context']})"
    for other in model.get("fallbacks") or []:
        if other == name or other not in names:
            known = ", ".join(sorted(names - {name})) or "none"
            yield f"{name}: {other!r} in fallbacks is not another model of litellm_models; those are: {known}"


def name_problems(models: list[dict[str, Any]]) -> Iterator[str]:
    """Names and aliases that mean more than one model."""
    used = [(name, model["name"]) for model in models for name in [model["name"], *(model.get("aliases") or [])]]
    for name in sorted({name for name, _ in used}):
        owners = [owner for used_name, owner in used if used_name == name]
        if len(owners) > 1:
            yield (
                f"litellm_models: {name} is used {len(owners)} times, as name or alias of {', '.join(sorted(owners))}; "
                "give each model its own"
            )


def listen_problems(address: str, port: int, ss: str) -> Iterator[str]:
    """Why the service could not listen there.

    Args:
        address: IP address.
        port: TCP port.
        ss: Path of ss(8).
    """
    if problem := address_problem("litellm_address", address):
        yield problem
    if port not in PORTS:
        yield f"litellm_port is {port}; choose one from {PORTS[0]} to {PORTS[-1]}"
        return
    for taken, process, pid in listeners(ss, port):
        if not is_of_unit(pid, UNIT) and overlap(address, taken):
            yield f"port {port} on {taken} is taken by {process} (pid {pid}); stop it, or set litellm_port to another"


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "list", "elements": "dict", "required": True},
            "engine_key": {"type": "str", "required": True, "no_log": True},
            "master_key": {"type": "str", "required": True, "no_log": True},
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "timeout_s": {"type": "int", "required": True},
            "database_url": {"type": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    models: list[dict[str, Any]] = given["models"]
    names = {model["name"] for model in models}
    problems = [] if models else ["litellm_models is empty; it needs at least one model"]
    for model in models:
        problems += model_problems(model, names)
    problems += name_problems(models)
    problems += key_problems(given["engine_key"], given["master_key"])
    problems += listen_problems(given["address"], given["port"], module.get_bin_path("ss", required=True))
    if given["timeout_s"] not in TIMEOUTS:
        problems.append(f"litellm_timeout_s is {given['timeout_s']}; choose one from {TIMEOUTS[0]} to {TIMEOUTS[-1]}")
    if given["database_url"] and not re.match(r"postgres(ql)?://[^/]+/.", given["database_url"]):
        problems.append("litellm_database_url is not empty and does not look like postgresql://user:password@host/name")
    if problems:
        module.fail_json(msg="\n".join(problems))
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
