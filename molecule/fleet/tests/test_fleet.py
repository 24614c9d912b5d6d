"""Claude Code → bridge → model, provisioned by site.yml alone, and what a developer sees when a part of it breaks."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.claude_client.guest import ask, call_tool
from tests.lab.waiting import until

PROJECT = Path(__file__).resolve().parent.parent.parent.parent
ANSWERS = json.loads((PROJECT / "tests/tiny_model/answers.json").read_text())
QUICKSORT = "Write a quicksort function in Python."
INVENTORIES = [PROJECT / "inventories/demo", PROJECT / "molecule/fleet/inventory"]
ENGINE = "llama-cpp@qwen2-tiny"
BRIDGE = "local-llm-bridge"
GATEWAY = "local-llm-gateway"
CA = "/home/alice/.config/local-llm-fleet/local-llm-ca.pem"
INSIDE = "http://127.0.0.1:8081/qwen2-tiny/v1/models"
MODEL_HOSTS = ("model1", "model2")
GATEWAYS = ("gateway1", "gateway2")
# Asks the gateway again and again, until it is told to stop; prints the longest time without an answer, in seconds.
WATCH = f"""
import http.client, pathlib, ssl, time
token = pathlib.Path("/home/alice/.config/local-llm-fleet/local-llm.token").read_text().strip()
last = time.monotonic()
longest = 0.0
while not pathlib.Path("/run/enough").exists():
    gateway = http.client.HTTPSConnection("llm.test", timeout=0.5, context=ssl.create_default_context(cafile="{CA}"))
    try:
        gateway.request("GET", "/v1/models", headers={{"x-api-key": token}})
        assert gateway.getresponse().status == 200
    except OSError:
        time.sleep(0.05)
        continue
    longest, last = max(longest, time.monotonic() - last), time.monotonic()
    print("answered", flush=True)
    time.sleep(0.1)  # the gateway counts what alice asks
print(max(longest, time.monotonic() - last))
"""
# What comes to the engine's port, as it is on the wire.
WIRE = "/run/wire"
SNIFF = """
import socket, sys
IPV4 = 0x0800
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(IPV4))
while True:
    packet = wire.recv(65536)
    header = packet[0] % 16 * 4  # bytes
    if packet[9] == socket.IPPROTO_TCP and int.from_bytes(packet[header + 2 : header + 4], "big") == 8000:
        sys.stdout.buffer.write(packet)
        sys.stdout.flush()
