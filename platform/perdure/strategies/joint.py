"""Joint retraining: each task starts over on the data of all tasks so far. The reference that gap closed is measured against."""

from collections.abc import Mapping

from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.records import Batch, Embedded
from perdure.strategies.ranking import DEFAULT_RANKING, Ranking
from perdure.strategies.strategy import refuse_state

__all__ = ["Joint"]


class Joint:
    """L = the ranking terms on tasks 0..t together, from fresh weights; the one strategy that reads earlier tasks' images."""

    reads_earlier_tasks = True
    restarts = True

    def __init__(self, *, ranking: Ranking = DEFAULT_RANKING) -> None:
        self._ranking = ranking

    def begin_task(self, encoder: Encoder, task_index: int, class_ids: Tensor) -> None:
        """Nothing to prepare: the softmax runs over every class that the classifier has."""

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """There is no teacher."""
        return {}

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """The ranking terms, over all classes so far."""
        return self._ranking.terms(encoder, batch, None)

    def end_task(self, encoder: Encoder) -> None:
        """Nothing is kept."""

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Only the empty state fits."""
        refuse_state("joint", state)
