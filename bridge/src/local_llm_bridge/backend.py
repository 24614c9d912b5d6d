"""Asking the models: routing, slots, cache, a deadline, and the answer as it grows.

Answers are streamed although the caller gets them whole: when an engine dies or is too slow, what it had written is not
lost; callers see how far it is; and a call that is cancelled stops the generation at once.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from local_llm_bridge.audit import NOBODY
from local_llm_bridge.cache import Cache
from local_llm_bridge.engine import ADDRESS_HINT, QUOTE, BrokenStreamError, EngineClient
from local_llm_bridge.errors import (
    EngineAnswerError,
    EngineError,
    EngineInterruptedError,
    EngineRefusedError,
    EngineTimeoutError,
    TooLongError,
    UnknownModelError,
)
from local_llm_bridge.limits import Slots
from local_llm_bridge.router import Choice, Router

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from local_llm_bridge.config import Engine, Settings

PROBE_TIMEOUT_S = 3.0
PROBE_AGE_S = 2.0

Message = dict[str, Any]
"""A chat message as OpenAI has it: role, content, and tool_calls or tool_call_id."""


@dataclass(frozen=True)
class Request:
    """What a model is asked.

    Args:
        messages: the conversation.
        model: which model; None: the router chooses.
        good_at: the strength that the router looks for before it looks at the text.
        temperature: 0 … 2.
        max_tokens: longest answer in tokens; less if the context has less room.
        tools: functions that the model may call, as OpenAI has them.
        fresh: whether the answer must be a new one.
        developer: who asks.
        request_id: what the engine is told of where the question comes from.
        deadline: when the answer has to be there, by time.monotonic(), in seconds; None: after the time for one call.
        progress: is told the number of tokens so far.
    """

    messages: Sequence[Message]
    model: str | None
    temperature: float
    max_tokens: int
    good_at: str | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    fresh: bool = False
    developer: str = NOBODY
    request_id: str = NOBODY
    deadline: float | None = None
    progress: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Completion:
    """A model's answer."""

    text: str
    model: str
    finish_reason: str
    """OpenAI's `stop`, `length`, `tool_calls` …, or `deadline`: the bridge ended it."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    routing: str = ""
    """Why this model."""
    first_token_s: float | None = None
    """Seconds from the request to the first piece of the answer."""
    cached: bool = False


@dataclass(frozen=True)
class State:
    """How a model is doing."""

    engine: Engine
    problem: str | None
    """Why it is not ready; None: it is."""
    is_default: bool
    running: int
    queued: int


class _ReportedError(Exception):
    """The engine reported an error in the middle of its stream."""


@dataclass
class _Answer:
    """An answer as it grows."""

    started: float
    pieces: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    first_token_s: float | None = None

    def add(self, event: Any) -> None:  # noqa: ANN401 - it came over the wire
        """Take in one event; anything but a completion's raises ValueError, TypeError, KeyError and the like."""
        if error := event.get("error"):
            raise _ReportedError(str(error.get("message") if isinstance(error, dict) else error))
        if usage := event.get("usage"):
            self.usage = usage
        if not (choices := event["choices"]):
            return
        choice = choices[0]
        delta = choice["delta"]
        if text := delta.get("content"):
            self.pieces.append(str(text))
            self.tokens += 1
            if self.first_token_s is None:
                self.first_token_s = time.monotonic() - self.started
        if parts := delta.get("tool_calls"):
            for part in parts:
                self._add_tool_call(part)
        if reason := choice.get("finish_reason"):
            self.finish_reason = reason

    def _add_tool_call(self, part: dict[str, Any]) -> None:
        """A call comes in pieces: its name first, then its arguments as bits of JSON text."""
        index = part.get("index") or 0
        empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        call = self.tool_calls.setdefault(index, empty)
        call["id"] = part.get("id") or call["id"] or f"call_{index}"
        function = part.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
        self.tokens += 1


