"""Operators see who asks how much of what, for how long, and nobody else does."""

from __future__ import annotations

import json
import re
import socket
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from local_llm_bridge.audit import Caller, Record
from local_llm_bridge.config import Developer, Engine, ServeSettings, Settings
from local_llm_bridge.metrics import Metrics
from local_llm_bridge.models.answer import Completion
from local_llm_bridge.models.backend import Backend
from local_llm_bridge.server.app import App
from local_llm_bridge.server.dispatch import Dispatcher
from local_llm_bridge.server.fast_path import FastPath
from local_llm_bridge.server.handler import Handler
from local_llm_bridge.server.sdk_http import SdkHttp
from tests.services import MODEL, TOKEN, FakeEngine, configuration, events, piece, records, serving, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.services import Bridge

pytestmark = pytest.mark.anyio

USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
REPLY = events(piece("hello "), piece("you", "stop"), USAGE)
ALICE = Caller("alice")
ANSWER = Completion("hello", "m", "stop", prompt_tokens=7, completion_tokens=2, first_token_s=0.3)


class Samples:
    """What Prometheus makes of a text, through its own parser."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._values = {
            (sample.name.removeprefix("local_llm_bridge_"), frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self._values.get((name, frozenset(labels.items())))

    def labels(self, label: str) -> set[str]:
        """Return all values of a label, whatever the metric."""
        return {value for _, labels in self._values for name, value in labels if name == label}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(Backend(Settings(engines=(Engine("m", "http://e/v1"),))))


def samples(metrics: Metrics) -> Samples:
    return Samples(metrics.text().decode())


def test_a_call_is_counted_with_its_tokens_and_times(metrics: Metrics) -> None:
    metrics(Record(ALICE, "chat", "m", "ok", 1.5, ANSWER))
    metrics(Record(ALICE, "chat", "m", "ok", 3.0, ANSWER))
    seen = samples(metrics)
    assert seen.value("calls_total", developer="alice", tool="chat", model="m", outcome="ok") == 2
    assert seen.value("tokens_total", developer="alice", model="m", kind="prompt") == 14
    assert seen.value("tokens_total", developer="alice", model="m", kind="completion") == 4
    assert seen.value("call_duration_seconds_count", model="m") == 2
    assert seen.value("call_duration_seconds_sum", model="m") == 4.5
    assert seen.value("call_duration_seconds_bucket", model="m", le="1.0") == 0
    assert seen.value("call_duration_seconds_bucket", model="m", le="2.5") == 1
    assert seen.value("time_to_first_token_seconds_bucket", model="m", le="0.25") == 0
    assert seen.value("time_to_first_token_seconds_bucket", model="m", le="0.5") == 2
    assert seen.value("cache_total", result="miss") == 2


def test_a_cached_answer_costs_no_tokens(metrics: Metrics) -> None:
    metrics(Record(ALICE, "chat", "m", "ok", 0.001, Completion("hello", "m", "stop", 7, 2, cached=True)))
    seen = samples(metrics)
    assert seen.value("cache_total", result="hit") == 1
    assert seen.value("cache_total", result="miss") is None
    assert seen.value("calls_total", developer="alice", tool="chat", model="m", outcome="ok") == 1
    assert seen.value("tokens_total", developer="alice", model="m", kind="prompt") is None
    assert seen.value("time_to_first_token_seconds_count", model="m") is None


def test_a_failure_counts_as_a_call_and_no_more(metrics: Metrics) -> None:
    metrics(Record(ALICE, "chat", "m", "queue_full", 0.001))
    seen = samples(metrics)
    assert seen.value("calls_total", developer="alice", tool="chat", model="m", outcome="queue_full") == 1
    assert seen.value("cache_total", result="miss") is None
    assert seen.labels("kind") == set()


async def test_running_and_queued_calls_are_shown_as_they_are() -> None:
    backend = Backend(Settings(engines=(Engine("m", "http://e/v1", concurrency=1), Engine("n", "http://f/v1"))))
    metrics, slots = Metrics(backend), backend.slots["m"]
    await slots.acquire("alice")
    async with anyio.create_task_group() as group:
        group.start_soon(slots.acquire, "bob")
        await anyio.sleep(0.01)
        seen = samples(metrics)
        assert (seen.value("running", model="m"), seen.value("queued", model="m")) == (1, 1)
        assert (seen.value("running", model="n"), seen.value("queued", model="n")) == (0, 0)
        slots.release(1)
    seen = samples(metrics)
    assert (seen.value("running", model="m"), seen.value("queued", model="m")) == (1, 0)


def test_prometheus_takes_all_of_it_and_every_family_is_explained(metrics: Metrics) -> None:
    metrics(Record(ALICE, "chat", "m", "ok", 1.5, ANSWER))
    families = samples(metrics).families
    assert {"local_llm_bridge_calls", "local_llm_bridge_running", "process_resident_memory_bytes"} <= families.keys()
    assert all(family.documentation for family in families.values())


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    """A bridge of a test's own, so that it counts from nought."""
    with FakeEngine(REPLY).running() as url, serving(tmp_path, url, max_retries=0) as running:
        yield running


