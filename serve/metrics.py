"""What a replica measures, for Prometheus: the list of all metrics, and where their values go.

`GET /metrics` of a gateway shows those of the very process that answers, as `perdure_...`. On Ray, every replica (gateway, encoder, shard)
also gives them to its node, whose metrics port shows them as `ray_perdure_...`: that is what to scrape where there are several replicas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client.exposition import generate_latest

__all__ = ["CONTENT_TYPE", "METRICS", "CollectorSink", "Metric", "Metrics", "Sink", "version_of"]

M = TypeVar("M", Counter, Gauge, Histogram)

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


@dataclass(frozen=True)
class Metric:
    """One metric: its kind, what it says, the labels that every value has."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = _SECONDS


METRICS: Mapping[str, Metric] = {
    "perdure_requests_total": Metric("counter", "HTTP requests answered, by route and status", ("route", "status")),
    "perdure_request_seconds": Metric("histogram", "Time of HTTP requests", ("route",)),
    "perdure_searches_total": Metric("counter", "Searches answered, by release and encoder version", ("release", "version", "channel")),
    "perdure_partial_answers_total": Metric("counter", "Answers without a shard that stayed away", ("release",)),
    "perdure_phase_seconds": Metric("histogram", "Time of a phase of searches", ("release", "phase")),
    "perdure_encode_seconds": Metric("histogram", "Time of a pass of the encoders of a release", ("release",)),
    "perdure_encode_batch": Metric("histogram", "Queries that one pass embeds", (), _SIZES),
    "perdure_search_batch": Metric("histogram", "Searches of different callers that are answered together", (), _SIZES),
    "perdure_shard_seconds": Metric("histogram", "Time that a shard searches", ("release", "shard")),
    "perdure_load_seconds": Metric("histogram", "Time to load a release", ("part",)),
    "perdure_load_failures_total": Metric("counter", "Releases that did not load, by error", ("release", "part", "error")),
    "perdure_release_held": Metric("gauge", "1 for a release that is wholly loaded", ("release", "part")),
    "perdure_serving": Metric("gauge", "1 for the release that a gateway answers from", ("release", "version")),
    "perdure_ready": Metric("gauge", "1 while a gateway answers searches"),
    "perdure_live_not_serving": Metric("gauge", "1 for a live release that is not the one that answers, and why", ("release", "why")),
    "perdure_candidate_percent": Metric("gauge", "Percent of requests, by use, that the candidate gets", ("release", "use")),
    "perdure_shadows_total": Metric("counter", "Shadow queries, by outcome", ("live", "candidate", "outcome")),
    "perdure_shadow_overlap": Metric("histogram", "overlap@k of live and candidate answers", ("live", "candidate"), _SHARES),
}  # fmt: skip


class Sink(Protocol):
    """Takes values, which name every label of their metric."""

    def add(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Add to a counter."""
        ...

    def observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """One value of a histogram."""
        ...

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """What a gauge shows from now on."""
        ...


class CollectorSink:
    """Into memory, to be shown as text."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._known: dict[tuple[Any, ...], Any] = {}  # series by name and labels
        for name, metric in METRICS.items():
            if metric.kind == "counter":
                self._counters[name] = Counter(name, metric.help, metric.labels, registry=self._registry)
            elif metric.kind == "gauge":
                self._gauges[name] = Gauge(name, metric.help, metric.labels, registry=self._registry)
            else:
                self._histograms[name] = Histogram(name, metric.help, metric.labels, registry=self._registry, buckets=metric.buckets)

    def add(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """See `Sink`."""
        self._series(self._counters[name], name, labels).inc(value)

    def observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """See `Sink`."""
        self._series(self._histograms[name], name, labels).observe(value)

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """See `Sink`."""
        self._series(self._gauges[name], name, labels).set(value)

    def _series(self, metric: M, name: str, labels: Mapping[str, str]) -> M:
        """A metric's series of these labels, which is slow to find and quick to remember."""
        if not labels:
            return metric
        key = (name, *labels.items())
        if key not in self._known:
            self._known[key] = metric.labels(**labels)
        return self._known[key]

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class Metrics:
    """The metrics of a process, given to each of its sinks."""

    def __init__(self, *sinks: Sink) -> None:
        self.shown = CollectorSink()
        self._sinks: Sequence[Sink] = (self.shown, *sinks)
        self._set: dict[str, set[tuple[str, ...]]] = {}

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Add to a counter."""
        for sink in self._sinks:
            sink.add(name, value, labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """One value of a histogram."""
        for sink in self._sinks:
            sink.observe(name, value, labels)

    def show(self, name: str, values: Mapping[tuple[str, ...], float]) -> None:
        """All that a gauge shows from now on, by the values of its labels; what it showed besides is 0."""
        known = self._set.setdefault(name, set())
        known.update(values)
        for given in known:
            labels = dict(zip(METRICS[name].labels, given, strict=True))
            for sink in self._sinks:
                sink.set(name, values.get(given, 0.0), labels)


def version_of(encoder: str) -> str:
    """`encoder/demo@v3` -> v3."""
    return encoder.rpartition("@")[2]