class Backend:
    """The engines of one configuration.

    Args:
        settings: the engines, how they are chosen, and the limits of a call.
    """

    def __init__(self, settings: Settings) -> None:
        self.engines = settings.engines
        self.timeout_s = settings.timeout_s
        self.slots = {
            engine.name or "": Slots(engine.name or "", engine.concurrency, engine.queue) for engine in self.engines
        }
        self._cache = Cache[Completion](settings.cache.entries, settings.cache.ttl_s)
        self._cache_is_shared = settings.cache.shared
        self._router = Router(self.engines, settings.routing, settings.default_model)
        self._clients = {engine.name: EngineClient(engine, settings.max_retries) for engine in self.engines}
        self._probed_at = float("-inf")
        self._probe: dict[str, str | None] = {}
        self._probing = asyncio.Lock()

    async def complete(self, request: Request) -> Completion:
        """Have a model continue a conversation.

        Raises:
            UnknownModelError: there is no such model.
            TooLongError: the conversation cannot fit into the model's context.
            QueueFullError: too many are waiting for the model.
            EngineError: the engine failed; its text holds what had been received.
        """
        answer = _Answer(time.monotonic())
        choice: Choice | None = None
        if request.deadline is None:
            request = replace(request, deadline=time.monotonic() + self.timeout_s)
        try:
            async with asyncio.timeout(self._left(request)):
                choice = await self._choose(request)
                body = _body(choice.engine, request)
                return await self._answer(request, choice, body, answer)
        except TimeoutError:
            if answer.pieces and choice:
                return _completion(choice, replace(answer, finish_reason="deadline", tool_calls={}))
            where = f"model {choice.engine.name} at {choice.engine.url}" if choice else "model server"
            raise EngineTimeoutError(
                f"The {where} wrote nothing within {self.timeout_s:g} s. Is it busy with others? Ask for less at once, "
                "or raise timeout_s (serve) or OPENAI_TIMEOUT (stdio).",
                choice.engine.name if choice else None,
            ) from None

    async def readiness(self) -> dict[str, str | None]:
        """Ask every engine whether it serves its model; per model None or the reason why it is not ready."""
        async with self._probing:
            if time.monotonic() - self._probed_at > PROBE_AGE_S:
                reasons = await asyncio.gather(*(self._unready_because(engine) for engine in self.engines))
                self._probe = {engine.name or "": reason for engine, reason in zip(self.engines, reasons, strict=True)}
                self._probed_at = time.monotonic()
        return self._probe

    async def states(self) -> list[State]:
        """Tell of every model how it is doing.

        Raises:
            EngineError: the models have no names here and the engine does not list them.
        """
        engines = self.engines
        if engines[0].name is None:
            engines = await self._listed()
        problems = await self.readiness()
        return [
            State(
                engine,
                problems.get(engine.name or "", problems.get("")),
                engine.name == self._router.default.name,
                self._slots_of(engine).running,
                self._slots_of(engine).queued,
            )
            for engine in engines
        ]

    async def close(self) -> None:
        """Close the connections to the engines."""
        for client in self._clients.values():
            await client.close()

    def _left(self, request: Request) -> float:
        return self.timeout_s if request.deadline is None else request.deadline - time.monotonic()

    async def _choose(self, request: Request) -> Choice:
        engines = self.engines
        wanted = request.model
        if engines[0].name is None:
            engines = await self._listed()
            if wanted is None and len(engines) != 1:
                raise UnknownModelError(
                    f"The model server at {self.engines[0].url} lists {len(engines)} models "
                    f"({_names(engines)}): name one in the argument model, or set MODEL_NAME."
                )
            if wanted is None:
                return Choice(engines[0], "the only model")
        if wanted is None:
            text = next((m["content"] for m in reversed(request.messages) if m["role"] == "user"), "")
            return self._router.choose(text, request.good_at)
        for engine in engines:
            if engine.name == wanted:
                return Choice(engine, "asked for by name")
        raise UnknownModelError(f"There is no model {wanted[:100]!r}. Known: {_names(engines)}.")

    async def _listed(self) -> tuple[Engine, ...]:
        """Ask an engine that was configured without a model which ones it has."""
        names = await self._clients[None].models()
        return tuple(replace(self.engines[0], name=name) for name in names)

    def _slots_of(self, engine: Engine) -> Slots:
        return self.slots.get(engine.name or "") or self.slots[""]

    async def _answer(self, request: Request, choice: Choice, body: bytes, answer: _Answer) -> Completion:
        if request.fresh:
            return await self._ask(request, choice, body, answer)
        owner = "" if self._cache_is_shared else request.developer
        key = Cache.key(owner.encode(), choice.engine.url.encode(), body)
        completion, cached = await self._cache.get(
            key,
            lambda: self._ask(request, choice, body, answer),
            lambda completion: completion.finish_reason in {"stop", "length", "tool_calls"},
        )
        return replace(completion, cached=True) if cached else completion

    async def _ask(self, request: Request, choice: Choice, body: bytes, answer: _Answer) -> Completion:
        engine = choice.engine
        slots = self._slots_of(engine)
        await slots.acquire(request.developer)
        answer.started = time.monotonic()
        try:
            client = self._clients.get(engine.name) or self._clients[None]
            return await _receive(client, choice, body, answer, request)
        finally:
            slots.release(time.monotonic() - answer.started)

    async def _unready_because(self, engine: Engine) -> str | None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                names = await self._clients[engine.name].models(max_retries=0)
        except EngineError as error:
            return str(error)
        except TimeoutError:
            return f"{engine.url} did not answer within {PROBE_TIMEOUT_S:g} s."
        if engine.name is not None and engine.name not in names:
            return f"{engine.url} does not serve {engine.name}; it serves {', '.join(names) or 'nothing'}."
        return None


