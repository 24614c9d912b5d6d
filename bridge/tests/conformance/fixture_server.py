"""The bridge over HTTP with the suite's fixtures: `python -m tests.conformance.fixture_server CONFIG.yml`.

All is production code, started as `local-llm-bridge serve` starts it, but for two things: it has the fixtures as well,
and every request gets the test developer's token, because the suite cannot send one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from local_llm_bridge import config, logs
from local_llm_bridge.server import app, fast_path, http, sdk
from tests.conformance import fixtures
from tests.services import TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from mcp.server.lowlevel import Server
    from starlette.types import ASGIApp, Receive, Scope, Send

    from local_llm_bridge.server.dispatch import Dispatcher, Wire


class AddsToken:
    """Puts the test developer's token on a request; nothing else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = (b"authorization", f"Bearer {TOKEN}".encode())
        await self._app({**scope, "headers": [*scope["headers"], token]}, receive, send)


def serve(settings: config.ServeSettings) -> None:
    """Serve until SIGTERM: the one place that knows how production is put together."""
    create_server, make_app, answer = sdk.create_server, app.App, fast_path.FastPath.answer

    def with_fixtures(dispatcher: Dispatcher) -> tuple[Server[Any], Callable[[], None]]:
        server, end_listening = create_server(dispatcher)
        fixtures.add_to(server, dispatcher)
        return server, end_listening

    def with_token(*args: Any) -> AddsToken:  # noqa: ANN401 - whatever production gives
        return AddsToken(make_app(*args))

    # The fast path stays, but for two things: it says what the fixtures add, and leaves their calls to the SDK.

    def with_capabilities(path: fast_path.FastPath, request: fast_path.FastPathRequest) -> Wire:
        reply = answer(path, request)
        if "capabilities" in reply["result"]:
            reply["result"]["capabilities"] |= fixtures.CAPABILITIES
        return reply

    fitting = fast_path._METHODS  # noqa: SLF001 - what decides whose a message is
    own_calls = {key: _without_fixtures(fits) for key, fits in fitting.items() if key[0] == "tools/call"}
    with (
        patch.object(sdk, "create_server", with_fixtures),
        patch.object(http, "App", with_token),
        patch.object(fast_path.FastPath, "answer", with_capabilities),
        patch.dict(fitting, own_calls),
    ):
        http.serve(settings)


def _without_fixtures(fits: Callable[[Wire], Any]) -> Callable[[Wire], Any]:
    return lambda params: fits(params) and params["name"] not in fixtures.TOOLS


if __name__ == "__main__":
    logs.configure()
    serve(config.from_file(Path(sys.argv[1])))
