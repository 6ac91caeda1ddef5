"""Metrics of the server for Prometheus: base units, counters that end in _total, no ids and no classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class ServerMetrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "streamcl_http_requests_total",
            "Requests answered.",
            ["route", "method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "streamcl_http_request_duration_seconds",
            "Time to answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._images = Counter("streamcl_predicted_images_total", "Images predicted.", registry=registry)
        self._exits = Counter(
            "streamcl_predicted_by_deadline_images_total",
            "Images predicted by a deadline, by the exit of the backbone that gave the prediction, from 1.",
            ["exit"],
            registry=registry,
        )

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when the metrics are."""
        Gauge(f"streamcl_{name}", description, registry=self._registry).set_function(read)

    def counter(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Add a count that somebody else keeps."""
        self._registry.register(_ReadCounter(f"streamcl_{name}", description, read))

    def request(self, route: str, method: str, status: int, seconds: float | None) -> None:
        """Count an answered request, and its time where that says anything.

        route: a pattern, never a path that a client made up.
        """
        self._requests.labels(route, method, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(route).observe(seconds)

    def images(self, exits: Sequence[int | None]) -> None:
        """Count predicted images, by the exit of each; None for all blocks."""
        self._images.inc(len(exits))
        for each in exits:
            if each is not None:
                self._exits.labels(str(each)).inc()

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class _ReadCounter(Collector):
    """A counter whose value is read when the metrics are."""

    def __init__(self, name: str, description: str, read: Callable[[], float]) -> None:
        self._name, self._description, self._read = name, description, read

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._description, value=self._read())
