"""Asking the engines: streamed chat completions with a deadline, and whether an engine is ready.

Answers are streamed although the caller gets them whole: when an engine dies or is too slow, what it had written is not
lost, and a call that is cancelled stops the generation at once.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from local_llm_bridge.errors import (
    EngineAnswerError,
    EngineBusyError,
    EngineDownError,
    EngineError,
    EngineInterruptedError,
    EngineRefusedError,
    EngineTimeoutError,
    TooLongError,
    UnknownModelError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openai import APIStatusError, AsyncOpenAI

    from local_llm_bridge.config import Engine, Settings

CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 3.0
PROBE_AGE_S = 2.0
# Most of an engine's own words that is passed on, in characters.
_QUOTE = 300
_ADDRESS_HINT = "The address is set by models[].url (serve) or LOCAL_API_URL (stdio)."
_KEY_HINT = "The key is set by models[].api_key_file (serve) or OPENAI_API_KEY_FILE (stdio)."

Message = dict[str, str]
"""A chat message: role and content."""


@dataclass(frozen=True)
class Completion:
    """A model's answer."""

    text: str
    model: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Backend:
    """The engines of one configuration.

    Args:
        settings: the engines, the longest time for a call and the number of repetitions.
    """

    def __init__(self, settings: Settings) -> None:
        self.engines = settings.engines
        self._timeout_s = settings.timeout_s
        self._max_retries = settings.max_retries
        self._clients: dict[tuple[str, str | None], AsyncOpenAI] = {}
        self._probed_at = float("-inf")
        self._probe: dict[str, str | None] = {}
        self._probing = asyncio.Lock()

    async def complete(
        self, messages: Sequence[Message], *, model: str | None, temperature: float, max_tokens: int
    ) -> Completion:
        """Have a model continue a conversation.

        Args:
            messages: the conversation.
            model: which model; None: the default.
            temperature: 0 … 2.
            max_tokens: longest answer in tokens; less if the context has less room.

        Raises:
            UnknownModelError: there is no such model.
            TooLongError: the conversation cannot fit into the model's context.
            EngineError: the engine failed; its text holds what had been received.
        """
        received: list[str] = []
        chosen: Engine | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                chosen = await self._choose(model)
                room = _room(chosen, messages)
                body: dict[str, Any] = {
                    "model": chosen.name,
                    "messages": list(messages),
                    "temperature": temperature,
                    "max_tokens": max_tokens if room is None else min(max_tokens, room),
                    "stream": True,
                    "stream_options": {"include_usage": True},
                }
                return await self._stream(chosen, body, received)
        except TimeoutError:
            where = f"model {chosen.name} at {chosen.url}" if chosen else "model server"
            raise EngineTimeoutError(
                f"The {where} did not finish within {self._timeout_s:g} s. Ask for less at once, or raise timeout_s "
                f"(serve) or OPENAI_TIMEOUT (stdio).{_rest(received)}",
                chosen.name if chosen else None,
            ) from None

    async def readiness(self) -> dict[str, str | None]:
        """Ask every engine whether it serves its model; per model None or the reason why it is not ready."""
        async with self._probing:
            if time.monotonic() - self._probed_at > PROBE_AGE_S:
                reasons = await asyncio.gather(*(self._unready_because(engine) for engine in self.engines))
                self._probe = {engine.name or "": reason for engine, reason in zip(self.engines, reasons, strict=True)}
                self._probed_at = time.monotonic()
        return self._probe

    async def close(self) -> None:
        """Close the connections to the engines."""
        for client in self._clients.values():
            await client.close()

    def _client(self, engine: Engine) -> AsyncOpenAI:
        # Imported when it is first needed: half of the time that the program takes to start.
        from openai import AsyncOpenAI, Timeout  # noqa: PLC0415

        key = (engine.url, engine.api_key)
        if key not in self._clients:
            self._clients[key] = AsyncOpenAI(
                base_url=engine.url,
                api_key=engine.api_key or "none",  # the client wants one, engines without a key ignore it
                max_retries=self._max_retries,
                timeout=Timeout(self._timeout_s, connect=CONNECT_TIMEOUT_S),
            )
        return self._clients[key]

    async def _choose(self, wanted: str | None) -> Engine:
        engines = self.engines
        if engines[0].name is None:
            names = await self._listed(engines[0], max_retries=self._max_retries)
            engines = tuple(replace(engines[0], name=name) for name in names)
            if wanted is None and len(engines) != 1:
                raise UnknownModelError(
                    f"The model server at {self.engines[0].url} lists {len(engines)} models "
                    f"({_names(engines)}): name one in the argument model, or set MODEL_NAME."
                )
        if wanted is None:
            return engines[0]
        for engine in engines:
            if engine.name == wanted:
                return engine
        raise UnknownModelError(f"There is no model {wanted[:100]!r}. Known: {_names(engines)}.")

    async def _listed(self, engine: Engine, *, max_retries: int) -> list[str]:
        """Return the names of the models that the engine serves."""
        import openai  # noqa: PLC0415

        try:
            answer: Any = await self._client(engine).get(
                "/models", cast_to=object, options={"max_retries": max_retries}
            )
            return [str(model["id"]) for model in answer["data"]]
        except openai.APIError as error:
            raise _told(error, engine) from None
        except (ValueError, TypeError, KeyError):
            raise EngineAnswerError(
                f"{engine.url}/models did not answer with a list of models. Is this an OpenAI-compatible server? "
                + _ADDRESS_HINT
            ) from None

    async def _unready_because(self, engine: Engine) -> str | None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                names = await self._listed(engine, max_retries=0)
        except EngineError as error:
            return str(error)
        except TimeoutError:
            return f"{engine.url} did not answer within {PROBE_TIMEOUT_S:g} s."
        if engine.name is not None and engine.name not in names:
            return f"{engine.url} does not serve {engine.name}; it serves {', '.join(names) or 'nothing'}."
        return None

    async def _stream(self, engine: Engine, body: dict[str, Any], received: list[str]) -> Completion:
        """Send the request and gather the answer into `received`, so that the caller has it if this fails."""
        import openai  # noqa: PLC0415

        finish_reason: str | None = None
        usage: dict[str, int] = {}
        try:
            # post() is what chat.completions.create() calls, without its inspection of every argument's type.
            stream = await self._client(engine).post(
                "/chat/completions", cast_to=object, body=body, stream=True, stream_cls=openai.AsyncStream[object]
            )
            async with stream:
                kind = stream.response.headers.get("content-type", "nothing")
                if not kind.startswith("text/event-stream"):
                    raise EngineAnswerError(
                        f"{engine.url} answered with {kind[:100]} instead of a stream of events. "
                        f"Is this an OpenAI-compatible server? {_ADDRESS_HINT}",
                        engine.name,
                    )
                async for event in stream:
                    text, reason, counted = _delta(event)
                    received.append(text)
                    finish_reason = reason or finish_reason
                    usage = counted or usage
        except openai.APIError as error:
            if received:
                cause = error.message if error.body else _cause(error)
                raise _interrupted(engine, cause, received) from None
            raise _told(error, engine) from None
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            raise EngineAnswerError(
                f"{engine.url} sent something that is not a chat completion. Is this an OpenAI-compatible server? "
                f"{_ADDRESS_HINT}{_rest(received)}",
                engine.name,
            ) from None
        text = "".join(received)
        if finish_reason is None:
            raise _interrupted(engine, "the stream ended without a finish reason", received)
        if not text.strip():
            raise EngineAnswerError(
                f"The model {engine.name} returned an empty answer (finish reason: {finish_reason}). "
                "Ask in another way, or try again.",
                engine.name,
            )
        return Completion(
            text=text,
            model=engine.name or "",
            finish_reason=finish_reason,
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
        )


