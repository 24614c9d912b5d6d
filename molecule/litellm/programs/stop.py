"""Runs in a guest: stops LiteLLM in the middle of a stream, and prints what came of the stream.

The engines stand still while LiteLLM is told to stop, so that the stream is certainly under way.
Arguments: base URL, key.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

url, key = sys.argv[1:]
ENGINES = "llama-cpp@*"
BEFORE = 5  # events

body = {
    "model": "qwen2-tiny",
    "messages": [{"role": "user", "content": "Count from 1 to 200."}],
    "temperature": 0,
    "max_tokens": 2048,
    "stream": True,
}
headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)  # noqa: S310
text, events, refused = "", 0, False
with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
    for line in reply:
        if not line.startswith(b"data: "):
            continue
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            break
        for choice in json.loads(data)["choices"]:
            text += choice["delta"].get("content") or ""
        events += 1
        if events == BEFORE:
            subprocess.run(["systemctl", "kill", "--signal=STOP", ENGINES], check=True)
            subprocess.run(["systemctl", "stop", "--no-block", "litellm"], check=True)
            time.sleep(1)
            try:
                urllib.request.urlopen(f"{url}/health/liveliness", timeout=5).close()  # noqa: S310
            except urllib.error.URLError:
                refused = True
            subprocess.run(["systemctl", "kill", "--signal=CONT", ENGINES], check=True)
print(json.dumps({"text": text, "done": data == b"[DONE]", "events": events, "refused": refused}))
