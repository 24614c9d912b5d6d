#!/usr/bin/python3
"""A stand-in for an engine that shows what reaches one: it answers a request with its headers, on port 9000.

The body of a request says how: the answer takes `seconds`, in one event each second or, with `silent`, without a word;
GET /end ends those that are under way.
It has that `status` and those `headers`, after `interim` ones if they are given. With `dies` there is no answer, as if
the request had ended the engine; what it was asked to die of is counted: GET /deaths.
"""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

deaths: Counter[str] = Counter()
ended = threading.Condition()
last_end = 0.0


class Mirror(BaseHTTPRequestHandler):
    """Shows a request to whoever sent it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a health check, or a question about the past; or end what is being answered."""
        global last_end
        if self.path == "/end":
            with ended:
                last_end = time.monotonic()
                ended.notify_all()
        self._answer({} if self.path != "/deaths" else {"headers": {"Deaths": json.dumps(deaths)}})

    def do_POST(self) -> None:
        """Answer a question."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if reason := body.get("dies"):
            deaths[reason] += 1
            self.close_connection = True
            return
        self._answer(body)

    def _answer(self, body: dict[str, Any]) -> None:
        start, seconds = time.monotonic(), int(body.get("seconds", 0))
        if body.get("silent"):
            time.sleep(seconds)
            seconds = 0
        if interim := body.get("interim"):
            self._head(103, interim)
        self._head(
            body.get("status", 200),
            {"Content-Type": "text/event-stream", "Connection": "close"} | body.get("headers", {}),
        )
        for _ in range(seconds):
            self.wfile.write(b": still here\n\n")
            with ended:
                if ended.wait_for(lambda: last_end > start, 1):
                    break
        shown = {"path": self.path, "headers": {key.lower(): value for key, value in self.headers.items()}}
        self.wfile.write(json.dumps(shown).encode())

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


ThreadingHTTPServer(("0.0.0.0", 9000), Mirror).serve_forever()  # noqa: S104 - the gateway of the other guest asks it, too
