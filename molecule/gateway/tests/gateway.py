"""How the tests come to the gateway: HTTPS that trusts the private CA and nothing else, and HAProxy's own socket."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testinfra.host import Host

TOKENS = {"alice": "molecule-token-of-alice", "bob": "molecule-token-of-bob"}
ENGINE_KEY = "molecule-llama-cpp-key-1"
QUESTION = "/v1/chat/completions"
RUNNING = {"model": "mirror", "seconds": 3600}
SOCKET = "/run/local-llm-gateway/admin.sock"


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.text)


def command(host: Host, line: str) -> str:
    """What the running HAProxy answers to a command."""
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "s.send(sys.argv[2].encode() + b'\\n'); print(b''.join(iter(lambda: s.recv(65536), b'')).decode())"
    )
    return str(host.check_output("python3 -c %s %s %s", script, SOCKET, line))


def trusted() -> ssl.SSLContext:
    """A context of TLS that trusts the scenario's CA."""
    return ssl.create_default_context(cafile=str(Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "ca/ca.pem"))


def address(host: Host) -> str:
    """The address of a guest."""
    return str(host.check_output("hostname -I").split()[0])


class Gateway:
    """One connection to the gateway of a guest."""

    def __init__(self, ip: str, token: str | None = TOKENS["alice"], context: ssl.SSLContext | None = None) -> None:
        """Connect when something is asked.

        Args:
            ip: The guest's address.
            token: The caller's token; None sends none.
            context: Whom to trust; None is the scenario's CA.
        """
        self._connection = http.client.HTTPSConnection(ip, context=context or trusted(), timeout=60)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPResponse:
        """Send a request; a body that is no text is sent as JSON. The answer is still to be read."""
        data = body if isinstance(body, str | None) else json.dumps(body)
        self._connection.request(method, path, data, self._headers | headers)
        return self._connection.getresponse()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """Send a request and read the whole answer."""
        response = self.send(method, path, body, **headers)
        shown = {key.lower(): value for key, value in response.getheaders()}
        return Reply(response.status, shown, response.read().decode())

    def announce(self, size: int) -> Reply:
        """Send the head of a request with a body of so many bytes, and wait for an answer before the body."""
        return self.ask("POST", QUESTION, "", **{"Content-Length": str(size)})

    def post(self, body: Any, path: str = QUESTION, **headers: str) -> Reply:
        """Ask a model."""
        return self.ask("POST", path, body, **headers)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def question(text: str, model: str = "qwen2-tiny", **more: Any) -> dict[str, Any]:
    """A chat of one message, in OpenAI's and Anthropic's form alike."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 512} | more


def running(hosts: list[Host], context: ssl.SSLContext | None = None) -> list[http.client.HTTPResponse]:
    """An answer of each gateway that goes on until it is ended."""
    return [Gateway(address(host), context=context).send("POST", QUESTION, RUNNING) for host in hosts]


def ended(host: Host, answer: http.client.HTTPResponse) -> bool:
    """End an answer; true if all of it has come."""
    host.check_output("curl -s http://127.0.0.1:9000/end")
    return "x-local-llm-developer" in answer.read().decode()


@contextmanager
def asking(ip: str, body: dict[str, Any]) -> Iterator[Counter[int]]:
    """A client asks all the time; gives how often each status came."""
    outcomes: Counter[int] = Counter()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            outcomes[Gateway(ip).post(body).status] += 1
            time.sleep(0.05)

    client = threading.Thread(target=ask)
    client.start()
    try:
        yield outcomes
    finally:
        done.set()
        client.join()