def _delta(event: Any) -> tuple[str, str | None, dict[str, int] | None]:  # noqa: ANN401 - it came over the wire
    """Take text, finish reason and token counts out of one event; anything but a completion's raises."""
    if not event["choices"]:
        return "", None, event.get("usage")
    choice = event["choices"][0]
    return str(choice["delta"].get("content") or ""), choice.get("finish_reason"), event.get("usage")


def _room(engine: Engine, messages: Sequence[Message]) -> int | None:
    """Return how many tokens are left for the answer; None: the context's length is not known.

    Raises:
        TooLongError: nothing is left.
    """
    if engine.context is None:
        return None
    # About 4 bytes a token in English, code and Chinese alike. It errs on the low side: what only nearly fits goes to
    # the engine, which counts exactly.
    estimate = sum(len(message["content"].encode()) for message in messages) // 4
    if estimate >= engine.context:
        raise TooLongError(
            f"The input is about {estimate} tokens, the context of {engine.name} is {engine.context}. "
            "Send less: only the parts that matter, or one file at a time.",
            engine.name,
        )
    return engine.context - estimate


def _told(error: Any, engine: Engine) -> EngineError:  # noqa: ANN401 - openai is imported late
    """Say in the caller's words why a request failed before anything of the answer came."""
    import openai  # noqa: PLC0415

    if isinstance(error, openai.APITimeoutError):
        return EngineDownError(
            f"The model server at {engine.url} cannot be reached: no answer in time. Is its host up? {_ADDRESS_HINT}",
            engine.name,
        )
    if isinstance(error, openai.APIConnectionError):
        return EngineDownError(
            f"The model server at {engine.url} cannot be reached: {_cause(error)}. Is it running? {_ADDRESS_HINT}",
            engine.name,
        )
    if isinstance(error, openai.APIStatusError):
        return _status(error, engine)
    return EngineRefusedError(f"The model server at {engine.url} failed: {error.message[:_QUOTE]}", engine.name)


