"""A context that is shorter than was thought makes a shorter answer, not a failed call."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from local_llm_bridge.models.context import Refusal, is_about_length, read_refusal
from local_llm_bridge.server.dispatch import Call
from tests.services import FakeEngine, ScriptedEngine, answer, asked, events, piece, request_of, wire_texts

if TYPE_CHECKING:
    import socket

pytestmark = pytest.mark.anyio

VLLM = (
    "This model's maximum context length is {limit} tokens. However, you requested {asked} output tokens and your "
    "prompt contains {given} input tokens, for a total of {total} tokens."
)
# It counts no further than it takes to see that there is no room.
COUNTS_LITTLE = (
    "This model's maximum context length is {limit} tokens. However, you requested {asked} output tokens and your "
    "prompt contains at least {least} input tokens, for a total of at least {more} tokens. Please reduce the length of "
    "the input prompt or the number of requested output tokens."
)
# Nor does it count at all what must be too long by its characters.
COUNTS_NOTHING = (
    "This model's maximum context length is {limit} tokens. However, you requested {asked} output tokens and your "
    "prompt contains 37500 characters (more than {most} characters, which is the upper bound for {fits} input tokens). "
    "Please reduce the length of the input prompt or the number of requested output tokens."
)
SILENT = "The request is too long: max_tokens."


class Strict(FakeEngine):
    """Refuses what does not fit into its context, as vLLM does; counts a token for so many characters."""

    def __init__(self, limit: int, per_token: float, words: str = VLLM, *, tells: bool = True) -> None:
        super().__init__(events(piece("hello", "stop")))
        self._limit, self._per_token, self._words, self._tells = limit, per_token, words, tells

    def _handle(self, connection: socket.socket) -> None:
        request = request_of(connection)
        if not request:
            model: dict[str, Any] = {"id": "m", "max_model_len": self._limit} if self._tells else {"id": "m"}
            connection.sendall(answer("200 OK", "application/json", json.dumps({"data": [model]})))
            return
        self.requests.append(request)
        given = round(sum(len(message["content"]) for message in request["messages"]) / self._per_token)
        wanted = request["max_tokens"]
        if given + wanted <= self._limit:
            connection.sendall(self.reply)
            return
        words = self._words.format(
            limit=self._limit,
            asked=wanted,
            given=given,
            total=given + wanted,
            least=self._limit - wanted + 1,
            more=self._limit + 1,
            fits=self._limit - wanted,
            most=16 * (self._limit - wanted),
        )
        body = json.dumps({"error": {"message": words, "type": "BadRequestError", "code": 400}})
        connection.sendall(answer("400 Bad Request", "application/json", body))


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        # vLLM, old to new
        (
            (
                "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (3000 in the "
                "messages, 2000 in the completion). Please reduce the length of the messages or completion."
            ),
            Refusal(4096, 1096),
        ),
        (VLLM.format(limit=8192, asked=2000, given=7000, total=9000), Refusal(8192, 1192)),
        (
            (
                "'max_tokens' or 'max_completion_tokens' is too large: 2000. This model's maximum context length is "
                "2048 tokens and your request has 1500 input tokens (2000 > 2048 - 1500)."
            ),
            Refusal(2048, 548),
        ),
        (
            (
                "You passed 7001 input tokens and requested 2000 output tokens. However, the model's context length is "
                "only 8192 tokens, resulting in a maximum input length of 6192 tokens."
            ),
            Refusal(8192, 1191),
        ),
        ("max_tokens=2000 cannot be greater than max_model_len=max_total_tokens=1024.", Refusal(1024, None)),
        (
            (
                "This model's maximum context length is 4097 tokens, however you requested 4116 tokens (3860 in "
                "your prompt; 256 for the completion). Please reduce your prompt; or completion length."
            ),
            Refusal(4097, 237),
        ),
        (
            (
                "You passed 12001 input characters and requested 2000 output tokens. However, the model's context "
                "length is only 4096 tokens, resulting in a maximum input length of 2096 tokens (at most 12576 chars)."
            ),
            Refusal(4096, None),
        ),
        (
            (
                "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that "
                "`max_model_len` is no smaller than the number of text tokens."
            ),
            Refusal(4096, -904),
        ),
        ("Input length (3000) exceeds model's maximum context length (4096).", Refusal(4096, 1096)),
        # SGLang
        ("Input length (5000 tokens) exceeds the maximum allowed length (4090 tokens).", Refusal(4090, -910)),
        (
            (
                "Requested token count exceeds the model's maximum context length of 8192 tokens. You requested a "
                "total of 9000 tokens: 7000 tokens from the input messages and 2000 tokens for the completion."
            ),
            Refusal(8192, 1192),
        ),
        ("The input (9001 tokens) is longer than the model's context length (8192 tokens).", Refusal(8192, -809)),
        # TGI, llama.cpp, OpenAI and services that speak like it
        (
            "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 3000 `inputs` tokens and 2000 `max_new_tokens`",
            Refusal(4096, 1096),
        ),
        ("request (40012 tokens) exceeds the available context size (2048 tokens)", Refusal(2048, -37964)),
        (
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
            Refusal(8192, -808),
        ),
        (
            "max_tokens is too large: 5000. This model supports at most 4096 completion tokens.",
            Refusal(None, 4096),
        ),
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", Refusal(None, 8192)),
        ("`max_tokens` must be less than or equal to `8192`, the maximum value", Refusal(None, 8192)),
        ("This model's maximum context length is 32,768 tokens. You requested 33,000 tokens.", Refusal(32768, 1768)),
        ("`inputs` must have less than 4095 tokens. Given: 5000", Refusal(4095, -905)),
        ("Input validation error: `max_new_tokens` must be <= 512. Given: 2000", Refusal(None, 512)),
        ("Requested tokens (5000) exceed context window of 4096", Refusal(4096, 1096)),
        (
            "the request exceeds the available context size. try increasing it (n_prompt_tokens=1407, n_ctx=256)",
            Refusal(256, -1151),
        ),
        (
            (
                "The number of tokens to keep from the initial prompt is greater than the context length "
                "(n_keep: 5000>= n_ctx: 4096). Try to load the model with a larger context length."
            ),
            Refusal(4096, -904),
        ),
        (
            (
                "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with "
                "context length of only 4096 tokens, which is not enough."
            ),
            Refusal(4096, -904),
        ),
        # TensorRT-LLM and LMDeploy
        (
            "The sum of prompt length (3000.0), query length (0) should not exceed max_num_tokens (4096)",
            Refusal(4096, 1096),
        ),
        (
            (
                "default_max_tokens (-904) should be greater than 0, default_max_tokens (-904) = max_seq_len (4096) - "
                "splited_prompt_len (5000) - query_token_len (0)"
            ),
            Refusal(4096, -904),
        ),
        ("Prompt length (5000) exceeds maximum input length (4096).", Refusal(4096, -904)),
        ("total sequence length (3000 + 2000) exceeds `session_len` (4096)", Refusal(4096, 1096)),
        # services
        (
            (
                "This model's maximum context length is 4097 tokens. However, you requested 5000 tokens (2900 in the "
                "messages, 100 in the functions, and 2000 in the completion)."
            ),
            Refusal(4097, 1097),
        ),
        (
            (
                "This endpoint's maximum context length is 4096 tokens. However, you requested about 5000 tokens "
                "(3000 of text input, 2000 in the output)."
            ),
            Refusal(4096, 1096),
        ),
        ("input length and `max_tokens` exceed context limit: 3000 + 2000 > 4096", Refusal(4096, 1096)),
        ("prompt is too long: 5000 tokens > 4096 maximum", Refusal(4096, -904)),
        ("Prompt contains 3000 tokens, too large for model with 4096 maximum context length", Refusal(4096, 1096)),
        ("This model's maximum prompt length is 4096 but the request contains 5000 tokens.", Refusal(4096, -904)),
        ("The input token count (5000) exceeds the maximum number of tokens allowed (4096).", Refusal(4096, -904)),
        (
            "The number of tokens in the prompt (3000) and max_tokens (2000) exceeds the context window of 4096.",
            Refusal(4096, 1096),
        ),
        ("Range of input length should be [1, 4096]", Refusal(4096, None)),
        ("Range of max_tokens should be [1, 1024]", Refusal(None, 1024)),
        ("max_tokens (2000) exceeds the limit of 1024", Refusal(None, 1024)),
        (
            "Invalid 'max_output_tokens': integer above maximum value. Expected a value <= 4096, but got 5000 instead.",
            Refusal(None, 4096),
        ),
        (
            (
                "max_tokens: 2000 > 1024, which is the maximum allowed number of output tokens for "
                "claude-3-haiku-20240307"
            ),
            Refusal(None, 1024),
        ),
        (
            (
                "Unable to submit request because it has a maxOutputTokens value of 2000 but the supported range is "
                "from 1 (inclusive) to 1025 (exclusive). Update the value and try again."
            ),
            Refusal(None, 1024),
        ),
        (
            (
                "max_tokens (2000) exceeds model's maximum output tokens (1024) for model nemotron-3-ultra "
                "(ref: 7c1e0f3a-2291-4d3b)"
            ),
            Refusal(None, 1024),
        ),
        ("max_tokens exceeds the maximum allowed value of 1024", Refusal(None, 1024)),
        ("max_tokens (2000) must be between 0 and 1024", Refusal(None, 1024)),
        ("max_tokens (2000) must be between 1 and 1024", Refusal(None, 1024)),
        ("max_tokens must be in the range [16,1024], got 2000", Refusal(None, 1024)),
        ("Range of max_tokens should be [16, 1024]", Refusal(None, 1024)),
        ("max_tokens must be in the range 1-1024", Refusal(None, 1024)),
        ("max_tokens (2000) is too large. must be less than or equal to 1024", Refusal(None, 1024)),
        ("max_tokens cannot exceed 1024", Refusal(None, 1024)),
        ("max_tokens: 2000 is larger than the maximum allowed 1024", Refusal(None, 1024)),
        (
            (
                "`max_completion_tokens` must be less than or equal to `1024`, the maximum value for "
                "`max_completion_tokens` is less than the `context_window` for this model"
            ),
            Refusal(None, 1024),
        ),
        (
            (
                "The maximum tokens you requested exceeds the model limit of 1024. Try again with a maximum tokens "
                "value that is lower than 1024."
            ),
            Refusal(None, 1023),
        ),
        (
            "Malformed input request: #/max_tokens: 2000 is not less or equal to 1024, please reformat your input",
            Refusal(None, 1024),
        ),
        ("Requested 2000 max new tokens, but the model supports 1024", Refusal(None, 1024)),
        ("maxOutputTokens must be in the range [1, 1025)", Refusal(None, 1024)),
        ("max_tokens value 2000 not in range 1..1024", Refusal(None, 1024)),
        ("max_tokens 上限 1024", Refusal(None, 1024)),
        ("input tokens (100) + max_tokens (2000) > 2048", Refusal(2048, 1948)),
        ("Your request exceeded model token limit: 2048", Refusal(2048, None)),
        ("body.max_tokens: Input should be less than 1025", Refusal(None, 1024)),
        ("The model gpt-4-0613 gives 1,024 output tokens at most, 2,000 is above that", Refusal(None, 1024)),
        ("Error code 400 - max_completion_tokens must be <= 1024 (status: 400)", Refusal(None, 1024)),
        ("max_tokens 参数非法, 取值不能大于1024", Refusal(None, 1024)),
        (
            (
                "This request requires more credits, or fewer max_tokens. You requested up to 2000 tokens, but can "
                "only afford 1024."
            ),
            Refusal(None, 1024),
        ),
        (
            "Invalid request: Your request exceeded model token limit: 2048 (requested: 2100)",
            Refusal(2048, 1948),
        ),
        (
            (
                "Request too large for model `llama-3.1-8b-instant` in organization `org_01` service tier `on_demand` "
                "on tokens per minute (TPM): Limit 6000, Requested 7000, please reduce your message size and try again."
            ),
            Refusal(6000, 1000),
        ),
        # nothing to learn from
        ("max_tokens must be an odd number, 2000 is not", Refusal(None, None)),
        ("max_tokens of 2000 is too large for claude-3-haiku-20240307", Refusal(None, None)),
        ("max_tokens is no field of version 1024", Refusal(None, None)),
        ("prompt too long; exceeded max context length by 904 tokens", Refusal(None, None)),
        ("The model server at http://10.0.0.7:8000/v1 refused the request (HTTP 400).", Refusal(None, None)),
        ("temperature must be at most 2", Refusal(None, None)),
        ("context length is " + "9" * 5000, Refusal(9_999_999_999, None)),
    ],
)
def test_refusals_are_understood(words: str, refusal: Refusal) -> None:
    assert read_refusal(words, 2000) == refusal
    assert is_about_length(words) or refusal == Refusal(None, None)


@pytest.mark.parametrize(
    "words",
    [
        "Context size has been exceeded.",
        "the request exceeds the available context size, try increasing it",
        "the input length exceeds the context length",
        "input (600 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
        "Input is too long",
    ],
)
async def test_a_refusal_without_numbers_has_the_list_asked(words: str) -> None:
    engine = Strict(2048, 3.5, words)
    (result,) = await asked(Call("chat", {"message": "a" * 400}), reply=engine)
    assert wire_texts(result) == ["hello"]
    assert len(engine.requests) == 2


@pytest.mark.parametrize(
    ("limit", "tool", "argument", "size"),
    [
        (8192, "chat", "message", 4000),
        (4096, "code_generation", "task", 3800),
        (4096, "review_code", "code", 3800),
        (2048, "code_generation", "task", 20),
        (2048, "chat", "message", 200),
    ],
)
@pytest.mark.parametrize("words", [VLLM, COUNTS_LITTLE, SILENT])
async def test_an_answer_gets_the_room_that_there_is(
    limit: int, tool: str, argument: str, size: int, words: str
) -> None:
    engine = Strict(limit, 3.5, words)
    (result,) = await asked(Call(tool, {argument: "a" * size}), reply=engine)
    assert wire_texts(result) == ["hello"]
    assert len(engine.requests) <= 2
    assert engine.requests[-1]["max_tokens"] <= limit


@pytest.mark.parametrize("words", [COUNTS_LITTLE, COUNTS_NOTHING])
@pytest.mark.parametrize(
    ("size", "tried"),
    [(6300, [2000, 999]), (7000, [2000, 999]), (7500, [2000, 999, 249]), (8000, [2000, 999, 249])],
)
async def test_where_an_engine_tells_the_least_that_a_question_has_half_of_the_rest_is_tried_then_less(
    size: int, tried: list[int], words: str
) -> None:
    engine = Strict(8192, 5.0, words)
    (result,) = await asked(Call("chat", {"message": "word " * size}), reply=engine)
    assert [request["max_tokens"] for request in engine.requests] == pytest.approx(tried, abs=1)
    assert result.get("isError", False) == (size + tried[-1] > 8192)


async def test_a_question_that_has_more_than_the_context_at_least_is_not_asked_again() -> None:
    words = COUNTS_LITTLE.replace("{least}", "2049")
    engine = Strict(2048, 4.0, words)
    (result,) = await asked(Call("chat", {"message": "a" * 9000}), reply=engine)
    assert result["isError"]
    assert len(engine.requests) == 1


@pytest.mark.parametrize("size", [3000, 5000, 7000])
async def test_text_that_has_more_tokens_than_was_estimated_is_asked_once_more(size: int) -> None:
    engine = Strict(4096, 2.0)
    call = Call("chat", {"message": "ab" * (size // 2)})
    (result,) = await asked(call, reply=engine, engine={"context": 4096})
    assert wire_texts(result) == ["hello"]
    assert engine.requests[-1]["max_tokens"] == min(4096 - size // 4, 2000) or len(engine.requests) == 2


async def test_what_an_engine_said_of_its_context_holds_for_one_call_alone() -> None:
    engine = Strict(2048, 4.0)
    calls = [Call("chat", {"message": "a" * size}) for size in (400, 800)]
    assert [wire_texts(result) for result in await asked(*calls, reply=engine)] == [["hello"], ["hello"]]
    assert [request["max_tokens"] for request in engine.requests] == [2000, 1948, 2000, 1848]


async def test_words_of_a_question_that_an_engine_repeats_shorten_nobody_elses_answer() -> None:
    class Repeating(FakeEngine):
        def _handle(self, connection: socket.socket) -> None:
            self.requests.append(request_of(connection))
            question = self.requests[-1]["messages"][-1]["content"]
            is_odd = "context" in question
            connection.sendall(events({"error": f"cannot parse: {question}"}) if is_odd else self.reply)

    engine = Repeating(events(piece("hello", "stop")))
    attack, other = (Call("chat", {"message": text}) for text in ("context length is 299", "a" * 8000))
    attacked, answered = await asked(attack, other, reply=engine)
    assert attacked["isError"]
    assert wire_texts(answered) == ["hello"]
    assert engine.requests[-1]["max_tokens"] == 2000


async def test_a_question_that_cannot_fit_is_refused_in_the_engines_words() -> None:
    engine = Strict(2048, 4.0)
    (refused,) = await asked(Call("chat", {"message": "a" * 9000}), reply=engine)
    assert "maximum context length is 2048 tokens" in wire_texts(refused)[0]
    assert len(engine.requests) == 1


@pytest.mark.parametrize("words", [SILENT, "max_tokens must be an odd number", "Your temperature is out of range."])
async def test_a_refusal_that_is_not_understood_is_passed_on_after_one_try(words: str) -> None:
    engine = Strict(10, 4.0, words, tells=False)
    (result,) = await asked(Call("chat", {"message": "hi"}), reply=engine)
    assert result["isError"]
    assert words in wire_texts(result)[0]
    assert len(engine.requests) == 1


async def test_an_engine_that_refuses_again_is_not_asked_a_third_time() -> None:
    refusal = json.dumps({"error": {"message": VLLM.format(limit=1000, asked=2000, given=10, total=2010)}})
    engine = FakeEngine(answer("400 Bad Request", "application/json", refusal))
    (result,) = await asked(Call("chat", {"message": "hi"}), reply=engine)
    assert result["isError"]
    assert [request["max_tokens"] for request in engine.requests] == [2000, 990]


async def test_an_engine_with_a_limit_of_the_answer_and_one_of_the_context_is_asked_within_both() -> None:
    refusals = [
        answer("400 Bad Request", "application/json", json.dumps({"error": {"message": words}}))
        for words in ("max_tokens cannot exceed 1024", VLLM.format(limit=1000, asked=1024, given=10, total=1034))
    ]
    engine = ScriptedEngine(*refusals, events(piece("hello", "stop")))
    (result,) = await asked(Call("chat", {"message": "hi"}), reply=engine)
    assert wire_texts(result) == ["hello"]
    assert [request["max_tokens"] for request in engine.requests] == [2000, 1024, 990]


async def test_a_refusal_in_the_stream_is_one_too() -> None:
    class InStream(Strict):
        def _handle(self, connection: socket.socket) -> None:
            self.requests.append(request_of(connection))
            words = VLLM.format(limit=1000, asked=2000, given=10, total=2010)
            fits = self.requests[-1]["max_tokens"] < 1000
            connection.sendall(self.reply if fits else events({"error": {"message": words, "code": 400}}))

    (result,) = await asked(Call("chat", {"message": "hi"}), reply=InStream(1000, 4.0))
    assert wire_texts(result) == ["hello"]


async def test_an_answer_cut_by_the_context_says_that_it_was_the_context() -> None:
    engine = Strict(2048, 4.0)
    engine.reply = events(piece("hello", "length"))
    (result,) = await asked(Call("chat", {"message": "a" * 800}), reply=engine)
    note = wire_texts(result)[1]
    assert re.search(r"For a longer answer, send less, or give m a longer context", note), note


@pytest.mark.parametrize(
    ("status", "words", "room"),
    [
        (400, "max_tokens: 2000 > 1024, which is the maximum allowed number of output tokens for claude-3", 1024),
        (413, "Request too large on tokens per minute (TPM): Limit 6000, Requested 7000, please reduce it", 1000),
    ],
)
async def test_a_limit_is_kept_to_however_it_is_told(status: int, words: str, room: int) -> None:
    refusal = answer(f"{status} No", "application/json", json.dumps({"error": {"message": words}}))
    engine = ScriptedEngine(refusal, events(piece("hello", "stop")))
    (result,) = await asked(Call("chat", {"message": "hi"}), reply=engine)
    assert wire_texts(result) == ["hello"]
    assert [request["max_tokens"] for request in engine.requests] == [2000, room]
