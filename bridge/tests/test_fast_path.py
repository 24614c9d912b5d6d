"""The fast path answers as the SDK does, and takes nothing that the SDK would refuse."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from local_llm_bridge.config import CacheSettings, Engine, Settings
from local_llm_bridge.server.dispatch import Dispatcher
from local_llm_bridge.server.fast_path import FastPath, read
from local_llm_bridge.server.message import checked
from local_llm_bridge.server.sdk_session import SdkSession
from tests.services import FakeEngine, events, piece

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.anyio

HANDSHAKE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"roots": {"listChanged": True}, "sampling": {}},
    "clientInfo": {"name": "claude-code", "version": "2.1.330", "title": "Claude Code"},
}
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {"roots": {}},
    "io.modelcontextprotocol/clientInfo": {"name": "claude-code", "version": "2.1.330"},
}
CALL = {"name": "chat", "arguments": {"message": "ping"}}
LEGACY: list[tuple[str, dict[str, Any]]] = [
    ("initialize", {**HANDSHAKE, "protocolVersion": "2024-11-05"}),
    ("initialize", HANDSHAKE),
    ("initialize", {**HANDSHAKE, "protocolVersion": "2031-01-01"}),
    ("ping", {}),
    ("tools/list", {}),
    ("tools/list", {"_meta": {}}),
    ("tools/call", CALL),
    ("tools/call", {**CALL, "_meta": {"claudecode/toolUseId": "toolu_1"}}),
    ("tools/call", {"name": "no such tool"}),
    ("tools/call", {"name": "chat", "arguments": {"message": 5}}),
    ("tools/call", {"name": "list_models", "arguments": {}}),
]
MODERN: list[tuple[str, dict[str, Any]]] = [
    ("server/discover", {}),
    *(entry for entry in LEGACY if entry[0].startswith("tools/")),
]
REQUESTS: list[dict[str, Any]] = [
    *({"jsonrpc": "2.0", "id": 7, "method": method, "params": params} for method, params in LEGACY),
    {"jsonrpc": "2.0", "id": "seven", "method": "tools/list"},
    *(
        {
            "jsonrpc": "2.0",
            "id": 7,
            "method": method,
            "params": {**params, "_meta": {**params.get("_meta", {}), **ENVELOPE}},
        }
        for method, params in MODERN
    ),
]
WITH_NULLS: list[dict[str, Any]] = [
    {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
    for method, params in (
        (
            "initialize",
            {**HANDSHAKE, "_meta": None, "clientInfo": {"name": "x", "version": "1", "title": None, "icons": None}},
        ),
        ("ping", {"_meta": None}),
        ("tools/list", {"_meta": None, "cursor": None}),
        ("tools/list", {"_meta": ENVELOPE, "cursor": None}),
        ("tools/call", {**CALL, "_meta": None, "task": None}),
    )
]
"""Null for what is left out, as some clients write it."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    with FakeEngine(events(piece("po"), piece("ng", "stop"), usage)).running() as address:
        yield address


@pytest.fixture
async def dispatcher(url: str) -> AsyncIterator[Dispatcher]:
    # Without a cache, so that it makes no difference who asks first.
    dispatcher = Dispatcher(Settings(engines=(Engine("m", url),), cache=CacheSettings(entries=0)))
    yield dispatcher
    await dispatcher.close()


async def by_the_sdk(dispatcher: Dispatcher, request: dict[str, Any]) -> list[dict[str, Any]]:
    replies: list[dict[str, Any]] = []
    params = request.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    modern = isinstance(meta, dict) and any("protocolVersion" in key for key in meta)
    begun = modern or request.get("method") == "initialize"
    session = await SdkSession.begin(dispatcher, replies.append, None if begun else HANDSHAKE, is_ready=not begun)
    await session.receive(request)
    await session.settle()
    await session.close()
    return replies


async def nobody(notification: dict[str, Any]) -> None:
    raise AssertionError(notification)


async def by_the_fast_path(dispatcher: Dispatcher, request: dict[str, Any]) -> dict[str, Any]:
    found = read(request)
    assert found is not None
    fast_path = FastPath(dispatcher, announces=True)
    return await fast_path.call(found, nobody) if found.method == "tools/call" else fast_path.answer(found)


@pytest.mark.parametrize("request_", REQUESTS + WITH_NULLS, ids=lambda request: request["method"])
async def test_both_paths_give_the_same_answer(dispatcher: Dispatcher, request_: dict[str, Any]) -> None:
    quick = await by_the_fast_path(dispatcher, request_)
    (slow,) = await by_the_sdk(dispatcher, request_)
    assert quick == slow
    assert json.dumps(quick)


def mutations(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a request with one thing in it missing or another."""

    def places(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        if isinstance(value, dict):
            for key in value:
                yield (*path, key)
                yield from places(value[key], (*path, key))

    for path in places(request):
        for other in (None, True, 5, 1.5, "x", [], {}, ["x"], {"x": 1}):
            changed = copy.deepcopy(request)
            inside: Any = changed
            for key in path[:-1]:
                inside = inside[key]
            if other is None:
                del inside[path[-1]]
            else:
                inside[path[-1]] = other
            yield changed
        changed = copy.deepcopy(request)
        inside = changed
        for key in path[:-1]:
            inside = inside[key]
        inside["unexpected"] = inside[path[-1]]
        yield changed


@pytest.mark.parametrize("request_", REQUESTS[:1] + REQUESTS[4:8:2] + REQUESTS[-5:-3], ids=lambda r: r["method"])
async def test_what_the_sdk_refuses_is_not_for_the_fast_path(dispatcher: Dispatcher, request_: dict[str, Any]) -> None:
    taken = 0
    for changed in mutations(request_):
        if read(changed) is None:
            continue
        taken += 1
        quick = await by_the_fast_path(dispatcher, changed)
        (slow,) = await by_the_sdk(dispatcher, changed)
        assert quick == slow, changed
    assert taken > 3


def test_a_token_of_progress_that_came_as_a_float_is_the_whole_number_that_it_is() -> None:
    call = {**CALL, "_meta": {"progressToken": 2.0}}
    request = read(checked({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}))
    assert request is not None
    assert repr(request.progress_token) == "2"
