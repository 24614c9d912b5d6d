"""Certificates of an ACME authority, which is Pebble on a guest, and one's own."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import create_connection

import pytest
from gateway import Gateway, address, ended, running, trusted
from testinfra.host import Host

SCENARIO = Path(__file__).resolve().parent.parent
UNIT = "local-llm-gateway"
RENEWAL = "local-llm-gateway-acme"
ACME = f"--extra-vars=@{SCENARIO / 'vars/acme.yml'}"
MIB = 2**20
AGAIN = "--tags=gateway_configure,gateway_service"

pytestmark = pytest.mark.units(UNIT, RENEWAL, "pebble")

Guest = Callable[..., Host]
Play = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def both(guest: Guest) -> list[Host]:
    """Both gateways."""
    return [guest("debian12"), guest("debian13")]


@pytest.fixture
def root(guest: Guest) -> ssl.SSLContext:
    """A context of TLS that trusts the authority and nobody else."""
    pem = guest("debian13").check_output("curl -sf https://debian13:15000/roots/0")
    context = ssl.create_default_context(cadata=pem)
    context.check_hostname = False  # the tests ask by address; serial() looks for the name
    return context


def serial(host: Host, context: ssl.SSLContext) -> object:
    """The number of the certificate that a gateway shows for its name."""
    with (
        create_connection((address(host), 443)) as plain,
        context.wrap_socket(plain, server_hostname="llm.test") as secure,
    ):
        shown = secure.getpeercert()
    assert shown
    assert ("DNS", "llm.test") in shown["subjectAltName"]
    return shown["serialNumber"]


def log(host: Host, unit: str, since: str) -> str:
    """What a unit has logged since a moment."""
    return str(host.check_output("journalctl --unit=%s --since=%s --output=cat", unit, since))


def now(host: Host) -> str:
    """A guest's time, as journalctl has it."""
    return str(host.check_output("date '+%F %T'"))


def main_pid(host: Host) -> str:
    """The gateway's first process."""
    return str(host.check_output("systemctl show --property=MainPID --value %s", UNIT))


def test_an_authority_gives_each_gateway_a_certificate(
    both: list[Host], play: Play, request: pytest.FixtureRequest
) -> None:
    """One gateway has a certificate of the private CA before, the other none, as a new host."""
    first, second = both
    second.check_output("rm /etc/local-llm-gateway/gateway.pem /etc/local-llm-gateway/gateway.pem.key")
    since = now(first)
    done = play(SCENARIO / "converge.yml", "--diff", ACME)
    assert done.returncode == 0, done.stdout
    assert "PRIVATE KEY" not in done.stdout
    context = request.getfixturevalue("root")
    assert serial(first, context) != serial(second, context)
    for host in both:
        key = host.file("/etc/local-llm-gateway/gateway.pem.key")
        assert (key.user, key.group, key.mode) == ("root", UNIT, 0o640)
        assert host.service(f"{RENEWAL}.timer").is_enabled
    # The authority has asked the first gateway alone.
    answered = [line for line in log(first, UNIT, since).splitlines() if "backend=challenges-0" in line]
    assert all("status=200" in line for line in answered)
    servers = {part for line in answered for part in line.split() if part[:7] == "server="}
    assert servers == {"server=here:certbot", "server=others:next"}


def test_port_80_is_for_the_authority_alone(both: list[Host]) -> None:
    for host in both:
        curl = f"curl -s -o /dev/null -w '%{{http_code}}' http://{address(host)}"
        assert host.check_output(f"{curl}/v1/models") == "404"
        assert host.check_output(f"{curl}/.well-known/acme-challenge/unknown") == "503"


def test_the_renewal_has_few_rights(both: list[Host], few_rights: Callable[[Host, str], None]) -> None:
    for host in both:
        few_rights(host, RENEWAL)


def test_a_renewal_ends_no_answer(both: list[Host], root: ssl.SSLContext) -> None:
    """Both at the same time, so that each certbot is also asked what only the other one knows."""
    before = [(main_pid(host), serial(host, root)) for host in both]
    answers = running(both, root)
    for host in both:
        host.check_output(
            "sed -i '1i renew_before_expiry = 9999 days' /var/lib/local-llm-gateway-acme/config/renewal/*.conf"
        )
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda host: host.check_output("systemctl start %s.service", RENEWAL), both))
    for host, (pid, former), answer in zip(both, before, answers, strict=True):
        assert main_pid(host) == pid
        assert serial(host, root) != former
        assert ended(host, answer)


