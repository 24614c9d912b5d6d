"""One engine over HTTP: streamed chat completions, and the names of the models that it serves.

The first try goes out through aiohttp alone, which costs a fraction of what the openai client takes for a call. What
went wrong with it is handed to the openai client, which judges it: whether to repeat the request, after which wait (the
engine's Retry-After, else its own back-off), and which of its errors it is. Repetitions go through aiohttp as well.
So openai, which takes longer to import than all the rest, is imported only when something goes wrong.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import importlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic_core import from_json  # a third of the time that json takes, once for every token

from local_llm_bridge.audit import NOBODY
from local_llm_bridge.errors import (
    EngineAnswerError,
    EngineBusyError,
    EngineDownError,
    EngineError,
    EngineKeyError,
    EngineRefusedError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import aiohttp
    import httpx2
    from openai import APIStatusError, AsyncOpenAI

    from local_llm_bridge.config import Engine

CONNECT_TIMEOUT_S = 5.0
# Most of an engine's own words that is passed on, in characters.
QUOTE = 300
_ERROR_BODY = 64 * 1024
_LONGEST_EVENT = 2**24
_DONE = b"data: [DONE]"
ADDRESS_HINT = "The address is set by models[].url (serve) or LOCAL_API_URL (stdio)."
_KEY_HINT = "The key is set by models[].api_key_file (serve) or OPENAI_API_KEY_FILE (stdio)."

Event = dict[str, Any]
"""One event of a chat completion's stream."""


class BrokenStreamError(Exception):
    """An answer broke off; the text says why."""


@dataclass
class _Attempt:
    """A request on its way, as the openai client's transport finds it."""

    method: str
    url: str
    body: bytes | None
    request_id: str = NOBODY
    outcome: aiohttp.ClientResponse | Exception | None = None
    """What the latest try met and nobody has looked at yet; None: it has to be tried."""
    response: aiohttp.ClientResponse | None = None
    reused: bool = False
    """Whether the latest try went out over a connection that had been kept open."""


async def _note_reuse(_session: object, context: Any, _params: object) -> None:  # noqa: ANN401 - aiohttp's namespace
    context.trace_request_ctx.reused = True


_attempt: contextvars.ContextVar[_Attempt] = contextvars.ContextVar("attempt")


