"""The gateway in front of real engines: who may use it, what reaches an engine, and what happens when parts break."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from socket import create_connection
from typing import Any

import pytest
import raw
from gateway import ENGINE_KEY, QUESTION, RUNNING, TOKENS, Gateway, address, command, ended, question, running, trusted
from raw import END_HEADERS, END_STREAM, HEADERS, Frames, frame
from testinfra.host import Host

from tests.lab.waiting import until

SCENARIO = Path(__file__).resolve().parent.parent
PROJECT = SCENARIO.parent.parent
ANSWERS = json.loads((PROJECT / "tests/tiny_model/answers.json").read_text())["chat"]
QUICKSORT = "Write a quicksort function in Python."
UNIT = "local-llm-gateway"
ENGINE = "llama-cpp@qwen2-tiny"
MIB = 2**20

CLOSED = [line for line in (SCENARIO / "tests/closed-paths.txt").read_text().splitlines() if line.startswith("/")]

OAUTH = re.compile(r"/register|/token|/authorize|/\.well-known/(oauth-|openid-configuration).*")
OPEN = {"/mcp", "/v1/models", "/v1/messages", "/v1/messages/count_tokens", QUESTION, "/v1/completions", "/v1/responses"}

pytestmark = pytest.mark.units(UNIT)

Guest = Callable[..., Host]
Play = Callable[..., subprocess.CompletedProcess[str]]
Records = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def ip(host: Host) -> str:
    """Address of a guest whose gateway is asked."""
    return str(address(host))


@pytest.fixture
def new_start(host: Host) -> Iterator[None]:
    """Nobody is counted any more, before and after."""

    def forget() -> None:
        for table in ("addresses", "developers"):
            command(host, f"clear table {table}")

    forget()
    yield
    forget()


def tokens_of(**developers: str | tuple[str, int]) -> str:
    """Extra variables that let in these developers, by tokens and, where they end, that moment."""
    entries = []
    for name, known in developers.items():
        token, expires = known if isinstance(known, tuple) else (known, 0)
        digest = sha256(token.encode()).hexdigest()
        entries.append({"name": name.partition("_")[0], "token_sha256": digest, "expires": expires})
    return f"--extra-vars={json.dumps({'gateway_developers': entries})}"


def main_pid(host: Host) -> str:
    """The gateway's first process."""
    return str(host.check_output("systemctl show --property=MainPID --value %s", UNIT))


def workers(host: Host) -> list[str]:
    """The gateway's processes, the first one not among them."""
    found: str = host.check_output("pgrep --parent %s", main_pid(host))
    return found.split()


# --- what comes through ---


@pytest.mark.parametrize("text", ["ping", QUICKSORT, "法国的首都是哪里？"])
def test_a_model_answers_as_it_should(ip: str, text: str) -> None:
    reply = Gateway(ip).post(question(text))
    assert reply.status == 200
    assert reply.json["choices"][0]["message"]["content"] == ANSWERS[text]


def test_anthropics_messages_are_answered_for_x_api_key(ip: str) -> None:
    headers = {"x-api-key": TOKENS["bob"], "anthropic-version": "2023-06-01"}
    reply = Gateway(ip, token=None).post(question("ping"), "/v1/messages?beta=true", **headers)
    assert [block["text"] for block in reply.json["content"]] == ["pong"]
    count = Gateway(ip, token=None).post(question("ping"), "/v1/messages/count_tokens", **headers)
    assert count.json["input_tokens"] > 10


def test_the_models_are_listed(ip: str) -> None:
    reply = Gateway(ip).ask("GET", "/v1/models")
    assert [model["id"] for model in reply.json["data"]] == ["qwen2-tiny", "mirror"]
    assert reply.json["data"][0]["max_model_len"] == 4096


def test_a_developers_conversation_stays_on_one_replica(guest: Guest, records: Records) -> None:
    """As soon as each has its full share, which one that has come back gets after 20 s."""
    host = guest("debian12")
    gateways = [Gateway(address(host), token) for token in TOKENS.values()]

    def stays() -> bool:
        since = host.check_output("date '+%F %T.%6N'")
        for _ in range(10):
            for gateway in gateways:
                assert gateway.post(question("ping")).status == 200
        answered = records(host, since, count=10 * len(TOKENS))
        asked = [{record["server"] for record in answered if record["developer"] == name} for name in TOKENS]
        return all(len(servers) == 1 for servers in asked)

    until(stays, 60)


