"""What an engine said instead of an answer, as an error that its reader can act on.

Engines and what stands before them put their words in many places: `error` as a text or an object, `detail`, `message`,
a page of HTML, a plain line, JSON in a text. They are passed on as one line, cut in the middle, and without the
bridge's key. JSON in which they are nowhere that is known is passed on as it is.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic_core import from_json, to_json

from local_llm_bridge.errors import (
    EngineAnswerError,
    EngineBusyError,
    EngineDownError,
    EngineError,
    EngineKeyError,
    EngineLinkError,
    EngineMissingError,
    EngineRefusedError,
)
from local_llm_bridge.models.connection_errors import described, proxy_answered, refused_by_proxy
from local_llm_bridge.models.unsupported import wants_another_request
from local_llm_bridge.texts import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local_llm_bridge.config import Engine

QUOTE = 300
"""Most of the beginning of an engine's own words that is passed on, in characters."""
_END = 120  # the same of their end, where the cause of an error may be
MOST_QUOTED = QUOTE + _END + 1
ADDRESS_HINT = "The address is set by models[].url (serve) or LOCAL_API_URL (stdio)."
_TLS_HINTS = {
    "http": " If it speaks TLS, write https:// in its address.",
    "https": " If it wants a TLS certificate from its clients: the bridge has none.",
}
_KEY_HINT = "The key is set by models[].api_key_file (serve) or OPENAI_API_KEY_FILE (stdio)."
_READ = 4096  # the part of a refusal's text that is looked at, in characters
_MOST_READ = 2**16  # the same of all of it, in bytes
# Names are in small letters and without what stands between their words: ErrorMessage is error_message.
_OWN_WORDS = ("errormsg", "errormessage", "errmsg", "fault", "faultstring")  # only an error has them
_PLACES = (
    *("error", "faultstring", "detail", "message", "msg", "errormsg", "errormessage", "errmsg", "statusmsg"),
    *("details", "errors", "errordescription", "fault", "baseresp", "description", "reason", "title", "data"),
)
_LAST_PLACES = (*_PLACES, "text", "type", "code")
_FAILED = r"(?si).*error.*|fail(?:ed|ure)?"
_FINE = r"(?i)(?:0*|2\d\d|ok|none|null|succe\w*)[\s.!]*"
_RESULTS = ("choices", "usage", "data")
_OF_A_CHUNK = frozenset(("id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier"))
_DEEPEST = 8
_LONGEST_NUMBER = 10**18
_NOT_SEEN = r"(?si)<!--.*?-->|<(script|style)\b.*?</\1>|<[^<>]*>"
# nginx and Apache, Go, Cloudflare
_WANTS_TLS = r"(?i)HTTP request (?:was sent )?to (?:an? )?(?:HTTPS|SSL|TLS)|speaking plain HTTP to an SSL"
# What one-api and OpenAI call busy, and no waiting ends.
_UNPAID = (
    r"(?i)insufficient.{0,20}(?:quota|balance|credit|funds)|exceeded your current quota|\bbilling\b|arrearage"
    r"|余额不足|欠费"
)
# A word alone, such as "Forbidden", is no other cause.
_OF_KEY = (
    r"(?i)\bkey\b|\btoken\b|authenti|authori[sz]|credential|bearer|permission|forbidden|denied|\baccess\b"
    r"|\bthis model\b|^\S*$"
)
_UNKNOWN_MODEL = r"(?i)no available channel|model_not_found|\bmodel\b.{0,100}(?:not found|does not exist)"
_NO_STATUS = r"^400, message:\s*"
_KEY_PART = 8  # so many characters of the key in a row give it away


def words_of(body: bytes) -> str:
    """Return the words of a refusal's body, on one line; empty: it has none."""
    try:
        document = from_json(body)
    except ValueError:
        text = body[:_MOST_READ].decode(errors="replace")
        if text.lstrip()[:1] != "<":
            return _quoted(_unpacked(text, 0))
        import html  # noqa: PLC0415 - its table of names is not needed to start

        return _line(html.unescape(re.sub(_NOT_SEEN, " ", text[:_READ])))
    return _quoted(_said(document, _PLACES)) or ("" if document in (None, "", {}, []) else _as_json(document))


def beginning_of(body: bytes) -> str:
    """Return the words of a body, or else how it begins, on one line."""
    return words_of(body) or _line(body[: 4 * _READ].decode(errors="replace"))


