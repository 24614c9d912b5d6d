"""A stand-in for an engine: answers chat completions at once with the same text. Usage: python -m bench.engine PORT.

No model is behind it. It is there so that what is measured is the bridge: bench.py measures this program alone as well,
to show that it is not what limits the figures.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

import httptools
import uvloop

MODEL = "stand-in"
TOKENS = 20
TEXT = "".join(f"word{number} " for number in range(TOKENS))
_PACKETS = 3


def _json(body: object) -> bytes:
    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)


def _completion(**more: object) -> dict[str, object]:
    return {"id": "chatcmpl-1", "created": 1_700_000_000, "model": MODEL, **more}


def _events() -> list[bytes]:
    """Return the stream of one answer: an event a token, in a few packets, the counts in the last."""
    choices = [
        {"index": 0, "delta": {"content": f"word{number} "}, "finish_reason": None} for number in range(TOKENS)
    ] + [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    bodies = [_completion(object="chat.completion.chunk", choices=[choice]) for choice in choices]
    bodies.append(_completion(object="chat.completion.chunk", choices=[], usage=_USAGE))
    lines = [f"data: {json.dumps(body)}\n\n".encode() for body in bodies] + [b"data: [DONE]\n\n"]
    size = -(-len(lines) // _PACKETS)
    packets = [b"".join(lines[start : start + size]) for start in range(0, len(lines), size)]
    chunks = [b"%x\r\n%b\r\n" % (len(packet), packet) for packet in packets]
    chunks[0] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + chunks[0]
    chunks[-1] += b"0\r\n\r\n"
    return chunks


_USAGE = {"prompt_tokens": 10, "completion_tokens": TOKENS, "total_tokens": 10 + TOKENS}
_STREAM = _events()
_MESSAGE = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
_WHOLE = _json(_completion(object="chat.completion", choices=[_MESSAGE], usage=_USAGE))
_MODELS = _json({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "bench"}]})


class _Connection(asyncio.Protocol):
    """One connection, kept open; requests come one after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    # --- called by the parser ---

    def on_message_begin(self) -> None:
        self._url, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._url == b"/v1/models":
            self._transport.write(_MODELS)
        elif json.loads(self._body).get("stream"):
            self._write(0)
        else:
            self._transport.write(_WHOLE)

    def _write(self, number: int) -> None:
        self._transport.write(_STREAM[number])
        # In the loop's next turn, so that it is a packet of its own.
        if number + 1 < len(_STREAM):
            self._loop.call_soon(self._write, number + 1)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", port, backlog=512)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1])))
