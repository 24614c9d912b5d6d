"""Asking the models: routing, slots, cache, a deadline, and the answer as it grows.

Answers are streamed although the caller gets them whole: when an engine dies or is too slow, what it had written is not
lost; callers see how far it is; and a call that is cancelled stops the generation at once.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import to_json

from local_llm_bridge.audit import ANONYMOUS
from local_llm_bridge.errors import (
    EngineAnswerError,
    EngineError,
    EngineKeyError,
    EngineMissingError,
    EngineRefusedError,
    TooLongError,
    UnknownModelError,
)
from local_llm_bridge.models import context, failures
from local_llm_bridge.models.answer import CALLS_LEFT, DEADLINE, OVERLONG, Answer, Completion, ReportedError, receive
from local_llm_bridge.models.cache import Cache
from local_llm_bridge.models.engine import BrokenStreamError, EngineClient
from local_llm_bridge.models.limits import Slots
from local_llm_bridge.models.router import Choice, Router, same_name
from local_llm_bridge.models.tool_calls import TooManyCallsError
from local_llm_bridge.models.unsupported import RENAMED, SYSTEM, Habits, Memory, unsupported_parts
from local_llm_bridge.texts import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from local_llm_bridge.config import Engine, Settings

PROBE_TIMEOUT_S = 3.0
_MOST_NAMES = 50
_LONGEST_NAME = 200
PROBE_AGE_S = 2.0
_MOST_SHORTENED = 2
_LONGEST_KEPT = 40_000
"""Longest answer that the cache keeps, calls included, in characters: as many as a result may have."""

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
        max_tokens: longest answer in tokens, thoughts included; less if the context has less room.
        insists: whether `max_tokens` goes before the model's own setting.
        tools: functions that the model may call, as OpenAI has them.
        fresh: whether the answer must be a new one.
        developer: who asks.
        request_id: what the engine is told of where the question comes from.
        deadline: when the answer has to be there, by time.monotonic(), in seconds; None: after the time for one call.
        progress: is told the number of tokens so far.
        no_calls: what to do if the model calls functions although it has none.
    """

    messages: Sequence[Message]
    model: str | None
    temperature: float
    max_tokens: int
    insists: bool = False
    good_at: str | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    fresh: bool = False
    developer: str = ANONYMOUS
    request_id: str = ANONYMOUS
    deadline: float | None = None
    progress: Callable[[int], None] | None = None
    no_calls: str = "It has been given none: ask in another way, or ask another model."


@dataclass(frozen=True)
class State:
    """How a model is doing."""

    engine: Engine
    problem: str | None
    """Why it is not ready; None: it is."""
    is_default: bool
    running: int
    queued: int


