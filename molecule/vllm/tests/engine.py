"""How the tests talk to vLLM: plain HTTP from this machine to a guest."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from testinfra.host import Host

KEY = "molecule-vllm-engine-key"
# The inventory's models without the second one of model1.
ONE_MODEL = f"--extra-vars={json.dumps({'fleet_models': ['{{ qwen2_tiny }}']})}"
TIMEOUT = 60  # seconds


def base(host: Host, port: int = 8000) -> str:
    """The address on which a guest serves a model."""
    return f"http://{host.check_output('hostname -I').split()[0]}:{port}"


def request(url: str, body: dict[str, Any] | None = None, key: str | None = KEY) -> urllib.request.Request:
    """A GET, or a POST of JSON."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    return urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)  # noqa: S310 - http


def status(url: str, body: dict[str, Any] | None = None, key: str | None = KEY) -> int:
    """The status of the reply, 0 where there is none."""
    try:
        with urllib.request.urlopen(request(url, body, key), timeout=TIMEOUT) as reply:  # noqa: S310
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def post(url: str, body: dict[str, Any]) -> Any:
    """The reply's JSON."""
    with urllib.request.urlopen(request(url, body), timeout=TIMEOUT) as reply:  # noqa: S310
        return json.load(reply)


def stream(url: str, body: dict[str, Any]) -> Iterator[Any]:
    """The JSON of each server-sent event; ``None`` stands for the last, ``[DONE]``."""
    with urllib.request.urlopen(request(url, body | {"stream": True}), timeout=TIMEOUT) as reply:  # noqa: S310
        for line in reply:
            if line.startswith(b"data: "):
                data = line.removeprefix(b"data: ").strip()
                yield None if data == b"[DONE]" else json.loads(data)


def question(text: str, model: str = "qwen2-tiny", **more: Any) -> dict[str, Any]:
    """A chat of one message, in OpenAI's and Anthropic's form alike."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 512} | more
