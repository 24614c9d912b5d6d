"""Numbers of tokens that cannot be true are dropped: not counted, not written, and nobody fails over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from local_llm_bridge.models.answer import Answer
from local_llm_bridge.server.dispatch import Call
from tests.services import (
    FakeEngine,
    asked,
    delta,
    events,
    piece,
    records,
    serving,
    text_of,
    usage,
    wait_for,
    wire_texts,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.services import Bridge

pytestmark = pytest.mark.anyio

WRONG = [
    -5,
    "many",
    "12",
    10**400,
    10**15,
    1.5,
    12.0,
    True,
    False,
    None,
    [],
    {},
    float("nan"),
    float("inf"),
    float("-inf"),
]


def completed(*stream: dict[str, Any]) -> Any:  # noqa: ANN401 - a Completion
    answer = Answer()
    for event in stream:
        answer.add(event)
    return answer.completion("m", "")


@pytest.mark.parametrize("number", WRONG, ids=repr)
def test_a_number_that_cannot_be_one_is_dropped_alone(number: object) -> None:
    text = (piece("a"), piece("b", "stop"))
    prompt = completed(*text, usage(number, 7))
    assert (prompt.prompt_tokens, prompt.completion_tokens) == (None, 7)
    written = completed(*text, usage(7, number))
    assert (written.prompt_tokens, written.completion_tokens) == (7, 2), "the pieces are counted instead"
    thought = completed(
        delta(reasoning="hm"), *text, usage(7, 4, completion_tokens_details={"reasoning_tokens": number})
    )
    assert thought.thinking_tokens == 2, "by their part of the characters"


@pytest.mark.parametrize("given", ["many", 5, True, [1, 2], [{"prompt_tokens": 1}], float("nan")], ids=repr)
def test_usage_that_is_no_object_is_dropped(given: object) -> None:
    got = completed(piece("a", "stop"), {"choices": [], "usage": given})
    assert (got.prompt_tokens, got.completion_tokens) == (None, 1)


@pytest.mark.parametrize("details", ["many", 5, [], {"reasoning_tokens": 10**9}], ids=repr)
def test_details_that_are_none_are_dropped(details: object) -> None:
    assert completed(piece("a", "stop"), usage(7, 4, completion_tokens_details=details)).thinking_tokens == 0


def test_more_thinking_than_tokens_cannot_be() -> None:
    assert completed(usage(7, 4, completion_tokens_details={"reasoning_tokens": 900})).thinking_tokens == 4


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine(b"")


@pytest.fixture(scope="module")
def bridge(engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    with engine.running() as url, serving(tmp_path_factory.mktemp("usage"), url, max_retries=0) as running:
        yield running


async def test_neither_the_counters_nor_the_records_take_a_lie(engine: FakeEngine, bridge: Bridge) -> None:
    async with bridge.client() as client:
        for number in WRONG:
            engine.reply = events(piece("hello", "stop"), usage(number, number))
            result = await client.call_tool("chat", {"message": "hi", "fresh": True})
            assert text_of(result) == "hello"
    status, text, _ = bridge.http("/metrics")
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(text)}
    tokens = {sample.labels["kind"]: sample.value for sample in families["local_llm_bridge_tokens"].samples}
    assert tokens["prompt"] == 0
    assert tokens["completion"] == len(WRONG), "the pieces that came"
    wait_for(lambda: len(records(bridge.log.read_text())) == len(WRONG))
    for record in records(bridge.log.read_text()):
        assert (record["prompt_tokens"], record["completion_tokens"]) == (None, 1)


async def test_a_question_of_which_the_engine_has_read_little_is_told() -> None:
    def question(size: int) -> Call:
        return Call("chat", {"message": "word " * (size // 5)})

    for size, read, notes in ((40_000, 2050, 1), (40_000, 8000, 0), (40_000, None, 0), (800, 20, 0)):
        (result,) = await asked(question(size), reply=events(piece("hello"), delta("stop"), usage(read, 1)))
        assert len(wire_texts(result)) == 1 + notes
    (result,) = await asked(question(40_000), reply=events(piece("hello"), delta("stop"), usage(2050, 1)))
    assert (
        "it has read 2050 tokens of about 10000: it may have dropped the rest. Give m a longer" in wire_texts(result)[1]
    )