class _Body(NamedTuple):
    """A request as the engine gets it."""

    json: bytes
    max_tokens: int
    habits: Habits
    """What the engine has said that it does not take."""
    shortened: int
    """How often it has refused a longer answer."""


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
        self._memory = Memory()
        self._served: dict[str, set[str]] = {}
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
        answer = Answer()
        choice: Choice | None = None
        deadline = request.deadline
        if deadline is None:
            deadline = time.monotonic() + self.timeout_s
            request = replace(request, deadline=deadline)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                choice = await self._choose(request)
                return await self._answer(request, choice, answer)
        except TimeoutError:
            if choice is None:
                raise failures.silent(self.engines[0], self.timeout_s) from None
            answer.finish_reason = DEADLINE
            completion = answer.completion(choice.engine.name or "", choice.reason)
            if completion.text.strip():
                return replace(completion, tool_calls=())
            if completion.thoughts:
                raise failures.only_thoughts(completion, self.timeout_s) from None
            raise failures.silent(choice.engine, self.timeout_s, answer.tokens, answer.queued_s) from None

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

    async def _choose(self, request: Request) -> Choice:
        engines = self.engines
        wanted = request.model
        if engines[0].name is None:
            engines = await self._listed()
            if not engines:
                raise UnknownModelError(
                    f"The model server at {self.engines[0].url} serves no model: load one there, or name it in "
                    "MODEL_NAME if it is loaded when it is asked for."
                )
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
            if same_name(engine.name or "", wanted):
                return Choice(engine, "asked for by name")
        raise UnknownModelError(f"There is no model {wanted[:100]!r}. Known: {_names(engines)}.")

    async def _listed(self) -> tuple[Engine, ...]:
        """Ask an engine that was configured without a model which ones it has."""
        engine = self.engines[0]
        try:
            names = await self._clients[None].models()
        except EngineKeyError:
            raise
        except (EngineRefusedError, EngineAnswerError) as error:
            raise type(error)(
                f"No model is named, and {engine.url}/models gives no list of them: name one in MODEL_NAME. {error}"
            ) from None
        return tuple(replace(engine, name=name) for name in dict.fromkeys(names))

    def _slots_of(self, engine: Engine) -> Slots:
        return self.slots.get(engine.name or "") or self.slots[""]

    async def _answer(self, request: Request, choice: Choice, answer: Answer) -> Completion:
        engine = choice.engine
        body = _body(engine, request, self._limit(engine, request))
        if request.fresh:
            return await self._ask(request, choice, body, answer)
        owner = "" if self._cache_is_shared else request.developer
        completion, cached = await self._cache.get(
            Cache.key(owner.encode(), engine.url.encode(), body.json),
            lambda: self._ask(request, choice, body, answer),
            _is_worth_keeping,
        )
        return replace(completion, cached=True) if cached else completion

    async def _ask(self, request: Request, choice: Choice, body: _Body, answer: Answer) -> Completion:
        engine = choice.engine
        slots = self._slots_of(engine)
        try:
            await slots.acquire(request.developer)
        finally:
            queued_since, answer.started = answer.started, time.monotonic()
            answer.queued_s = answer.started - queued_since
        try:
            client = self._clients.get(engine.name) or self._clients[None]
            fresh, known = body, self._memory.of(engine.url, engine.name)
            if known != Habits():
                body = _body(engine, request, min(body.max_tokens, known.most or body.max_tokens), known)
            while True:
                try:
                    await _gather(client, engine, request, body, answer)
                    break
                except EngineRefusedError as error:
                    other = await self._other_body(client, engine, request, body, str(error))
                    if other is None and known.are_named_in(str(error)):
                        self._memory.forget(engine.url)
                        other, known = fresh, Habits()
                    if other is None:
                        raise
                    body = other
            if body.habits != known:
                self._memory.keep(engine.url, engine.name, body.habits, request.messages)
            completion = answer.completion(engine.name or "", choice.reason, body.max_tokens)
            if completion.finish_reason == "length":
                completion = replace(completion, remedy=_more_room(engine, request, body, completion))
            return _checked(completion, request)
        finally:
            slots.release(time.monotonic() - answer.started)

    def _limit(self, engine: Engine, request: Request) -> int:
        """Return how long the answer may be, in tokens.

        Raises:
            TooLongError: there is no room for any.
        """
        wanted = _wanted(engine, request)
        length = engine.context
        if length is None:
            return wanted
        tokens = context.estimate(request.messages)
        if tokens >= length:
            raise TooLongError(
                f"The input is about {tokens} tokens, the context of {engine.name} is {length}. "
                "Send less: only the parts that matter, or one file at a time.",
                engine.name,
            )
        return min(wanted, length - tokens)

    async def _other_body(
        self, client: EngineClient, engine: Engine, request: Request, body: _Body, said: str
    ) -> _Body | None:
        """Return the request as an engine may take it that has refused it; None: it would not.

        What is read from its words of its context holds for this call alone: they may repeat the question's, which is
        somebody's.
        """
        unsupported, most = body.habits
        more = unsupported_parts(said) - unsupported
        if not any(message["role"] == "system" for message in request.messages):
            more -= {SYSTEM}
        if more:
            return _body(engine, request, body.max_tokens, Habits(unsupported | more, most), body.shortened)
        room = await self._room_after(client, engine, request, body, said)
        if room is None:
            return None
        if context.most_of_any(said, body.max_tokens) == room:
            most = room
        return _body(engine, request, room, Habits(unsupported, most), body.shortened + 1)

    async def _room_after(
        self, client: EngineClient, engine: Engine, request: Request, body: _Body, said: str
    ) -> int | None:
        """Return how long an answer can be that the engine refused for its length; None: it cannot be any."""
        asked = body.max_tokens
        if not context.is_about_length(said) or body.shortened == _MOST_SHORTENED:
            return None
        refusal = context.read_refusal(said, asked)
        length, room = refusal.context, refusal.room
        if refusal.below is not None and length is not None:
            # Any length below may fit. A refusal costs the engine little, so a long answer is tried first.
            room = min(refusal.below, asked) // 2
            if body.shortened:
                rest = (length - context.estimate(request.messages)) // 2
                room = min(room // 2, rest if rest >= context.LEAST_ROOM else room)
        elif body.shortened and room is None:
            return None
        elif length is None and room is None:
            try:
                length = await client.context_of(engine.name or "")
            except EngineError:
                return None
        if length is not None and room is None:
            # The estimate errs on the low side, and the engine is not to refuse again.
            room = (length - context.estimate(request.messages)) // 2
        return room if room is not None and context.LEAST_ROOM <= room < asked else None

    async def _unready_because(self, engine: Engine) -> str | None:
        names: list[str] = []
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                names = await self._clients[engine.name].models(max_retries=0)
        except EngineError as error:
            # Some servers answer and have no list; that the name is right only a call can tell.
            return None if engine.name and isinstance(error, EngineMissingError) else str(error)
        except TimeoutError:
            return f"{engine.url} did not answer within {PROBE_TIMEOUT_S:g} s."
        finally:
            if set(names) != self._served.get(engine.url):
                self._memory.forget(engine.url)  # another engine may be there now
                self._served[engine.url] = set(names)
        if engine.name is not None and not any(same_name(engine.name, name) for name in names):
            return f"{engine.url} does not serve {engine.name}; it serves {_listing(names) or 'nothing'}."
        return None


async def _gather(client: EngineClient, engine: Engine, request: Request, body: _Body, answer: Answer) -> None:
    """Send the request and gather the answer, so that the caller has what came if this fails."""
    try:
        events = client.stream(body.json, request.request_id, request.deadline, body.max_tokens)
        async with aclosing(events) as stream:
            await receive(stream, answer, request.progress)
    except ReportedError as error:
        raise failures.reported(engine, str(error), answer) from None
    except TooManyCallsError:
        raise failures.too_many_calls(engine) from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        if answer.finish_reason is None:  # what comes after the end is of no interest
            if answer.tokens and isinstance(error, ValueError):
                raise failures.interrupted(engine, str(error), answer) from None
            raise failures.no_completion(engine, answer) from None
    except BrokenStreamError as error:
        raise failures.interrupted(engine, str(error), answer) from None
    if answer.finish_reason is None:
        if not answer.tokens:
            raise failures.interrupted(engine, "the stream ended without a finish reason", answer)
        answer.finish_reason = "stop"  # `[DONE]` has come, or the stream would have broken off


def _checked(completion: Completion, request: Request) -> Completion:
    """Return a completion that has an answer, or calls that somebody runs; only with these its thoughts are of use.

    Raises:
        EngineAnswerError: it has neither.
    """
    if completion.text.strip() or (completion.tool_calls and request.tools and completion.finish_reason != OVERLONG):
        if completion.finish_reason == "tool_calls" and not request.tools:
            completion = replace(completion, finish_reason=CALLS_LEFT)
        is_over = not (completion.tool_calls and request.tools)
        return replace(completion, thoughts="") if completion.thoughts and is_over else completion
    if completion.finish_reason == OVERLONG:
        raise failures.endless(completion)
    if completion.tool_calls:
        raise failures.only_calls(completion, request.no_calls)
    raise failures.only_thoughts(completion) if completion.thinking_tokens else failures.empty(completion)


def _is_worth_keeping(completion: Completion) -> bool:
    length = len(completion.text) + len(completion.thoughts) + sum(len(call.written) for call in completion.tool_calls)
    return completion.whole and length <= _LONGEST_KEPT


def _wanted(engine: Engine, request: Request) -> int:
    return request.max_tokens if request.insists or engine.max_tokens is None else engine.max_tokens


def _more_room(engine: Engine, request: Request, body: _Body, completion: Completion) -> str:
    """Say what makes room for a longer answer."""
    limit = body.max_tokens
    if completion.context_is_full:
        return f"send less, or give {engine.name} a longer context: it is full"
    if limit == body.habits.most:
        return f"ask for less at once: the engine lets no answer have more than {limit} tokens"
    if limit < _wanted(engine, request):
        return f"send less, or give {engine.name} a longer context: it has no room for more"
    raised = "raise max_tokens of the model (models[].max_tokens, or LOCAL_LLM_MAX_TOKENS over stdio)"
    if request.insists:
        raised = "raise max_tokens of this tool"
    if completion.ended_early:  # by a limit of the engine's own, mostly that of its context
        return (
            f"send less, or give {engine.name} a longer context: it had {limit} tokens and ended before. Else {raised}"
        )
    return raised


def _body(
    engine: Engine,
    request: Request,
    max_tokens: int,
    habits: Habits = Habits(),  # noqa: B008 - it is immutable
    shortened: int = 0,
) -> _Body:
    """Return the request as the engine gets it."""
    messages = list(request.messages)
    if SYSTEM in habits.unsupported:
        messages = _without_system(messages)
    body: dict[str, Any] = {
        "model": engine.name,
        "messages": messages,
        "temperature": request.temperature,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        body["tools"] = list(request.tools)
    for field in habits.unsupported - {SYSTEM}:
        value = body.pop(field)
        if field in RENAMED:
            body[RENAMED[field]] = value
    return _Body(to_json(body), max_tokens, habits, shortened)


def _without_system(messages: list[Message]) -> list[Message]:
    """Put what the system says at the beginning of what the user says."""
    said = [message["content"] for message in messages if message["role"] == "system"]
    first, *others = [message for message in messages if message["role"] != "system"]
    return [{**first, "content": "\n\n".join([*said, first["content"]])}, *others]


def _names(engines: Sequence[Engine]) -> str:
    return _listing([engine.name or "" for engine in engines])


def _listing(names: Sequence[str]) -> str:
    """Return names for an error's text, which an engine cannot make longer than can be read."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(printable(name[:_LONGEST_NAME]) for name in names[:_MOST_NAMES]) + more
