"""After all else: keys and the CA are replaced while developers work; secrets are where they belong and nowhere else.

It leaves the fleet with other keys than its inventory has; ``molecule converge`` puts those back.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.leaks.search import Place, misplaced

PROJECT = Path(__file__).resolve().parent.parent.parent.parent
INVENTORIES = [PROJECT / "inventories/demo", PROJECT / "molecule/fleet/inventory"]
HOSTS = ("model1", "model2", "gateway1", "gateway2", "dev1")
FORMER = {"fleet_engine_key": "molecule-fleet-engine-key", "fleet_bridge_key": "molecule-fleet-bridge-key"}
KEYS = {"fleet_engine_key": "molecule-engine-key-that-is-new", "fleet_bridge_key": "molecule-bridge-key-that-is-new"}
CA = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "secrets/ca"
TOKENS = {name: f"molecule-fleet-token-of-{name}" for name in ("alice", "bob", "carol")}
# Asks a model and a bridge through the gateway of the shared address, as alice, until it is stopped; writes what came.
ASK = """
import http.client, json, pathlib, ssl, time
home = pathlib.Path("/home/alice/.config/local-llm-fleet")
token = (home / "local-llm.token").read_text().strip()
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
headers["Accept"] = "application/json, text/event-stream"
chat = {"model": "qwen2-tiny", "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
mcp = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "chat"}
meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
number = 0
while True:
    number += 1  # no answer is the cache's
    call = {"name": "chat", "arguments": {"message": f"Hello {number}"}, "_meta": meta}
    for path, body, more in (
        ("/v1/chat/completions", chat, {}),
        ("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}, mcp),
    ):
        try:
            context = ssl.create_default_context(cafile=str(home / "local-llm-ca.pem"))
            gateway = http.client.HTTPSConnection("llm.test", timeout=60, context=context)
            gateway.request("POST", path, json.dumps(body), headers | more)
            answer = gateway.getresponse()
            text = answer.read().decode()
            print(path, "failed" if '"isError":true' in text else answer.status, flush=True)
        except OSError as error:
            print(path, type(error).__name__, flush=True)
        time.sleep(0.3)  # the gateway counts what alice asks
"""

pytestmark = pytest.mark.units("llama-cpp@qwen2-tiny", "local-llm-bridge", "local-llm-gateway")

Done = subprocess.CompletedProcess[str]
Guest = Callable[..., Host]
Play = Callable[..., Done]


def while_asking(dev1: Host, replace: Callable[[], Done]) -> Done:
    """Do something while a developer asks all the time; every answer has to be a good one."""
    dev1.check_output("systemd-run --collect --unit=asking -p StandardOutput=truncate:/run/asking python3 -c %s", ASK)
    try:
        done = replace()
    finally:
        dev1.check_output("systemctl stop asking")
    assert done.returncode == 0, done.stdout
    outcomes = Counter(dev1.check_output("cat /run/asking").splitlines())
    assert set(outcomes) == {"/v1/chat/completions 200", "/mcp 200"}, outcomes
    assert min(outcomes.values()) > 20
    return done


def test_a_controller_without_the_ca_changes_nothing(guest: Guest, play: Play, tmp_path: Path) -> None:
    def state() -> list[str]:
        files = "/etc/local-llm-gateway/* /etc/llama-cpp/credentials/* /home/alice/.config/local-llm-fleet/*"
        return [guest(name).run(f"sha256sum {files}; stat --format=%z {files}").stdout for name in HOSTS]

    before = state()
    done = play(PROJECT / "site.yml", "--limit=gateway2", f"--extra-vars=fleet_secrets={tmp_path}")
    assert done.returncode != 0
    shown = " ".join(done.stdout.split())
    key = "openssl x509 -noout -ext subjectKeyIdentifier -in %s"
    first = subprocess.run(shlex.split(key % (CA / "ca.pem")), capture_output=True, text=True, check=True).stdout
    for name in ("gateway1", "gateway2"):
        assert f"{name}:/etc/local-llm-gateway/gateway.pem (CA of llm.test, key {first.split()[-1]})" in shown
    assert f"this controller has none in {tmp_path}/ca" in shown
    assert state() == before
    assert list(tmp_path.iterdir()) == []


def test_a_ca_that_is_lost_is_replaced_while_developers_work(guest: Guest, play: Play) -> None:
    """As for one that is not lost, but of the former one only what developers have is there."""
    trust = "/home/alice/.config/local-llm-fleet/local-llm-ca.pem"
    before = guest("dev1").file(trust).content_string
    shutil.rmtree(CA)
    CA.mkdir(mode=0o700)
    (CA / "ca.pem").write_text(before)
    rotate = PROJECT / "playbooks/rotate_ca.yml"
    done = while_asking(guest("dev1"), lambda: play(rotate, "--diff", "-vvv", "--extra-vars=new=ca"))
    assert "PRIVATE KEY-----" not in done.stdout
    dev1 = guest("dev1")
    after = dev1.file(trust).content_string
    assert after.count("BEGIN CERTIFICATE") == before.count("BEGIN CERTIFICATE")
    dev1.check_output("echo %s > /run/former.pem", before)
    connect = "echo | openssl s_client -connect %s:443 -verify_return_error -CAfile %s"
    for name in ("gateway1", "gateway2"):
        assert [dev1.run(connect, name, file).succeeded for file in (trust, "/run/former.pem")] == [True, False]


def test_keys_are_replaced_while_developers_work(
    guest: Guest, play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As talkative as Ansible can be, with a facts cache: neither has a key, a token or a private key afterwards."""
    monkeypatch.setenv("ANSIBLE_CACHE_PLUGIN", "jsonfile")
    monkeypatch.setenv("ANSIBLE_CACHE_PLUGIN_CONNECTION", str(tmp_path / "facts"))
    monkeypatch.setenv("ANSIBLE_LOG_PATH", str(tmp_path / "ansible.log"))
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(KEYS))
    rotate = PROJECT / "playbooks/rotate_keys.yml"
    done = while_asking(guest("dev1"), lambda: play(rotate, "--diff", "-vvv", f"--extra-vars=@{keys}"))
    cached = "".join(file.read_text() for file in (tmp_path / "facts").iterdir())
    assert "ansible_service_mgr" in cached
    log = (tmp_path / "ansible.log").read_text()
    for secret in [*FORMER.values(), *KEYS.values(), *TOKENS.values(), "PRIVATE KEY-----"]:
        assert secret not in done.stdout + done.stderr
        assert secret not in log
        assert secret not in cached

    curl = "curl -s -o /dev/null -w '%%{http_code}' -H 'Authorization: Bearer %s' http://%s:8000/v1/models"
    for name in ("model1", "model2"):
        keys_of = [FORMER["fleet_engine_key"], KEYS["fleet_engine_key"]]
        assert [guest("gateway1").check_output(curl, key, name) for key in keys_of] == ["401", "200"]


