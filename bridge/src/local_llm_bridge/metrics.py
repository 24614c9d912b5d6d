"""What Prometheus reads at /metrics. Labels are names of the configuration, so their number is bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from local_llm_bridge.audit import token_count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from local_llm_bridge.audit import Record
    from local_llm_bridge.models.backend import Backend

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts calls.

    Args:
        backend: whose slots and queues are shown.
    """

    def __init__(self, backend: Backend) -> None:
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "local_llm_bridge_calls",
            "Tool calls that are over.",
            ("developer", "tool", "model", "outcome"),
            registry=self._registry,
        )
        self._tokens = Counter(
            "local_llm_bridge_tokens",
            "Tokens of answers that did not come from the cache.",
            ("developer", "model", "kind"),
            registry=self._registry,
        )
        self._duration = Histogram(
            "local_llm_bridge_call_duration_seconds",
            "How long a tool call took.",
            ("model",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first_token = Histogram(
            "local_llm_bridge_time_to_first_token_seconds",
            "From the request to the model until the first piece of its answer.",
            ("model",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._cache = Counter(
            "local_llm_bridge_cache",
            "Answers that came from the cache or from a call in flight (hit), or did not (miss).",
            ("result",),
            registry=self._registry,
        )
        self._registry.register(_Slots(backend))
        ProcessCollector(registry=self._registry)

    def __call__(self, record: Record) -> None:
        """Count one call."""
        self._calls.labels(record.caller.developer, record.tool, record.model, record.outcome).inc()
        self._duration.labels(record.model).observe(record.duration_s)
        completion = record.completion
        if completion is None:
            return
        self._cache.labels("hit" if completion.cached else "miss").inc()
        if completion.cached:
            return
        read, written = token_count(completion.prompt_tokens), token_count(completion.completion_tokens)
        self._tokens.labels(record.caller.developer, record.model, "prompt").inc(read or 0)
        self._tokens.labels(record.caller.developer, record.model, "completion").inc(written or 0)
        if completion.first_token_s is not None:
            self._first_token.labels(record.model).observe(completion.first_token_s)

    def text(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _Slots(Collector):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterable[GaugeMetricFamily]:
        running = GaugeMetricFamily("local_llm_bridge_running", "Calls that the model works on.", labels=["model"])
        queued = GaugeMetricFamily("local_llm_bridge_queued", "Calls that wait for the model.", labels=["model"])
        for model, slots in self._backend.slots.items():
            running.add_metric([model], slots.running)
            queued.add_metric([model], slots.queued)
        return (running, queued)
