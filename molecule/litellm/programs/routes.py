"""Runs in a guest with LiteLLM's own Python: each route of the release, and what it answers without a key.

Prints lines of ``STATUS METHOD PATH``; a websocket has the method WS and no status. A parameter of a path is asked as
x. Argument: the port.
"""

from __future__ import annotations

import http.client
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from litellm.proxy._lazy_features import register_all_features
from litellm.proxy.proxy_server import app


def routes(table: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Method and path of each route, those of included routers and mounted applications too."""
    for route in table:
        if hasattr(route, "effective_candidates"):  # a router that FastAPI has included
            yield from routes([*route.effective_candidates(), *route.effective_low_priority_routes()], prefix)
            continue
        original = getattr(route, "original_route", route)
        path = prefix + (route.path or original.path)
        if hasattr(route, "routes"):  # a mounted application, or a folder of files
            yield "GET", f"{path}/"
            yield from routes(route.routes or [], path)
        else:
            methods = getattr(route, "methods", None) or getattr(original, "methods", None) or {"WS"}
            yield from ((method, path) for method in methods)


def status(port: int, method: str, path: str) -> str:
    """What a request without a key is answered with."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(
        method,
        re.sub(r"{[^}]*}", "x", path),
        body=None if method == "GET" else b"{}",
        headers={"Content-Type": "application/json"},
    )
    return str(connection.getresponse().status)


register_all_features(app)
for method, path in sorted(set(routes(app.routes)), key=lambda route: (route[1], route[0])):
    if method not in ("HEAD", "OPTIONS"):
        print("-" if method == "WS" else status(int(sys.argv[1]), method, path), method, path)
