"""What the server counts, for Prometheus: a registry of its own, so that two servers in one process do not mix.

The HTTP layer counts requests; texts and tokens are the engine's figures, read when somebody asks. Names follow Prometheus's
conventions (base units, `_total` for counters). Of a request only its route counts, never its path, so that nobody can make names up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

from palimpsest.errors import MissingDependencyError
from palimpsest.serving.metrics import Distribution, EngineMetrics

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
except ImportError as error:
    raise MissingDependencyError("The server needs prometheus_client.", "pip install 'palimpsest-lm[serve]'") from error

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

_GAUGES = {
    "running": "Texts being written.",
    "waiting": "Texts waiting for a place.",
    "slots": "Texts that can be written at once.",
    "queue": "Texts that can wait.",
    "batched": "Whether texts share a forward pass.",
    "prefix_bytes": "Bytes that the prefix cache holds.",
    "prefix_blocks": "Blocks that the prefix cache holds.",
    "prefix_limit": "Bytes that the prefix cache may hold.",
}
_COUNTERS = {
    "rejected": "Texts that found the waiting room full.",
    "prompt_tokens": "Tokens of prompts.",
    "cached_tokens": "Tokens of prompts that the prefix cache held.",
    "completion_tokens": "Tokens written.",
    "steps": "Forward passes.",
}
_LABELLED = {"finished": ("reason", "Texts that ended."), "guard": ("action", "What the guard did, in choices of a token.")}
_HISTOGRAMS = {
    "step_seconds": "What a forward pass took.",
    "queue_seconds": "From a text's arrival to its place.",
    "first_token_seconds": "From a text's arrival to its first token.",
}


class HttpMetrics:
    """Counters of the HTTP layer, and the engine's figures.

    Args:
        engine: gives the engine's metrics.
    """

    def __init__(self, engine: Callable[[], EngineMetrics]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("palimpsest_http_requests", "Requests answered.", ["route", "method", "status"], registry=registry)
        self.seconds = Histogram(
            "palimpsest_http_request_seconds", "From a request to its answer's end.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.in_flight = Gauge("palimpsest_http_requests_in_flight", "Requests under way.", registry=registry)
        self.next_token = Histogram(
            "palimpsest_next_token_seconds", "Between the tokens of a text, mean of a piece.", buckets=_PER_TOKEN, registry=registry
        )
        self.ended = Counter("palimpsest_requests_ended_early", "Requests ended from outside.", ["reason"], registry=registry)
        self.traced_tokens = Counter("palimpsest_traced_tokens", "Tokens of texts traced.", registry=registry)
        registry.register(_EngineFigures(engine))

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self.registry)


class _EngineFigures:
    """The engine's metrics as Prometheus has them."""

    def __init__(self, engine: Callable[[], EngineMetrics]) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """All figures of one moment."""
        now = self._engine()
        for name, meaning in _GAUGES.items():
            yield GaugeMetricFamily(f"palimpsest_engine_{name}", meaning, value=float(getattr(now, name)))
        for name, meaning in _COUNTERS.items():
            yield CounterMetricFamily(f"palimpsest_engine_{name}", meaning, value=float(getattr(now, name)))
        for name, (label, meaning) in _LABELLED.items():
            family = CounterMetricFamily(f"palimpsest_engine_{name}", meaning, labels=[label])
            for key, value in sorted(getattr(now, name).items()):
                family.add_metric([key], value)
            yield family
        for name, meaning in _HISTOGRAMS.items():
            yield _histogram(f"palimpsest_engine_{name}", meaning, getattr(now, name))

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not ask the engine in order to know names that clash with nobody's."""
        return []


def _histogram(name: str, meaning: str, values: Distribution) -> HistogramMetricFamily:
    bounds = [*map(str, values.bounds), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(values.counts)), strict=True))
    return HistogramMetricFamily(name, meaning, buckets=buckets, sum_value=values.total)