def test_a_second_run_asks_nobody_and_a_refused_order_changes_no_certificate(
    both: list[Host], play: Play, root: ssl.SSLContext
) -> None:
    """In one run, for the sake of time: the first gateway's name is the same, the second one's leads nowhere."""
    before = [serial(host, root) for host in both]
    asked = both[0].file("/var/lib/local-llm-gateway-acme/logs/letsencrypt.log").mtime
    name = "{{ 'llm.test' if inventory_hostname == 'debian12' else 'nowhere.test' }}"
    done = play(SCENARIO / "converge.yml", ACME, AGAIN, f"--extra-vars={json.dumps({'gateway_domain': name})}")
    assert re.search(r"debian12 +: ok=\d+ +changed=0 +unreachable=0 +failed=0", done.stdout), done.stdout
    assert both[0].file("/var/lib/local-llm-gateway-acme/logs/letsencrypt.log").mtime == asked
    assert re.search(r"debian13 .* failed=1", done.stdout)
    assert "gave no certificate for nowhere.test" in done.stdout
    assert "lookup nowhere.test" in done.stdout  # the authority's own words
    assert [serial(host, root) for host in both] == before


def test_a_certificate_of_ones_own_and_a_new_configuration_end_no_answer(
    both: list[Host], play: Play, root: ssl.SSLContext, tmp_path: Path
) -> None:
    key, own = tmp_path / "key.pem", tmp_path / "own.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=llm.test"
    subprocess.run([*make.split(), "-addext", "subjectAltName=DNS:llm.test", "-keyout", key, "-out", own], check=True)
    given = {"gateway_certificate": own.read_text(), "gateway_private_key": key.read_text(), "gateway_tls": "files"}
    before = [main_pid(host) for host in both]
    answers = running(both, root)
    variables = f"--extra-vars={json.dumps(given | {'gateway_body_limit_mib': 1})}"
    done = play(SCENARIO / "converge.yml", "--diff", AGAIN, variables)
    assert done.returncode == 0, done.stdout
    assert key.read_text().splitlines()[1] not in done.stdout
    context = ssl.create_default_context(cafile=str(own))
    context.check_hostname = False
    for host, answer in zip(both, answers, strict=True):
        assert Gateway(address(host), context=context).announce(2 * MIB).status == 413
        assert ended(host, answer)
    assert [main_pid(host) for host in both] == before


def test_nothing_is_left_when_the_private_ca_is_back(both: list[Host], play: Play) -> None:
    done = play(SCENARIO / "converge.yml", AGAIN)
    assert done.returncode == 0, done.stdout
    for host in both:
        assert serial(host, trusted())
        assert not host.run("find /etc /var/lib /run/systemd -name '*local-llm-gateway-acme*'").stdout
        assert sorted(host.file("/etc/local-llm-gateway").listdir()) == sorted(
            [
                *("developers.map", "gateway.pem", "gateway.pem.key", "expires.map"),
                *("gateway.lua", "haproxy.cfg", "keepalived.conf", "keys.map", "models.json"),
            ]
        )
        assert not host.run("ss -Hltn 'sport = :80'").stdout
        assert host.run("systemctl list-timers --all | grep %s", RENEWAL).rc == 1
    assert json.loads(Gateway(address(both[0])).ask("GET", "/v1/models").text)["data"]


def test_a_certificate_of_release_0_1_stays(guest: Guest, play: Play) -> None:
    """It had another name."""
    host = guest("debian12")
    before = serial(host, trusted())
    host.check_output("cd /etc/local-llm-gateway && mv gateway.pem old.pem && mv gateway.pem.key old.pem.key")
    done = play(SCENARIO / "converge.yml", AGAIN, "--limit=debian12")
    assert done.returncode == 0, done.stdout
    assert serial(host, trusted()) == before
    assert not host.file("/etc/local-llm-gateway/old.pem").exists
