"""The module controller_secrets: which controllers may not change a fleet."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import controller_secrets as secrets
import pytest

PROJECT = Path(__file__).resolve().parents[2]
CERTIFICATE = "/etc/local-llm-gateway/gateway.pem"
MAP = "/etc/local-llm-gateway/developers.map"


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def make_ca(folder: Path, name: str = "CA of llm.test") -> Path:
    """A CA as roles/gateway makes it."""
    folder.mkdir(parents=True)
    key, pem = folder / "ca.key", folder / "ca.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    openssl("req", "-x509", *curve, "-nodes", "-keyout", key, "-out", pem, "-subj", f"/CN={name}", "-days", "9")
    return folder


def sign(ca: Path, folder: Path) -> bytes:
    """The certificate of a gateway."""
    key, request, pem = folder / "gateway.key", folder / "gateway.csr", folder / "gateway.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    openssl("req", *curve, "-nodes", "-keyout", key, "-out", request, "-subj", "/CN=llm.test")
    extensions = folder / "extensions"
    extensions.write_text("authorityKeyIdentifier=keyid")
    signer: list[str | Path] = ["-CA", ca / "ca.pem", "-CAkey", ca / "ca.key", "-extfile", extensions]
    openssl("x509", "-req", "-in", request, *signer, "-out", pem, "-days", "9")
    return pem.read_bytes()


def key_of(ca: Path) -> str:
    """The identifier of a CA's key, as the refusal tells to look it up."""
    argv = ["openssl", "x509", "-noout", "-ext", "subjectKeyIdentifier", "-in", str(ca / "ca.pem")]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[1].strip()


def found(host: str, path: str, content: bytes) -> dict[str, Any]:
    """What slurp says of a file."""
    return {"item": [host, path], "content": base64.b64encode(content).decode()}


def refusals(ca: Path | str, seen: Iterable[dict[str, Any]], **given: Any) -> list[str]:
    """What the module says."""
    default = {"ca_key": True, "tokens": "", "developers": [], "all_developers": False}
    return list(secrets.problems({"ca": str(ca), "seen": list(seen)} | default | given))


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A fleet's CA, on the controller that made it."""
    return make_ca(tmp_path / "first/ca")


