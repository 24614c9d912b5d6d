"""Arguments as clients send them: taken where they have one reading, else refused in words, and at little cost."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_llm_bridge.errors import BadArgumentsError
from local_llm_bridge.readings import as_object
from local_llm_bridge.tools import chat
from local_llm_bridge.tools import check as check_module
from local_llm_bridge.tools.check import MOST_MATCHED, MOST_VALIDATED, MOST_VALUES, check
from local_llm_bridge.tools.tool import Tool
from tests.services import MODEL, FakeEngine, events, piece, piped, serving

if TYPE_CHECKING:
    from pathlib import Path

CHAT = chat.tool(None)
TEXTS = {"type": "array", "items": {"type": "string"}}
NUMBERS = {"type": "array", "items": {"type": "number"}}


def tool(properties: dict[str, Any], *required: str, **more: object) -> Tool:
    """Return a tool that takes these arguments and is never run."""
    schema = {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}
    return Tool("tool", "A tool", {**schema, **more}, CHAT.run)


def refused(tool: Tool, arguments: dict[str, Any]) -> str:
    """Return the words with which arguments are refused."""
    with pytest.raises(BadArgumentsError) as error:
        check(tool, arguments)
    return str(error.value)


@pytest.mark.parametrize(
    ("schema", "sent", "taken"),
    [
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "False", False),
        ({"type": "boolean"}, " TRUE\n", True),
        ({"type": "integer"}, "3", 3),
        ({"type": "integer"}, "-3.0", -3),
        ({"type": "integer"}, 3.0, 3),
        ({"type": "integer"}, 1e3, 1000),
        ({"type": "integer"}, "1e3", 1000),
        ({"type": "integer"}, "+5", 5),
        ({"type": "number"}, ".5", 0.5),
        ({"type": "number"}, "0.5", 0.5),
        ({"type": "number"}, "3", 3),
        ({"type": "number"}, "1e-3", 0.001),
        ({"type": "number"}, 3.0, 3.0),
        ({"type": ["integer", "null"]}, "3", 3),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "3", 3),
        ({"anyOf": [TEXTS, {"type": "null"}]}, '["a"]', ["a"]),
        ({"type": ["integer", "boolean"]}, "true", True),
        ({"type": ["integer", "number"]}, "3", 3),
        (TEXTS, '["a", "b"]', ["a", "b"]),
        (TEXTS, "a.py", ["a.py"]),
        (TEXTS, "[id].tsx", ["[id].tsx"]),  # a page of Next.js
        (NUMBERS, "[1, 2.5]", [1, 2.5]),
        (NUMBERS, ["1", 2], [1, 2]),
        (NUMBERS, 5, [5]),
        ({"type": "array", "items": NUMBERS}, '[["1"], [2]]', [[1], [2]]),
        (NUMBERS, "5", [5]),
        ({"type": "array", "items": {"type": "object"}}, '{"a": 1}', [{"a": 1}]),
        (TEXTS, "null", ["null"]),
        (TEXTS, json.dumps('["a"]'), ["a"]),
        ({"type": "object"}, json.dumps('{"a": 1}'), {"a": 1}),
        ({"type": "array"}, "[1]", [1]),
        ({"anyOf": [TEXTS, NUMBERS]}, "[]", []),
        ({"type": "object"}, '{"a": 1}', {"a": 1}),
        ({"type": "object", "properties": {"n": {"type": "integer"}}}, '{"n": "1"}', {"n": 1}),
        ({"type": "object", "properties": {"n": {"type": "integer"}}}, {"n": "1", "m": "1"}, {"n": 1, "m": "1"}),
        ({"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}}, [{"n": 1.0}],
         [{"n": 1}]),
        # What fits already stays as it is.
        ({"type": "string"}, "3", "3"),
        ({"type": ["string", "integer"]}, "3", "3"),
        ({"anyOf": [{"type": "string"}, {"type": "boolean"}]}, "true", "true"),
        ({}, "3", "3"),
        (True, "3", "3"),
        ({"enum": ["3"]}, "3", "3"),
    ],
)  # fmt: skip
def test_one_reading_is_taken(schema: object, sent: object, taken: object) -> None:
    got = check(tool({"x": schema}), {"x": sent})
    assert got == {"x": taken}
    assert type(got["x"]) is type(taken)


@pytest.mark.parametrize(
    ("schema", "sent"),
    [
        ({"type": "boolean"}, "yes"),
        ({"type": "boolean"}, "1"),
        ({"type": "boolean"}, 1),
        ({"type": ["boolean", "null"]}, ""),
        ({"type": "integer"}, "three"),
        ({"type": "integer"}, "3.5"),
        ({"type": "integer"}, "1e-3"),
        ({"type": "integer"}, "1e30"),
        ({"type": "integer"}, 3.5),
        ({"type": "integer"}, "0x10"),
        ({"type": "integer"}, "1_000"),
        ({"type": "integer"}, "٣"),
        ({"type": "integer"}, "9" * 5000),
        ({"type": "integer"}, True),
        ({"type": "integer", "maximum": 2}, "3"),
        ({"type": "number"}, "NaN"),
        ({"type": "number"}, "1e999"),
        ({"type": "string"}, 5),
        ({"type": "string"}, ["a"]),
        (TEXTS, 5),
        (TEXTS, "[1]"),
        (NUMBERS, "[1, NaN]"),
        ({"type": "array"}, "a"),
        ({"type": "array"}, "[" * 5000),
        ({"type": "object"}, "[1]"),
        ({"type": "object"}, "{"),
        ({"anyOf": [TEXTS, {"type": "boolean"}]}, "true"),
        ({"anyOf": [TEXTS, {"type": "integer"}]}, 5.5),
    ],
)  # fmt: skip
def test_none_or_two_readings_are_refused(schema: object, sent: object) -> None:
    assert "Wrong arguments for tool: x" in refused(tool({"x": schema}), {"x": sent})


def test_null_means_left_out_where_nothing_else_can_be_meant() -> None:
    takes = tool({"a": {"type": "string"}, "b": {"type": ["string", "null"]}, "c": {}}, "a")
    assert check(takes, {"a": "x", "b": None, "c": None}) == {"a": "x", "b": None, "c": None}
    assert check(CHAT, {"message": "x", "system": None, "model": None, "fresh": None}) == {"message": "x"}
    assert "a: None is not of type 'string'" in refused(takes, {"a": None})


@pytest.mark.parametrize("kind", ["boolean", "integer", "number", "object", "array"])
def test_an_empty_text_means_left_out_where_no_text_can_be_meant(kind: str) -> None:
    takes = tool({"a": {"type": kind}, "b": {"type": kind}}, "b")
    good = {"boolean": True, "object": {}, "array": []}.get(kind, 1)
    assert check(takes, {"a": "", "b": good}) == {"b": good}
    if kind != "array":
        assert check(takes, {"a": "null", "b": good}) == {"b": good}
    assert "Wrong arguments" in refused(takes, {"b": ""})


@pytest.mark.parametrize("limit", [{"enum": ["day", "year"]}, {"minLength": 1}])
def test_an_empty_text_means_left_out_where_it_may_not_be_empty(limit: dict[str, Any]) -> None:
    text = {"type": "string", **limit}
    assert check(tool({"a": text, "b": {"type": "string"}}), {"a": "", "b": ""}) == {"b": ""}
    assert "Wrong arguments" in refused(tool({"a": text}, "a"), {"a": ""})


@pytest.mark.parametrize("name", ["Message", "MESSAGE", "messageText", "message ", "_message"])
def test_the_nearest_name_is_told_however_it_is_written(name: str) -> None:
    assert "did you mean 'message'?" in refused(CHAT, {name: "hi"})


def test_a_call_from_a_program_of_texts_alone() -> None:
    """Some clients have a form with one text for each argument."""
    sent = {"message": "hi", "fresh": "true", "model": MODEL}
    assert check(CHAT, sent) == {**sent, "fresh": True}
    assert sent["fresh"] == "true", "what came is logged as it came"


@given(
    st.dictionaries(
        st.sampled_from(["flag", "count", "rate", "names", "more"]),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("a3[ ", max_size=5)
        | st.sampled_from(["true", "3", "3.0", "[1]", '["a"]', '{"n": "1"}', "null", "[]"])
        | st.lists(st.sampled_from(["", "a"])),
    )
)  # fmt: skip
def test_what_is_taken_is_valid(arguments: dict[str, Any]) -> None:
    takes = tool(
        {
            "flag": {"type": "boolean"},
            "count": {"type": "integer", "minimum": 0},
            "rate": {"type": ["number", "null"]},
            "names": {"type": "array", "items": {"type": "string", "minLength": 1}},
            "more": {"type": "object", "properties": {"n": {"type": "integer"}}},
        }
    )
    try:
        taken = check(takes, arguments)
    except BadArgumentsError:
        assert not jsonschema.Draft202012Validator(takes.schema).is_valid(arguments)
    else:
        jsonschema.validate(taken, takes.schema)
        if jsonschema.Draft202012Validator(takes.schema).is_valid(arguments):
            assert taken == arguments


class TestUnknownNames:
    """They are refused by name, without a look at what they hold."""

    def test_the_nearest_name_is_named(self) -> None:
        text = refused(CHAT, {"mesage": "hi"})
        assert "'mesage' was unexpected (did you mean 'message'?); 'message' is a required property" in text
        assert "It takes: message (string, required)" in text

    def test_few_of_many_are_named(self) -> None:
        text = refused(CHAT, {"message": "hi", **{f"{number:0>999}": number for number in range(2000)}})
        assert text.count("was unexpected") == 3
        assert "and 1997 more" in text
        assert len(text) < 600

    def test_no_schema_is_run_on_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(check_module, "_validator", None)  # whoever calls it fails
        assert "'x' was unexpected" in refused(CHAT, {"message": "hi", "x": [[]] * 1_000_000})

    def test_four_mebibytes_cost_less_than_reading_them(self) -> None:
        """It took a second of the only thread."""
        body = json.dumps({"message": "hi", "x": [[]] * 1_000_000})
        started = time.process_time()
        arguments = json.loads(body)
        read = time.process_time()
        refused(CHAT, arguments)
        assert time.process_time() - read < read - started


class TestLengths:
    """They are looked at before schemas and patterns."""

    def test_before_a_pattern(self) -> None:
        # Against this pattern, 40 characters take years.
        evil = {"type": "string", "pattern": "^(a+)+$", "maxLength": 20}
        assert "x: 40 characters are too many, 20 are the most" in refused(tool({"x": evil}), {"x": "a" * 39 + "!"})

    @pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "(a*)*b"])
    def test_of_a_pattern_that_pythons_engine_takes_years_for(self, pattern: str) -> None:
        evil = {"type": "string", "pattern": pattern}
        words = {"type": "object", "propertyNames": evil}
        sent = "a" * (MOST_MATCHED - 1) + "!"
        for schema, value in ((evil, sent), ({"type": "array", "items": evil}, [sent]), (words, {sent: 1})):
            assert "does not match" in refused(tool({"x": schema}), {"x": value})

    def test_of_what_a_pattern_has_no_limit_for(self) -> None:
        text = {"type": "string", "pattern": "^a*$"}
        assert check(tool({"x": text}), {"x": "a" * MOST_MATCHED})
        found = refused(tool({"x": text}), {"x": "a" * (MOST_MATCHED + 1)})
        assert f"x: {MOST_MATCHED + 1} characters are too many for its pattern" in found
        found = refused(tool({"x": {"type": "array", "items": text}}), {"x": ["a" * (MOST_MATCHED + 1)]})
        assert "too many for its pattern" in found

    def test_of_lists(self) -> None:
        assert check(tool({"x": TEXTS}), {"x": ["a"] * MOST_VALUES})
        assert f"more than {MOST_VALUES} values" in refused(tool({"x": TEXTS}), {"x": ["a"] * (MOST_VALUES + 1)})
        few = {**TEXTS, "maxItems": 3}
        assert "x: 4 values are too many, 3 are the most" in refused(tool({"x": few}), {"x": ["a"] * 4})

    @pytest.mark.parametrize("sent", [[[]] * 3000, json.dumps([[]] * 3000), [[[]] * 50] * 50])
    def test_of_lists_for_which_a_schema_has_to_be_run(self, sent: object) -> None:
        lists = {"type": "array", "items": {"type": "array"}, "uniqueItems": True}
        assert f"more than {MOST_VALIDATED} values" in refused(tool({"x": lists}), {"x": sent})

    def test_what_is_wrong_is_told_in_a_few_words(self) -> None:
        text = refused(tool({"x": NUMBERS}), {"x": ["no"] * 1900})
        assert text.count("is not of type 'number'") == 3
        assert len(text) < 300


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        ({"a": 1}, {"a": 1}),
        (None, {}),
        ("{}", {}),
        ('{"a": [1]}', {"a": [1]}),
        (json.dumps('{"a": 1}'), {"a": 1}),
        ("", None),
        ("hi", None),
        ("[1]", None),
        ('{"a": NaN}', None),
        ([], None),
        (5, None),
    ],
)
def test_arguments_as_a_whole(sent: object, taken: object) -> None:
    assert as_object(sent) == taken


CALLS = [
    ({"name": "list_models", "arguments": None}, "ok"),
    ({"name": "list_models"}, "ok"),
    ({"name": "chat", "arguments": '{"message": "hi", "fresh": "true"}'}, "ok"),
    ({"name": "chat", "arguments": {"message": "hi", "fresh": "true", "system": None}}, "ok"),
    ({"name": "chat", "arguments": "hi"}, "refused"),
    ({"name": "chat", "arguments": ["hi"]}, "refused"),
    ({"name": "chat", "arguments": {"message": "hi", "fresh": "perhaps"}}, "isError"),
]


def outcome(reply: dict[str, Any]) -> str:
    """Return how a call ended."""
    if "error" in reply:
        return "refused"
    return "isError" if reply["result"]["isError"] else "ok"


def test_over_stdio() -> None:
    requests = [
        {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
        for number, (params, _) in enumerate(CALLS)
    ]
    with FakeEngine(events(piece("fine"), piece("", "stop"))).running() as url:
        replies, _ = piped("\n".join(map(json.dumps, requests)), LOCAL_API_URL=url, MODEL_NAME=MODEL)
    ends = {reply["id"]: outcome(reply) for reply in replies}
    assert ends == {number: end for number, (_, end) in enumerate(CALLS)}


def test_over_http(tmp_path: Path) -> None:
    headers = {
        "Authorization": "Bearer alices-token-for-tests",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
    }
    engine = FakeEngine(events(piece("fine"), piece("", "stop")))
    with engine.running() as url, serving(tmp_path, url) as bridge:
        for params, end in CALLS:
            request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            status, text, _ = bridge.http("/mcp", method="POST", headers=headers, data=json.dumps(request).encode())
            if end == "refused":
                assert status in {200, 400}, text
                assert "error" in text
            else:
                assert (status, outcome(json.loads(text))) == (200, end)
