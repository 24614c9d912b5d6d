"""A model's answer as it grows, out of the events of a stream, in whatever shape engines send them.

What comes is only collected; what it means (thoughts, calls, whether it is whole) is found out once, at its end.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from local_llm_bridge.models.tool_calls import ToolCall, ToolCalls
from local_llm_bridge.texts import printable, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

MOST_CHARACTERS = 2**20
"""Longest answer, thoughts and calls included, whatever the engine was asked for."""
_MOST_TOKENS = 10**7
_LONG_PIECE = 20  # characters of a last piece that no model writes twice by chance
_MISCOUNT = 8  # tokens by which engines count an answer otherwise than its limit
_LONGEST_REASON = 40

DEADLINE = "deadline"
"""Finish reason of an answer that the bridge ended because the time for the call was over."""
OVERLONG = "overlong"
"""Finish reason of an answer that the bridge ended because the engine did not."""
LOST_CALLS = "tool_calls without a call"
"""Finish reason of an answer that was to end with calls of which none came."""
CALLS_LEFT = "calls left"
"""Finish reason of an answer that ended with calls, besides its text, for somebody who has no tools to call."""
NO_REASONS = ("null", "NULL", "none", "None")
"""What some engines call the finish reason of an answer that has not ended."""
_CONTEXT_FULL = ("model_context_window_exceeded", "context_length_exceeded", "context_length", "context_window")
# What vLLM, SGLang, llama.cpp, TGI, and the clouds behind a LiteLLM say.
_REASONS = {
    "stop": (
        *("stop", "eos", "eos_token", "stop_sequence", "stop_token", "stop_str", "end_turn", "end_of_turn", "end"),
        *("complete", "completed", "done", "finished"),
    ),
    "tool_calls": ("tool_calls", "tool_call", "tool_use", "function_call", "function_calls"),
    "length": (
        *("length", "max_tokens", "max_output_tokens", "max_completion_tokens", "max_length", "model_length"),
        *("limit", "token_limit", "incomplete", "truncated", *_CONTEXT_FULL),
    ),
    "abort": (
        *("abort", "aborted", "cancel", "cancelled", "canceled", "user_cancel", "interrupted", "timeout"),
        *("error", "failed", "server_error", "network_error", "error_limit", "insufficient_system_resource"),
    ),
    "content_filter": (
        *("content_filter", "content_filtered", "safety", "recitation", "sensitive", "refusal", "blocklist"),
        *("prohibited_content", "spii", "error_toxic", "guardrail_intervened"),
    ),
}
_REASON_OF = {word: reason for reason, words in _REASONS.items() for word in words}
# A text that has none of these is an answer and nothing else: thoughts.py.
_SIGNS = ("<", "[", "◁", "|>", "assistantfinal", "assistantcommentary", "Here")
_THOUGHTS = frozenset({"thinking", "reasoning", "thought"})
# One thought may come under several of them.
_THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_blocks")


@dataclass(frozen=True)
class Completion:
    """A model's answer."""

    text: str
    """Without its thoughts."""
    model: str
    finish_reason: str
    """`stop`, `tool_calls`, `length`, `abort` or `content_filter`, which engines call by many names; else the engine's
    own word; `deadline` or `overlong` if the bridge ended it; `LOST_CALLS`, `CALLS_LEFT`."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    routing: str = ""
    """Why this model."""
    first_token_s: float | None = None
    """Seconds from the request to the first piece of the answer, or of what the model thought before it."""
    cached: bool = False
    thinking_tokens: int = 0
    """About how many of the tokens were thoughts."""
    thoughts: str = ""
    thoughts_field: str = ""
    """The field that they came in; empty: in the text."""
    context_is_full: bool = False
    """Whether the engine says that it was cut off because of that."""
    ended_early: bool = False
    """Whether the engine says that it has fewer tokens than it might have."""
    remedy: str = ""
    """What makes room for a longer answer."""

    @property
    def whole(self) -> bool:
        """Whether the model came to its end."""
        return self.finish_reason in {"stop", "tool_calls"}


class ReportedError(Exception):
    """The engine reported an error in the middle of its stream."""


class Answer:
    """An answer as it grows."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.queued_s = 0.0
        """How long it waited for its turn, in seconds."""
        self.tokens = 0
        """Pieces so far: of the answer, of thoughts, and of calls."""
        self.first_token_s: float | None = None
        self.finish_reason: str | None = None
        self.calls = ToolCalls()
        self._text = StringIO()
        self._thoughts = StringIO()
        self._thoughts_field = ""
        self._last = ""
        self._usage: Any = None
        self._in_messages = False
        self._goes_on = False  # each piece has a finish reason
        self._context_is_full = False

    def add(self, event: Any) -> None:  # noqa: ANN401 - it came over the wire
        """Take in one event; what adds nothing is skipped.

        Raises:
            ReportedError: it is an error.
            TooManyCallsError: nobody means so many calls.
            AttributeError, TypeError, KeyError, IndexError: it is no event of a chat completion.
        """
        try:
            choice = event["choices"][0]
            delta = choice["delta"]
            content = delta["content"]
        except (TypeError, LookupError):
            content = None
        is_text = content.__class__ is str and content and len(delta) == 1
        if is_text and not (choice.get("finish_reason") or event.get("usage") or event.get("error")):
            self._text.write(content)  # and nothing else, as in nearly all events
            self.tokens += 1
            self._last = content
        elif event:
            self._add_event(event)

    def _add_event(self, event: dict[str, Any]) -> None:
        if (error := event.get("error")) and (self.finish_reason is None or self._goes_on):
            raise ReportedError(str(error.get("message") if isinstance(error, dict) else error))
        if usage := event.get("usage"):
            self._usage = usage
        if (choices := event.get("choices")) and (choice := choices[0]):
            self._add_choice(choice)

    @property
    def size(self) -> int:
        """Characters so far."""
        return self._text.tell() + self._thoughts.tell() + self.calls.size

    def received(self) -> tuple[str, str]:
        """Return what the model thought and what it answered so far."""
        apart, text = self._thoughts.getvalue(), self._text.getvalue()
        is_long = len(self._last) > _LONG_PIECE and self.tokens > 2  # noqa: PLR2004 - pieces, and all of them once more
        if is_long and len(text) == 2 * len(self._last) and text.startswith(self._last):
            text = self._last  # all of it once more, at its end
        if not any(sign in text for sign in _SIGNS):
            return apart, text
        from local_llm_bridge.models.thoughts import split  # noqa: PLC0415 - few texts need its patterns

        thoughts, text = split(text, separate=bool(apart))
        return apart + (thoughts or ""), text

    def completion(self, model: str, routing: str, limit: int | None = None) -> Completion:
        """Return the answer as far as it has come.

        Args:
            model: whose it is.
            routing: why this model.
            limit: how many tokens it might have; None: that is of no interest.
        """
        thoughts, text = self.received()
        reason = self.finish_reason or ""
        whole = reason in {"stop", "tool_calls"}
        if reason == "tool_calls" and not self.calls:
            reason = LOST_CALLS
        usage = self._usage if isinstance(self._usage, dict) else {}
        written = _count(usage.get("completion_tokens"))
        tokens = written or self.tokens  # some say that all of it was none
        if reason == "stop" and limit is not None and written == limit:
            reason = "length"  # which some never say
        details = usage.get("completion_tokens_details")
        thinking = (
            _thinking(details, tokens, thoughts, len(text.strip()) + self.calls.size) if thoughts or details else 0
        )
        return Completion(
            text=text,
            model=model,
            finish_reason=reason,
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=tokens or written,
            tool_calls=self.calls.done(whole=whole) if self.calls else (),
            routing=routing,
            first_token_s=self.first_token_s,
            thinking_tokens=thinking,
            thoughts=thoughts,
            thoughts_field=self._thoughts_field,
            context_is_full=self._context_is_full,
            ended_early=limit is not None and (written or (limit if self.tokens else 0)) + _MISCOUNT < limit,
        )

    def _add_choice(self, choice: dict[str, Any]) -> None:
        if (reason := choice.get("finish_reason")) and reason not in NO_REASONS:
            self._goes_on = self.finish_reason is not None
            self._end(reason)
        if not (delta := choice.get("delta")):
            if message := choice.get("message"):
                self._add_message(message)
            return
        content = delta.get("content")
        if content.__class__ is str:
            if content:
                self._text.write(content)
                self.tokens += 1
                self._last = content
            if len(delta) == 1:
                return
        elif content:
            self._add_parts(content, thoughts=False)
        self._add_more(delta)

    def _end(self, reason: object) -> None:
        """Take note of a finish reason. Whoever stands before an engine may say "stop" after its own."""
        if self.finish_reason in {None, "stop", "tool_calls"}:
            word = reason.strip().lower().replace("-", "_") if isinstance(reason, str) else ""
            word = word.removeprefix("finishreason.")  # an enumeration of Python's, as text
            self.finish_reason = _REASON_OF.get(word) or _unknown(reason)
            self._context_is_full = word in _CONTEXT_FULL

    def _add_message(self, message: dict[str, Any]) -> None:
        """Take in a whole message, or pieces of one under the name of a whole one."""
        content = message.get("content")
        # One piece under the name of a whole message may be followed by the same again.
        is_begun = self.tokens > self._in_messages
        self._in_messages = True
        if is_begun and content and content == self._text.getvalue():
            return  # all of it once more, at its end
        if content:
            self._add_parts(content, thoughts=False)
        self._add_more(message)

    def _add_more(self, delta: dict[str, Any]) -> None:
        """Take in all but the content."""
        if field := next(filter(delta.get, _THOUGHT_FIELDS), None):
            self._thoughts_field = field
            self._add_parts(delta[field], thoughts=True)
        if refusal := delta.get("refusal"):
            self._add_parts(refusal, thoughts=False)
        if calls := delta.get("tool_calls"):
            self.calls.add(calls)
            self.tokens += 1
        elif call := delta.get("function_call"):
            self.calls.add(call)
            self.tokens += 1

    def _add_parts(self, content: object, *, thoughts: bool) -> None:
        before = self._text.tell() + self._thoughts.tell()
        for is_thought, text in _texts(content, thoughts=thoughts):
            (self._thoughts if is_thought else self._text).write(text)
        self.tokens += self._text.tell() + self._thoughts.tell() > before