async def test_metrics_over_http_count_what_was_called_and_no_names_that_callers_made_up(bridge: Bridge) -> None:
    made_up = ["no_such_tool", "no-such-model", 'x"} 1\nevil 2']
    async with bridge.client() as client:
        for _ in range(2):
            assert text_of(await client.call_tool("chat", {"message": "hi"})) == "hello you"
        for name in (made_up[0], made_up[2]):
            assert (await client.call_tool(name, {})).is_error
        for name in made_up[1:]:
            assert (await client.call_tool("chat", {"message": "hi", "model": name})).is_error
    status, text, headers = bridge.http("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    seen = Samples(text)
    assert seen.value("calls_total", developer="alice", tool="chat", model=MODEL, outcome="ok") == 2
    assert seen.value("calls_total", developer="alice", tool="-", model="-", outcome="unknown_tool") == 2
    assert seen.value("calls_total", developer="alice", tool="chat", model="-", outcome="unknown_model") == 2
    assert seen.value("tokens_total", developer="alice", model=MODEL, kind="prompt") == 7
    assert seen.value("tokens_total", developer="alice", model=MODEL, kind="completion") == 2
    assert (seen.value("cache_total", result="hit"), seen.value("cache_total", result="miss")) == (1, 1)
    assert seen.value("time_to_first_token_seconds_count", model=MODEL) == 1
    assert seen.value("running", model=MODEL) == 0
    assert seen.labels("tool") == {"chat", "-"}
    assert seen.labels("model") == {MODEL, "-"}
    assert not any(name in text for name in (*made_up, "evil"))
    assert not any(name in bridge.log.read_text() for name in (*made_up, "evil"))


async def read_metrics(peer: str, headers: list[tuple[bytes, bytes]]) -> tuple[int, str]:
    """Ask the gateway for the metrics as from some host; gives status and text."""
    alice = Developer(**configuration(1)["developers"][0])
    settings = ServeSettings(engines=(Engine("m", "http://e/v1"),), developers=(alice,))
    dispatcher = Dispatcher(settings)
    sdk = SdkHttp(dispatcher)
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:  # noqa: ANN401 - what ASGI has
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "path": "/metrics", "method": "GET", "headers": headers, "client": (peer, 40_000)}
    await App(settings, dispatcher, Handler(FastPath(dispatcher, announces=False), sdk))(scope, receive, send)
    await sdk.close()
    await dispatcher.close()
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent).decode()


