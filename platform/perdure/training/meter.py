"""What one task's training was like: throughput, and the mean of each loss term per epoch."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Meter", "TrainSummary"]


@dataclass
class TrainSummary:
    """What one task's training was like."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)  # mean of each loss term over the last epoch
    curves: dict[str, list[float]] = field(default_factory=dict)  # mean of each term per epoch
    read: list[int] = field(default_factory=list)  # rows of the dataset that the task read, by any worker, resumed parts included
    peak_memory_mb: float | None = None  # MiB, of this worker; of a task that was resumed, since then

    @property
    def images_per_s(self) -> float:
        """Throughput over all workers, checkpoints and data included."""
        return self.images / self.seconds if self.seconds else 0.0


class Meter:
    """Sums that become the summary: throughput, and the mean of each term per epoch."""

    def __init__(self, steps_per_epoch: int) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._steps = 0
        self._images = 0
        self._seconds = 0.0
        self._sums: list[dict[str, float]] = []
        self._counts: list[dict[str, int]] = []  # a term that comes now and then is a mean over the steps that had it

    def add(self, step: int, size: int, seconds: float, values: dict[str, float]) -> None:
        """A step of `size` images with these terms."""
        self._steps += 1
        self._images += size
        self._seconds += seconds
        epoch = step // self._steps_per_epoch
        while len(self._sums) <= epoch:
            self._sums.append({})
            self._counts.append({})
        for name, value in values.items():
            self._sums[epoch][name] = self._sums[epoch].get(name, 0.0) + value
            self._counts[epoch][name] = self._counts[epoch].get(name, 0) + 1

    def summary(self) -> TrainSummary:
        """So far; what was read and the peak of memory are not known here."""
        curves: dict[str, list[float]] = {}
        for sums, counts in zip(self._sums, self._counts, strict=True):
            for name, value in sums.items():
                curves.setdefault(name, []).append(value / counts[name])
        last = {name: values[-1] for name, values in curves.items()}
        return TrainSummary(steps=self._steps, images=self._images, seconds=self._seconds, terms=last, curves=curves)

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {"steps": self._steps, "images": self._images, "seconds": self._seconds, "sums": self._sums, "counts": self._counts}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self._steps, self._images, self._seconds = state["steps"], state["images"], state["seconds"]
        self._sums, self._counts = state["sums"], state["counts"]
