"""What is said of an answer that failed: what came of it, why it ended, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from local_llm_bridge.errors import (
    EngineAnswerError,
    EngineError,
    EngineInterruptedError,
    EngineRefusedError,
    EngineTimeoutError,
    OnlyThoughtsError,
)
from local_llm_bridge.models.answer import MOST_CHARACTERS
from local_llm_bridge.models.refusals import ADDRESS_HINT, MOST_QUOTED
from local_llm_bridge.models.tool_calls import MOST_CALLS

if TYPE_CHECKING:
    from local_llm_bridge.config import Engine
    from local_llm_bridge.models.answer import Answer, Completion

MORE_TIME = "raise timeout_s (serve) or OPENAI_TIMEOUT (stdio)"
"""What gives a call more time."""
_QUOTED_THOUGHTS = 2000
_FEW_TOKENS = 16  # that an empty answer may have


def silent(engine: Engine, timeout_s: float, tokens: int = 0, queued_s: float = 0.0) -> EngineTimeoutError:
    """Return the error for a call whose time is over without a text.

    Args:
        engine: that was asked.
        timeout_s: the time for one call, in seconds.
        tokens: how many it wrote, of calls.
        queued_s: how much of the time was over before it was asked, in seconds.
    """
    did = "did not come to its answer" if tokens else "wrote nothing"
    why = "" if tokens else " Is it busy with others?"
    if queued_s >= 1:
        why = f" For {queued_s:.0f} s of these this call waited for its turn, as others were being answered."
    who = f"model {engine.name}" if engine.name else "model server"
    return EngineTimeoutError(
        f"The {who} at {engine.url} {did} within {timeout_s:g} s.{why} Ask for less at once, or {MORE_TIME}.",
        engine.name,
    )


def too_many_calls(engine: Engine) -> EngineAnswerError:
    """Return the error for an answer of nothing but calls."""
    return EngineAnswerError(
        f"The model {engine.name} called tools more than {MOST_CALLS} times in one answer. Ask in another way.",
        engine.name,
    )


def no_completion(engine: Engine, answer: Answer) -> EngineAnswerError:
    """Return the error for a stream of something else."""
    return EngineAnswerError(
        f"{engine.url} sent something that is not a chat completion. Is this an OpenAI-compatible server? "
        f"{ADDRESS_HINT}{_rest(answer)}",
        engine.name,
    )


def endless(completion: Completion) -> EngineAnswerError:
    """Return the error for an answer that the bridge ended, and that has no text."""
    return EngineAnswerError(
        f"The model {completion.model} wrote more than {MOST_CHARACTERS} characters of thoughts or calls of tools, and "
        "no answer. Ask in another way, or look at the engine's log.",
        completion.model,
    )


def only_calls(completion: Completion, remedy: str) -> EngineAnswerError:
    """Return the error for calls that nobody runs, instead of an answer."""
    names = ", ".join(dict.fromkeys(repr(call.name[:100]) for call in completion.tool_calls))
    return EngineAnswerError(
        f"The model {completion.model} called {names} instead of answering. {remedy}", completion.model
    )


def only_thoughts(completion: Completion, timeout_s: float = 0) -> OnlyThoughtsError:
    """Return the error for an answer that never came, as the model was still thinking.

    Args:
        completion: what it thought.
        timeout_s: the time for one call, in seconds.
    """
    tokens = f"{completion.thinking_tokens} tokens"
    match completion.finish_reason:
        case "deadline":
            text = f"was still thinking when the {timeout_s:g} s for one call were over ({tokens} of thoughts)"
            remedy = f"Ask for less at once, or {MORE_TIME}."
        case "length":
            text = f"spent {tokens} on thinking and was cut off before it came to its answer"
            remedy = f"To let it finish, {completion.remedy}."
        case reason:
            text = f"spent {tokens} on thinking and ended without an answer (finish reason: {reason})"
            remedy = (
                "Ask again, or in another way. If what follows is its answer, the engine's parser of reasoning has "
                "taken it for thoughts: look at its settings."
            )
    notes: tuple[str, ...] = ()
    if completion.thoughts.strip():
        shown = completion.thoughts.strip()
        cut = ""
        if len(shown) > _QUOTED_THOUGHTS and not completion.whole:
            cut = f", the last {_QUOTED_THOUGHTS} characters of {len(shown)}"
            shown = shown[-_QUOTED_THOUGHTS:]
        notes = (f"[The model's thinking, which is not an answer{cut}:]\n\n{shown}",)
    return OnlyThoughtsError(f"The model {completion.model} {text}. {remedy}", completion.model, notes)


def empty(completion: Completion) -> EngineAnswerError:
    """Return the error for an answer with nothing in it."""
    match completion.finish_reason:
        case "length":
            remedy = f"To let it write more, {completion.remedy}."
        case "abort":
            remedy = "The engine gave it up: try again; if it happens again, look at its log."
        case "content_filter":
            remedy = "The engine's content filter held it back: ask in other words, or ask another model."
        case _ if (completion.completion_tokens or 0) > _FEW_TOKENS:
            remedy = (
                f"It wrote {completion.completion_tokens} tokens, of which the engine passed none on: look at the "
                "engine's parsers of reasoning and of tool calls."
            )
        case _:
            remedy = "Ask in another way, or try again."
    return EngineAnswerError(
        f"The model {completion.model} returned an empty answer (finish reason: {completion.finish_reason}). {remedy}",
        completion.model,
    )


def reported(engine: Engine, message: str, answer: Answer) -> EngineError:
    """Return the error for one that the engine reported in its stream."""
    if answer.tokens:
        return interrupted(engine, message, answer)
    return EngineRefusedError(f"The model server at {engine.url} failed: {message[:MOST_QUOTED]}", engine.name)


def interrupted(engine: Engine, reason: str, answer: Answer) -> EngineInterruptedError:
    """Return the error for an answer that broke off."""
    return EngineInterruptedError(
        f"The model server at {engine.url} stopped in the middle of its answer ({reason[:MOST_QUOTED]}). "
        f"Try again; if it happens again, look at the server's log.{_rest(answer)}",
        engine.name,
    )


def _rest(answer: Answer) -> str:
    """Return what had been received, as the end of an error's text."""
    thoughts, text = answer.received()
    if text:
        return f"\n\nReceived until then ({len(text)} characters):\n\n{text}"
    return " It was still thinking, and had written nothing of its answer." if thoughts else ""
