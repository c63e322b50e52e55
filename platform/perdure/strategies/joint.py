"""Joint retraining: each task starts over on the data of all tasks so far. The reference that gap closed is measured against."""

from perdure.encoders.encoder import Encoder
from perdure.strategies.strategy import Strategy, TaskContext

__all__ = ["Joint"]


class Joint(Strategy):
    """L = the ranking terms on tasks 0..t together, from fresh weights; the one strategy that reads earlier tasks' images."""

    name = "joint"
    reads_earlier_tasks = True
    restarts = True

    def begin_task(self, encoder: Encoder, task: TaskContext) -> None:
        """The softmax runs over every class that the classifier has."""
        super().begin_task(encoder, task)
        self._class_ids = None
