"""Measures the gateway beside LiteLLM in one interleaved run, and how soon it follows tokens: `make bench-gateway`.

Brings up the guest of gateway_fleet.yml with the project's own playbooks, measures there with gateway_guest.py, and
takes the guest away again, whatever happens. Puts its table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bench.bench import PROJECT, hardware, into_docs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.gateway_guest import Results, Settings

HERE = Path(__file__).parent
PODMAN = str(PROJECT / "tests" / "lab" / "bin" / "podman")
GUEST = "local-llm-bench-bench"
SET_UP = (
    "tests/lab/destroy.yml",
    "tests/lab/create.yml",
    "tests/lab/prepare.yml",
    "playbooks/models.yml",
    "playbooks/gateway.yml",
)
# As gateway_fleet.yml has them.
KEYS = {
    "direct": "engine-key-of-the-benchmark",
    "gateway": "token-of-alice-for-the-benchmark",
    "litellm": "sk-litellm-key-of-the-benchmark",
}
DEVELOPER = "bob"
ROTATE = ("rotate=true", "grace_hours=0")
REVOKE = ("revoke=true",)

KINDS = {"short": "short request", "large": "request of 92 KB", "model": "short request, the real engine"}
TARGET_MS = 1.0
TARGET_S = 5.0


def play(folder: str, *arguments: str) -> None:
    """Run playbooks; what they say is shown only if they fail."""
    done = subprocess.run(
        ["ansible-playbook", f"--inventory={HERE / 'gateway_fleet.yml'}", *arguments],  # noqa: S607 - the venv's
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "BENCH_FOLDER": folder},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"ansible-playbook {' '.join(arguments)}:\n{done.stdout}{done.stderr}")


def guest(*command: str, said: str = "") -> str:
    """Run a command in the guest; gives what it prints. Its errors and progress are shown."""
    run = [PODMAN, "exec", "--interactive", GUEST, *command]
    return subprocess.run(run, input=said, stdout=subprocess.PIPE, text=True, check=True).stdout


class Developer:
    """A developer at the gateway, who has one answer streamed after the other.

    Args:
        address: the gateway's.
        context: TLS that trusts the gateway's CA.
        token: the developer's.
    """

    def __init__(self, address: str, context: ssl.SSLContext, token: str) -> None:
        self._address, self._context = address, context
        self._headers = {"authorization": f"Bearer {token}"}
        self._connection = self._connect()
        self._refused = threading.Event()
        self.answers = 0

    def status(self) -> int:
        """Ask for the list of models, which the gateway itself answers; gives the status."""
        self._connection.request("GET", "/v1/models", headers=self._headers)
        response = self._connection.getresponse()
        response.read()
        return response.status

    def refused_after(self, folder: str, *extra: str) -> float:
        """Run the playbook for this developer, and wait until the gateway refuses the token.

        Args:
            folder: of the secrets.
            extra: variables of the playbook.

        Returns:
            Seconds since the playbook was started.
        """
        arguments = [f"--extra-vars={text}" for text in (f"name={DEVELOPER}", *extra)]
        with ThreadPoolExecutor() as pool:
            streams = pool.submit(self._ask_on)
            while not self.answers and not streams.done():
                time.sleep(0.05)
            began = time.perf_counter()
            playbook = pool.submit(play, folder, "playbooks/developer.yml", *arguments)
            try:
                while self.status() != http.HTTPStatus.UNAUTHORIZED:
                    if playbook.done() and self.status() == http.HTTPStatus.OK:
                        playbook.result()
                        raise RuntimeError("the playbook is through, and the token is still good")
                    time.sleep(0.01)
                took = time.perf_counter() - began
            finally:
                self._refused.set()
            streams.result()
            playbook.result()
        return took

    def _connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._address, context=self._context, timeout=60)

    def _ask_on(self) -> None:
        connection = self._connect()
        message = {"role": "user", "content": "Write a quicksort function in Python."}
        body = json.dumps({"model": "qwen2-tiny", "messages": [message], "temperature": 0, "stream": True})
        while not self._refused.is_set():
            connection.request("POST", "/v1/chat/completions", body, self._headers)
            response = connection.getresponse()
            text = response.read()
            if response.status == http.HTTPStatus.UNAUTHORIZED:
                return  # it was asked for after the token's end
            if b"[DONE]" not in text:
                raise RuntimeError(f"an answer was cut off: {response.status} {text[-300:]!r}")
            self.answers += 1


def follow(folder: str, address: str, context: ssl.SSLContext, times: int) -> tuple[dict[str, list[float]], int]:
    """Make, rotate and revoke tokens; gives the seconds that the gateway took to follow, and the answers meanwhile."""
    took: dict[str, list[float]] = {"rotate": [], "revoke": []}
    answers = 0

    def current() -> Developer:
        file = Path(folder, "tokens", f"{DEVELOPER}.json")
        return Developer(address, context, json.loads(file.read_text())["token"])

    for _ in range(times):
        play(folder, "playbooks/developer.yml", f"--extra-vars=name={DEVELOPER}")
        for action, extra in (("rotate", ROTATE), ("revoke", REVOKE)):
            developer = current()
            took[action].append(developer.refused_after(folder, *extra))
            answers += developer.answers
            if action == "rotate" and (status := current().status()) != http.HTTPStatus.OK:
                raise RuntimeError(f"the old token is refused, but the new one is answered with {status}")
    return took, answers


def verdict(value: float, target: float, unit: str) -> str:
    """Return a target, and whether it was met."""
    return f"< {target:g} {unit}: {'met' if value < target else '**missed**'}"


def report(results: Results, took: dict[str, list[float]], answers: int, size: Settings) -> str:
    """Return what goes into the documentation."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"{hardware()} {versions}.",
        "",
        "| | the gateway | LiteLLM | target of the gateway |",
        "|---|--:|--:|:--|",
    ]

    def row(text: str, values: Sequence[float], target: str = "") -> None:
        lines.append(f"| {text} | {' | '.join(f'{value * 1e3:.2f} ms' for value in values)} | {target} |")

    direct = {}
    for kind, text in KINDS.items():
        ways = results["seconds"][kind]
        for index, name in enumerate(("p50", "p95")):
            # Within a round, as all rounds are not equally quiet.
            added = [
                statistics.median(
                    there[index] - here[index] for here, there in zip(ways["direct"], ways[way], strict=True)
                )
                for way in ("gateway", "litellm")
            ]
            target = "" if index else verdict(added[0] * 1e3, TARGET_MS, "ms")
            row(f"added latency, {text}, {name}", added, target)
        direct[kind] = statistics.median(quantiles[0] for quantiles in ways["direct"]) * 1e3
    for kind, text in KINDS.items():
        row(f"CPU, {text}", [statistics.median(results["cpu_s"][kind][way]) for way in ("gateway", "litellm")])
    count, short, large, model = size["requests"], *(f"{direct[kind]:.2f} ms" for kind in KINDS)
    lines.append(
        f"\nMedians of {size['rounds']} rounds with {count} requests of each kind each way. Without either (p50) the "
        f"stand-in engine takes {short} for a short request and {large} for a large one, the real engine {model}.\n"
    )
    lines += [
        "| from the start of `playbooks/developer.yml` until the gateway … | median | slowest | target |",
        "|---|--:|--:|:--|",
    ]
    texts = {"rotate": "refuses the old token and takes the new one", "revoke": "refuses a revoked token"}
    for action, text in texts.items():
        middle, slowest = statistics.median(took[action]), max(took[action])
        lines.append(f"| {text} | {middle:.1f} s | {slowest:.1f} s | {verdict(slowest, TARGET_S, 's')} |")
    times = len(took["revoke"])
    lines += [
        "",
        f"{times} times each; meanwhile {answers} answers were streamed to the developer, and none was cut off.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run it; the figures are the result, there is no pass or fail."""
    parser = argparse.ArgumentParser(prog="gateway", description="Measure the gateway beside LiteLLM.")
    parser.add_argument("--quick", action="store_true", help="a short run, which leaves docs/benchmarks.md alone")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        try:
            print("a guest with an engine, the gateway and LiteLLM is made", file=sys.stderr)
            play(folder, *SET_UP)
            ca = Path(folder, "ca", "ca.pem").read_text()
            size: Settings = {"ca": ca, "keys": KEYS, "rounds": 2 if quick else 6, "requests": 50 if quick else 200}
            subprocess.run([PODMAN, "cp", str(HERE / "gateway_guest.py"), f"{GUEST}:/root/"], check=True)
            results: Results = json.loads(guest("python3", "/root/gateway_guest.py", said=json.dumps(size)))
            print("tokens are rotated and revoked", file=sys.stderr)
            address = guest("hostname", "-I").split()[0]
            took, answers = follow(folder, address, ssl.create_default_context(cadata=ca), 1 if quick else 3)
        finally:
            play(folder, "tests/lab/destroy.yml")
    text = report(results, took, answers, size)
    print(text)
    if not quick:
        into_docs(text, "measured gateway")


if __name__ == "__main__":
    main()
