"""One tool call from its name and arguments to its result, whatever the transport; every failure is a result, too."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from local_llm_bridge import audit
from local_llm_bridge.errors import BadArgumentsError, CallError
from local_llm_bridge.models.backend import Backend
from local_llm_bridge.models.limits import Rate
from local_llm_bridge.tools import Toolbox
from local_llm_bridge.tools.check import check
from local_llm_bridge.tools.tool import Context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from local_llm_bridge.config import Settings
    from local_llm_bridge.tools.tool import Result, Tool

log = logging.getLogger(__name__)

MOST_CHARACTERS = 40_000
"""Longest result: what Claude Code takes whole."""
_RELOAD_S = 2.0

Wire = dict[str, Any]
"""A message, or a part of one, as it goes over the wire."""


@dataclass(frozen=True)
class Call:
    """A tool call.

    Args:
        tool: name of the tool.
        arguments: as they came.
        caller: who calls.
        progress: is told the number of tokens that the models have written so far.
        model: answers if the arguments name none; None: the tool or the bridge chooses.
    """

    tool: str
    arguments: dict[str, Any]
    caller: audit.Caller = audit.UNKNOWN
    progress: Callable[[int], None] | None = None
    model: str | None = None


class Dispatcher:
    """Runs the calls of one configuration.

    Args:
        settings: models, tools and limits.

    Raises:
        ConfigError: a tool cannot be had.
    """

    def __init__(self, settings: Settings) -> None:
        self.tools = Toolbox(settings)
        self.backend = Backend(settings)
        self.audit = audit.Log(settings.audit_socket, with_content=settings.audit_content)
        self.observers: list[Callable[[audit.Record], None]] = [self.audit]
        self.on_new_tools: list[Callable[[], Awaitable[None]]] = []
        self._settings = settings
        self._rate = Rate(settings.requests_per_minute)

    @property
    def instructions(self) -> str:
        """What a client's model should know about these tools as a whole."""
        text = "These tools run on the team's own models: what they are told stays in the team's network."
        names = [engine.name for engine in self.backend.engines if engine.name]
        if len(names) < 2:  # noqa: PLR2004 - no choice
            return text
        return f"{text} Models: {', '.join(names)}; unless one is named, the bridge chooses by what is asked."

    async def run(self, call: Call) -> Wire:
        """Run one call; return the result as `tools/call` gives it."""
        started = time.monotonic()
        outcome, result, model, text = "failed", None, None, ""
        try:
            self._rate.spend(call.caller.developer)  # before anything that takes time
            tool = self.tools.find(call.tool)
            arguments = await self._with_files(tool, check(tool, call.arguments))
            if call.model and "model" in tool.schema["properties"]:
                arguments = {**arguments, "model": arguments.get("model") or call.model}
            deadline = started + self._settings.timeout_s
            context = Context(self.backend, call.caller, deadline, call.progress)
            result = await tool.run(context, arguments)
        except CallError as error:
            outcome, model, text = error.outcome, error.model, str(error)
            return _wire([text, *error.notes], is_error=True)
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception as error:  # noqa: BLE001 - the text of a bug may hold anything, so nobody is sent it
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("a bug, please report it: %s\n%s", type(error).__name__, where)  # noqa: TRY400 - see above
            return _wire(["The bridge itself failed. Its log says where; please report it."], is_error=True)
        else:
            outcome, text = "ok", result.text
            return _answer(result)
        finally:
            completion = result.completion if result else None
            record = audit.Record(
                caller=call.caller,
                # What a stranger made up does not get into the log.
                tool=call.tool if call.tool in self.tools else audit.ANONYMOUS,
                model=completion.model if completion else model or audit.ANONYMOUS,
                outcome=outcome,
                duration_s=time.monotonic() - started,
                completion=completion,
                arguments=call.arguments,
                text=text,
            )
            for observe in self.observers:
                observe(record)

    async def watch_tools(self) -> None:
        """Read the operator's tools again whenever their files change, as long as it is not cancelled."""
        while self._settings.tools_dir:
            await asyncio.sleep(_RELOAD_S)
            if await asyncio.to_thread(self.tools.reload):
                for tell in self.on_new_tools:
                    await tell()

    async def close(self) -> None:
        """Close the connections to the engines."""
        await self.backend.close()

    async def _with_files(self, tool: Tool, arguments: dict[str, Any]) -> dict[str, Any]:
        if not (paths := arguments.get("paths")):
            if tool.files_into and tool.files_into not in arguments:
                raise BadArgumentsError(f"{tool.name} wants {tool.files_into}, or files under paths.")
            return arguments
        from local_llm_bridge.tools.files import read_files  # noqa: PLC0415 - over stdio only

        root, into = self._settings.files_root, tool.files_into
        if root is None or into is None:
            raise BadArgumentsError(f"{tool.name} takes no files here.")
        texts = [arguments.get(into), await asyncio.to_thread(read_files, root, paths)]
        return {**arguments, into: "\n\n".join(filter(None, texts))}


def _answer(result: Result) -> Wire:
    wire = _wire([result.text, *result.notes])
    meta = dict(result.details)
    if completion := result.completion:
        meta |= {
            "model": completion.model,
            "routing": completion.routing,
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
            "cached": completion.cached,
        }
        if completion.thinking_tokens:
            meta["thinking_tokens"] = completion.thinking_tokens
    if meta:
        wire["_meta"] = meta
    return wire


def _wire(texts: list[str], *, is_error: bool = False) -> Wire:
    if sum(map(len, texts)) > MOST_CHARACTERS:
        texts = _cut(texts)
    return {"content": [{"type": "text", "text": text} for text in texts], "isError": is_error}


def _cut(texts: list[str]) -> list[str]:
    """Cut the longest text so that all together fit, and say so where it was cut."""
    longest = max(range(len(texts)), key=lambda number: len(texts[number]))
    over = sum(map(len, texts)) - MOST_CHARACTERS
    mark = "\n\n[Cut here: {} of {} characters left out, as a result may have {}.]"
    length = len(texts[longest])
    room = max(0, length - over - len(mark) - 3 * len(str(length)))
    cut = texts[longest][:room] + mark.format(length - room, length, MOST_CHARACTERS)
    return [cut if number == longest else text[:MOST_CHARACTERS] for number, text in enumerate(texts)]
