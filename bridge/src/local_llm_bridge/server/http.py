"""The service: listens, says how it is doing, and stops when running calls have ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from local_llm_bridge.errors import ListenError
from local_llm_bridge.server import systemd
from local_llm_bridge.server.app import App, authority
from local_llm_bridge.server.connection import Connection
from local_llm_bridge.server.dispatch import Dispatcher
from local_llm_bridge.server.fast_path import FastPath
from local_llm_bridge.server.handler import Handler
from local_llm_bridge.server.sdk_http import SdkHttp

if TYPE_CHECKING:
    from collections.abc import Callable

    from local_llm_bridge.config import ServeSettings

log = logging.getLogger(__name__)

DRAIN_S = 30
"""How long running calls may go on after SIGTERM, in seconds. The unit's TimeoutStopSec must be longer."""


KEEP_ALIVE_S = 75
"""How long an idle connection is kept, in seconds: longer than clients keep theirs, so none asks on a closed one."""


async def run(settings: ServeSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: address, models and developers.

    Raises:
        ListenError: the address is taken or not of this host.
    """
    listener = _listen(settings.listen.address, settings.listen.port)
    dispatcher = Dispatcher(settings)
    sdk = SdkHttp(dispatcher)
    handler = Handler(FastPath(dispatcher, announces=False), sdk, settings.requests_per_minute)
    app = App(settings, dispatcher, handler)
    config = uvicorn.Config(
        app,
        http=Connection,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    # uvicorn raises the signal again once it has stopped; the bridge has ended as it was told, so that is exit code 0.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: None)
    background = [asyncio.ensure_future(dispatcher.watch_tools()), asyncio.ensure_future(_report(dispatcher))]
    try:
        await _Server(config, settings, sdk.end_listening).serve(sockets=[listener])
    finally:
        for task in background:
            task.cancel()
        await sdk.close()
        await dispatcher.close()


async def _report(dispatcher: Dispatcher) -> None:
    """Tell systemd that the bridge is alive, and what it is doing; never ends."""
    interval_s = systemd.watchdog_s() / 2
    while True:
        await asyncio.sleep(interval_s)
        slots = dispatcher.backend.slots.values()
        busy = f"{sum(slot.running for slot in slots)} calls running, {sum(slot.queued for slot in slots)} waiting"
        systemd.notify(f"WATCHDOG=1\nSTATUS=Serving: {busy}")


class _Server(uvicorn.Server):
    """uvicorn, with word to systemd."""

    def __init__(self, config: uvicorn.Config, settings: ServeSettings, end_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_listening = end_listening
        self._summary = (
            f"{authority(settings.listen.address, settings.listen.port)}: {len(settings.engines)} model(s), "
            f"{len(settings.developers)} developer(s){', and those of the gateway' if settings.gateway_keys else ''}"
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        systemd.notify(f"READY=1\nSTATUS=Serving on {self._summary}")
        log.info("serving on %s", self._summary)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        systemd.notify("STOPPING=1\nSTATUS=Finishing running calls")
        log.info("stopping: running calls have %d s to finish", DRAIN_S)
        self._end_listening()
        await super().shutdown(sockets)


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=512)
    except OSError as error:
        raise ListenError(
            f"cannot listen on {authority(address, port)}: {os.strerror(error.errno or 0)}. "
            "Is another program there, or is the address not this host's? Change listen.address or listen.port."
        ) from None


def serve(settings: ServeSettings) -> None:
    """Run until told to stop, on uvloop.

    Args:
        settings: address, models and developers.

    Raises:
        ListenError: the address is taken or not of this host.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings))
