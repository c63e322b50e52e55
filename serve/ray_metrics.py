"""Metrics of a replica by way of Ray, which shows those of all replicas of a node at the node's metrics port."""

from collections.abc import Mapping

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.util.metrics import Counter, Gauge, Histogram

from serve.metrics import METRICS

__all__ = ["RaySink", "ray_sinks"]


def ray_sinks() -> "list[RaySink]":
    """The sink of this replica; none where the code runs outside Ray Serve."""
    try:
        return [RaySink(serve.get_replica_context().replica_id.unique_id)]
    except RayServeException:
        return []


class RaySink:
    """Gives values to Ray; see `serve.metrics.Sink`. A metric is made with its first value, so that none is shown empty."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}

    def add(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """See `Sink`."""
        if value > 0:  # Ray refuses 0
            if name not in self._counters:
                self._counters[name] = Counter(name.removesuffix("_total"), METRICS[name].help, self._keys(name))
            self._counters[name].inc(value, self._tags(labels))

    def observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """See `Sink`."""
        if name not in self._histograms:
            metric = METRICS[name]
            self._histograms[name] = Histogram(name, metric.help, list(metric.buckets), self._keys(name))
        self._histograms[name].observe(value, self._tags(labels))

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """See `Sink`."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, METRICS[name].help, self._keys(name))
        self._gauges[name].set(value, self._tags(labels))

    def _keys(self, name: str) -> tuple[str, ...]:
        return (*METRICS[name].labels, "replica")

    def _tags(self, labels: Mapping[str, str]) -> dict[str, str]:
        return {**labels, "replica": self._replica}