def reported(document: Any) -> str:  # noqa: ANN401 - it came over the wire
    """Return the words of an error that came where an answer should be; empty: it is no error."""
    if not isinstance(document, dict):
        return ""
    if error := document.get("error"):
        return _quoted(_said(document, _PLACES)) or _compact(error)
    if error in ("", {}, []) and document.keys().isdisjoint(_RESULTS):
        return "an error, without a word of what it is"
    if document.get("choices") or not _is_error(document):
        return ""
    return _quoted(_said(document, _PLACES)) or _as_json(document)


def without_key(text: str, key: str | None) -> str:
    """Return a text in which a word that holds a part of the key is left out."""
    if not key:
        return text
    size = min(_KEY_PART, len(key))

    def shown(word: str) -> str:
        parts = (word[start : start + size] for start in range(len(word) - size + 1))
        return "[key]" if any(part in key for part in parts) else word

    return " ".join(shown(word) for word in text.split(" "))


def refused(status: int, headers: Mapping[str, str], body: bytes, engine: Engine) -> EngineError:
    """Return the error for an answer whose status is not 200.

    Args:
        status: HTTP's.
        headers: the answer's.
        body: the answer's, or its beginning.
        engine: whose it is.
    """
    # What came compressed although it was not to be is not unpacked, so it has no words here.
    encoding = headers.get("content-encoding", "")
    sent, body = body, b"" if encoding else _in_utf8(body, headers.get("content-type", ""))
    words = without_key(words_of(body), engine.api_key)
    code = f"HTTP {status}{': ' if words else ''}{words}"
    said = f"{words} {body[:_READ].decode(errors='replace')}"
    where = f"The model server at {engine.url}"
    if engine.proxy and proxy_answered(status, headers, sent):
        return EngineLinkError(refused_by_proxy(engine.proxy, engine.url, code), engine.name)
    if 300 <= status < 400:  # noqa: PLR2004
        return EngineRefusedError(
            f"{where} redirects {_target(headers.get('location', ''))}(HTTP {status}), and the bridge follows no "
            f"redirect: it would take the question and the key elsewhere. {ADDRESS_HINT}",
            engine.name,
        )
    kind: type[EngineError] = EngineRefusedError
    match status:
        case 401 | 403:
            kind, text = _forbidden(status, words, code, body, engine)
        case 405:
            kind = EngineMissingError
            text = f"refused the request ({code}). It takes no such request there. {ADDRESS_HINT}"
        case 413 if not wants_another_request(words):
            text = (
                f"refused the request ({code}). What stands before the engine may limit the size of a request (nginx: "
                "client_max_body_size): raise it there, or send less."
            )
        case 429 | 503 if re.search(_UNPAID, said):
            text = f"refused the request ({code}). The account of its key is used up. {_KEY_HINT}"
        case 404 | 429 | 503 if status == 404 or re.search(_UNKNOWN_MODEL, said):  # noqa: PLR2004
            kind = EngineMissingError
            what = f"does not serve {engine.name} there" if engine.name else "has nothing there"
            text = f"{what} ({code}). {ADDRESS_HINT}"
        case 429 | 503 if not wants_another_request(words):
            kind = EngineBusyError
            text = f"is busy or still loading ({code}). Wait a little, then try again."
        case _:
            side = "failed" if status >= 500 else "refused the request"  # noqa: PLR2004
            todo = " Write https:// instead of http:// in its address." if re.search(_WANTS_TLS, words) else ""
            text = f"{side} ({code}).{todo}"
    unread = f" Its words came compressed ({_line(encoding)[:20]}): turn compression off there." if encoding else ""
    return kind(f"{where} {text}{unread}", engine.name)


def unreachable(error: Exception, engine: Engine) -> EngineError:
    """Return the error for a connection that failed before an answer.

    Args:
        error: aiohttp's.
        engine: which was to be reached.
    """
    import aiohttp  # noqa: PLC0415 - not needed to start

    where = f"The model server at {engine.url}"
    if words := described(error, engine.url, engine.proxy):
        return EngineLinkError(f"{words} {ADDRESS_HINT}", engine.name)
    if engine.proxy:
        where = f"The proxy {engine.proxy.name}, or the model server at {engine.url} behind it,"
    if isinstance(error, TimeoutError):
        return EngineDownError(
            f"{where} cannot be reached: no answer in time. Is its host up? {ADDRESS_HINT}", engine.name
        )
    if isinstance(error, aiohttp.ClientResponseError):
        return EngineAnswerError(
            f"{where} did not answer as an HTTP server does: {cause(error)}. {ADDRESS_HINT}", engine.name
        )
    if isinstance(error, aiohttp.ClientConnectionError) and not isinstance(error, aiohttp.ClientConnectorError):
        return EngineDownError(
            f"{where} hung up before it answered: {cause(error)}. It may have died of what it was asked, so it was not "
            f"asked again: look at its log.{_TLS_HINTS[urlsplit(engine.url).scheme]}",
            engine.name,
        )
    return EngineDownError(f"{where} cannot be reached: {cause(error)}. Is it running? {ADDRESS_HINT}", engine.name)


