"""A scripted stand-in for Anthropic's Messages API, on loopback. It needs Python's standard library only.

The prompt ``CALL <tool> <arguments as JSON>`` makes it ask the client to call that tool. When the client has sent the
tool's result, its answer is that result as a JSON object: ``{"is_error": false, "text": "…"}``. To any other prompt,
and when the client has not offered the tool, its answer is ``{"error": "…"}``.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CALL = re.compile(r"CALL (\S+) (?=\{)")


@dataclass
class Messages:
    """The running stand-in: its address, and the requests that it got (method, path and body), in order."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)


@contextlib.contextmanager
def running() -> Iterator[Messages]:
    """Serve the stand-in on a free port of 127.0.0.1 for as long as the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    messages = Messages(f"http://127.0.0.1:{server.server_address[1]}")
    server.messages = messages  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield messages
    finally:
        server.shutdown()
        server.server_close()


def reply_to(body: dict[str, Any]) -> dict[str, Any]:
    """Return the content block with which to answer a request: a tool call, or a text.

    Args:
        body: the request to ``/v1/messages``.
    """
    offered = [tool.get("name") for tool in body.get("tools") or []]
    content = next((one["content"] for one in reversed(body["messages"]) if one["role"] == "user"), "")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for block in blocks:
        if block["type"] == "tool_result":
            return _text(is_error=bool(block.get("is_error")), text=_plain(block.get("content", "")))
    prompt = _plain(blocks)
    calls = list(CALL.finditer(prompt))
    if not calls:
        return _text(error=f"this stand-in knows the prompt 'CALL <tool> <JSON>' only, found: {prompt[-200:]}")
    tool = calls[-1].group(1)
    arguments, _ = json.JSONDecoder().raw_decode(prompt, calls[-1].end())
    if tool not in offered:
        mcp = [name for name in offered if name.startswith("mcp__")]
        return _text(error=f"the client has not offered {tool}; its MCP tools are: {', '.join(mcp) or 'none'}")
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex}", "name": tool, "input": arguments}


def _text(**answer: Any) -> dict[str, Any]:
    return {"type": "text", "text": json.dumps(answer, ensure_ascii=False)}


def _plain(content: Any) -> str:
    """Return the text of a message's content, whether it is a string or a list of blocks."""
    if isinstance(content, str):
        return content
    return "\n".join(block["text"] for block in content if block.get("type") == "text")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Write no access log: the requests are kept instead."""

    def do_HEAD(self) -> None:
        """Answer the client's connection test."""
        self._note(None)
        self._send(b"")

    def do_POST(self) -> None:
        """Answer ``/v1/messages``, streamed or whole as the client asks for."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._note(body)
        if self.path.partition("?")[0] != "/v1/messages":
            error = {"type": "not_found_error", "message": f"{self.path} is not part of this stand-in"}
            self._send(json.dumps({"type": "error", "error": error}).encode(), status=404)
            return
        block = reply_to(body)
        message = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [block],
            "stop_reason": "tool_use" if block["type"] == "tool_use" else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
        if body.get("stream"):
            self._send(b"".join(_events(message)), kind="text/event-stream")
        else:
            self._send(json.dumps(message).encode())

    def _note(self, body: Any) -> None:
        messages: Messages = self.server.messages  # type: ignore[attr-defined]
        messages.requests.append({"method": self.command, "path": self.path, "body": body})

    def _send(self, data: bytes, status: int = 200, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _events(message: dict[str, Any]) -> Iterator[bytes]:
    """Return a message as the server-sent events that stream it."""

    def event(kind: str, **data: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()

    (block,) = message["content"]
    yield event("message_start", message={**message, "content": [], "stop_reason": None})
    empty: dict[str, Any]
    if block["type"] == "tool_use":
        empty, delta = {"input": {}}, {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    else:
        empty, delta = {"text": ""}, {"type": "text_delta", "text": block["text"]}
    yield event("content_block_start", index=0, content_block={**block, **empty})
    yield event("content_block_delta", index=0, delta=delta)
    yield event("content_block_stop", index=0)
    end = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield event("message_delta", delta=end, usage={"output_tokens": 1})
    yield event("message_stop")
