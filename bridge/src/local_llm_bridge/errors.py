"""Everything that can go wrong, and who has to do something about it.

BridgeError
├── ConfigError              the operator: settings, files, credentials
├── ListenError              the operator: the address cannot be listened on
├── StreamError              whoever started the program: standard input or output cannot be used
├── RefusedRequestError      the client: an HTTP request that is answered with a status from 400 to 499
│   └── BadMessageError      the client, over stdio as well: its message is not one of JSON-RPC
└── CallError                one tool call failed; its text is the tool's result
    ├── UnknownToolError     the caller
    ├── BadArgumentsError    the caller
    ├── UnknownModelError    the caller
    ├── TooLongError         the caller
    ├── RefusedFileError     the caller
    ├── RateLimitError       the caller: wait
    ├── QueueFullError       the caller: wait
    ├── SandboxError         the operator: code cannot be run here
    └── EngineError          the model server, or the way to it
        ├── EngineDownError
        │   └── EngineLinkError
        ├── EngineRefusedError
        │   ├── EngineMissingError
        │   └── EngineKeyError
        ├── EngineBusyError
        ├── EngineTimeoutError
        ├── EngineInterruptedError
        └── EngineAnswerError
            └── OnlyThoughtsError

Texts are for people: what was tried, what came back, what to do. They never hold a secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping


class BridgeError(Exception):
    """Base of all errors of the bridge; its text is fit to be shown."""


class ConfigError(BridgeError):
    """A setting is missing, unknown or wrong."""


class ListenError(BridgeError):
    """The address cannot be listened on."""


class StreamError(BridgeError):
    """Standard input or output cannot be used."""


class RefusedRequestError(BridgeError):
    """A request is not worked on; nothing has been sent yet.

    Args:
        status: HTTP's.
        text: what the client is told.
        headers: that go with it.
    """

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers or {}


class BadMessageError(RefusedRequestError):
    """A message is not JSON, or not one of JSON-RPC.

    Args:
        code: JSON-RPC's.
        text: what the client is told.
        request_id: the message's id; None: it has none, or none that can be repeated.
    """

    def __init__(self, code: int, text: str, request_id: str | int | None = None) -> None:
        super().__init__(400, text)
        self.reply = {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": text}}
        """What tells the client, as JSON-RPC has it."""


class CallError(BridgeError):
    """A tool call failed.

    Args:
        text: what the caller is told.
        model: name of the model that was asked, if one had been chosen.
        notes: further texts for the caller, such as what had been received.
    """

    outcome: ClassVar[str] = "error"
    """Short name of this kind of failure in the log."""

    def __init__(self, text: str, model: str | None = None, notes: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.model = model
        self.notes = notes


class UnknownToolError(CallError):
    """No tool has the name that was called."""

    outcome = "unknown_tool"


class BadArgumentsError(CallError):
    """The arguments do not fit the tool's schema."""

    outcome = "bad_arguments"


class UnknownModelError(CallError):
    """No model has the name that was asked for, or none was named and there are several."""

    outcome = "unknown_model"


class TooLongError(CallError):
    """The input does not fit into the model's context."""

    outcome = "too_long"


class RefusedFileError(CallError):
    """A file may not be read, or cannot be."""

    outcome = "refused_file"


class RateLimitError(CallError):
    """The developer has made all calls that a minute allows."""

    outcome = "rate_limited"


class QueueFullError(CallError):
    """The model, or the place where code runs, is busy, and so many are waiting for it that nobody else may."""

    outcome = "queue_full"


class SandboxError(CallError):
    """Code could not be run: there is no sandbox, or it failed. That the code itself fails is no error."""

    outcome = "sandbox_failed"


class EngineError(CallError):
    """The model server failed."""

    outcome = "engine_error"


class EngineDownError(EngineError):
    """Nothing answers at the engine's address."""

    outcome = "engine_down"


class EngineLinkError(EngineDownError):
    """TLS or a proxy on the way to the engine failed; the text says what to set."""


class EngineRefusedError(EngineError):
    """The engine answered with a status that says no: wrong key, unknown model, bad request, its own failure."""

    outcome = "engine_refused"


class EngineMissingError(EngineRefusedError):
    """The engine has nothing at the address that was asked, or no such model: HTTP 404."""


class EngineKeyError(EngineRefusedError):
    """The engine does not take the bridge's key."""


class EngineBusyError(EngineError):
    """The engine has no room for the request just now."""

    outcome = "engine_busy"


class EngineTimeoutError(EngineError):
    """The time for one call is over."""

    outcome = "engine_timeout"


class EngineInterruptedError(EngineError):
    """The engine stopped in the middle of an answer."""

    outcome = "engine_interrupted"


class EngineAnswerError(EngineError):
    """What came back is not a chat completion."""

    outcome = "engine_answer"


class OnlyThoughtsError(EngineAnswerError):
    """The model thought until its tokens or the time were used up, or never came to its answer."""

    outcome = "only_thoughts"
