"""A stand-in for Hugging Face and ModelScope, because the real hubs cannot be reached from a test.

It has their URLs and their ways: a download is redirected to a CDN under another name, which serves ranges. What it
adds is trouble: one repository is cut off again and again, one is gated, one serves damaged files, one is slow and
waits before its end. Every request is logged with what a test wants to know of it.
"""

from __future__ import annotations

import http.server
import json
import re
import ssl
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

CUT = 1_500_000  # bytes after which a connection is cut
CHUNK = 100_000  # bytes
FILE = Path("/srv/hub/qwen2-tiny.gguf")
GO_ON = Path("/srv/hub/go-on")  # ends the wait
LOG = Path("/srv/hub/requests.jsonl")


class Hub(http.server.BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        """Answer as hub or as CDN, by the name that the client used."""
        entry = {
            "host": self.headers["Host"],
            "path": self.path,
            "range": self.headers["Range"],
            "authorization": self.headers["Authorization"],
        }
        with LOG.open("a") as log:
            log.write(json.dumps(entry) + "\n")
        url = urlsplit(self.path)
        if entry["host"].startswith("cdn."):
            self.send_file(repository=parse_qs(url.query)["repository"][0])
        elif found := re.fullmatch(r"/(tiny/[a-z]+)/resolve/[0-9a-f]{40}/qwen2-tiny\.gguf", url.path):
            self.redirect(found[1])
        elif found := re.fullmatch(r"/api/v1/models/(tiny/[a-z]+)/repo", url.path):
            query = parse_qs(url.query)
            if query != {"Revision": ["v1.0.0"], "FilePath": ["qwen2-tiny.gguf"]}:
                self.send_error(404)
            else:
                self.redirect(found[1])
        else:
            self.send_error(404)

    def redirect(self, repository: str) -> None:
        """Send the client to the CDN, or away."""
        if repository == "tiny/gated" and self.headers["Authorization"] != "Bearer hf_molecule":
            self.send_error(401)
            return
        self.send_response(302)
        self.send_header("Location", f"https://cdn.test:8443/blob?repository={repository}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_file(self, repository: str) -> None:
        """Send what is asked for, or as much of it as the trouble lets through."""
        data = FILE.read_bytes()
        if repository == "tiny/damaged":
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or ""):
            start = int(asked[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = min(len(data), start + CUT) if repository == "tiny/cut" else len(data)
        for at in range(start, end, CHUNK):
            if repository == "tiny/slow":
                time.sleep(0.5)
                while at + CHUNK >= end and not GO_ON.exists():
                    time.sleep(0.5)
            self.wfile.write(data[at : min(at + CHUNK, end)])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing: LOG has it."""


def main(certificate: str) -> None:
    """Serve until stopped.

    Args:
        certificate: PEM file with certificate and key for hub.test and cdn.test.
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), Hub)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
