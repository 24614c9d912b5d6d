"""What playbooks/tasks/check_inventory.yml says of an inventory, before any host is touched."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"fleet_door_port": 8443}, "fleet_door_port was renamed to fleet_gateway_port in 0.2.0"),
        (
            {"fleet_models": [{"name": "large", "engine": "vllm", "spread": True}], "gateway_inside_port": 1},
            "gateway_inside_port was renamed to gateway_internal_port, spread of a model was renamed to multi_node",
        ),
    ],
)
def test_a_renamed_variable_is_refused_with_its_new_name(tmp_path: Path, variables: dict[str, Any], words: str) -> None:
    play = [{"hosts": "localhost", "gather_facts": False, "tasks": [{"import_tasks": "check_inventory.yml"}]}]
    file = tmp_path / "play.yml"
    file.write_text(
        json.dumps(play).replace("check_inventory.yml", str(PROJECT / "playbooks/tasks/check_inventory.yml"))
    )
    extra = json.dumps({"fleet_models": [], "fleet_developers": [], **variables})
    argv = ["ansible-playbook", "--inventory=localhost,", "--connection=local", f"--extra-vars={extra}", str(file)]
    result = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert words in " ".join(result.stdout.split())
