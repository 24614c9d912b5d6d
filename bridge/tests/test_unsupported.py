"""An engine that does not take a field of the request is asked without it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from local_llm_bridge.config import CacheSettings, Engine, Settings
from local_llm_bridge.models import unsupported
from local_llm_bridge.server.dispatch import Call, Dispatcher
from tests.services import FakeEngine, answer, asked, events, piece, request_of, wire_texts

if TYPE_CHECKING:
    import socket

pytestmark = pytest.mark.anyio

OPENAI = "Unsupported parameter: '{}' is not supported with this model."
OTHER_NAME = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
)


class Picky(FakeEngine):
    """Refuses each of some fields in words of its own, one a time."""

    def __init__(self, **refusals: str | dict[str, Any]) -> None:
        super().__init__(events(piece("hello", "stop")))
        self._refusals = refusals

    def _handle(self, connection: socket.socket) -> None:
        request = request_of(connection)
        self.requests.append(request)
        for field, words in self._refusals.items():
            if field in request:
                body = {"error": {"message": words}} if isinstance(words, str) else words
                connection.sendall(answer("400 Bad Request", "application/json", json.dumps(body)))
                return
        connection.sendall(self.reply)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("stream_options", "Unrecognized request argument supplied: stream_options"),
        (
            "stream_options",
            {"detail": "Extra parameters ['stream_options'] are not allowed when extra-parameters is not set"},
        ),
        (
            "stream_options",
            {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "stream_options"],
                        "msg": "Extra inputs are not permitted",
                    }
                ]
            },
        ),
        ("stream_options", "Validation error at #/stream_options: Extra inputs are not permitted"),
        ("stream_options", "未知参数 stream_options 无法被识别"),
        ("stream_options", 'json: unknown field "stream_options"'),
        ("temperature", OPENAI.format("temperature")),
        (
            "temperature",
            "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) is supported.",
        ),
        ("temperature", "invalid temperature: only 1 is allowed for this model"),
        ("temperature", "`temperature` is deprecated for this model."),
        ("max_tokens", OTHER_NAME),
        ("max_tokens", "max_tokens is deprecated; use `max_completion_tokens`"),
    ],
)
async def test_it_is_asked_once_more_without_the_field(field: str, words: str | dict[str, Any]) -> None:
    engine = Picky(**{field: words})
    (result,) = await asked(Call("chat", {"message": "hi"}), reply=engine)
    assert wire_texts(result) == ["hello"]
    first, second = engine.requests
    assert first.keys() - second.keys() == {field}
    if field == "max_tokens":
        assert second.pop("max_completion_tokens") == first["max_tokens"]
    assert first == second | {field: first[field]}


def refusal(words: str) -> str:
    return json.dumps({"error": {"message": words}})


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("400 No", refusal("System role not supported")),
        ("400 No", refusal("This model does not support system messages")),
        (
            "400 No",
            refusal("Developer instruction is not enabled for models/gemma; system instructions are not enabled"),
        ),
        ("400 No", f"[{refusal('Developer instruction is not enabled for models/gemma-3-27b-it')}]"),
        ("400 No", refusal("Conversation roles must alternate user/assistant/user/assistant/...")),
        ("400 No", refusal("Only user and assistant roles are supported!")),
        ("400 No", refusal("messages.0: role 'system' is not allowed")),
        ("400 No", refusal('messages: Unexpected role "system".')),
        ("422 No", refusal("body.messages.0.role: Input should be 'user' or 'assistant'")),
        ("400 No", refusal("Invalid value: 'system'. Supported values are: 'user' and 'assistant'.")),
        ("400 No", refusal("'system' is not one of ['user', 'assistant'] - 'messages.0.role'")),
        ("500 No", refusal("Error: Jinja Exception: System role not supported")),
        (
            "200 OK",
            json.dumps(
                {
                    "base_resp": {"status_code": 2013, "status_msg": "invalid params, invalid message role: system"},
                    "choices": None,
                }
            ),
        ),
    ],
)
async def test_what_the_system_says_goes_to_the_user_where_there_is_no_system(status: str, body: str) -> None:
    class NoSystem(FakeEngine):
        def _handle(self, connection: socket.socket) -> None:
            request = request_of(connection)
            self.requests.append(request)
            refused = request["messages"][0]["role"] == "system"
            connection.sendall(answer(status, "application/json", body) if refused else self.reply)

    engine = NoSystem(events(piece("hello", "stop")))
    (result,) = await asked(Call("chat", {"message": "hi", "system": "Be brief."}), reply=engine)
    assert wire_texts(result) == ["hello"]
    assert engine.requests[-1]["messages"] == [{"role": "user", "content": "Be brief.\n\nhi"}]


async def test_several_fields_are_refused_one_after_the_other() -> None:
    engine = Picky(
        max_tokens=OTHER_NAME, temperature=OPENAI.format("temperature"), stream_options="unknown: stream_options"
    )
    (result,) = await asked(Call("chat", {"message": "hi"}), reply=engine)
    assert wire_texts(result) == ["hello"]
    assert engine.requests[-1].keys() == {"model", "messages", "max_completion_tokens", "stream"}


async def test_an_engine_that_refuses_whatever_it_gets_is_not_asked_for_ever() -> None:
    words = f"{OTHER_NAME} temperature and stream_options are not supported, nor is a context length over 1000 tokens"
    engine = FakeEngine(answer("400 Bad Request", "application/json", json.dumps({"error": {"message": words}})))
    (result,) = await asked(Call("chat", {"message": "hi"}), reply=engine)
    assert result["isError"]
    assert OTHER_NAME in wire_texts(result)[0]
    assert len(engine.requests) <= 3


async def test_a_value_that_is_out_of_range_is_not_left_out() -> None:
    words = "temperature must be at most 0.1"
    engine = Picky(temperature=words)
    (result,) = await asked(Call("chat", {"message": "hi"}), reply=engine)
    assert words in wire_texts(result)[0]
    assert len(engine.requests) == 1


LIMIT = "max_tokens: 2000 > 1024, which is the maximum allowed number of output tokens for m"


class Limited(Picky):
    """Refuses an answer of more than 1024 tokens, too, and says the question again if it is asked to."""

    def _handle(self, connection: socket.socket) -> None:
        request = request_of(connection)
        words = next((words for field, words in self._refusals.items() if field in request), None)
        if words is None and request.get("max_tokens", 0) > 1024:
            words = LIMIT
        if "odd" in str(request["messages"]) and not self.requests:
            words = str(request["messages"])
        self.requests.append(request)
        body = json.dumps({"error": {"message": words}})
        connection.sendall(answer("400 Bad Request", "application/json", body) if words else self.reply)


def hi(message: str = "hi") -> Call:
    return Call("chat", {"message": message, "system": "Be brief."})


async def test_what_an_engine_does_not_take_is_remembered() -> None:
    engine = Limited(temperature=OPENAI.format("temperature"), stream_options="unknown: stream_options")
    results = await asked(hi(), hi("ho"), hi("hu"), reply=engine)
    assert [wire_texts(result) for result in results] == [["hello"]] * 3
    assert len(engine.requests) == 6
    assert all(request.keys() == {"model", "messages", "max_tokens", "stream"} for request in engine.requests[-3:])
    assert [request["max_tokens"] for request in engine.requests[-3:]] == [1024] * 3


async def test_that_it_takes_no_system_or_another_name_is_remembered() -> None:
    engine = Picky(max_tokens=OTHER_NAME)
    await asked(hi(), hi("ho"), reply=engine)
    assert ["max_tokens" in request for request in engine.requests] == [True, False, False]

    class NoSystem(FakeEngine):
        def _handle(self, connection: socket.socket) -> None:
            request = request_of(connection)
            self.requests.append(request)
            body = json.dumps({"error": {"message": "System role not supported"}})
            refused = request["messages"][0]["role"] == "system"
            connection.sendall(answer("400 Bad Request", "application/json", body) if refused else self.reply)

    other = NoSystem(events(piece("hello", "stop")))
    await asked(hi(), hi("ho"), reply=other)
    assert [len(request["messages"]) for request in other.requests] == [2, 1, 1]


async def test_it_is_forgotten_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsupported, "_KEPT_S", 0.0)
    engine = Limited(temperature=OPENAI.format("temperature"))
    await asked(hi(), hi("ho"), reply=engine)
    assert len(engine.requests) == 6


async def test_it_is_forgotten_where_another_engine_is_at_the_address() -> None:
    engine = Picky(max_tokens=OTHER_NAME)
    with engine.running() as url:
        dispatcher = Dispatcher(Settings(engines=(Engine("m", url),), max_retries=0, cache=CacheSettings(entries=0)))
        try:
            await dispatcher.run(hi())
            del engine._refusals["max_tokens"]  # noqa: SLF001 - another engine is started
            engine._refusals["max_completion_tokens"] = "max_completion_tokens: Extra inputs are not permitted"  # noqa: SLF001
            assert wire_texts(await dispatcher.run(hi())) == ["hello"]
            assert wire_texts(await dispatcher.run(hi())) == ["hello"]
            assert len(list(filter(None, engine.requests))) == 5  # besides the list of models
        finally:
            await dispatcher.close()


async def test_it_is_forgotten_when_the_list_of_models_changes() -> None:
    class Changing(Picky):
        models: tuple[str, ...] = ("m",)

        def _handle(self, connection: socket.socket) -> None:
            request = request_of(connection)
            if request:
                self.requests.append(request)
                words = json.dumps({"error": {"message": self._refusals["temperature"]}})
                refusal = answer("400 Bad Request", "application/json", words)
                connection.sendall(refusal if "temperature" in request else self.reply)
            else:
                listed = json.dumps({"data": [{"id": name} for name in self.models]})
                connection.sendall(answer("200 OK", "application/json", listed))

    engine = Changing(temperature=OPENAI.format("temperature"))
    with engine.running() as url:
        dispatcher = Dispatcher(Settings(engines=(Engine("m", url),), max_retries=0, cache=CacheSettings(entries=0)))
        backend = dispatcher.backend
        try:
            await backend.readiness()
            for models, requests in ((("m",), 2), (("m",), 3), (("m", "n"), 5), (("m", "n"), 6)):
                engine.models = models
                backend._probed_at = time.monotonic() - 60  # noqa: SLF001 - as if it had been a while ago
                await backend.readiness()
                await dispatcher.run(hi())
                assert len(engine.requests) == requests
        finally:
            await dispatcher.close()


@pytest.mark.parametrize(
    "message",
    [
        "odd: temperature is not supported",
        "odd: max_tokens must be at most 299",
        "odd: max_tokens must be below 300 (exclusive)",
        "odd: use max_completion_tokens instead of max_tokens",
    ],
)
async def test_words_of_a_question_that_an_engine_repeats_are_not_remembered(message: str) -> None:
    engine = Limited()
    results = await asked(hi(message), hi(), hi("ho"), reply=engine)
    assert [wire_texts(result) for result in results] == [["hello"]] * 3
    assert engine.requests[0] != engine.requests[1]
    others = [request for request in engine.requests if request["messages"][-1]["content"] != message]
    assert all("temperature" in request and "max_tokens" in request for request in others)
    assert [request["max_tokens"] for request in others][-2:] == [1024, 1024]
    assert 299 not in [request["max_tokens"] for request in others]


@pytest.mark.parametrize(
    "words",
    [
        "This request needs more credits, or fewer max_tokens: you can only afford 1024",
        "max_tokens must be at most 1024, as your prompt has 976",
        "max_tokens (2000) exceeds the 1024 output tokens that remain to you today",
        "This model's maximum context length is 1030 tokens, but the prompt has 6 input tokens",
    ],
)
async def test_a_limit_that_others_need_not_have_is_not_remembered(words: str) -> None:
    class Once(Picky):
        def _handle(self, connection: socket.socket) -> None:
            request = request_of(connection)
            self.requests.append(request)
            refusal = answer("400 Bad Request", "application/json", json.dumps({"error": {"message": words}}))
            connection.sendall(self.reply if len(self.requests) != 1 else refusal)

    engine = Once()
    await asked(hi(), hi("ho"), reply=engine)
    assert [request["max_tokens"] for request in engine.requests][-1] == 2000


async def test_a_question_without_a_system_message_is_not_asked_again_for_its_sake() -> None:
    words = json.dumps({"error": {"message": "Conversation roles must alternate user/assistant/user/assistant/..."}})
    engine = FakeEngine(answer("400 Bad Request", "application/json", words))
    (result,) = await asked(Call("chat", {"message": "hi"}), reply=engine)
    assert result["isError"]
    assert len(engine.requests) == 1


async def test_an_answer_cut_by_the_engines_own_limit_says_so() -> None:
    engine = Limited()
    engine.reply = events(piece("hello", "length"))
    for result in await asked(hi(), hi("ho"), reply=engine):
        assert "ask for less at once: the engine lets no answer have more than 1024 tokens" in wire_texts(result)[1]


async def test_a_question_that_is_too_long_makes_nothing_forgotten() -> None:
    class Short(Picky):
        def _handle(self, connection: socket.socket) -> None:
            request = request_of(connection)
            self.requests.append(request)
            words = OTHER_NAME if "max_tokens" in request else None
            if not words and len(request["messages"][-1]["content"]) > 100:
                words = "prompt is too long for max_completion_tokens: 5000 tokens > 4096 maximum"
            body = json.dumps({"error": {"message": words}})
            connection.sendall(answer("400 Bad Request", "application/json", body) if words else self.reply)

    engine = Short()
    first, second, third = await asked(hi(), hi("a" * 200), hi("ho"), reply=engine)
    assert wire_texts(first) == wire_texts(third) == ["hello"]
    assert second["isError"]
    assert len(engine.requests) == 4
