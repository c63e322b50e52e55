"""Feature extraction: learn the first task, then keep the encoder. The old classes lose nothing, the new ones gain nothing.

A baseline of Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 5 (Tables 5.2 and 5.3).
"""

from perdure.encoders.encoder import Encoder
from perdure.strategies.ranking import DEFAULT_RANKING, Ranking
from perdure.strategies.strategy import Strategy, TaskContext

__all__ = ["FeatureExtraction"]


class FeatureExtraction(Strategy):
    """L = the ranking terms; from the second task on only the classifier learns by them, and no embedding moves.

    Both towers stay to the bit, BatchNorm's statistics too. Words that come later get a row each, which nobody trains.
    """

    name = "feature_extraction"

    def __init__(self, *, ranking: Ranking = DEFAULT_RANKING) -> None:
        super().__init__(ranking=ranking)
        self._task_index = 0

    def begin_task(self, encoder: Encoder, task: TaskContext) -> None:
        """Remember which task it is."""
        super().begin_task(encoder, task)
        self._task_index = task.index

    def begin_training(self, encoder: Encoder) -> None:
        """Freeze the towers, if there is something to keep."""
        encoder.set_towers_frozen(self._task_index > 0)
