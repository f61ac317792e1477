"""What Prometheus reads at `/metrics`."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bayesrm_fast.serve.engine import AsyncScorer

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)
TOKENS = tuple(float(2**i) for i in range(4, 19, 2))

GAUGES = {
    "queue_tokens": "Tokens that wait for the model.",
    "queued_requests": "Requests that wait for the model.",
    "padding": "Share of the tokens in batches that are padding.",
}
COUNTERS = {
    "batches": "Passes of the model.",
    "batch_tokens": "Tokens in batches, padding included.",
    "refused": "Requests that found the queue full.",
    "cancelled": "Requests whose clients went away.",
    "bisections": "Batches that failed and were run in halves.",
    "memory_halvings": "Batches that ran out of memory and were halved.",
    "seconds": "Seconds that the model was running.",
}


class _Engines(Collector):
    """The engines' own figures, asked for when they are read."""

    def __init__(self, scorers: Mapping[str, AsyncScorer]) -> None:
        self.scorers = scorers

    def describe(self) -> Iterator[Metric]:
        """No figure before it is read."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        stats = {name: scorer.stats() for name, scorer in self.scorers.items()}
        for kind, described in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for figure, what in described.items():
                family = kind(f"bayesrm_{figure}", what, labels=["model"])
                for name, one in stats.items():
                    family.add_metric([name], getattr(one, figure))
                yield family


class Metrics:
    """The figures of one app, in a registry of their own.

    Args:
        scorers: by the names of their models.
    """

    def __init__(self, scorers: Mapping[str, AsyncScorer]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Engines(scorers))
        self._requests = Counter("bayesrm_requests", "Answers.", ["route", "status"], registry=self.registry)
        self._seconds = Histogram(
            "bayesrm_request_seconds",
            "From a request to its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._tokens = Histogram(
            "bayesrm_request_tokens", "Tokens of a request.", ["model"], buckets=TOKENS, registry=self.registry
        )
        self._rows = Counter(
            "bayesrm_rows",
            "Rows scored, with their variance or without.",
            ["model", "variance"],
            registry=self.registry,
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def scored(self, model: str, rows: int, tokens: int, has_variance: bool) -> None:
        """Count the rows of a request."""
        self._tokens.labels(model).observe(tokens)
        self._rows.labels(model, str(has_variance).lower()).inc(rows)

    def page(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