"""
SECRETS = (
    "molecule-fleet-engine-key",
    "molecule-fleet-bridge-key",
    *(f"molecule-fleet-token-of-{name}" for name in ("alice", "bob", "carol")),
)

pytestmark = pytest.mark.units(ENGINE, BRIDGE, GATEWAY)

Guest = Callable[..., Host]
Play = Callable[..., subprocess.CompletedProcess[str]]
Records = Callable[..., list[dict[str, Any]]]
Asked = Callable[[str, str], list[dict[str, Any]]]


@pytest.fixture(scope="session", autouse=True)
def closed_network() -> Iterator[None]:
    """The developer's guest reaches the other guests and nothing else: the client must not talk to the outside."""
    podman = [str(PROJECT / "tests/lab/bin/podman"), "exec", f"{os.environ['LAB_NETWORK']}-dev1", "ip", "route"]
    default = subprocess.run([*podman, "show", "default"], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run([*podman, "delete", "default"], check=True)
    yield
    subprocess.run([*podman, "add", *default], check=True)


@pytest.fixture
def asked(guest: Guest, records: Records) -> Callable[..., list[dict[str, Any]]]:
    """What was recorded on both gateways by a source: ``gateway``, ``bridge``, or ``internal``."""

    def find(source: str, developer: str) -> list[dict[str, Any]]:
        found = [record for name in GATEWAYS for record in records(guest(name))]
        return [record for record in found if (record["source"], record["developer"]) == (source, developer)]

    return find


def has_address(guest: Guest) -> str:
    """The gateway that has the shared address; waits until it is one."""

    def names() -> list[str]:
        return [name for name in GATEWAYS if ".250/32" in guest(name).check_output("ip -4 -o address show dev eth0")]

    until(lambda: len(names()) == 1)
    return names()[0]


def until_ready(guest: Guest) -> None:
    """Wait until both engines answer."""
    health = "curl -sf -m 5 http://$(hostname -I | cut -d' ' -f1):8000/health"
    until(lambda: all(guest(name).run(health).succeeded for name in MODEL_HOSTS))


def test_claude_code_says_that_it_is_connected(guest: Guest) -> None:
    for user in ("alice", "bob"):
        words = guest("dev1").check_output("su - %s -c 'claude mcp get local-llm'", user)
        assert "Status: ✔ Connected" in words


@pytest.mark.parametrize("message", ["Hello", QUICKSORT, "你好"])
def test_claude_code_gets_the_models_answer_over_http(guest: Guest, asked: Asked, message: str) -> None:
    result = call_tool(guest("dev1"), "alice", "mcp__local-llm__chat", message=message)
    assert not result.is_error
    assert result.text == ANSWERS["chat"][message]
    call = asked("bridge", "alice")[-1]
    assert (call["what"], call["model"], call["outcome"]) == ("chat", "qwen2-tiny", "ok")
    (way,) = [record for record in asked("gateway", "alice") if record["request_id"] == call["request_id"]]
    assert (way["what"], way["status"]) == ("POST /mcp", 200)
    if not call["cached"]:
        (question,) = [record for record in asked("internal", "-") if record["request_id"] == call["request_id"]]
        assert question["server"] in MODEL_HOSTS


def test_claude_code_gets_the_models_answer_over_stdio(guest: Guest, asked: Asked) -> None:
    result = call_tool(guest("dev1"), "bob", "mcp__local-llm__chat", message="Hello")
    assert not result.is_error
    assert result.text == ANSWERS["chat"]["Hello"]
    assert not asked("bridge", "bob")
    assert asked("gateway", "bob")[-1]["model"] == "qwen2-tiny"


def test_claude_code_itself_runs_on_the_model(guest: Guest, asked: Asked) -> None:
    # Few words besides the question, so that the tiny model knows the answer.
    few = ["--bare", "--settings", "/home/carol/.claude/settings.json", "--tools", "", "--system-prompt", "Be brief."]
    for name in MODEL_HOSTS:
        guest(name).check_output(
            f"systemd-run --collect --unit=wire -p StandardOutput=truncate:{WIRE} python3 -c %s", SNIFF
        )
    try:
        answer = ask(guest("dev1"), "carol", "What is the capital of France?", *few)
    finally:
        for name in MODEL_HOSTS:
            guest(name).check_output("systemctl stop wire")
    assert answer == "Paris"
    assert asked("gateway", "carol")[-1]["model"] == "qwen2-tiny"

    wire = "".join(guest(name).check_output(f"tr -dc '[:print:]' < {WIRE}") for name in MODEL_HOSTS)
    assert "What is the capital of France?" in wire
    assert "Bearer molecule-fleet-engine-key" in wire
    assert "molecule-fleet-token" not in wire
    for name in MODEL_HOSTS:
        guest(name).check_output(f"rm {WIRE}")


def test_generated_code_runs(guest: Guest) -> None:
    result = call_tool(guest("dev1"), "alice", "mcp__local-llm__code_generation", task=QUICKSORT)
    assert not result.is_error
    code = result.text.split("```python\n")[1].split("```")[0]
    script = f"{code}\nprint(quicksort([3, 1, 2, 3, -5]))"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[-5, 1, 2, 3, 3]\n"


def test_wrong_arguments_are_explained(guest: Guest) -> None:
    result = call_tool(guest("dev1"), "alice", "mcp__local-llm__chat", mesage="Hello")
    assert result.is_error
    assert "message (string, required)" in result.text


def test_without_any_engine_the_developer_is_told_what_is_wrong(guest: Guest) -> None:
    for name in MODEL_HOSTS:
        guest(name).check_output("systemctl stop %s", ENGINE)
    try:
        result = call_tool(guest("dev1"), "alice", "mcp__local-llm__chat", message="Hello", fresh=True)
    finally:
        for name in MODEL_HOSTS:
            guest(name).check_output("systemctl start %s", ENGINE)
    assert result.is_error
    assert "No server of this model" in result.text


@pytest.mark.parametrize("name", MODEL_HOSTS)
def test_an_engine_that_dies_is_not_missed(guest: Guest, name: str) -> None:
    until_ready(guest)
    guest(name).check_output("systemctl kill --signal=KILL %s", ENGINE)
    result = call_tool(guest("dev1"), "alice", "mcp__local-llm__chat", message="Hello", fresh=True)
    assert result.text == ANSWERS["chat"]["Hello"]
    until_ready(guest)


def test_a_bridge_that_is_gone_is_not_missed(guest: Guest) -> None:
    guest("gateway1").check_output("systemctl stop %s", BRIDGE)
    try:
        result = call_tool(guest("dev1"), "alice", "mcp__local-llm__chat", message="Hello", fresh=True)
    finally:
        guest("gateway1").check_output("systemctl start %s", BRIDGE)
    assert result.text == ANSWERS["chat"]["Hello"]


def test_a_host_is_taken_out_and_let_in_again(guest: Guest, play: Play, records: Records) -> None:
    def answering() -> set[str]:
        """Who answers a dozen questions, by the first gateway's records."""
        gateway = guest("gateway1")
        since = gateway.check_output("date '+%F %T.%6N'")
        for _ in range(12):
            gateway.check_output("curl -sf -H 'Authorization: Bearer molecule-fleet-engine-key' %s", INSIDE)
        return {record["server"] for record in records(gateway, since) if record["what"] == "GET /v1/models"}

    until_ready(guest)
    for extra, wanted in ((), {"model2"}), (("--extra-vars=back=true",), {"model1", "model2"}):
        done = play(PROJECT / "playbooks/drain.yml", "--extra-vars=host=model1", *extra)
        assert done.returncode == 0, done.stdout
        assert answering() == wanted


def test_a_new_developer_comes_in_by_the_script_and_out_again(guest: Guest, play: Play, tmp_path: Path) -> None:
    """Ansible does not reach the developer's machine: it has the script of laptops.yml and the token."""

    def status(token: str) -> list[str]:
        """What each gateway says, asked from the developer's host."""
        curl = "curl -s -o /dev/null -w '%%{http_code}' --cacert %s -H 'x-api-key: %s' https://%s/v1/models"
        return [guest("dev1").check_output(curl, CA, token, name) for name in GATEWAYS]

    script = tmp_path / "setup-local-llm"
    done = play(PROJECT / "playbooks/laptops.yml", f"--extra-vars=to={script}")
    assert done.returncode == 0, done.stdout
    with zipfile.ZipFile(script) as archive:
        text = b"".join(archive.read(name) for name in archive.namelist()).decode()
    assert not any(secret in text for secret in SECRETS)

    laptop = guest("dev1")
    laptop.check_output("echo %s | base64 -d > /srv/setup-local-llm", base64.b64encode(script.read_bytes()).decode())
    laptop.check_output("id erin || useradd --create-home --shell /bin/bash erin")
    made = play(PROJECT / "playbooks/developer.yml", "--extra-vars=name=erin")
    assert made.returncode == 0, made.stdout
    assert '"url": "https://llm.test/mcp"' in made.stdout
    (token,) = re.findall(r"^ +(llb_\S+)$", made.stdout, re.MULTILINE)
    try:
        assert status(token) == ["200", "200"]
        laptop.check_output("echo %s | su -l erin -c 'python3 /srv/setup-local-llm'", token)
        result = call_tool(laptop, "erin", "mcp__local-llm__chat", message="Hello")
        assert (result.text, result.is_error) == (ANSWERS["chat"]["Hello"], False)
        laptop.check_output("su -l erin -c 'python3 /srv/setup-local-llm --undo'")
        assert laptop.run("su -l erin -c 'claude mcp get local-llm'").failed
        assert laptop.run("grep -rF %s /home/erin", token).stdout == ""
    finally:
        revoked = play(PROJECT / "playbooks/developer.yml", "--extra-vars=name=erin", "--extra-vars=revoke=true")
    assert revoked.returncode == 0, revoked.stdout
    assert status(token) == ["401", "401"]
    assert status("molecule-fleet-token-of-alice") == ["200", "200"]


def test_another_gateway_answers_when_one_is_gone(guest: Guest) -> None:
    dev1 = guest("dev1")
    gone = has_address(guest)
    podman = str(PROJECT / "tests/lab/bin/podman")
    container = f"{os.environ['LAB_NETWORK']}-{gone}"
    dev1.check_output("rm --force /run/enough")
    dev1.check_output("systemd-run --collect --unit=watch -p StandardOutput=truncate:/run/watch python3 -c %s", WATCH)
    until(lambda: "answered" in dev1.check_output("cat /run/watch"))
    subprocess.run([podman, "pause", container], check=True)  # as if its power had failed
    try:
        result = call_tool(dev1, "alice", "mcp__local-llm__chat", message="Hello", fresh=True)
        dev1.check_output("touch /run/enough")
        until(lambda: dev1.run("systemctl is-active watch").failed)
    finally:
        subprocess.run([podman, "unpause", container], check=True)
    assert result.text == ANSWERS["chat"]["Hello"]
    assert 0.3 < float(dev1.check_output("tail --lines=1 /run/watch")) < 3
    assert has_address(guest)  # one of them, whichever: the other one did not know that it was gone


def test_a_gateway_that_is_stopped_hands_its_address_on_at_once(guest: Guest) -> None:
    stopped = has_address(guest)
    guest(stopped).check_output("systemctl stop %s", GATEWAY)
    try:
        curl = "curl -sf -o /dev/null --max-time 2 --cacert %s -H 'x-api-key: molecule-fleet-token-of-alice' https://llm.test/v1/models"
        guest("dev1").check_output(curl, CA)
    finally:
        guest(stopped).check_output("systemctl start %s", GATEWAY)
    assert guest(stopped).service("local-llm-gateway-address").is_running


def test_verify_shows_the_fleet_and_an_answer(play: Play) -> None:
    done = play(PROJECT / "playbooks/verify.yml", "--diff")
    assert done.returncode == 0, done.stdout
    assert "llama-cpp@qwen2-tiny.service       active" in done.stdout
    assert "def quicksort(items):" in done.stdout
    assert "changed=0" in done.stdout
    for secret in SECRETS:
        assert secret not in done.stdout


def test_no_token_is_in_a_diff(play: Play) -> None:
    """Of keys and certificates, test_secrets.py shows the same."""
    other = "molecule-fleet-another-token"
    extra = {"fleet_developers": [{"name": "alice", "token": other}]}
    done = play(
        PROJECT / "playbooks/developers.yml",
        "--tags=claude_code_configure",
        "--check",
        "--diff",
        f"--extra-vars={json.dumps(extra)}",
    )
    assert done.returncode == 0, done.stdout
    (recap,) = [line for line in done.stdout.splitlines() if line.startswith("dev1 ")]
    assert "changed=0" not in recap
    for secret in [*SECRETS, other]:
        assert secret not in done.stdout