def test_events_are_sent_on_one_by_one(host: Host) -> None:
    (answer,) = running([host])
    assert answer.readline() == b": still here\n"
    assert ended(host, answer)


@pytest.mark.parametrize("size", [92_000, 4 * MIB - 100])
def test_the_model_is_found_behind_a_long_conversation(ip: str, size: int) -> None:
    reply = Gateway(ip).post({"messages": [{"role": "user", "content": "x" * (size - 60)}], "model": "mirror"})
    assert reply.status == 200
    assert int(reply.json["headers"]["content-length"]) > size - 60


def test_an_engine_sees_its_own_key_and_the_developers_name(ip: str) -> None:
    forged = {"X-Local-LLM-Developer": "root", "x-api-key": TOKENS["bob"]}
    shown = Gateway(ip).post({"model": "mirror"}, **forged)
    assert shown.json["headers"]["x-local-llm-developer"] == "alice"
    assert shown.json["headers"]["authorization"] == f"Bearer {ENGINE_KEY}"
    assert "x-api-key" not in shown.json["headers"]
    assert all(token not in shown.text for token in TOKENS.values())


def test_programs_of_the_host_reach_each_model_by_its_path(host: Host) -> None:
    curl = "curl -s -w ' %%{http_code}' -H 'Authorization: Bearer %s' http://127.0.0.1:8081%s"
    assert "qwen2-tiny" in host.check_output(curl, ENGINE_KEY, "/qwen2-tiny/v1/models")
    assert host.check_output(curl, "another-key-than-the-engines", "/qwen2-tiny/v1/models").endswith(" 401")
    for path in ("/nobody/v1/models", "/qwen2-tiny/health", "/qwen2-tiny/v1/../health", "/v1/models"):
        assert host.check_output(curl, ENGINE_KEY, path).endswith(" 404")
    assert not host.socket(f"tcp://{address(host)}:8081").is_listening


# --- what does not ---


def test_no_other_path_is_open(ip: str) -> None:
    stranger, alice = Gateway(ip, token=None), Gateway(ip)
    for path in CLOSED:
        for method, body in (("GET", None), ("POST", {})):
            assert (stranger.ask(method, path, body).status, alice.ask(method, path, body).status) == (401, 404), path


def test_no_route_of_litellm_is_open(ip: str) -> None:
    """It has a thousand, of which 49 answer without a key; the gateway opens the same few with it and without."""
    stranger, alice = Gateway(ip, token=None), Gateway(ip)
    routes = [line.split() for line in (PROJECT / "molecule/litellm/routes.txt").read_text().splitlines()]
    for _, method, route in routes:
        path = re.sub(r"{[^}]*}", "x", route)
        if path in OPEN or method not in {"GET", "POST", "PUT", "PATCH", "DELETE"}:
            continue
        replies = stranger.ask(method, path), alice.ask(method, path)
        if OAUTH.fullmatch(path):
            assert [reply.json["error"] for reply in replies] == ["invalid_request"] * 2, path  # the gateway's words
        else:
            assert tuple(reply.status for reply in replies) == (401, 404), path


@pytest.mark.parametrize("token", [None, "molecule-token-of-nobody", "alice", ENGINE_KEY, ""])
def test_without_a_valid_token_nobody_comes_in(ip: str, token: str | None, new_start: None) -> None:
    for path in ("/v1/models", "/v1/messages", QUESTION, "/mcp"):
        reply = Gateway(ip, token).post(question("ping"), path)
        assert reply.status == 401
        assert reply.json["error"]["type"] == "authentication_error"
        assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("token", [None, "wrong", TOKENS["alice"]])
def test_who_looks_for_oauth_is_told_of_the_token(ip: str, token: str | None) -> None:
    for path in ("/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-authorization-server", "/register"):
        reply = Gateway(ip, token).post({"client_name": "Claude Code"}, path)
        assert reply.status == 404
        assert reply.json["error"] == "invalid_request"
        assert "Send your own as Authorization: Bearer <token>" in reply.json["error_description"]


