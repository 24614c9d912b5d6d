"""One engine over HTTP: streamed chat completions, and the names of the models that it serves.

Nothing that an engine sends can take more than its share: what is read of it has a limit each in bytes, nothing is
unpacked, and no redirect is followed.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import math
import select
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from local_llm_bridge.audit import ANONYMOUS
from local_llm_bridge.errors import EngineAnswerError, EngineBusyError, EngineDownError, EngineRefusedError
from local_llm_bridge.models.answer import NO_REASONS
from local_llm_bridge.models.context import length_told
from local_llm_bridge.models.refusals import (
    ADDRESS_HINT,
    QUOTE,
    beginning_of,
    cause,
    no_answer,
    refused,
    reported,
    unreachable,
    without_key,
    words_of,
)
from local_llm_bridge.models.retry import Failure, connection_is_repeatable, status_is_repeatable, wish_of
from local_llm_bridge.models.sse import Event, EventReader, decoded
from local_llm_bridge.models.unsupported import wants_another_request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import aiohttp

    from local_llm_bridge.config import Engine
    from local_llm_bridge.errors import EngineError

__all__ = ["ADDRESS_HINT", "QUOTE", "BrokenStreamError", "EngineClient", "Event", "cause"]

CONNECT_TIMEOUT_S = 5.0
LISTING_TIMEOUT_S = 30.0
LONGEST_ANSWER = 2**25
"""Most that is read of an answer, in bytes; less of one that may have few tokens."""
LONGEST_LISTING = 2**21
GRACE_S = 1.0
"""How long after its last word an answer waits for its usage, and its connection for its end, in seconds."""
_DOUBT_S = 5.0
"""The same of an answer whose first piece has a finish reason: some have one in each, and mean nothing by it."""
_MOST_OF_REFUSAL = 2**16
_REFUSAL_TIMEOUT_S = 5.0
_LONGEST_DOCUMENT = 2**22  # a completion that is no stream
# An event has 200 to 400 bytes, and mostly one token.
_PER_TOKEN = 2**10
_PER_ANSWER = 2**20
# So much of a packet is read at once, in bytes: other calls need not wait for the rest.
_SLICE = 2**14
_MOST_PRELIMINARY = 16  # answers of HTTP 1xx before the one that counts
# uvicorn, which vLLM runs on, closes a connection that has been idle for 5 s.
_KEPT_S = 4.0
# A kept connection on which a request fails within this time had been closed by the engine; later, it was the request.
_STALE_S = 1.0
# So long before the deadline nothing is waited for any more that an answer does not need.
_MARGIN_S = 0.1
_BUSY = (429, 503)  # unless their words say that no waiting helps
_BLANK = b"\xef\xbb\xbf \t\r\n"
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
_LONGEST_FIELD = 6
# What some name as an encoding, and is none: Next.js and others say so to keep others from compressing.
_NOT_ENCODED = {"", "identity", "none", "utf-8", "chunked", "aws-chunked"}
_KINDS_OF_LINES = ("ndjson", "jsonl", "stream+json")


class BrokenStreamError(Exception):
    """An answer broke off; the text says why."""


@dataclass(frozen=True)
class _Request:
    method: str
    url: str
    body: bytes | None = None
    request_id: str = ANONYMOUS


_reused: ContextVar[bool] = ContextVar("reused")
"""Whether the request that was sent last in this context went over a connection that had been kept open."""


class EngineClient:
    """The connections to one engine.

    Args:
        engine: where it is, and its key.
        max_retries: how often a request is repeated that got no answer yet.
    """

    def __init__(self, engine: Engine, max_retries: int) -> None:
        self._engine = engine
        self._max_retries = max_retries
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",
        }
        if engine.api_key:
            self._headers["Authorization"] = f"Bearer {engine.api_key}"
        self._session: aiohttp.ClientSession | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def stream(
        self,
        body: bytes,
        request_id: str = ANONYMOUS,
        deadline: float | None = None,
        max_tokens: int | None = None,
    ) -> AsyncGenerator[list[Event]]:
        """Send a chat completion's request and yield the answer's events as they arrive, those of a packet together.

        An error among them is `{"error": {"message": …}}`, however the engine put it.

        Args:
            body: the request as JSON, with `stream` true.
            request_id: for the engine's log, and for a gateway's on the way to it.
            deadline: by time.monotonic(); no retry is waited for beyond it. None: there is none.
            max_tokens: how many the answer may have; None: any number.

        Raises:
            EngineError: there was no answer, or the engine said no.
            BrokenStreamError: the answer broke off.
            ValueError: something in it is not JSON, or too long.
        """
        request = _Request("POST", f"{self._engine.url}/chat/completions", body, request_id)
        response = await self._send(request, self._max_retries, deadline)
        longest = LONGEST_ANSWER if max_tokens is None else _PER_ANSWER + _PER_TOKEN * max_tokens
        answer = _Answer(response, self._engine.api_key, min(longest, LONGEST_ANSWER), deadline)
        try:
            beginning = await self._beginning(response)
            if beginning.lstrip(_BLANK)[:1] == b"{" and not answer.is_of_lines:
                beginning = await _read(response, _LONGEST_DOCUMENT, beginning.lstrip(_BLANK), first_line=True)
                if not self._is_of_lines(response, beginning):
                    event = await self._whole_answer(response, beginning)
                    answer.is_over = True
                    yield [event]
                    return
                answer.is_of_lines = True
            answer.take(beginning)
            while (events := await answer.next()) is not None:
                if events:
                    yield events
        finally:
            if response.content.at_eof():
                response.release()
            elif answer.is_over:
                self._end(response)
            else:
                # Closing the connection is how the engine learns that nobody wants the rest.
                response.close()

    async def models(self, *, max_retries: int | None = None) -> list[str]:
        """Return the names of the models that the engine serves.

        Args:
            max_retries: None: as configured.

        Raises:
            EngineError: there was no answer, or one that is no list of models.
        """
        retries = self._max_retries if max_retries is None else max_retries
        listing = await self._listing(retries)
        names = [model.get("id") for model in listing if isinstance(model, dict)]
        known = [name for name in names if isinstance(name, str) and name]
        if listing and not known:
            raise self._no_list(": none of them has an id")
        return known

    async def context_of(self, model: str) -> int | None:
        """Return the length of the context that the engine serves a model with, in tokens; None: it does not say.

        Raises:
            EngineError: there was no answer, or one that is no list of models.
        """
        for entry in await self._listing(0):
            if isinstance(entry, dict) and entry.get("id") == model:
                return length_told(entry)
        return None

    async def close(self) -> None:
        """Close the connections."""
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self._session:
            await self._session.close()

    async def _listing(self, max_retries: int) -> list[Any]:
        request = _Request("GET", f"{self._engine.url}/models")
        try:
            async with asyncio.timeout(LISTING_TIMEOUT_S):
                response = await self._send(request, max_retries, time.monotonic() + LISTING_TIMEOUT_S)
                try:
                    data = await _read(response, LONGEST_LISTING)
                except (BrokenStreamError, ValueError) as error:
                    raise self._no_list(f" ({error})") from None
                finally:
                    response.close()
        except TimeoutError:
            raise EngineDownError(
                f"{request.url} did not answer within {LISTING_TIMEOUT_S:g} s. {ADDRESS_HINT}", self._engine.name
            ) from None
        try:
            document = decoded(data.lstrip(_BLANK))
        except ValueError:
            raise self._no_list(self._quoted(data)) from None
        if words := reported(document):
            raise self._failed(words)
        # Some services send the list alone; Ollama sends null where it has no model.
        listing = document.get("data", document) if isinstance(document, dict) else document
        if not isinstance(listing, list | None):
            raise self._no_list(self._quoted(data))
        return listing or []

    def _quoted(self, data: bytes) -> str:
        said = without_key(beginning_of(data), self._engine.api_key)
        return f": {said}" if said else ": it is empty"

    def _no_list(self, why: str = "") -> EngineAnswerError:
        return EngineAnswerError(
            f"{self._engine.url}/models did not answer with a list of models{why}. "
            f"Is this an OpenAI-compatible server? {ADDRESS_HINT}"
        )

    def _failed(self, words: str) -> EngineRefusedError:
        said = without_key(words, self._engine.api_key)
        return EngineRefusedError(f"The model server at {self._engine.url} failed: {said}", self._engine.name)

    async def _beginning(self, response: aiohttp.ClientResponse) -> bytes:
        """Read until it is clear what an answer is: not all engines name a stream of events as one.

        Raises:
            EngineAnswerError: it is neither events nor JSON.
        """
        kind = response.headers.get("content-type", "")
        is_stream = kind.partition(";")[0].strip().lower() == "text/event-stream"
        data = b""
        while packet := await _packet(response):
            data += packet
            start = data.lstrip(_BLANK)
            if start[:1] == b"{" or (start and is_stream) or start.startswith(_FIELDS):
                return data
            if len(start) > _LONGEST_FIELD or len(data) > _MOST_OF_REFUSAL:
                break
        if is_stream:
            return data
        raise no_answer(kind, beginning_of(data), self._engine)

    def _is_of_lines(self, response: aiohttp.ClientResponse, beginning: bytes) -> bool:
        """Tell a stream of lines of JSON from a completion in one document, by its first line.

        Raises:
            EngineRefusedError: it is an error, whatever follows.
        """
        line, end, _ = beginning.partition(b"\n")
        if not end and response.content.at_eof():
            return False
        try:
            document = decoded(line)
        except ValueError:
            return False
        if words := reported(document):
            raise self._failed(words)
        return _is_piece(document)

    async def _whole_answer(self, response: aiohttp.ClientResponse, beginning: bytes) -> Event:
        """Return a completion that came as one JSON document, as the only event of a stream."""
        kind = response.headers.get("content-type", "")
        data = beginning if _is_document(beginning) else await _read(response, _LONGEST_DOCUMENT, beginning)
        try:
            document = _as_chunk(decoded(data))
            if words := reported(document):
                raise self._failed(words)
            choice = document["choices"][0]
            message = choice.get("delta") or choice["message"]
            choices = [{**choice, "delta": message, "finish_reason": choice.get("finish_reason") or "stop"}]
        except (ValueError, AttributeError, TypeError, LookupError):
            raise no_answer(kind, beginning_of(data), self._engine) from None
        return {**document, "choices": choices}

    def _end(self, response: aiohttp.ClientResponse) -> None:
        """Keep the connection for the next request if the engine ends its answer within a moment, else close it."""
        task = asyncio.get_running_loop().create_task(_ended(response))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.add_done_callback(lambda _: response.close())  # also if it is cancelled before it has begun

    async def _send(self, request: _Request, max_retries: int, deadline: float | None) -> aiohttp.ClientResponse:
        """Send a request until it is answered or retry's policy ends it."""
        for tries in itertools.count(1):
            outcome = await self._try(request)
            if not isinstance(outcome, Failure):
                return outcome
            try:
                if not outcome.repeatable or tries > max_retries:
                    if outcome.repeatable and outcome.wish_s:
                        raise _with_wish(outcome.error, outcome.wish_s)
                    raise outcome.error
                pause_s = outcome.pause_s(tries)
                if deadline is not None and time.monotonic() + pause_s >= deadline:
                    if outcome.wish_s is None:
                        raise outcome.error
                    left_s = max(deadline - time.monotonic(), 0)
                    raise _with_wish(outcome.error, pause_s, f"; this call has {left_s:.0f} s left")
            finally:
                del outcome  # else its error would hold itself, through this frame, until garbage is looked for
            await asyncio.sleep(pause_s)
        raise AssertionError

    async def _try(self, request: _Request) -> aiohttp.ClientResponse | Failure:
        import aiohttp  # noqa: PLC0415 - not needed to start

        harmless = request.method == "GET"
        try:
            response = await self._connect(request)
        except (aiohttp.ClientError, TimeoutError) as failed:
            failure = Failure(unreachable(failed, self._engine), connection_is_repeatable(failed, harmless=harmless))
            _forget_frames(failed)
            return failure
        encoding = ", ".join(response.headers.getall("Content-Encoding", []))
        is_encoded = any(word.strip().lower() not in _NOT_ENCODED for word in encoding.split(","))
        if 200 <= response.status < 300:  # noqa: PLR2004 - HTTP's own
            if not is_encoded:
                return response
            response.close()
            return Failure(
                EngineAnswerError(
                    f"{self._engine.url} answered in {encoding[:20]!r}, although it was told to send nothing encoded: "
                    "turn compression off there, or in what stands before it.",
                    self._engine.name,
                ),
                repeatable=False,
            )
        body = b""
        try:
            async with asyncio.timeout(_REFUSAL_TIMEOUT_S):
                while len(body) < _MOST_OF_REFUSAL and (packet := await _packet(response)):
                    body += packet
        except (BrokenStreamError, TimeoutError):
            pass  # what has come of it is enough
        finally:
            response.close()
        headers = {key.lower(): value for key, value in response.headers.items()}
        if not is_encoded:
            headers.pop("content-encoding", None)
        error = refused(response.status, headers, body[:_MOST_OF_REFUSAL], self._engine)
        is_refused = isinstance(error, EngineRefusedError)
        is_final = is_refused and (response.status in _BUSY or wants_another_request(str(error)))
        repeatable = not is_final and status_is_repeatable(response.status, headers, harmless=harmless)
        return Failure(error, repeatable, wish_of(headers, str(error) if isinstance(error, EngineBusyError) else ""))

    async def _connect(self, request: _Request) -> aiohttp.ClientResponse:
        import aiohttp  # noqa: PLC0415
        from yarl import URL  # noqa: PLC0415

        if self._session is None:
            gc.freeze()  # what has been imported stays: nobody need look for garbage in it
            self._session = aiohttp.ClientSession(
                # How many calls at once is decided before.
                connector=_connector_class()(limit=0, keepalive_timeout=_KEPT_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                # A proxy would get those of the session as well, the engine's key as Proxy-Authorization.
                headers=None if self._engine.proxy else self._headers,
                read_bufsize=2**18,
                response_class=_response_class(),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        proxy = self._engine.proxy
        headers = self._headers if proxy else {}
        if request.request_id != ANONYMOUS:
            headers = {**headers, "X-Request-ID": request.request_id}
        send = functools.partial(
            self._session.request,
            request.method,
            URL(request.url, encoded=True),
            data=request.body,
            headers=headers,
            proxy=proxy.url if proxy else None,
            proxy_auth=aiohttp.BasicAuth(*proxy.auth, encoding="utf-8") if proxy and proxy.auth else None,
            allow_redirects=False,
        )
        while True:
            _reused.set(False)
            started = time.monotonic()
            try:
                return await send()
            except aiohttp.ClientConnectionError as error:
                if isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str):
                    raise aiohttp.ServerDisconnectedError("it broke off within its headers") from None
                # The engine closed a connection that was kept open, as llama.cpp does after every stream. Each such
                # try uses up one of them; a new one says what is really the matter.
                if not _reused.get() or time.monotonic() - started > _STALE_S:
                    raise
                _forget_frames(error)


class _Answer:
    """A stream of events until its end: what has come of it, and what is still to come.

    Args:
        response: whose body it is.
        key: the engine's key, which its words are not to show.
        longest: most that is read of it, in bytes.
        deadline: by time.monotonic(); nothing that it does not need is waited for beyond it.
    """

    def __init__(self, response: aiohttp.ClientResponse, key: str | None, longest: int, deadline: float | None) -> None:
        self._response = response
        self._key = key
        self._longest = longest
        self._deadline = deadline
        self._reader = EventReader()
        self._size = 0
        self._rest = b""
        self._in_packet = False
        self._grace_ends = 0.0
        self._problem: Exception | None = None
        self._is_whole = False  # a finish reason has come: nothing is missing, whatever happens to the connection
        self._has_begun = False  # something has come without a finish reason
        self._goes_on = False  # each piece has a finish reason
        self._has_ended = False
        kind = response.headers.get("content-type", "").lower()
        self.is_of_lines = any(name in kind for name in _KINDS_OF_LINES)
        """Whether each event is a line of JSON and nothing else, as in Ollama's own protocol."""
        self._index: object = None  # of the choice that counts
        self._another_ended = False
        self.is_over = False
        """Whether the engine has said all: `[DONE]`, or the usage after a finish reason."""

    def take(self, packet: bytes) -> None:
        """Take in what has been read already."""
        self._rest = packet

    async def next(self) -> list[Event] | None:
        """Return the events that come next, which may be none yet; None: the answer has ended.

        Raises:
            BrokenStreamError: it broke off, or is too long.
            ValueError: something in it is no event.
        """
        if self._problem and (self._goes_on or not self._is_whole) and not self.is_over:
            problem, self._problem, self._has_ended = self._problem, None, True
            try:
                raise problem
            finally:
                del problem  # else it would hold itself, and all that has come, until garbage is looked for
        if self._problem or self.is_over or self._has_ended:
            return None
        if self._in_packet:
            await asyncio.sleep(0)  # others need not wait until a large packet has been read
        elif not self._rest:
            try:
                self._rest = await _packet(self._response, self._patience_s())
            except BrokenStreamError as error:
                self._problem = error
            if not self._rest:
                return self._end()
        piece, self._rest = self._rest[:_SLICE], self._rest[_SLICE:]
        self._in_packet = bool(self._rest)
        return self._feed(piece)

    def _feed(self, piece: bytes) -> list[Event]:
        events = self._reader.feed(piece)
        if self.is_of_lines:
            events = [_as_chunk(event) for event in events]
        self._note(events)
        self._size += len(piece)
        if self._reader.broken:
            self._problem = ValueError(without_key(self._reader.broken, self._key))
        if self._size > self._longest:
            self._problem = BrokenStreamError(f"it has more than {self._longest // 2**20} MiB")
        return events + self._end() if self._reader.done or self.is_over else events

    def _end(self) -> list[Event]:
        """Take note that nothing more comes; gives what had only no end."""
        self._has_ended = True
        events = self._reader.end()
        if self.is_of_lines:
            events = [_as_chunk(event) for event in events]
        self._note(events)
        # Where another choice alone has a finish reason, it may have taken the rest of this one.
        self.is_over = self.is_over or (self._reader.done and not self._another_ended)
        if not (self._is_whole or self.is_over or self._problem):
            words = without_key(words_of(self._reader.stray), self._key)
            self._problem = BrokenStreamError(f"the stream ended without a finish reason{words and f': {words}'}")
        return events

    def _patience_s(self) -> float | None:
        """Return how long to wait for the next packet, in seconds; None: as long as it takes."""
        if not self._is_whole:
            return None
        ends = self._grace_ends if self._deadline is None else min(self._grace_ends, self._deadline - _MARGIN_S)
        return max(ends - time.monotonic(), 0)

    def _note(self, events: list[Event]) -> None:
        for number, event in enumerate(events):
            try:
                choices = event.get("choices")
                if choices and not self._is_whole and len(choices) == 1 and "error" not in event:
                    choice = choices[0]
                    if choice.get("index") == self._index and not choice.get("finish_reason"):
                        self._has_begun = self._has_begun or _adds(choice)
                        continue  # as nearly all
                was_whole = self._is_whole
                choices = self._choices(event)
                adds = bool(choices) and _adds(choices[0])
                if adds and not self._is_whole:
                    self._has_begun = True
                elif adds and was_whole and not self._has_begun:
                    self._goes_on = True
                if choices and self._is_whole and (adds or not self._grace_ends):
                    self._grace_ends = time.monotonic() + (GRACE_S if self._has_begun or not adds else _DOUBT_S)
                elif not choices and self._is_whole and event.get("usage"):
                    self.is_over = True
                if ("error" in event or not choices) and (words := reported(event)):
                    events[number] = {"error": {"message": without_key(words, self._key)}}
            except (AttributeError, TypeError, LookupError):
                continue  # whoever makes sense of the events says what is wrong with this one

    def _choices(self, event: Event) -> list[Any]:
        """Leave the first of several answers to a question, and return it; take note whether it has ended."""
        choices: list[Any] = event.get("choices") or []
        if choices and (len(choices) > 1 or choices[0].get("index") != self._index):
            if self._index is None:
                self._index = choices[0].get("index")
            others = [choice for choice in choices if choice.get("index") not in (None, self._index)]
            self._another_ended = self._another_ended or any(map(_has_ended, others))
            choices = [choice for choice in choices if choice.get("index") in (None, self._index)][:1]
            event["choices"] = choices
        if choices and _has_ended(choices[0]):
            if error := choices[0].get("error"):
                event["error"] = event.get("error") or error
            else:
                self._is_whole = True
        return choices


def _with_wish(error: EngineError, wish_s: float, more: str = "") -> EngineError:
    return type(error)(f"{error} It asks to come back in {math.ceil(wish_s)} s{more}.", error.model)


def _has_ended(choice: Any) -> bool:  # noqa: ANN401 - it came over the wire
    reason = choice.get("finish_reason")
    return bool(reason) and reason not in NO_REASONS


def _adds(choice: Any) -> bool:  # noqa: ANN401
    """Whether there is something in a choice: some send empty ones as a sign of life."""
    delta = choice.get("delta") or choice.get("message") or {}
    return any(value for key, value in delta.items() if key != "role")


def _is_piece(document: Any) -> bool:  # noqa: ANN401
    """Whether more must follow for a completion."""
    try:
        return (
            document.get("object") == "chat.completion.chunk"
            or document.get("done") is False  # Ollama's
            or "delta" in document["choices"][0]
        )
    except (AttributeError, TypeError, LookupError):
        return False


def _as_chunk(event: Any) -> Any:  # noqa: ANN401 - it came over the wire
    """Return what is in Ollama's own protocol as an event of a chat completion, and anything else as it is."""
    if not isinstance(event, dict) or "choices" in event or not isinstance(event.get("message"), dict):
        return event
    reason = (event.get("done_reason") or "stop") if event.get("done") else None
    usage = {"prompt_tokens": event.get("prompt_eval_count"), "completion_tokens": event.get("eval_count")}
    choice = {"index": 0, "delta": event["message"], "finish_reason": reason}
    return {"choices": [choice], "usage": usage if reason else None}


def _connector_class() -> type[aiohttp.TCPConnector]:
    import aiohttp  # noqa: PLC0415

    class Connector(aiohttp.TCPConnector):
        """Connections of which none is used again on which anything has come since its last answer.

        aiohttp would take it for the answer to the next question, which may be somebody else's.
        """

        async def _get(self, key: Any, traces: Any) -> Any:  # noqa: ANN401 - have no public names
            kept = self._conns.get(key)
            while kept and _is_spoilt(kept[0][0]):
                kept.popleft()[0].close()
            connection = await super()._get(key, traces)
            if connection is not None:
                _reused.set(True)
            return connection

        def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:  # noqa: ANN401
            super()._release(key, protocol, should_close=should_close)
            # What comes now is kept as it is, within limits; the next request brings a parser of its own.
            protocol._parser = None  # noqa: SLF001 - nothing public says it

    return Connector


def _is_spoilt(protocol: Any) -> bool:  # noqa: ANN401
    """Whether something has come on a connection that was kept, or its end, read or still to be read."""
    if protocol.should_close or not protocol.is_connected():
        return True
    poll = select.poll()
    poll.register(protocol.transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _response_class() -> type[aiohttp.ClientResponse]:
    import aiohttp  # noqa: PLC0415
    from aiohttp.http_exceptions import HttpProcessingError  # noqa: PLC0415

    class Response(aiohttp.ClientResponse):
        """A response that preliminary ones (HTTP 1xx) cannot delay for ever."""

        async def start(self, connection: Any) -> aiohttp.ClientResponse:  # noqa: ANN401 - has no public name
            protocol = connection.protocol
            read, messages = protocol.read, itertools.count()

            async def limited() -> Any:  # noqa: ANN401
                if next(messages) > _MOST_PRELIMINARY:
                    raise HttpProcessingError(message="more preliminary answers than make sense")
                return await read()

            protocol.read = limited
            try:
                return await super().start(connection)
            finally:
                del protocol.read

    return Response


def _forget_frames(error: BaseException) -> None:
    """Take from an error of a connection the way that it came.

    aiohttp and what it connects with hold their errors in circles, which would hold the request, too.
    """
    link: BaseException | None = error
    while link:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


async def _packet(response: aiohttp.ClientResponse, within_s: float | None = None) -> bytes:
    """Return what has arrived; b"": the end, or nothing came within the time.

    Raises:
        BrokenStreamError: the connection broke.
    """
    import aiohttp  # noqa: PLC0415

    try:
        if within_s is None:
            return await response.content.readany()
        async with asyncio.timeout(within_s):
            return await response.content.readany()
    except (aiohttp.ClientError, OSError) as error:
        if within_s is not None and isinstance(error, TimeoutError):
            return b""
        raise BrokenStreamError(cause(error)) from None


async def _read(
    response: aiohttp.ClientResponse, limit: int, beginning: bytes = b"", *, first_line: bool = False
) -> bytes:
    """Return all of a body of JSON, which may be whole without its end; or at least its first line.

    Raises:
        BrokenStreamError: it broke off.
        ValueError: it is longer than the limit.
    """
    packets = [beginning]
    size = len(beginning)
    patience_s: float | None = GRACE_S
    while not (first_line and b"\n" in packets[-1]):
        try:
            async with asyncio.timeout(patience_s):
                packet = await _packet(response)
        except TimeoutError:
            # Looked at in a pause alone, and once: a long one in many packets costs no more than it takes to send it.
            if _is_document(b"".join(packets)):
                break
            patience_s = None
            continue
        except BrokenStreamError:
            if _is_document(b"".join(packets)):  # a proxy may say a wrong length
                break
            raise
        if not packet:
            break
        patience_s = GRACE_S
        packets.append(packet)
        size += len(packet)
        if size > limit:
            raise ValueError(f"more than {limit} bytes")
    return b"".join(packets)


def _is_document(data: bytes) -> bool:
    data = data.strip(_BLANK)
    if not data.endswith((b"}", b"]")):
        return False
    try:
        decoded(data)
    except ValueError:
        return False
    return True


async def _ended(response: aiohttp.ClientResponse) -> None:
    import aiohttp  # noqa: PLC0415

    try:
        async with asyncio.timeout(GRACE_S):
            await response.content.wait_eof()
    except (aiohttp.ClientError, OSError):
        pass  # including the time that is over