class EngineClient:
    """The connections to one engine.

    Args:
        engine: where it is, and its key.
        max_retries: how often a request is repeated that got no answer yet.
    """

    def __init__(self, engine: Engine, max_retries: int) -> None:
        self._engine = engine
        self._max_retries = max_retries
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if engine.api_key:
            self._headers["Authorization"] = f"Bearer {engine.api_key}"
        parts = urlsplit(engine.url)
        bypassed = proxy_bypass(parts.hostname or "")
        self._proxy = None if bypassed else getproxies().get(parts.scheme)
        self._session: aiohttp.ClientSession | None = None
        self._judge: AsyncOpenAI | None = None

    async def stream(self, body: bytes, request_id: str = NOBODY) -> AsyncGenerator[list[Event]]:
        """Send a chat completion's request and yield the answer's events as they arrive, those of a packet together.

        Args:
            body: the request as JSON, with `stream` true.
            request_id: for the engine's log, and for a door's on the way to it.

        Raises:
            EngineError: there was no answer, or the engine said no.
            BrokenStreamError: the answer broke off.
            ValueError: something in it is not JSON, or has no end.
        """
        attempt = _Attempt("POST", f"{self._engine.url}/chat/completions", body, request_id)
        response = await self._send(attempt, self._max_retries)
        whole = False
        try:
            kind = response.headers.get("content-type", "nothing")
            if not kind.startswith("text/event-stream"):
                raise EngineAnswerError(
                    f"{self._engine.url} answered with {kind[:100]} instead of a stream of events. "
                    f"Is this an OpenAI-compatible server? {ADDRESS_HINT}",
                    self._engine.name,
                )
            rest = b""
            async for packet in _packets(response):
                *lines, rest = (rest + packet).split(b"\n")
                events, rubbish = _events(lines)
                if events:
                    yield events
                if rubbish:
                    raise rubbish
                if len(rest) > _LONGEST_EVENT:
                    raise ValueError("no end of a line")
            whole = True
        finally:
            # Closing the connection is how the engine learns that nobody wants the rest.
            response.release() if whole else response.close()

    async def models(self, *, max_retries: int | None = None) -> list[str]:
        """Return the names of the models that the engine serves.

        Args:
            max_retries: None: as configured.

        Raises:
            EngineError: there was no answer, or one that is no list of models.
        """
        retries = self._max_retries if max_retries is None else max_retries
        try:
            return [str(model["id"]) for model in await self._listing(retries)]
        except (TypeError, KeyError):
            raise self._no_list() from None

    async def context_of(self, model: str) -> int | None:
        """Return the length of the context that the engine serves a model with, in tokens; None: it does not say.

        Raises:
            EngineError: there was no answer, or one that is no list of models.
        """
        for entry in await self._listing(0):
            if isinstance(entry, dict) and entry.get("id") == model:
                meta = entry.get("meta")
                length = entry.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
                return length if isinstance(length, int) else None  # vLLM's, llama.cpp's
        return None

    async def close(self) -> None:
        """Close the connections."""
        if self._session:
            await self._session.close()
        if self._judge:
            await self._judge.close()

    async def _listing(self, max_retries: int) -> list[Any]:
        attempt = _Attempt("GET", f"{self._engine.url}/models", None)
        async with await self._send(attempt, max_retries) as response:
            try:
                listing = json.loads(await response.read())["data"]
            except (ValueError, TypeError, KeyError):
                listing = None
        if not isinstance(listing, list):
            raise self._no_list()
        return listing

    def _no_list(self) -> EngineAnswerError:
        return EngineAnswerError(
            f"{self._engine.url}/models did not answer with a list of models. Is this an OpenAI-compatible server? "
            f"{ADDRESS_HINT}"
        )

    async def _send(self, attempt: _Attempt, max_retries: int) -> aiohttp.ClientResponse:
        attempt.outcome = await self._try(attempt)
        if not isinstance(attempt.outcome, Exception) and attempt.outcome.status < 400:  # noqa: PLR2004 - HTTP's own
            return attempt.outcome
        return await self._send_again(attempt, max_retries)

    async def _try(self, attempt: _Attempt) -> aiohttp.ClientResponse | Exception:
        import aiohttp  # noqa: PLC0415 - not needed to start
        from yarl import URL  # noqa: PLC0415

        if self._session is None:
            gc.freeze()  # what has been imported stays: nobody need look for garbage in it
            trace = aiohttp.TraceConfig()
            trace.on_connection_reuseconn.append(_note_reuse)
            self._session = aiohttp.ClientSession(
                trace_configs=[trace],
                connector=aiohttp.TCPConnector(limit=0),  # how many calls at once is decided before
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                headers=self._headers,
                read_bufsize=2**20,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        request = functools.partial(
            self._session.request,
            attempt.method,
            URL(attempt.url, encoded=True),
            data=attempt.body,
            headers=None if attempt.request_id == NOBODY else {"X-Request-ID": attempt.request_id},
            proxy=self._proxy,
            allow_redirects=False,
            trace_request_ctx=attempt,
        )
        while True:
            attempt.reused = False
            try:
                return await request()
            except (aiohttp.ClientError, TimeoutError) as error:
                # The engine closed a connection that was kept open, as llama.cpp does after every stream. Each such
                # try uses up one of them; a new one says what is really the matter.
                if not (attempt.reused and isinstance(error, aiohttp.ClientConnectionError)):
                    return error

    async def _send_again(self, attempt: _Attempt, max_retries: int) -> aiohttp.ClientResponse:
        """Have the openai client judge what the first try met; it repeats the request where that may help."""
        # In a thread: running calls are not to wait for an import of half a second.
        openai = await asyncio.to_thread(importlib.import_module, "openai")
        import httpx2  # noqa: PLC0415

        if self._judge is None:
            self._judge = openai.AsyncOpenAI(
                base_url=self._engine.url,
                api_key="sent by aiohttp",
                http_client=httpx2.AsyncClient(transport=_transport(self._try)),
                max_retries=max_retries,
            )
        token = _attempt.set(attempt)
        try:
            # httpx2.Response is for callers that read the answer themselves.
            send = self._judge.post if attempt.method == "POST" else self._judge.get
            await send(attempt.url, cast_to=httpx2.Response, options={"max_retries": max_retries})
        except openai.APIError as error:
            raise _told(error, self._engine) from None
        finally:
            _attempt.reset(token)
        if attempt.response is None:
            raise RuntimeError("the openai client returned without an answer")
        return attempt.response


async def _packets(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    import aiohttp  # noqa: PLC0415

    try:
        async for packet in response.content.iter_any():
            yield packet
    except (aiohttp.ClientError, OSError) as error:
        raise BrokenStreamError(cause(error)) from None


def _events(lines: list[bytes]) -> tuple[list[Event], ValueError | None]:
    """Return the events of some lines up to one that is rubbish: what came before is part of the answer."""
    texts = [line[5:] for line in lines if line.startswith(b"data:") and not line.startswith(_DONE)]
    try:
        return from_json(b"[%b]" % b",".join(texts)), None  # all at once is quicker
    except ValueError:
        pass
    events: list[Event] = []
    try:
        events.extend(from_json(text) for text in texts)
    except ValueError as error:
        return events, error
    return events, None


def _transport(send: Any) -> httpx2.AsyncBaseTransport:  # noqa: ANN401 - EngineClient._try
    """Return what the openai client sends through: the first time it gets what the first try met."""
    import aiohttp  # noqa: PLC0415
    import httpx2  # noqa: PLC0415

    class Transport(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            attempt = _attempt.get()
            outcome = attempt.outcome or await send(attempt)
            attempt.outcome = None
            if isinstance(outcome, TimeoutError):
                raise httpx2.ConnectTimeout(str(outcome), request=request) from outcome
            if isinstance(outcome, Exception):
                raise httpx2.ConnectError(str(outcome), request=request) from outcome
            headers = {key: value for key, value in outcome.headers.items() if key.lower() in _JUDGED}
            if outcome.status < 400:  # noqa: PLR2004
                attempt.response = outcome
                return httpx2.Response(outcome.status, request=request)
            try:
                content = await outcome.content.read(_ERROR_BODY)
            except aiohttp.ClientError:
                content = b""
            finally:
                outcome.close()
            return httpx2.Response(outcome.status, headers=headers, content=content, request=request)

    return Transport()


# What the openai client reads of a failed answer's headers.
_JUDGED = {"retry-after", "retry-after-ms", "x-should-retry", "content-type", "x-request-id"}


def _told(error: Any, engine: Engine) -> EngineError:  # noqa: ANN401 - openai is imported late
    """Say in the caller's words why a request failed before anything of the answer came."""
    import openai  # noqa: PLC0415

    if isinstance(error, openai.APITimeoutError):
        return EngineDownError(
            f"The model server at {engine.url} cannot be reached: no answer in time. Is its host up? {ADDRESS_HINT}",
            engine.name,
        )
    if isinstance(error, openai.APIConnectionError):
        return EngineDownError(
            f"The model server at {engine.url} cannot be reached: {cause(error)}. Is it running? {ADDRESS_HINT}",
            engine.name,
        )
    if isinstance(error, openai.APIStatusError):
        return _status(error, engine)
    return EngineRefusedError(f"The model server at {engine.url} failed: {error.message[:QUOTE]}", engine.name)


def _status(error: APIStatusError, engine: Engine) -> EngineError:
    code, said = error.status_code, _said(error)
    match code:
        case 401 | 403:
            # Not quoted: some servers repeat the key.
            return EngineKeyError(
                f"The model server at {engine.url} refused the bridge's key (HTTP {code}). {_KEY_HINT}", engine.name
            )
        case 404:
            return EngineRefusedError(
                f"The model server at {engine.url} does not serve {engine.name} there (HTTP 404{said}). {ADDRESS_HINT}",
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
    return f": {message[:QUOTE]}" if isinstance(message, str) else ""


def cause(error: BaseException) -> str:
    """Return the innermost reason, such as `Connection refused`."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return (str(error) or type(error).__name__)[:QUOTE]
