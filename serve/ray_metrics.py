"""Metrics of a replica by way of Ray, which shows those of all replicas of a node at the node's metrics port.

Ray takes a tenth of a millisecond for a value, and a search has a dozen. So a thread of its own gives them to Ray, a moment later.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.util.metrics import Counter, Gauge, Histogram

from serve.metrics import METRICS

__all__ = ["RaySink", "ray_sinks"]

log = logging.getLogger(__name__)

_EVERY_S = 0.25  # that values are given to Ray
_MOST_WAITING = 100_000  # values; beyond them the oldest are lost

_Given = tuple[Callable[[str, float, dict[str, str]], None], str, float, Mapping[str, str]]  # to what, of which metric, the value, labels


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
        self._waiting: deque[_Given] = deque(maxlen=_MOST_WAITING)
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def add(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """See `Sink`."""
        if value > 0:  # Ray refuses 0
            self._waiting.append((self._add, name, value, labels))

    def observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """See `Sink`."""
        self._waiting.append((self._observe, name, value, labels))

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """See `Sink`."""
        self._waiting.append((self._set, name, value, labels))

    def _run(self) -> None:
        never = threading.Event()
        while not never.wait(_EVERY_S):
            while self._waiting:
                give, name, value, labels = self._waiting.popleft()
                try:
                    give(name, value, {**labels, "replica": self._replica})
                except Exception:  # a value is lost, those after it are not
                    log.warning("Ray does not take a value of %s", name, exc_info=True)

    def _add(self, name: str, value: float, tags: dict[str, str]) -> None:
        if name not in self._counters:
            self._counters[name] = Counter(name.removesuffix("_total"), METRICS[name].help, self._keys(name))
        self._counters[name].inc(value, tags)

    def _observe(self, name: str, value: float, tags: dict[str, str]) -> None:
        if name not in self._histograms:
            metric = METRICS[name]
            self._histograms[name] = Histogram(name, metric.help, list(metric.buckets), self._keys(name))
        self._histograms[name].observe(value, tags)

    def _set(self, name: str, value: float, tags: dict[str, str]) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, METRICS[name].help, self._keys(name))
        self._gauges[name].set(value, tags)

    def _keys(self, name: str) -> tuple[str, ...]:
        return (*METRICS[name].labels, "replica")