@pytest.mark.parametrize("name", HOSTS)
def test_secrets_are_in_their_files_and_nowhere_else(guest: Guest, name: str) -> None:
    gateway = Place("/etc/local-llm-gateway/keys.map", group="local-llm-gateway", mode=0o640)
    engine, bridge = Place("/etc/llama-cpp/credentials/api-key"), Place("/etc/local-llm-bridge/credentials/engine-key")
    is_gateway, is_model = name.startswith("gateway"), name.startswith("model")
    home = "/home/{0}/.config/local-llm-fleet/local-llm.token"
    tokens = {token: [Place(home.format(user), user, user)] if name == "dev1" else [] for user, token in TOKENS.items()}
    keys = {
        KEYS["fleet_engine_key"]: [gateway, bridge] if is_gateway else [engine] if is_model else [],
        KEYS["fleet_bridge_key"]: [gateway] if is_gateway else [],
    }
    pems: dict[str, list[Place]] = {(CA / "ca.key").read_text().splitlines()[1]: []}
    for host in ("gateway1", "gateway2"):
        pem = Place("/etc/local-llm-gateway/gateway.pem.key", group="local-llm-gateway", mode=0o640)
        pems[guest(host).file(pem.path).content_string.splitlines()[1]] = [pem] if name == host else []
    assert misplaced(guest(name), {key: [] for key in FORMER.values()} | keys | tokens | pems) == []
