"""An engine that does not take a field of the request is asked without it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from local_llm_bridge.calls import Call
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


@pytest.mark.parametrize(
    "words",
    [
        "System role not supported",
        "This model does not support system messages",
        "Developer instruction is not enabled for models/gemma; system instructions are not enabled",
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "Only user and assistant roles are supported!",
    ],
)
async def test_what_the_system_says_goes_to_the_user_where_there_is_no_system(words: str) -> None:
    class NoSystem(FakeEngine):
        def _handle(self, connection: socket.socket) -> None:
            request = request_of(connection)
            self.requests.append(request)
            body = json.dumps({"error": {"message": words}})
            refused = request["messages"][0]["role"] == "system"
            connection.sendall(answer("400 Bad Request", "application/json", body) if refused else self.reply)

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
