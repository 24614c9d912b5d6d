"""A gateway in front of the bridge checks the developers' tokens and says by a header whose request it sends on."""

from __future__ import annotations

import hashlib
import http.client
from typing import TYPE_CHECKING

import pytest

from tests.services import MODEL, TOKEN, FakeEngine, events, piece, records, serving, text_of
from tests.test_http import HEADERS, LIST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.services import Bridge

pytestmark = pytest.mark.anyio

GATEWAY_KEY = "the-gateways-key-for-tests"
DIGEST = hashlib.sha256(GATEWAY_KEY.encode()).hexdigest()
NAME = "X-Local-LLM-Developer"


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """A bridge behind a gateway, which itself knows alice; a minute allows each developer 9 calls."""
    folder = tmp_path_factory.mktemp("behind")
    with (
        FakeEngine(events(piece("hello", "stop"))).running() as url,
        serving(folder, url, gateway_key_sha256=DIGEST, requests_per_minute=9) as bridge,
    ):
        yield bridge


def ask(bridge: Bridge, token: str, *names: str) -> tuple[int, str]:
    """List the tools, with a header for each name; gives status and text."""
    connection = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=10)
    connection.putrequest("POST", "/mcp")
    headers = {**HEADERS, "Authorization": f"Bearer {token}", "Content-Length": str(len(LIST))}
    for header, value in (*headers.items(), *((NAME, name) for name in names)):
        connection.putheader(header, value)
    connection.endheaders(LIST)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("name", ["bob", "carol.jones@example.com"])
async def test_the_gateways_requests_are_those_of_the_developer_it_names(behind: Bridge, mode: str, name: str) -> None:
    async with behind.client(mode, GATEWAY_KEY, headers={NAME: name, "X-Request-ID": f"{mode}-1"}) as client:
        assert text_of(await client.call_tool("chat", {"message": "hi"})) == "hello"
    log = behind.log.read_text()
    record = records(log)[-1]
    assert (record["developer"], record["model"], record["outcome"]) == (name, MODEL, "ok")
    assert record["request_id"] == f"{mode}-1"
    assert GATEWAY_KEY not in log


async def test_each_developer_of_the_gateway_has_limits_and_answers_of_their_own(behind: Bridge) -> None:
    async def call(name: str) -> tuple[bool, str]:
        async with behind.client("legacy", GATEWAY_KEY, headers={NAME: name}) as client:
            result = await client.call_tool("chat", {"message": "the same question"})
        return bool(result.meta and result.meta["cached"]), text_of(result)

    assert [(await call("dave"))[0] for _ in range(3)] == [False, True, True]
    assert (await call("erin")) == (False, "hello")
    texts = [(await call("dave"))[1] for _ in range(7)]
    assert "dave has made the 9 calls that a minute allows" in texts[-1]
    assert (await call("erin"))[1] == "hello"


def test_without_a_developers_name_the_gateway_gets_nothing(behind: Bridge) -> None:
    for names, problem in {
        (): "is missing",
        ("",): "is no name of a developer",
        ("two words",): "is no name of a developer",
        ("bob", "mallory"): "is no name of a developer",
        ("x" * 65,): "is no name of a developer",
        ("b\xf6b",): "is no name of a developer",
        ("-",): "is no name of a developer",
    }.items():
        status, text = ask(behind, GATEWAY_KEY, *names)
        assert status == 403, names
        assert text.startswith(
            f"The gateway's key came without a developer: the header X-Local-LLM-Developer {problem}."
        )
    log = behind.log.read_text()
    assert "the header X-Local-LLM-Developer is missing. Does the gateway set it?" in log
    (first, *_) = [record for record in records(log) if record["outcome"] == "refused"]
    assert (first["status"], first["what"], first["developer"]) == (403, "POST /mcp", "-")
    assert "mallory" not in log


@pytest.mark.parametrize("name", ["bob", "-", "two words"])
async def test_nobody_else_is_believed_who_they_are(behind: Bridge, name: str) -> None:
    for token in ("", "wrong", DIGEST, GATEWAY_KEY + "x"):
        status, text = ask(behind, token, name)
        assert status == 401
        assert text.startswith("The token is not known here.")
    async with behind.client(token=TOKEN, headers={NAME: name}) as client:
        await client.call_tool("list_models", {})
    record = records(behind.log.read_text())[-1]
    assert (record["developer"], record["what"]) == ("alice", "list_models")


def test_a_bridge_without_a_gateway_believes_no_header(bridge: Bridge) -> None:
    assert ask(bridge, GATEWAY_KEY, "bob")[0] == 401
    assert ask(bridge, "", "bob")[0] == 401
    assert ask(bridge, TOKEN, "bob")[0] == 200


def test_while_the_gateways_key_is_replaced_both_are_known(behind: Bridge) -> None:
    new = "another-key-of-the-gateway"
    digest = hashlib.sha256(new.encode()).hexdigest()
    folder = behind.log.parent / "both"
    with serving(
        folder, "http://127.0.0.1:9", developers=[], gateway_key_sha256=digest, former_gateway_keys_sha256=[DIGEST]
    ) as both:
        assert [ask(both, key, "bob")[0] for key in (new, GATEWAY_KEY, TOKEN)] == [200, 200, 401]


def test_behind_a_gateway_a_bridge_needs_no_developers_of_its_own(behind: Bridge) -> None:
    with serving(behind.log.parent / "alone", "http://127.0.0.1:9", developers=[], gateway_key_sha256=DIGEST) as alone:
        assert ask(alone, GATEWAY_KEY, "bob")[0] == 200
        assert ask(alone, TOKEN)[0] == 401
        assert "0 developer(s), and those of the gateway" in alone.log.read_text()
