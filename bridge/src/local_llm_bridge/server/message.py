"""Reading a message of JSON-RPC so that it means one thing to whoever reads it, and takes no more memory than its size.

JSON can say the same key twice, and readers differ in which one they take. A few bytes of it can become a hundred in
memory: four million of `[],` are 1.4 million lists.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import TYPE_CHECKING, Any

from local_llm_bridge.errors import BadMessageError, RefusedRequestError
from local_llm_bridge.readings import as_object, is_whole, unsendable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
"""What in `_meta` says the version of a request that stands for itself, without a handshake."""
MOST_VALUES = 20_000
"""How many values a message may have, texts and lists and their elements. The largest of real clients have hundreds."""
_MOST_DIGITS = 400
"""Of a whole number: more than any float has."""
LONGEST_ID = 256
"""Of a request's id or progress token in characters: both are kept until the answer. Real ones have 36 at most."""
_LEAST_BYTES = 2
"""What a value takes at least in JSON, its comma included."""
_BEGINNING = 2**18
"""Bytes after which most of those that have too many values have shown it, at a tenth of the cost."""
_EXAMPLE = '{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
_REQUIRED: dict[str, dict[str, type]] = {
    "initialize": {"protocolVersion": str, "capabilities": dict, "clientInfo": dict},
    "tools/call": {"name": str},
}
_REQUIRED_OF_CLIENT: dict[str, type] = {"name": str, "version": str}
_PARAMS = {
    "initialize": '{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"me","version":"1"}}',
    "tools/call": '{"name":"chat","arguments":{"message":"hello"}}',
}
_NO_NAMES = {"params", "str", "int"}
"""Parts of where an error is that are pydantic's own: all parameters, and the kinds that a token may be of."""
_OF_PYTHON = re.compile(r"dictionary( or instance of \w+)?")
_PARSE_ERROR, _INVALID_REQUEST, _INVALID_PARAMS = -32700, -32600, -32602


def parse(body: bytes) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return what the body of a request holds.

    Raises:
        BadMessageError: it is not JSON, or has a key twice.
        RefusedRequestError: it has too many values.
    """
    if len(body) > MOST_VALUES * _LEAST_BYTES:
        _refuse_many(body[:_BEGINNING])
        _refuse_many(body)
    return decode(body)


def decode(data: bytes) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return what JSON holds, whatever its size.

    Raises:
        BadMessageError: it is not JSON, or has a key twice.
    """
    try:
        return _DECODER.decode(data.decode())  # of bytes, json would guess the encoding
    except UnicodeDecodeError as error:
        found = f"it is not UTF-8 text: byte {error.start + 1} is 0x{data[error.start]:02x}"
    except json.JSONDecodeError as error:
        if data.startswith(codecs.BOM_UTF8):  # PowerShell begins with one what it sends
            return decode(data.removeprefix(codecs.BOM_UTF8))
        found = f"it is not valid JSON: {error.msg} at character {error.pos + 1}" if data.strip() else "it is empty"
    except ValueError as error:  # a number of thousands of digits, too
        found = f"it is not valid JSON: {error}"
    except RecursionError:
        found = "it is nested too deep"
    raise BadMessageError(_PARSE_ERROR, f"Parse error: wanted a JSON-RPC message such as {_EXAMPLE}, but {found}.")


def checked(message: object) -> dict[str, Any]:
    """Return a message that is one of JSON-RPC, its id a text or a whole number.

    Raises:
        BadMessageError: it is none; the text says what was found, and what is wanted.
    """
    if isinstance(message, list):
        raise _invalid("MCP has no batches since 2025-06-18. Send each message by itself")
    if not isinstance(message, dict):
        raise _invalid(f"found {_shown(message)}; wanted a message such as {_EXAMPLE}")
    is_notification = str(message.get("method")).startswith("notifications/")
    absent = {"params", "id"} if is_notification else {"params"}
    message = {key: value for key, value in message.items() if value is not None or key not in absent}
    request_id = _id(message.get("id"))
    if message.get("jsonrpc") != "2.0":
        found = f"jsonrpc is {_shown(message['jsonrpc'])}" if "jsonrpc" in message else "jsonrpc is missing"
        raise _invalid(f'{found}; wanted "2.0", as in {_EXAMPLE}', request_id)
    if "id" in message and request_id is None:  # it would pass for a notification, and its sender wait for ever
        raise _invalid(f"the id is {_shown(message['id'])}; wanted a text or a whole number. Notifications have no id")
    if not isinstance(message.get("params", {}), dict | None):
        raise _invalid(f"params is {_shown(message['params'])}; wanted an object, or none", request_id)
    is_reply = "method" not in message and request_id is not None and _is_reply(message)
    if not isinstance(message.get("method"), str) and not is_reply:
        found = f"method is {_shown(message['method'])}" if "method" in message else "there is no method"
        raise _invalid(f"{found}; wanted a message such as {_EXAMPLE}", request_id)
    if request_id is not None:
        params = message.get("params") or {}
        _check_params(message.get("method"), params, request_id)
        message = {**message, "id": request_id, **_with_token(params)}
    if problem := unsendable(message):
        raise _invalid(problem, request_id)
    return message


