"""Where secrets come from, as docs/secrets.md and inventories/example have it: a vault, a file, a command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
KEY = "an-engine-key-for-the-test"


def run(*argv: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of Ansible's in the project."""
    return subprocess.run(
        [str(word) for word in argv],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_FORCE_COLOR": "false", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def shown(inventory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a gateway is told to send to the engines."""
    argv = ["ansible", f"--inventory={inventory}", "--playbook-dir=playbooks", "--connection=local", "gateways"]
    return run(*argv, "--module-name=debug", "--args=msg={{ gateway_engine_key }}", "--one-line", **environment)


def test_a_vault_is_opened_by_the_password_of_a_command(tmp_path: Path) -> None:
    inventory = tmp_path / "acme"
    shutil.copytree(PROJECT / "inventories/example", inventory)
    vault = inventory / "group_vars/all/vault.yml"
    vault.write_text(vault.read_text().replace("replace-me: openssl rand -hex 32", KEY, 1))
    (tmp_path / "password").write_text("the-vaults-password\n")
    opens = {"ANSIBLE_VAULT_PASSWORD_FILE": "inventories/vault-password"}
    command = {"LOCAL_LLM_VAULT_COMMAND": f"cat {tmp_path}/password"}

    done = run("ansible-vault", "encrypt", vault, **opens, **command)
    assert done.returncode == 0, done.stderr
    assert vault.read_text().startswith("$ANSIBLE_VAULT;")
    done = shown(inventory, **opens, **command)
    assert json.loads(done.stdout.partition("=> ")[2])["msg"] == KEY, done.stderr

    wrong = shown(inventory, **opens, LOCAL_LLM_VAULT_COMMAND="echo another-password")
    assert wrong.returncode != 0
    assert "Decryption failed" in wrong.stderr
    missing = shown(inventory, **opens)
    assert missing.returncode != 0
    assert "LOCAL_LLM_VAULT_COMMAND: is not set" in missing.stderr


@pytest.mark.parametrize(
    "source", ["lookup('ansible.builtin.file', '{0}')", "lookup('ansible.builtin.pipe', 'cat {0}')"]
)
def test_a_file_or_a_command_gives_a_key(tmp_path: Path, source: str) -> None:
    file = tmp_path / "engine-key"
    file.write_text(f"{KEY}\n")
    variables = {"fleet_engine_key": f"{{{{ {source.format(file)} }}}}"}
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"gateways": {"hosts": {"gateway1": {}}, "vars": variables}}))
    done = shown(inventory)
    assert json.loads(done.stdout.partition("=> ")[2])["msg"] == KEY, done.stderr


@pytest.mark.parametrize("playbook", ["rotate_keys.yml", "rotate_ca.yml"])
def test_secrets_are_not_replaced_on_a_part_of_the_fleet(tmp_path: Path, playbook: str) -> None:
    inventory = tmp_path / "hosts.json"
    hosts = {f"model{number}": {"ansible_connection": "local"} for number in (1, 2)}
    inventory.write_text(json.dumps({"model_hosts": {"hosts": hosts}}))
    done = run("ansible-playbook", f"--inventory={inventory}", f"playbooks/{playbook}", "--limit=model1")
    assert done.returncode != 0
    assert "on all hosts or on none" in done.stdout
    assert done.stdout.count("PLAY [") == 1


def test_a_fleet_without_a_private_ca_gets_no_other(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.json"
    gateway = {"hosts": {"gateway1": {"ansible_connection": "local"}}, "vars": {"gateway_tls": "acme"}}
    local = {"ansible_become": False, "ansible_python_interpreter": sys.executable}
    fleet = {"fleet_secrets": str(tmp_path), "fleet_developers": [], **local}
    inventory.write_text(json.dumps({"gateways": gateway, "all": {"vars": fleet}}))
    done = run("ansible-playbook", f"--inventory={inventory}", "playbooks/rotate_ca.yml", "--extra-vars=new=ca")
    assert done.returncode != 0
    assert "Found: new=ca, gateway_tls acme, 0 certificates of the CA." in " ".join(done.stdout.split())
    assert not (tmp_path / "ca").exists()