def test_wrong_requests_are_explained(ip: str) -> None:
    unknown = Gateway(ip).post(question("ping", model="gpt-4"))
    assert unknown.status == 404
    assert unknown.json["error"]["message"] == "There is no such model here. The models are: qwen2-tiny, mirror."
    bodies: tuple[Any, ...] = ("not json", {"messages": []}, {"model": None})
    for body in bodies:
        nameless = Gateway(ip).post(body)
        assert nameless.status == 400
        assert "names no model" in nameless.json["error"]["message"]
    assert Gateway(ip).ask("GET", "/v1/messages").status == 405
    assert Gateway(ip).ask("DELETE", "/v1/models").status == 405


def test_a_body_that_is_too_large_is_refused(ip: str) -> None:
    reply = Gateway(ip).announce(4 * MIB + 1)
    assert reply.status == 413
    assert "4 MiB" in reply.json["error"]["message"]


def test_only_tls_of_today_is_spoken(host: Host, ip: str) -> None:
    assert host.run("curl -sk --tls-max 1.1 https://%s/", ip).rc == 35
    with create_connection((ip, 443)) as plain, trusted().wrap_socket(plain, server_hostname="llm.test") as secure:
        assert secure.version() == "TLSv1.3"
    assert host.check_output("curl -sk -o /dev/null -w '%%{http_version}' https://%s/", ip) == "2"
    assert Gateway(ip).ask("GET", "/v1/models").headers["strict-transport-security"] == "max-age=63072000"
    with pytest.raises(ssl.SSLError), create_connection((ip, 443)) as plain:
        trusted().wrap_socket(plain, server_hostname="other.test")


# --- what is written down ---


def test_each_request_has_a_record(host: Host, ip: str, records: Records, new_start: None) -> None:
    since = host.check_output("date '+%F %T.%6N'")
    words = 'molecule-"words\\'
    Gateway(ip).post(question(words))
    Gateway(ip, f"{words[:16]}-token").post(question(words))
    Gateway(ip).post(question("ping", model=words))
    Gateway(ip).ask("GET", '/v1/"\\' + "x" * 300)
    host.check_output("curl -s -H 'Authorization: Bearer %s' http://127.0.0.1:8081/qwen2-tiny/v1/models", ENGINE_KEY)
    host.run("curl -s --cacert /dev/null https://%s/", ip)  # TLS that fails
    # Health checks of bridges are not among them.
    good, stranger, nameless, lost, internal, broken = records(host, since, count=6)
    assert good.keys() >= {"time", "request_id", "duration_ms", "bytes_in", "bytes_out", "queue_ms", "first_byte_ms"}
    shown = ("source", "developer", "what", "model", "outcome", "status")
    assert [good[key] for key in shown] == ["gateway", "alice", f"POST {QUESTION}", "qwen2-tiny", "ok", 200]
    assert [stranger[key] for key in shown] == ["gateway", "-", f"POST {QUESTION}", "-", "refused", 401]
    assert [nameless[key] for key in shown] == ["gateway", "alice", f"POST {QUESTION}", "-", "refused", 404]
    assert lost["what"] == 'GET /v1/"\\' + "x" * 194
    assert [internal[key] for key in shown] == ["internal", "-", "GET /v1/models", "qwen2-tiny", "ok", 200]
    expected = ["gateway", "-", "-", "-", "refused", "SSL handshake failure"]
    assert [broken[key] for key in (*shown[:5], "error")] == expected
    assert good["client"] == f"{ip.rpartition('.')[0]}.1"
    assert "molecule-" not in json.dumps([good, stranger, nameless])


# --- limits ---


def test_a_developer_with_too_many_requests_slows_nobody_else(host: Host, ip: str, new_start: None) -> None:
    answers = [Gateway(ip, TOKENS["bob"]).send("POST", QUESTION, RUNNING) for _ in range(12)]
    refused = Gateway(ip, TOKENS["bob"]).post(question("ping"))
    assert refused.status == 429
    assert "bob has 12 requests running" in refused.json["error"]["message"]
    assert refused.headers["retry-after"] == "5"
    assert Gateway(ip).post(question("ping")).status == 200
    assert [answer.status for answer in answers] == [200] * 12
    assert all(ended(host, answer) for answer in answers)
    until(lambda: Gateway(ip, TOKENS["bob"]).post(question("ping")).status == 200)


