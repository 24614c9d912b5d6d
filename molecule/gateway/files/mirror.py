#!/usr/bin/python3
"""A stand-in for an engine that shows what reaches one: it answers a request with its headers, on port 9000.

The answer comes as slowly as the body's `seconds` says, in one event each second.
"""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror(BaseHTTPRequestHandler):
    """Shows a request to whoever sent it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a health check."""
        self._answer({})

    def do_POST(self) -> None:
        """Answer a question."""
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, float]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(int(body.get("seconds", 0))):
            self.wfile.write(b": still here\n\n")
            time.sleep(1)
        shown = {"path": self.path, "headers": {key.lower(): value for key, value in self.headers.items()}}
        self.wfile.write(json.dumps(shown).encode())


ThreadingHTTPServer(("0.0.0.0", 9000), Mirror).serve_forever()  # noqa: S104 - the door of the other guest asks it, too
