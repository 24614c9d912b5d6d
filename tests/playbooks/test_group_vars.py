"""What playbooks/group_vars makes of an inventory."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
GATEWAYS = {"gateway1": {"fleet_address": "10.0.0.5"}, "gateway2": {}}


def value(folder: Path, expression: str, host: str, company: str = "", **variables: object) -> Any:
    """What an expression is on a host of a small fleet.

    Args:
        folder: Where the inventory, and the operator's files are.
        expression: In Jinja.
        host: Name of the host.
        company: Certificate of a company's own CA.
        variables: Of the group gateways.
    """
    inventory = {
        "all": {"vars": {"fleet_secrets": str(folder), "fleet_company_ca": company, "ansible_connection": "local"}},
        "gateways": {"hosts": GATEWAYS, "vars": variables},
        "model_hosts": {"hosts": {"model1": {}, "model2": {}}},
        "developer_hosts": {"hosts": {"dev1": {}}},
    }
    file = folder / "hosts.json"
    file.write_text(json.dumps(inventory))
    argv = ["ansible", f"--inventory={file}", "--playbook-dir=playbooks", "--module-name=debug", host]
    argv += [f"--args={json.dumps({'msg': '{{ ' + expression + ' }}'})}", "--one-line"]
    shown = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return json.loads(shown.partition("=> ")[2])["msg"]


def test_before_the_first_run_there_is_no_ca(tmp_path: Path) -> None:
    assert value(tmp_path, "fleet_ca_certificate", "dev1") == ""


@pytest.mark.parametrize(("tls", "given"), [("private_ca", "the CA"), ("acme", ""), ("files", "")])
def test_developers_trust_the_private_ca_only_where_it_signs(tmp_path: Path, tls: str, given: str) -> None:
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca/ca.pem").write_text("the CA")
    (tmp_path / "ca/next").mkdir()
    (tmp_path / "ca/next/ca.pem").write_text("the next one")
    both = f"{given}\nthe next one" if given else ""
    assert value(tmp_path, "fleet_ca_certificate", "dev1", gateway_tls=tls) == both
    (tmp_path / "ca/next/ca.pem").unlink()
    assert value(tmp_path, "fleet_ca_certificate", "dev1", gateway_tls=tls) == given
    own = value(tmp_path, "fleet_ca_certificate", "dev1", "the company's", gateway_tls=tls)
    assert own == (given or "the company's")


def test_a_gateway_knows_the_others(tmp_path: Path) -> None:
    assert value(tmp_path, "gateway_peers", "gateway1") == [{"name": "gateway2", "address": "gateway2"}]
    assert value(tmp_path, "gateway_peers", "gateway2") == [{"name": "gateway1", "address": "10.0.0.5"}]


@pytest.mark.parametrize("hosts", [["model1"], ["model1", "model2"]])
def test_litellm_asks_the_gateway_which_knows_the_replicas(tmp_path: Path, hosts: list[str]) -> None:
    model = {"name": "qwen2-tiny", "engine": "llama_cpp", "port": 8000, "context": 4096, "hosts": hosts}
    fleet = {"fleet_models": [model | {"aliases": ["gpt-4"], "fallbacks": []}], "fleet_litellm": True}
    servers = value(tmp_path, "gateway_models", "gateway1", "", **fleet)[0]["servers"]
    assert servers == [{"name": name, "address": f"{name}:8000"} for name in hosts]
    (entry,) = value(tmp_path, "litellm_models", "gateway1", "", **fleet)
    assert entry["replicas"] == ["http://127.0.0.1:8081/qwen2-tiny/v1"]
    assert (entry["name"], entry["context"], entry["aliases"]) == ("qwen2-tiny", 4096, ["gpt-4"])


def test_litellm_is_one_of_the_services_of_a_gateway(tmp_path: Path) -> None:
    units = "fleet_services | map(attribute='unit') | list"
    found = value(tmp_path, units, "gateway1", fleet_models=[], fleet_litellm=True)
    assert found == ["litellm.service", "local-llm-gateway.service"]
    assert value(tmp_path, units, "gateway1", fleet_models=[]) == ["local-llm-gateway.service"]
