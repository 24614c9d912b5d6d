"""A question goes to the model that it fits, and the caller can see which one that was and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from local_llm_bridge.config import Engine
from local_llm_bridge.models.router import Router
from local_llm_bridge.rules import GUIDE_RULES, Rule
from tests.services import FakeEngine, answer, events, free_port, piece, request_of, serving, text_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tests.services import Bridge

pytestmark = pytest.mark.anyio

GENERAL = Engine("general", "http://g/v1", good_at=("general",))
CODER = Engine("coder", "http://c/v1", good_at=("code",))
BOTH = (GENERAL, CODER)


class ListedEngine(FakeEngine):
    """Lists a model besides answering with it: a stand-in, as there is one tiny model only."""

    name = ""

    def _handle(self, connection: socket.socket) -> None:
        request = request_of(connection)
        if request:
            self.requests.append(request)
            connection.sendall(self.reply)
        else:
            connection.sendall(answer("200 OK", "application/json", json.dumps({"data": [{"id": self.name}]})))


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("Write a Python script that sorts a file.", "coder"),
        ("Why does this FUNCTION return nothing?", "coder"),
        ("Explain c++ to me", "coder"),
        ("```\nx = 1\n```", "coder"),
        ("这段代码有什么问题?", "coder"),
        ("写一个排序算法", "coder"),
        ("Calculate the derivative of x^2.", "general"),
        ("求这个方程的解", "general"),
        ("What is the capital of France?", "other"),
        ("法国的首都是哪里?", "other"),
        ("", "other"),
        # Whole words only: none of these is about code or maths.
        ("A classic novel about a scripture and a rusty debugger-free apiary", "other"),
        ("The Javanese encoded their aftermath in codebreaking", "other"),
        ("the_code_name of it", "other"),
    ],
)
def test_the_guides_rules_know_code_and_maths_in_english_and_chinese(text: str, model: str) -> None:
    other = Engine("other", "http://o/v1")
    choice = Router((other, *BOTH), GUIDE_RULES).choose(text)
    assert choice.engine.name == model
    assert choice.reason


def test_a_model_for_maths_is_asked_before_the_general_one() -> None:
    maths = Engine("maths", "http://m/v1", good_at=("maths",))
    router = Router((CODER, GENERAL, maths), GUIDE_RULES)
    assert router.choose("Solve this equation").engine is maths
    assert Router(BOTH, GUIDE_RULES).choose("Solve this equation").engine is GENERAL


def test_code_comes_before_maths() -> None:
    assert Router(BOTH, GUIDE_RULES).choose("Write a function that inverts a matrix").engine is CODER


def test_what_a_tool_needs_counts_more_than_the_text() -> None:
    choice = Router(BOTH, GUIDE_RULES).choose("Calculate the integral of x", "code")
    assert choice.engine is CODER
    assert choice.reason == "good at code"


def test_a_strength_that_no_model_has_changes_nothing() -> None:
    assert Router(BOTH, GUIDE_RULES).choose("Write a regex", "poetry").engine is CODER


def test_what_no_rule_fits_goes_to_the_default() -> None:
    assert Router(BOTH, GUIDE_RULES).choose("hello").engine is GENERAL
    assert Router(BOTH, GUIDE_RULES, "coder").choose("hello").engine is CODER
    assert Router(BOTH, GUIDE_RULES, "coder").default is CODER


def test_rules_without_a_model_that_fits_are_no_rules() -> None:
    plain = (Engine("a", "http://a/v1"), Engine("b", "http://b/v1"))
    assert Router(plain, GUIDE_RULES).choose("python code").engine is plain[0]


def test_a_single_model_gets_everything() -> None:
    choice = Router((CODER,), GUIDE_RULES).choose("Solve this equation", "maths")
    assert (choice.engine, choice.reason) == (CODER, "the only model")


def test_the_operators_own_rules_are_tried_in_order() -> None:
    rules = (
        Rule(model="coder", patterns=(r"^ticket-\d+", "stack ?trace")),
        Rule(good_at="general", keywords=("stack trace", "发票")),
    )
    router = Router((Engine("other", "http://o/v1"), *BOTH), rules)
    assert router.choose("TICKET-12 is open").engine is CODER
    assert router.choose("see ticket-12").engine.name == "other"
    assert router.choose("A stack trace").engine is CODER
    assert router.choose("请检查这张发票").engine is GENERAL
    assert router.choose("python").engine.name == "other"  # the guide's rules have been replaced


@pytest.fixture(scope="module")
def engines() -> dict[str, ListedEngine]:
    """Two engines that each answer with their own name."""
    engines = {}
    for name in ("general", "coder"):
        engines[name] = ListedEngine(events(piece(f"I am {name}", "stop")))
        engines[name].name = name
    return engines


@pytest.fixture(scope="module")
def fleet(engines: dict[str, ListedEngine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """A bridge with these two, the second being the default, and a third that is down."""
    with engines["general"].running() as general, engines["coder"].running() as coder:
        urls = {"general": general, "coder": coder, "asleep": f"http://127.0.0.1:{free_port()}"}
        strengths = {"general": ["general", "maths"], "coder": ["code"], "asleep": ["poetry"]}
        models = [{"name": name, "url": url, "context": 4096, "good_at": strengths[name]} for name, url in urls.items()]
        folder = tmp_path_factory.mktemp("fleet")
        with serving(folder, models=models, default_model="coder", max_retries=0) as running:
            yield running


@pytest.mark.parametrize(
    ("tool", "arguments", "answered"),
    [
        ("chat", {"message": "Solve the equation x + 1 = 2."}, ("general", "equation")),
        ("chat", {"message": "计算一下概率"}, ("general", "计算")),
        ("chat", {"message": "Refactor this method."}, ("coder", "refactor")),
        ("chat", {"message": "Good morning!"}, ("coder", "default")),
        ("chat", {"message": "Refactor this method.", "model": "general"}, ("general", "asked for by name")),
        ("code_generation", {"task": "Solve the equation x + 1 = 2."}, ("coder", "good at code")),
        ("code_generation", {"task": "Say hello.", "model": "general"}, ("general", "asked for by name")),
    ],
)
async def test_the_right_engine_answers_and_the_result_says_why(
    fleet: Bridge, engines: dict[str, ListedEngine], tool: str, arguments: dict[str, Any], answered: tuple[str, str]
) -> None:
    model, reason = answered
    before = {name: len(engine.requests) for name, engine in engines.items()}
    async with fleet.client() as client:
        result = await client.call_tool(tool, {**arguments, "fresh": True})
    assert text_of(result) == f"I am {model}"
    assert result.meta is not None
    assert result.meta["model"] == model
    assert reason in result.meta["routing"].lower()
    asked = {name: len(engine.requests) - before[name] for name, engine in engines.items()}
    assert asked == {"general": 0, "coder": 0, model: 1}
    assert engines[model].requests[-1]["model"] == model


async def test_an_unknown_name_is_answered_with_the_known_ones(fleet: Bridge) -> None:
    async with fleet.client() as client:
        result = await client.call_tool("chat", {"message": "hi", "model": "gpt-9"})
    assert result.is_error
    assert text_of(result) == "There is no model 'gpt-9'. Known: general, coder, asleep."


@pytest.mark.parametrize(
    ("query", "tool", "arguments", "answered"),
    [
        ("?model=general", "chat", {"message": "Refactor this method."}, "general"),
        ("?model=general", "code_generation", {"task": "Say hello."}, "general"),
        ("?model=general", "review_code", {"code": "x = 1"}, "general"),
        ("?model=gener%61l", "chat", {"message": "Good morning!"}, "general"),
        ("?model=general", "chat", {"message": "Good morning!", "model": "coder"}, "coder"),
        ("?model=general", "chat", {"message": "Good morning!", "model": ""}, "general"),
        ("?model=", "chat", {"message": "Good morning!"}, "coder"),
        ("?other=general", "chat", {"message": "Good morning!"}, "coder"),
    ],
)
async def test_an_address_can_name_the_model_for_calls_that_name_none(
    fleet: Bridge, query: str, tool: str, arguments: dict[str, Any], answered: str
) -> None:
    for mode in ("auto", "legacy"):
        async with fleet.client(mode, query=query) as client:
            result = await client.call_tool(tool, {**arguments, "fresh": True})
            assert text_of(result) == f"I am {answered}"
            assert not (await client.call_tool("list_models", {})).is_error


async def test_an_unknown_name_in_the_address_is_answered_with_the_known_ones(fleet: Bridge) -> None:
    async with fleet.client(query="?model=gpt-9%0a") as client:
        result = await client.call_tool("chat", {"message": "hi"})
        assert "coder" in text_of(await client.call_tool("list_models", {}))
    assert result.is_error
    assert text_of(result) == "There is no model 'gpt-9\\n'. Known: general, coder, asleep."
    assert "gpt-9" not in fleet.log.read_text()


async def test_a_named_model_that_is_down_is_not_replaced_by_another(fleet: Bridge) -> None:
    async with fleet.client() as client:
        result = await client.call_tool("chat", {"message": "hi", "model": "asleep"})
    assert result.is_error
    assert "cannot be reached: Connection refused" in text_of(result)


async def test_the_list_shows_state_strengths_and_the_default(fleet: Bridge) -> None:
    async with fleet.client() as client:
        result = await client.call_tool("list_models", {})
    general, coder, asleep = text_of(result).splitlines()
    assert general == "general: ready; context 4096 tokens; good at general, maths; 0 of 5 slots busy, 0 waiting"
    assert coder == "coder: ready; the default; context 4096 tokens; good at code; 0 of 5 slots busy, 0 waiting"
    assert asleep.startswith("asleep: The model server at http://127.0.0.1:")
    assert "Connection refused" in asleep
    assert "good at poetry" in asleep
    assert "ready" not in asleep
    assert result.meta is not None
    models = result.meta["models"]
    assert {name: model["ready"] for name, model in models.items()} == {
        "general": True,
        "coder": True,
        "asleep": False,
    }
    assert models["general"]["good_at"] == ["general", "maths"]


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        (("bar", "(?i)foo"), "FOO"),
        (("(?P<n>x)", "(?P<n>y)"), "y"),
        ((r"(x)y", r"(a)\p{Ll}"), "aa"),
        (("(?x) foo  # a comment", "bar"), "bar"),
    ],
)
def test_patterns_do_not_get_in_each_others_way(patterns: tuple[str, ...], text: str) -> None:
    first, second = Engine("a", "http://e/v1"), Engine("b", "http://e/v1")
    router = Router((first, second), (Rule(model="b", patterns=patterns),))
    assert router.choose(text).engine is second


@pytest.mark.parametrize("pattern", ["^(a+)+$", "(a|a)*b", "(x+x+)+y", r"(\w+\s*)+:", "(.*a){20}b"])
def test_no_pattern_stops_everybody(pattern: str) -> None:
    """In Python's engine each of them takes years for this text."""
    first, second = Engine("a", "http://e/v1"), Engine("b", "http://e/v1")
    router = Router((first, second), (Rule(model="b", patterns=(pattern, "!$")),))
    assert router.choose("ax" * 10_000 + "a" * 10_000 + "!").reason == "the text has '!$'"