async def receive(
    stream: AsyncIterator[list[dict[str, Any]]], answer: Answer, progress: Callable[[int], None] | None
) -> None:
    """Gather an answer until it has ended.

    Args:
        stream: the events, those of a packet together.
        answer: holds what has come, also when this raises something.
        progress: is told the number of tokens so far.

    Raises:
        ReportedError, TooManyCallsError, AttributeError, TypeError, KeyError, IndexError: of `Answer.add`.
        Exception: what the stream raises.
    """
    async for events in stream:
        for event in events:
            answer.add(event)
        if not answer.tokens:
            continue
        if answer.first_token_s is None:
            answer.first_token_s = time.monotonic() - answer.started
        if answer.size > MOST_CHARACTERS:
            answer.finish_reason = OVERLONG
            return
        if progress:
            progress(answer.tokens)


def _unknown(reason: object) -> str:
    return printable(reason[:_LONGEST_REASON]) if isinstance(reason, str) else shown(reason)


def _texts(content: object, *, thoughts: bool) -> Iterator[tuple[bool, str]]:
    """Yield the texts of a content that is not just one: whether each is a thought, and the text."""
    if isinstance(content, str):
        yield thoughts, content
    elif isinstance(content, list):
        for part in content:
            yield from _texts(part, thoughts=thoughts)
    elif isinstance(content, dict):
        thoughts = thoughts or str(content.get("type")).partition(".")[0] in _THOUGHTS
        for key in ("text", "content", "summary", *_THOUGHTS):
            yield from _texts(content.get(key), thoughts=thoughts or key in _THOUGHTS)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield thoughts, str(content)


def _count(value: object) -> int | None:
    """Return a number of tokens; None: it cannot be one."""
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _thinking(details: object, tokens: int, thoughts: str, others: int) -> int:
    """Return how many tokens were thoughts: as the engine says, else by their part of the characters."""
    told = _count(details.get("reasoning_tokens")) if isinstance(details, dict) else None
    return min(told, tokens) if told else round(tokens * len(thoughts) / (len(thoughts) + others or 1))
