"""Models are found under the names that engines give them: paths, names with blanks, tags; and where none is listed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from local_llm_bridge import config
from local_llm_bridge.config import Engine, Settings
from local_llm_bridge.errors import ConfigError
from local_llm_bridge.models.backend import Backend
from local_llm_bridge.models.router import same_name
from local_llm_bridge.server.dispatch import Call, Dispatcher
from tests.services import FakeEngine, answer, asked, events, piece, request_of, wire_texts

if TYPE_CHECKING:
    import socket
    from pathlib import Path

pytestmark = pytest.mark.anyio

CHAT = Call("chat", {"message": "hi"})
NOT_FOUND = answer("404 Not Found", "application/json", '{"detail": "Not Found"}')


class Naming(FakeEngine):
    """Lists models under these names, or nothing at all, and answers under any."""

    def __init__(self, *names: object, listing: bytes | None = None) -> None:
        super().__init__(events(piece("hello", "stop")))
        body = json.dumps({"object": "list", "data": [{"id": name} for name in names]})
        self._listing = listing or answer("200 OK", "application/json", body)

    def _handle(self, connection: socket.socket) -> None:
        request = request_of(connection)
        if request:
            self.requests.append(request)
        connection.sendall(self.reply if request else self._listing)


async def readiness(engine: FakeEngine, name: str | None) -> str | None:
    """Return why the model is not ready, as /readyz and list_models say it."""
    with engine.running() as url:
        backend = Backend(Settings(engines=(Engine(name, url),), max_retries=0))
        try:
            (reason,) = (await backend.readiness()).values()
        finally:
            await backend.close()
    return reason


def file(folder: Path, name: str) -> Path:
    path = folder / "config.yml"
    models = [{"name": name, "url": "http://e/v1", "context": 4096}]
    path.write_text(json.dumps({"models": models, "default_model": name, "developers": []}))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "qwen2.5:7b",
        "Qwen/Qwen3-8B",
        "hf.co/x/Y-GGUF:Q4_K_M",
        "/models/qwen",
        "./m.gguf",
        "my model.gguf",
        "C:\\models\\q.gguf",
        "@cf/meta/llama",
        "lora(v2)",
        "模型",
        "m",
        "x" * 256,
    ],
)
async def test_a_name_may_be_what_engines_list(tmp_path: Path, name: str) -> None:
    assert config.from_file(file(tmp_path, name)).engines[0].name == name
    engine = Naming(name)
    assert await readiness(engine, name) is None
    (result,) = await asked(Call("chat", {"message": "hi", "model": name}), reply=engine, engine={"name": name})
    assert wire_texts(result) == ["hello"]
    assert engine.requests[-1]["model"] == name


@pytest.mark.parametrize("name", ["", " ", " m", "m ", "a\nb", "a\x00b", "a\u202eb", "a\u2028b", "x" * 257])
def test_a_name_that_could_fool_a_reader_of_the_log_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"models\.0\.name: found .*; wanted a name of 1 to 256 characters"):
        config.from_file(file(tmp_path, name))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("llama3.2", "llama3.2:latest", True),
        ("llama3.2:latest", "llama3.2", True),
        ("llama3.2", "llama3.2", True),
        ("llama3.2", "llama3.2:7b", False),
        ("llama3.2:7b", "llama3.2:latest", False),
        ("llama", "llama3.2", False),
    ],
)
def test_only_ollamas_default_tag_may_be_left_out(one: str, other: str, *, same: bool) -> None:
    assert same_name(one, other) is same


async def test_a_model_is_ready_under_its_short_name_and_found_by_either() -> None:
    engine = Naming("llama3.2:latest", "x:7b")
    assert await readiness(engine, "llama3.2") is None
    assert "does not serve x" in str(await readiness(engine, "x"))
    calls = [Call("chat", {"message": "hi", "model": name}) for name in ("llama3.2", "llama3.2:latest")]
    results = await asked(*calls, Call("list_models", {}), reply=engine, engine={"name": "llama3.2"})
    assert [wire_texts(result)[0] for result in results[:2]] == ["hello", "hello"]
    assert wire_texts(results[2])[0].startswith("llama3.2: ready; the default")


async def test_an_engine_without_a_list_is_ready_if_the_model_is_named() -> None:
    engine = Naming(listing=NOT_FOUND)
    assert await readiness(engine, "m") is None
    (result,) = await asked(CHAT, reply=engine)
    assert wire_texts(result) == ["hello"]


def listed(body: object, status: str = "200 OK") -> bytes:
    return answer(status, "application/json", json.dumps(body))


@pytest.mark.parametrize(
    "body", [b'{"data": [{"id": "m"}]}', b'[{"id": "m"}]\n', b'\xef\xbb\xbf{"data": [{"id": "m"}]}']
)
async def test_a_whole_list_does_not_wait_for_the_end_of_the_connection(body: bytes) -> None:
    class Open(Naming):
        def _handle(self, connection: socket.socket) -> None:
            super()._handle(connection)
            connection.recv(1)

    engine = Open(listing=b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n" + body)
    (result,) = await asked(CHAT, reply=engine, engine={"name": None}, timeout_s=20)
    assert wire_texts(result) == ["hello"]


@pytest.mark.parametrize(
    ("listing", "why"),
    [
        (NOT_FOUND, "has nothing there (HTTP 404: Not Found)"),
        (answer("200 OK", "text/html", "<h1>hi</h1>"), "did not answer with a list of models: hi."),
        (answer("200 OK", "application/json", ""), "did not answer with a list of models: it is empty."),
        (listed({}), "did not answer with a list of models: {}."),
        (listed({"data": {"m": 1}}), 'did not answer with a list of models: {"data": {"m": 1}}.'),
        (listed("busy"), "did not answer with a list of models: busy."),
        (listed({"data": [{"id": None}, 7, {}, "m", {"id": ""}]}), "a list of models: none of them has an id."),
        (listed({"error": "no disk"}), "failed: no disk"),
        (listed({"error": {"message": "no disk"}}, "500 Oh"), "failed (HTTP 500: no disk)"),
        (listed({"detail": "no"}, "405 Method Not Allowed"), "refused the request (HTTP 405: no)"),
    ],
)
async def test_without_a_name_and_a_list_the_way_out_is_a_name(listing: bytes, why: str) -> None:
    with Naming(listing=listing).running() as url:
        dispatcher = Dispatcher(Settings(engines=(Engine(None, url),), max_retries=0))
        results = [await dispatcher.run(call) for call in (CHAT, Call("list_models", {}))]
        await dispatcher.close()
    for result in results:
        assert result["isError"]
        (text,) = wire_texts(result)
        assert text.startswith(f"No model is named, and {url}/models gives no list of them: name one in MODEL_NAME.")
        assert why in text
        assert "None" not in text


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_a_list_that_wants_a_key_says_so(status: str) -> None:
    (result,) = await asked(CHAT, reply=Naming(listing=listed({"error": "who?"}, status)), engine={"name": None})
    assert "refused the bridge's key" in wire_texts(result)[0]


@pytest.mark.parametrize("odd", [None, 7, "x", [], {}, {"id": None}, {"id": 7}, {"id": ""}, {"name": "x"}])
async def test_an_odd_entry_leaves_the_others(odd: object) -> None:
    entry = {"object": "model", "id": "m"}
    for body in ({"data": [odd, entry, odd]}, [entry, odd]):
        (result,) = await asked(CHAT, reply=Naming(listing=listed(body)), engine={"name": None})
        assert wire_texts(result) == ["hello"]


async def test_a_problem_is_one_sentence_in_the_list() -> None:
    (result,) = await asked(Call("list_models", {}), reply=Naming())
    assert "does not serve m; it serves nothing; the default; " in wire_texts(result)[0]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "serves no model: load one there"),
        (["a", "b"], "lists 2 models (a, b): name one in the argument model, or set MODEL_NAME"),
        (["m", "m"], "hello"),
        (["/models/my model.gguf"], "hello"),
    ],
)
async def test_without_a_name_the_only_listed_model_answers(names: list[str], words: str) -> None:
    (result,) = await asked(CHAT, reply=Naming(*names), engine={"name": None})
    assert words in wire_texts(result)[0]


async def test_no_list_where_there_is_no_model_is_an_empty_one() -> None:
    (result,) = await asked(CHAT, reply=Naming(listing=listed({"data": None})), engine={"name": None})
    assert "serves no model: load one there" in wire_texts(result)[0]
