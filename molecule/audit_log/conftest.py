"""What makes a record of the gateway and one of the bridge."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from gateway import Gateway, address
from testinfra.host import Host


@pytest.fixture
def ask() -> Callable[..., int]:
    """Ask the bridge a question through the gateway: ``ask(host, "Who are you?")``.

    Returns:
        A function of the guest, the text, optionally another token than alice's, and headers by their names; it gives
        HTTP's status.
    """

    def call(host: Host, text: str, *token: str, **headers: str) -> int:
        chat = {"name": "chat", "arguments": {"message": text}}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": chat}
        headers |= {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        return int(Gateway(address(host), *token).ask("POST", "/mcp", body, **headers).status)

    return call