def no_answer(kind: str, words: str, engine: Engine) -> EngineAnswerError:
    """Return the error for what is neither a stream of events nor a completion.

    Args:
        kind: its content type; empty: it has none.
        words: what it says.
        engine: whose it is.
    """
    quoted = f": {without_key(words, engine.api_key)}" if words else ""
    return EngineAnswerError(
        f"{engine.url} answered with {_line(kind)[:100] or 'nothing'} instead of a stream of events{quoted}. "
        f"Is this an OpenAI-compatible server? {ADDRESS_HINT}",
        engine.name,
    )


def cause(error: BaseException) -> str:
    """Return the innermost reason, such as `Connection refused`."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    # aiohttp puts a status before its own words, which no server has sent.
    return _line(re.sub(_NO_STATUS, "", str(error)) or type(error).__name__)


def _forbidden(status: int, words: str, code: str, body: bytes, engine: Engine) -> tuple[type[EngineError], str]:
    """Return what to say of HTTP 401 or 403, which is about the key only where nothing else is given as its cause."""
    if status == 403 and body.lstrip()[:1] == b"<":  # noqa: PLR2004 - HTTP's own
        return EngineRefusedError, (
            f"refused the request ({code}). That is a page of what stands before it, which may not like the text of "
            "the question: look at the log there."
        )
    is_about_key = re.search(_OF_KEY, words) if words else engine.api_key
    if status == 403 and not is_about_key:  # noqa: PLR2004
        why = "" if words else " It may serve only some hosts or origins: look at its settings, and at its log."
        return EngineRefusedError, f"refused the request ({code}).{why}"
    said = f" It says: {words}." if words else ""
    missing = "" if engine.api_key else f": none is set, and it {'wants' if status == 401 else 'may want'} one"  # noqa: PLR2004
    return EngineKeyError, f"refused the bridge's key (HTTP {status}){missing}.{said} {_KEY_HINT}"


def _in_utf8(body: bytes, kind: str) -> bytes:
    """Return a body in UTF-8 that its content type says to be in another charset."""
    charset = re.search(r"charset\W*([\w.:-]+)", kind, re.IGNORECASE)
    try:
        return body.decode(charset[1], "replace").encode(errors="replace") if charset else body
    except (LookupError, ValueError):
        return body


def _is_error(document: Mapping[str, Any]) -> bool:
    """Tell an error that is not in `error` from an event that only informs."""
    if document.get("object") == "chat.completion.chunk" and document.keys() <= _OF_A_CHUNK:
        return False  # as nearly all
    fields = _fields(document)
    named = any(fields.get(name) for name in ("error", "detail", "errors"))
    if named or set(fields) == {"message"} or fields.get("success") is False:
        return True
    kinds = [fields.get("object"), fields.get("type"), fields.get("status")]
    if any(isinstance(kind, str) and re.fullmatch(_FAILED, kind) for kind in kinds):
        return True
    statuses = [fields.get("code"), fields.get("status"), fields.get("statuscode")]
    if any(isinstance(status, int) and 400 <= status < 600 for status in statuses):  # noqa: PLR2004 - HTTP's
        return True
    own_codes = [fields.get("errorcode"), fields.get("errcode"), _fields(fields.get("baseresp")).get("statuscode")]
    if any(code is not None for code in own_codes):
        return not all(map(_is_fine, own_codes))
    # What has a type, but none of an error, informs: {"type": "progress", "code": "loading", "message": "at 40 %"}.
    code, words = fields.get("code"), fields.get("message") or fields.get("msg")
    is_text = isinstance(words, str) and not _is_fine(words) and fields.keys().isdisjoint(("object", "type"))
    is_bad = not _is_fine(code) and (isinstance(code, str) or (isinstance(code, int) and not 0 < code < 400))  # noqa: PLR2004
    return (is_text and is_bad) or not all(_is_fine(fields.get(name)) for name in _OWN_WORDS)


def _is_fine(code: Any) -> bool:  # noqa: ANN401
    """Whether a code, or the words beside it, stand for success or say nothing."""
    match code:
        case str():
            return re.fullmatch(_FINE, code.strip()) is not None
        case int():
            return code == 0 or 200 <= code < 300  # noqa: PLR2004 - HTTP's
    return not (code and isinstance(code, dict | list))


def _fields(value: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return what an object of JSON holds, however its names are written, without what is null."""
    if not isinstance(value, dict):
        return {}
    return {
        name.replace("_", "").replace("-", "").lower(): item
        for name, item in reversed(value.items())
        if item is not None
    }