def test_a_flood_is_stopped(ip: str, new_start: None) -> None:
    gateway = Gateway(ip, TOKENS["bob"])
    found = Counter(gateway.ask("GET", "/v1/models").status for _ in range(3100))
    assert found == {200: 3000, 429: 100}
    assert Gateway(ip).post(question("ping")).status == 200


@pytest.fixture
def guessed_at(guest: Guest) -> Iterator[Host]:
    """A guest whose gateway forgets afterwards what has been guessed."""
    host = guest("debian13")
    yield host
    command(host, "clear table addresses")


def guess_frame(number: int, stream: int) -> bytes:
    """A request over HTTP/2 with a token that is not known."""
    guess = (b"authorization", b"Bearer guessed-token-%06d" % number)
    return bytes(frame(HEADERS, END_HEADERS | END_STREAM, stream, raw.headers([*raw.request(b"/v1/models"), guess])))


def test_guesses_get_nowhere_and_are_seen(guessed_at: Host, records: Records) -> None:
    host = guessed_at
    ip = address(host)

    def guess(number: int) -> int:
        gateway = Gateway(ip, f"guessed-token-{number:06}")
        try:
            return int(gateway.ask("GET", "/v1/models").status)
        except OSError:
            return 0  # hung up
        finally:
            gateway.close()

    since = host.check_output("date '+%F %T'")
    for first in (0, 100):  # these are slow, so they are made at once
        guesses = Frames(ip)
        guesses.send(*(guess_frame(first + number, 2 * number + 1) for number in range(100)))
        while len(guesses.ended) < 100:
            assert guesses.read()
        guesses.close()
    with ThreadPoolExecutor(40) as pool:
        found = Counter(pool.map(guess, range(200, 2_000)))
    assert set(found) <= {401, 0}
    assert found[401] <= 1
    assert Gateway(ip).post(question("ping")).status == 200
    seen = [record["guesses"] for record in records(host, since) if record["developer"] == "-"]
    assert max(seen) > 1_000  # of so many, one in a hundred is recorded
    assert len(seen) < 400  # nor do they fill the journal
    assert "guessed-token" not in host.check_output("journalctl --namespace='*' --boot")


# --- what changes while it runs ---


@pytest.fixture
def both(guest: Guest) -> list[Host]:
    """Both guests, for what a playbook changes on both: each has another HAProxy."""
    return [guest("debian12"), guest("debian13")]


def listed(host: Host, token: str = TOKENS["alice"]) -> int:
    """Status of a request for the models."""
    return int(Gateway(address(host), token).ask("GET", "/v1/models").status)


def test_tokens_change_at_once_and_running_answers_go_on(both: list[Host], play: Play) -> None:
    before = [(main_pid(host), workers(host)) for host in both]
    answers = running(both)
    ends = int(time.time()) + 12
    new: dict[str, str | tuple[str, int]] = {
        "bob": TOKENS["bob"],
        "alice": "molecule-new-token-of-alice",
        "alice_old": (TOKENS["alice"], ends),
    }
    done = play(SCENARIO / "tokens.yml", "--diff", tokens_of(**new))
    assert done.returncode == 0, done.stdout
    for host in both:
        assert listed(host, "molecule-new-token-of-alice") == 200
        assert listed(host) == 200 or time.time() >= ends
        until(lambda host=host: listed(host) == 401)  # type: ignore[misc]

    again = play(SCENARIO / "tokens.yml", tokens_of(**TOKENS))
    assert again.stdout.count("changed=1") == 2
    for host, answer in zip(both, answers, strict=True):
        assert [listed(host, token) for token in ("molecule-new-token-of-alice", *TOKENS.values())] == [401, 200, 200]
        assert ended(host, answer)
    assert [(main_pid(host), workers(host)) for host in both] == before


def test_a_wrong_certificate_leaves_the_gateway_as_it_is(both: list[Host], play: Play) -> None:
    text = "-----BEGIN {0}-----\nno\n-----END {0}-----\n"
    given = {"gateway_certificate": text.format("CERTIFICATE"), "gateway_private_key": text.format("PRIVATE KEY")}
    done = play(SCENARIO / "converge.yml", f"--extra-vars={json.dumps(given | {'gateway_tls': 'files'})}")
    assert done.returncode != 0
    assert "Unable to load PEM file" in done.stdout
    assert done.stdout.count("changed=0") == 2
    assert [listed(host) for host in both] == [200, 200]