@pytest.fixture
def gateways(fleet: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """What two gateways of the fleet have; the second is new."""
    missing = {"item": ["gateway2", CERTIFICATE], "failed": True, "msg": "file not found"}
    return [found("gateway1", CERTIFICATE, sign(fleet, tmp_path)), missing]


def test_the_controller_that_made_the_ca_goes_on(fleet: Path, gateways: list[dict[str, Any]]) -> None:
    assert refusals(fleet, gateways) == []
    assert refusals(fleet, gateways[1:]) == []


def test_a_new_fleet_gets_a_ca(tmp_path: Path, gateways: list[dict[str, Any]]) -> None:
    assert refusals(tmp_path / "none", gateways[1:]) == []


def test_a_controller_without_the_ca_is_told_where_it_was_seen(
    tmp_path: Path, fleet: Path, gateways: list[dict[str, Any]]
) -> None:
    (problem,) = refusals(tmp_path / "second/ca", gateways)
    assert f"gateway1:{CERTIFICATE} (CA of llm.test, key {key_of(fleet)})" in problem
    assert f"has none in {tmp_path}/second/ca" in problem
    assert f"Copy {tmp_path}/second," in problem


def test_a_controller_with_another_ca_is_told_both(tmp_path: Path, fleet: Path, gateways: list[dict[str, Any]]) -> None:
    other = make_ca(tmp_path / "second/ca")
    (problem,) = refusals(other, gateways)
    assert key_of(fleet) in problem
    assert f"another one (key {key_of(other)})" in problem


@pytest.mark.parametrize("place", ["next", "former"])
def test_while_the_ca_is_replaced_both_are_known(
    tmp_path: Path, fleet: Path, gateways: list[dict[str, Any]], place: str
) -> None:
    other = make_ca(tmp_path / "second/ca")
    shutil.copytree(fleet, other / place)
    assert refusals(other, gateways) == []


@pytest.mark.parametrize("given", [{"ca": ""}, {"ca": "/nowhere"}])
def test_certificates_of_others_are_no_reason(tmp_path: Path, given: dict[str, str]) -> None:
    company = make_ca(tmp_path / "company", "Example Corp")
    assert refusals(given["ca"], [found("gateway1", CERTIFICATE, sign(company, tmp_path))]) == []


def test_a_gateway_that_cannot_be_asked_may_have_one(fleet: Path, tmp_path: Path) -> None:
    silent = [{"item": ["gateway1", CERTIFICATE], "unreachable": True, "msg": "no route"}]
    (problem,) = refusals(tmp_path / "second/ca", silent)
    assert "gateway1 cannot be asked" in problem
    assert refusals(fleet, silent) == []


def test_a_ca_without_its_key_can_only_be_replaced(fleet: Path, gateways: list[dict[str, Any]]) -> None:
    (fleet / "ca.key").unlink()
    (problem,) = refusals(fleet, gateways)
    assert "without its key" in problem
    assert refusals(fleet, gateways, ca_key=False) == []


def test_a_key_of_another_ca_is_refused(tmp_path: Path, fleet: Path, gateways: list[dict[str, Any]]) -> None:
    shutil.copy(make_ca(tmp_path / "second/ca") / "ca.key", fleet)
    (problem,) = refusals(fleet, gateways)
    assert "is not the key of" in problem


def test_what_is_no_ca_is_refused(tmp_path: Path, fleet: Path, gateways: list[dict[str, Any]]) -> None:
    (fleet / "ca.pem").write_text("rubbish")
    (problem,) = refusals(fleet, gateways)
    assert "is not one" in problem
    file = tmp_path / "file"
    file.write_text("")
    (problem,) = refusals(file, gateways)
    assert "cannot be read" in problem


def test_a_folder_of_somebody_else_is_refused(fleet: Path, gateways: list[dict[str, Any]]) -> None:
    fleet.chmod(0)
    if am_root := os.geteuid() == 0:  # who may read all
        os.seteuid(65534)
    try:
        ca, tokens = refusals(fleet, gateways, tokens=f"{fleet}/tokens")
    finally:
        if am_root:
            os.seteuid(0)
        fleet.chmod(0o700)
    assert "The private CA cannot be read: [Errno 13]" in ca
    assert "fleet_tokens cannot be read: [Errno 13]" in tokens


@pytest.mark.parametrize("has_ca", [False, True])
def test_a_gateway_that_cannot_be_reached_hides_nothing(tmp_path: Path, has_ca: bool) -> None:
    """It is the host that asks for all; with the CA on this controller the play goes on to the others."""
    if has_ca:
        make_ca(tmp_path / "ca")
    silent = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    here = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
    fleet = {"fleet_secrets": str(tmp_path), "fleet_developers": []}
    inventory = tmp_path / "hosts.json"
    hosts = {"gateway1": silent, "gateway2": here}
    inventory.write_text(json.dumps({"gateways": {"hosts": hosts}, "all": {"vars": fleet}}))
    argv = ["ansible-playbook", f"--inventory={inventory}", "playbooks/gateway.yml", "--tags=none"]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ("gateway1 cannot be asked" in done.stdout) != has_ca
    assert ("TASK [Refuse a host without systemd]" in done.stdout) == has_ca


def test_tokens_of_the_first_controller_do_not_end(tmp_path: Path) -> None:
    text = b"# Written by Ansible.\n" + b"".join(
        b"%064x %s\n" % (n, name) for n, name in enumerate([b"alice", b"dave"])
    )
    seen = [found("gateway1", MAP, text)]
    tokens = tmp_path / "tokens"
    (problem,) = refusals("", seen, tokens=str(tokens), developers=["alice"])
    assert "gateway1 knows tokens of dave, which would end" in problem
    assert f"mkdir -m 700 -p {tokens}" in problem
    assert refusals("", seen, tokens="", developers=["alice"]) == []
    assert refusals("", seen, tokens=str(tokens), developers=["alice", "dave"]) == []
    tokens.mkdir()
    assert refusals("", seen, tokens=str(tokens), developers=["alice"]) == []
    # developer.yml changes one developer and no other.
    (problem,) = refusals("", seen, tokens=str(tokens), developers=["alice", "erin"], all_developers=True)
    assert "run playbooks/gateway.yml first" in problem
    (tokens / "dave.json").write_text("")
    assert refusals("", seen, tokens=str(tokens), developers=["alice", "erin"], all_developers=True) == []