def _said(value: Any, places: tuple[str, ...], depth: int = 0) -> str:  # noqa: ANN401
    """Return the first words in a value that came as JSON."""
    words = ""
    match value:
        case str():
            words = _unpacked(value, depth)
        case int() if not isinstance(value, bool) and abs(value) < _LONGEST_NUMBER:
            words = str(value)
        case list() if depth < _DEEPEST:
            words = "; ".join(filter(None, (_said(item, _LAST_PLACES, depth + 1) for item in value[:3])))
        case dict() if depth < _DEEPEST:
            fields = _fields(value)
            found = filter(None, (_at(place, fields, depth + 1) for place in places if place in fields))
            words = next(found, "")
            # An `error` that is a text may be no more than its kind: {"error": "Bad Request", "message": "too long"}.
            if type(fields.get("error")) in {str, int} and (more := next(found, words)) != words:
                words = f"{words}: {more}"
            if words:
                source = _source(fields.get("metadata"), words, depth)
                words = _field(value.get("loc")) + words + _numbers(value) + source
    return words.strip()


def _unpacked(text: str, depth: int) -> str:
    """Return a text in which an object of JSON has given way to its words."""
    start, end = text.find("{"), text.rfind("}") + 1
    if depth >= _DEEPEST or not 0 <= start < end:
        return text
    try:
        document = from_json(text[start:end])
    except ValueError:
        return text
    said = _said(document, _PLACES, depth + 1)
    return text[:start] + said + text[end:] if said else text


def _at(place: str, fields: Mapping[str, Any], depth: int) -> str:
    """Return the first words in a place; `errors` may have them by the names of what is wrong."""
    value = fields[place]
    return _said(value, _LAST_PLACES, depth) or (_as_json(value) if value and place == "errors" else "")


def _as_json(value: Any) -> str:  # noqa: ANN401
    """Return the beginning of a value as JSON."""
    try:
        return _line(json.dumps(value, ensure_ascii=False))
    except ValueError:  # a number of thousands of digits
        return _compact(value)


def _compact(value: Any) -> str:  # noqa: ANN401
    return _line(to_json(value, fallback=repr).decode(errors="replace"))


def _source(metadata: Any, words: str, depth: int) -> str:  # noqa: ANN401
    """Return the words of the service behind OpenRouter, whose own say no more than that it failed."""
    raw = _fields(metadata).get("raw")
    said = words_of(raw.encode()) if isinstance(raw, str) else _said(raw, _LAST_PLACES, depth + 1)
    return f": {said}" if said and said not in words else ""


def _field(place: Any) -> str:  # noqa: ANN401
    """Return the field that a message of FastAPI is about."""
    if not isinstance(place, list):
        return ""
    return ".".join(str(part)[:QUOTE] for part in place[:9] if isinstance(part, str | int)) + ": "


def _numbers(error: Mapping[str, Any]) -> str:
    """Return the numbers beside an error's words.

    llama.cpp's of a question that is too long, and Google's wish when to come again.
    """
    given, context = (_said(error.get(name), ()) for name in ("n_prompt_tokens", "n_ctx"))
    details = error.get("details")
    wishes = [_said(_fields(detail).get("retrydelay"), ()) for detail in details] if isinstance(details, list) else []
    wish = next((f" (retryDelay: {wish})" for wish in wishes if wish), "")
    return (f" (n_prompt_tokens={given}, n_ctx={context})" if given and context else "") + wish


def _quoted(text: str) -> str:
    """Return a text on one line, without its middle where it is long: its last line, or its end, may have the cause."""
    line, text = _on_one(text), text.strip()
    if len(line) <= MOST_QUOTED and len(text) <= _READ:
        return line
    first, _, last = text[-_READ:].rpartition("\n")
    last = _on_one(last)
    return f"{line[:QUOTE]}…{last[:_END] if first else last[-_END:]}"


def _line(text: str) -> str:
    """Return the beginning of a text on one line."""
    line = _on_one(text)
    return line if len(line) <= QUOTE else f"{line[: QUOTE - 1]}…"


def _on_one(text: str) -> str:
    return printable(" ".join(text[:_READ].split()))


def _target(location: str) -> str:
    """Return where a redirect goes, without what may be secret in it."""
    try:
        parts = urlsplit(location)
        address = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError:
        return ""
    return f"to {_line(address if parts.hostname else parts.path)} " if location else ""