@pytest.mark.parametrize(
    ("peer", "token", "status"),
    [
        ("127.0.0.1", None, 200),
        ("::1", None, 200),
        ("192.0.2.1", TOKEN, 200),
        ("192.0.2.1", None, 401),
        ("192.0.2.1", "not-a-token", 401),
        ("::ffff:192.0.2.1", None, 401),
        ("2001:db8::1", None, 401),
    ],
)
async def test_another_host_reads_the_metrics_with_a_token_only(peer: str, token: str | None, status: int) -> None:
    headers = [(b"host", b"127.0.0.1")]
    # What a proxy would say about where it comes from is not believed.
    headers += [(b"x-forwarded-for", b"127.0.0.1"), (b"forwarded", b"for=127.0.0.1")]
    headers += [(b"authorization", f"Bearer {token}".encode())] if token else []
    found, text = await read_metrics(peer, headers)
    assert found == status
    assert ("local_llm_bridge_running" in text) == (status == 200)


NASTY = "first\nsecond <6>call developer=mallory\r\n\u2028third \x1b[31m"


@pytest.mark.parametrize("with_content", [True, False])
async def test_each_call_has_a_record_with_content_only_where_it_is_wanted(
    tmp_path: Path, *, with_content: bool
) -> None:
    with (
        FakeEngine(events(piece("answer\nof two lines", "stop"), USAGE)).running() as url,
        serving(tmp_path, url, audit_content=with_content) as bridge,
    ):
        async with bridge.client() as client:
            await client.call_tool("chat", {"message": NASTY})
            assert (await client.call_tool("chat", {"message": NASTY, "model": "none"})).is_error
        log = bridge.log.read_text()
    good, bad = records(log)
    moment = datetime.fromisoformat(good.pop("time"))
    assert abs(moment - datetime.now(UTC)) < timedelta(minutes=1)
    assert re.fullmatch("[0-9a-f]{32}", good.pop("request_id"))
    assert good.pop("duration_ms") >= 0
    content = {"arguments": {"message": NASTY}, "text": "answer\nof two lines"} if with_content else {}
    who = {"source": "bridge", "developer": "alice", "client": "127.0.0.1"}
    tokens = {"prompt_tokens": 7, "completion_tokens": 2, "cached": False}
    assert good == who | {"what": "chat", "model": MODEL, "outcome": "ok"} | tokens | content
    assert (bad["model"], bad["outcome"]) == ("-", "unknown_model")
    assert ("There is no model 'none'" in bad.get("text", "")) == with_content
    assert log.isascii()
    assert "\x1b" not in log
    if not with_content:
        assert not any(word in log for word in ("first", "second", "mallory", "third", "answer"))


async def test_records_go_to_a_socket_of_syslog_and_to_the_log_when_nobody_is_there(tmp_path: Path) -> None:
    path = tmp_path / "syslog"
    with FakeEngine(REPLY).running() as url, serving(tmp_path, url, audit_socket=str(path)) as bridge:
        async with bridge.client() as client:
            await client.call_tool("chat", {"message": "hi"})
            (kept,) = records(bridge.log.read_text())
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
                reader.bind(str(path))
                reader.settimeout(10)
                await client.call_tool("chat", {"message": "hi"})
                prefix, _, sent = reader.recv(65536).decode().partition(": ")
        assert f"{path} did not take this record: No such file or directory" in bridge.log.read_text()
    assert prefix == "<134>local-llm-audit"
    assert (kept["cached"], json.loads(sent)["cached"]) == (False, True)
    assert kept.keys() == json.loads(sent).keys()


def test_the_watchdog_hears_of_the_service_in_time(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(10)
        with serving(tmp_path, "http://127.0.0.1:9", environment={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}):
            assert manager.recv(4096).decode().startswith("READY=1\nSTATUS=Serving on 127.0.0.1:")
            manager.recv(4096)
            started = time.monotonic()
            for _ in range(3):
                assert manager.recv(4096).decode() == "WATCHDOG=1\nSTATUS=Serving: 0 calls running, 0 waiting"
            # Half of what systemd waits for, so three make 0.6 s.
            assert time.monotonic() - started > 0.4