async def _receive(client: EngineClient, choice: Choice, body: bytes, answer: _Answer, request: Request) -> Completion:
    """Send the request and gather the answer, so that the caller has what came if this fails."""
    engine = choice.engine
    try:
        events = client.stream(body, request.request_id, request.deadline, request.max_tokens)
        async with aclosing(events) as stream:
            async for packet in stream:
                for event in packet:
                    answer.add(event)
                if request.progress:
                    request.progress(answer.tokens)
    except _ReportedError as error:
        raise _failed(engine, str(error), answer.pieces) from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise EngineAnswerError(
            f"{engine.url} sent something that is not a chat completion. Is this an OpenAI-compatible server? "
            f"{ADDRESS_HINT}{_rest(answer.pieces)}",
            engine.name,
        ) from None
    except BrokenStreamError as error:
        raise _interrupted(engine, str(error), answer.pieces) from None
    if answer.finish_reason is None:
        raise _interrupted(engine, "the stream ended without a finish reason", answer.pieces)
    if not answer.tool_calls and not any(piece.strip() for piece in answer.pieces):
        raise EngineAnswerError(
            f"The model {engine.name} returned an empty answer (finish reason: {answer.finish_reason}). "
            "Ask in another way, or try again.",
            engine.name,
        )
    return _completion(choice, answer)


def _completion(choice: Choice, answer: _Answer) -> Completion:
    return Completion(
        text="".join(answer.pieces),
        model=choice.engine.name or "",
        finish_reason=answer.finish_reason or "",
        prompt_tokens=answer.usage.get("prompt_tokens"),
        completion_tokens=answer.usage.get("completion_tokens", answer.tokens or None),
        tool_calls=tuple(answer.tool_calls[index] for index in sorted(answer.tool_calls)),
        routing=choice.reason,
        first_token_s=answer.first_token_s,
    )


def _body(engine: Engine, request: Request) -> bytes:
    """Return the request as the engine gets it.

    Raises:
        TooLongError: it cannot fit into the context.
    """
    room = _room(engine, request.messages)
    body: dict[str, Any] = {
        "model": engine.name,
        "messages": list(request.messages),
        "temperature": request.temperature,
        "max_tokens": request.max_tokens if room is None else min(request.max_tokens, room),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        body["tools"] = list(request.tools)
    return to_json(body)


def _room(engine: Engine, messages: Sequence[Message]) -> int | None:
    """Return how many tokens are left for the answer; None: the context's length is not known.

    Raises:
        TooLongError: nothing is left.
    """
    if engine.context is None:
        return None
    # About 4 bytes a token in English, code and Chinese alike. It errs on the low side: what only nearly fits goes to
    # the engine, which counts exactly.
    estimate = sum(len(str(message["content"]).encode()) for message in messages) // 4
    if estimate >= engine.context:
        raise TooLongError(
            f"The input is about {estimate} tokens, the context of {engine.name} is {engine.context}. "
            "Send less: only the parts that matter, or one file at a time.",
            engine.name,
        )
    return engine.context - estimate


def _failed(engine: Engine, message: str, received: Sequence[str]) -> EngineError:
    """Say that the engine reported an error in the middle of its stream."""
    if received:
        return _interrupted(engine, message, received)
    return EngineRefusedError(f"The model server at {engine.url} failed: {message[:QUOTE]}", engine.name)


def _interrupted(engine: Engine, reason: str, received: Sequence[str]) -> EngineInterruptedError:
    return EngineInterruptedError(
        f"The model server at {engine.url} stopped in the middle of its answer ({reason[:QUOTE]}). "
        f"Try again; if it happens again, look at the server's log.{_rest(received)}",
        engine.name,
    )


def _rest(received: Sequence[str]) -> str:
    """Return what had been received, as the end of an error's text."""
    text = "".join(received)
    return f"\n\nReceived until then ({len(text)} characters):\n\n{text}" if text else ""


def _names(engines: Sequence[Engine]) -> str:
    return ", ".join(engine.name or "" for engine in engines)