def version_of(message: object) -> object:
    """Return the version that a message names in its `_meta`, which may be anything; None: it names none."""
    params = message.get("params") if isinstance(message, dict) else None
    meta = params.get("_meta") if isinstance(params, dict) else None
    return meta.get(VERSION_KEY) if isinstance(meta, dict) else None


def cancelled(message: Mapping[str, Any]) -> str | int | None:
    """Return the id of the request that a notification cancels; None: it cancels none."""
    params = message.get("params")
    if message.get("method") != "notifications/cancelled" or "id" in message or not isinstance(params, dict):
        return None
    return _id(params.get("requestId"))


def overlong(value: object) -> str:
    """Return what is wrong with the length of an id or a progress token; empty: nothing."""
    if not isinstance(value, str) or len(value) <= LONGEST_ID:
        return ""
    return f"{len(value)} characters, at most {LONGEST_ID} are taken"


def explained(errors: Sequence[Mapping[str, Any]]) -> str:
    """Say the first of what pydantic has found wrong with a message's parameters.

    Args:
        errors: as it lists them; of what may be of several kinds, one for each.
    """
    names = [".".join(part for part in map(str, error["loc"]) if part not in _NO_NAMES) for error in errors]
    if errors[0]["type"] == "missing":
        return f"Invalid params: {names[0]} is missing."
    wanted = " or ".join(
        error["msg"].removeprefix("Input should be ")
        for error, name in zip(errors, names, strict=True)
        if name == names[0]
    )
    wanted = _OF_PYTHON.sub("object", wanted)
    return f"Invalid params: {names[0]} is {_shown(errors[0]['input'])}; wanted {wanted}."


def _check_params(method: object, params: dict[str, Any], request_id: str | int) -> None:
    meta = params.get("_meta")
    if not isinstance(meta, dict | None):
        raise BadMessageError(
            _INVALID_PARAMS, f"Invalid params: _meta is {_shown(meta)}; wanted an object, or none.", request_id
        )
    if isinstance(meta, dict) and (too_long := overlong(meta.get("progressToken"))):
        raise _invalid(f"the progressToken has {too_long}", request_id)
    if method == "initialize" and isinstance(meta, dict) and VERSION_KEY in meta:
        return  # the version that this names has no such method, which is what there is to say
    found = _wrong(params, _REQUIRED.get(str(method), {}))
    if method == "initialize" and not found:
        found = _wrong(params["clientInfo"], _REQUIRED_OF_CLIENT, "clientInfo.")
    if method == "tools/call" and not found and as_object(params.get("arguments")) is None:
        found = f"arguments is {_shown(params['arguments'])}"
    if not found:
        return
    raise BadMessageError(
        _INVALID_PARAMS, f"Invalid params: {found}; wanted params such as {_PARAMS[str(method)]}.", request_id
    )


def _with_token(params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters whose token of progress came as 1.0, as the whole number that it is; empty: it did not."""
    meta = params.get("_meta") or {}
    if not isinstance(meta.get("progressToken"), float) or (token := _id(meta["progressToken"])) is None:
        return {}
    return {"params": {**params, "_meta": {**meta, "progressToken": token}}}


def _wrong(params: dict[str, Any], required: Mapping[str, type], where: str = "") -> str:
    """Return which of the required parameters is missing or of another type; empty: none."""
    for name, kind in required.items():
        if not isinstance(params.get(name), kind):
            return f"{where}{name} is {_shown(params[name])}" if name in params else f"{where}{name} is missing"
    return ""


def _shown(value: object) -> str:
    """Return a value as an error shows it."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return f"{json.dumps(value):.60}"


def _invalid(found: str, request_id: str | int | None = None) -> BadMessageError:
    return BadMessageError(_INVALID_REQUEST, f"Invalid request: {found}.", request_id)


def _id(value: object) -> str | int | None:
    """Return an id, a whole number also where it came as 1.0; None: it is something else.

    Raises:
        BadMessageError: it is too long.
    """
    if too_long := overlong(value):
        raise _invalid(f"the id has {too_long}")
    if isinstance(value, float) and is_whole(value):
        return int(value)
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _is_reply(message: dict[str, Any]) -> bool:
    error = message.get("error")
    return isinstance(message.get("result"), dict) or (
        isinstance(error, dict) and isinstance(error.get("code"), int) and isinstance(error.get("message"), str)
    )


def _refuse_many(body: bytes) -> None:
    """Count the texts, and the marks between them; nothing is made of them yet."""
    marks = (b",", b"[", b"{")
    if sum(body.count(mark) for mark in (b'"', *marks)) < MOST_VALUES:
        return  # wherever they are
    # Without these two, each quote that is left begins or ends a text.
    parts = body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"', 2 * MOST_VALUES)
    between = b"".join(parts[::2])
    if len(parts) // 2 + sum(between.count(mark) for mark in marks) >= MOST_VALUES:
        raise RefusedRequestError(
            413, f"The message has more than {MOST_VALUES} values. Send fewer; one long text is one value."
        )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _invalid("an object has the same key twice. Send each key once")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:  # which take long to read, and longer to write into an answer
        raise ValueError(f"a number has {len(digits)} digits, at most {_MOST_DIGITS} are read")
    return int(digits)


def _constant(name: str) -> object:
    raise ValueError(f"it has no {name}")


# Made once: json.loads makes a new one for every message when it has anything to look after.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)