def _status(error: APIStatusError, engine: Engine) -> EngineError:
    code, said = error.status_code, _said(error)
    match code:
        case 401 | 403:
            # Not quoted: some servers repeat the key.
            return EngineRefusedError(
                f"The model server at {engine.url} refused the bridge's key (HTTP {code}). {_KEY_HINT}", engine.name
            )
        case 404:
            return EngineRefusedError(
                f"The model server at {engine.url} does not serve {engine.name} there (HTTP 404{said}). "
                f"{_ADDRESS_HINT}",
                engine.name,
            )
        case 429 | 503:
            return EngineBusyError(
                f"The model server at {engine.url} is busy or still loading (HTTP {code}{said}). "
                "Wait a little, then try again.",
                engine.name,
            )
        case _:
            side = "failed" if code >= 500 else "refused the request"  # noqa: PLR2004
            return EngineRefusedError(f"The model server at {engine.url} {side} (HTTP {code}{said}).", engine.name)


def _said(error: APIStatusError) -> str:
    """Return the engine's own message, if it sent one as OpenAI-compatible servers do."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return f": {message[:_QUOTE]}" if isinstance(message, str) else ""


def _cause(error: BaseException) -> str:
    """Return the innermost reason, such as `Connection refused`."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return (str(error) or type(error).__name__)[:_QUOTE]


def _interrupted(engine: Engine, cause: str, received: Sequence[str]) -> EngineInterruptedError:
    return EngineInterruptedError(
        f"The model server at {engine.url} stopped in the middle of its answer ({cause[:_QUOTE]}). "
        f"Try again; if it happens again, look at the server's log.{_rest(received)}",
        engine.name,
    )


def _rest(received: Sequence[str]) -> str:
    """Return what had been received, as the end of an error's text."""
    text = "".join(received)
    return f"\n\nReceived until then ({len(text)} characters):\n\n{text}" if text else ""


def _names(engines: Sequence[Engine]) -> str:
    return ", ".join(engine.name or "" for engine in engines)
