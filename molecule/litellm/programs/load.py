"""Runs in a guest: asks for chat completions, four at once, while an engine's process is killed. Prints the statuses.

Arguments: base URL, key, model, how many requests, and optionally the unit that is killed after a quarter of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

url, key, model, count, *units = sys.argv[1:]


def ask(number: int) -> int:
    """Status of one request."""
    if number == int(count) // 4:
        for unit in units:
            subprocess.run(["systemctl", "kill", "--signal=KILL", unit], check=True)
    body = {"model": model, "messages": [{"role": "user", "content": "ping"}], "temperature": 0}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
            return int(reply.status) if json.load(reply)["choices"][0]["message"]["content"] == "pong" else 0
    except urllib.error.HTTPError as error:
        return error.code


with ThreadPoolExecutor(4) as pool:
    print(json.dumps(list(pool.map(ask, range(int(count))))))
