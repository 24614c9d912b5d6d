"""Who reaches whom, as playbooks/group_vars/firewall.yml derives it from an inventory."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
MODELS = [
    {"name": "small", "engine": "llama_cpp", "port": 8000, "context": 4096, "hosts": ["model1", "model2"]},
    {"name": "large", "engine": "vllm", "port": 8001, "context": 4096, "hosts": ["gpu1", "gpu2"], "multi_node": True},
]
GROUPS: dict[str, list[str]] = {
    "model_hosts": ["model1", "model2", "gpu1", "gpu2"],
    "gateways": ["gateway1", "gateway2"],
    "bridges": ["gateway1", "gateway2"],
    "developer_hosts": ["dev1"],
}


@pytest.fixture
def rules(tmp_path: Path) -> Any:
    """The rules of one host: ``rules("model1")``; other variables of the fleet, and other groups, are arguments."""

    def get(host: str, direction: str = "allow", groups: dict[str, list[str]] | None = None, **fleet: Any) -> Any:
        inventory: dict[str, Any] = {
            group: {"hosts": {name: {"fleet_address": f"{name}.test"} for name in names}}
            for group, names in (GROUPS | (groups or {})).items()
        }
        variables = {"ansible_connection": "local", "fleet_models": MODELS, "fleet_developers": []} | fleet
        inventory["all"] = {"vars": variables}
        file = tmp_path / "hosts.json"
        file.write_text(json.dumps(inventory))
        argv = ["ansible", f"--inventory={file}", "--playbook-dir=playbooks", "--module-name=debug", "--one-line"]
        argv += ["--extra-vars=@playbooks/group_vars/firewall.yml", f"--args=var=firewall_{direction}", host]
        shown = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
        found = json.loads(shown.partition("=> ")[2])[f"firewall_{direction}"]
        place = "from" if direction == "allow" else "to"
        return {rule["name"]: (rule["protocol"], rule["ports"], rule[place]) for rule in found}

    return get


def test_a_model_is_for_the_gateways_and_the_bridges(rules: Any) -> None:
    gateways = ["gateway1.test", "gateway2.test"]
    assert rules("model1") == {"small": ("tcp", [8000], gateways)}
    assert rules("gpu1") == {
        "large": ("tcp", [8001], gateways),
        "large over its hosts": ("tcp", ["1-65535"], ["gpu2.test"]),
    }
    assert rules("gpu2") == {"large over its hosts": ("tcp", ["1-65535"], ["gpu1.test"])}


def test_a_gateway_is_for_the_developers_and_its_bridge_for_the_other_gateway(rules: Any) -> None:
    assert rules("gateway1") == {
        "the gateway": ("tcp", [443], ["dev1.test"]),
        "bridge": ("tcp", [8080], ["gateway2.test"]),
    }
    everybody = ["0.0.0.0/0", "::/0"]
    assert rules("gateway1", fleet_developer_networks=everybody)["the gateway"] == ("tcp", [443], everybody)


def test_gateways_that_share_an_address_and_have_certificates_of_an_authority(rules: Any) -> None:
    found = rules("gateway1", fleet_virtual_address="10.0.0.250", gateway_tls="acme")
    assert found["shared address"] == ("vrrp", [], ["gateway2.test"])
    assert found["certificates"] == ("tcp", [80], ["gateway2.test", "0.0.0.0/0", "::/0"])


def test_what_a_host_needs_is_let_out(rules: Any) -> None:
    mirror = {"name": "mirror", "ports": [443], "protocol": "tcp", "to": ["10.0.0.9"]}
    found = rules("gateway1", "allow_out", fleet_virtual_address="10.0.0.250", fleet_firewall_allow_out=[mirror])
    assert found == {
        "bridge": ("tcp", [8080], ["gateway2.test"]),
        "shared address": ("vrrp", [], ["gateway2.test"]),
        "small": ("tcp", [8000], ["model1.test", "model2.test"]),
        "large": ("tcp", [8001], ["gpu1.test"]),
        "mirror": ("tcp", [443], ["10.0.0.9"]),
    }
    # Nothing that a model host says leaves, but to the hosts that it serves a model with.
    assert rules("model1", "allow_out") == {}
    assert rules("gpu2", "allow_out") == {"large over its hosts": ("tcp", ["1-65535"], ["gpu1.test"])}


def test_without_a_gateway_developers_come_to_the_bridge_and_stdio_to_the_engines(rules: Any) -> None:
    groups: dict[str, list[str]] = {"gateways": [], "bridges": ["bridge1"]}
    stdio = [{"name": "bob", "transport": "stdio"}]
    assert rules("bridge1", groups=groups) == {"bridge": ("tcp", [8080], ["dev1.test"])}
    assert set(rules("model1", groups=groups)) == {"small"}
    found = rules("model1", groups=groups, fleet_developers=stdio)
    assert found["small"] == ("tcp", [8000], ["bridge1.test"])
    assert found["small for stdio"] == ("tcp", [8000], ["dev1.test"])


def test_without_known_developers_nobody_is_let_in_by_mistake(rules: Any) -> None:
    """The role refuses a rule for nobody, in words that name it."""
    assert rules("gateway1", groups={"developer_hosts": []})["the gateway"] == ("tcp", [443], [])


def test_monitoring_comes_to_what_has_metrics(rules: Any) -> None:
    networks = ["10.0.9.0/24"]
    assert rules("model1", fleet_monitoring_networks=networks)["small for monitoring"] == ("tcp", [8000], networks)
    assert rules("gateway1", fleet_monitoring_networks=networks)["bridge for monitoring"] == ("tcp", [8080], networks)


def test_a_host_with_several_networks_has_further_addresses(rules: Any) -> None:
    gateways = ["gateway1.test", "10.1.0.5", "gateway2.test", "10.1.0.5"]
    assert rules("model1", fleet_firewall_addresses=["10.1.0.5"])["small"][2] == gateways
    ways_out = rules("gpu1", "allow_out", fleet_firewall_addresses=["10.1.0.5"])
    assert ways_out["large over its hosts"][2] == ["gpu2.test", "10.1.0.5"]


def test_entries_of_the_operator_are_added(rules: Any) -> None:
    entry = {"name": "x", "protocol": "udp", "ports": [1], "from": ["10.1.0.0/24"]}
    assert rules("model1", fleet_firewall_allow=[entry])["x"] == ("udp", [1], ["10.1.0.0/24"])


def test_one_host_that_is_everything_needs_no_way_to_itself(rules: Any) -> None:
    groups = {"model_hosts": ["one"], "gateways": [], "bridges": ["one"], "developer_hosts": ["one"]}
    models = [MODELS[0] | {"hosts": ["one"]}]
    assert rules("one", groups=groups, fleet_models=models) == {}
    assert rules("one", "allow_out", groups=groups, fleet_models=models) == {}