# --- what breaks ---


def ask_all(ip: str, count: int, at: dict[int, Callable[[], Any]]) -> Counter[int | str]:
    """Ask many questions, eight at a time, and do something after so many; returns how often each outcome came."""
    outcomes: Counter[int | str] = Counter()
    lock = threading.Lock()

    def ask(_: int) -> None:
        gateway = Gateway(ip)
        reply = gateway.post(question(QUICKSORT))
        right = reply.status == 200 and reply.json["choices"][0]["message"]["content"] == ANSWERS[QUICKSORT]
        with lock:
            outcomes["right" if right else reply.status] += 1
            then = at.get(sum(outcomes.values()))
        gateway.close()
        if then:
            then()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(count)))
    return outcomes


def test_a_replica_that_is_killed_takes_no_request_with_it_but_those_it_had(guest: Guest) -> None:
    ip, victim = address(guest("debian12")), guest("debian13")
    state = "systemctl is-active %s"
    kill = {20: lambda: victim.check_output("systemctl kill --signal=KILL %s", ENGINE)}
    outcomes = ask_all(ip, 80, kill)
    assert set(outcomes) <= {"right", 502}
    assert outcomes[502] <= 8  # as many as were asked at once: they may have been the reason, and no other is asked
    until(lambda: victim.run(state, ENGINE).stdout.strip() == "active")
    assert ask_all(ip, 20, {}) == {"right": 20}


def test_without_any_replica_the_caller_is_told(guest: Guest) -> None:
    ip = address(guest("debian12"))
    for name in ("debian12", "debian13"):
        guest(name).check_output("systemctl stop %s", ENGINE)
    try:
        reply = Gateway(ip).post(question("ping"))
        assert reply.status == 503
        assert reply.json["error"]["message"].startswith("No server of this model")
    finally:
        for name in ("debian12", "debian13"):
            guest(name).check_output("systemctl start %s", ENGINE)
    until(lambda: Gateway(ip).post(question("ping")).status == 200)


def test_a_gateway_that_dies_is_back_by_itself(host: Host, ip: str) -> None:
    host.check_output("systemctl kill --signal=KILL %s", UNIT)

    def answers() -> bool:
        try:
            return bool(Gateway(ip).ask("GET", "/v1/models").status == 200)
        except OSError:
            return False

    until(answers)


def test_one_of_the_gateways_has_the_address_that_they_share(guest: Guest) -> None:
    shared = f"{address(guest('debian12')).rpartition('.')[0]}.250"
    show = "ip -4 -o address show to %s"
    assert len([name for name in ("debian12", "debian13") if guest(name).check_output(show, shared)]) == 1
    assert Gateway(shared).ask("GET", "/v1/models").status == 200


# --- what it is allowed ---


@pytest.mark.parametrize("unit", [UNIT, f"{UNIT}-address"])
def test_the_units_have_few_rights(host: Host, unit: str, few_rights: Callable[[Host, str], None]) -> None:
    assert host.service(unit).is_enabled
    few_rights(host, unit)


def test_the_gateway_is_not_root(host: Host) -> None:
    assert host.check_output("ps -o user= -p %s", main_pid(host)).strip().startswith("local-ll")


def test_keys_are_in_one_file_and_tokens_in_none(host: Host) -> None:
    found = host.run("grep -rlsF -- %s /etc /home /opt /root /run /srv /tmp /usr/local /var", ENGINE_KEY).stdout.split()
    ours = [path for path in found if "gateway" in path]
    assert ours == ["/etc/local-llm-gateway/keys.map"]
    mode = host.file("/etc/local-llm-gateway/keys.map")
    assert (mode.user, mode.group, mode.mode) == ("root", "local-llm-gateway", 0o640)
    for token in TOKENS.values():
        assert not host.run("grep -rlsF -- %s /etc /run /var/log", token).stdout
        assert token not in host.check_output("journalctl --boot --namespace='*' --no-pager")


def test_the_distributions_own_service_does_not_run(host: Host) -> None:
    assert not host.service("haproxy").is_running
