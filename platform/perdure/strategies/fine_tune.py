"""Fine-tuning: learn the new task, protect nothing. The lower bound that every strategy is compared with."""

from collections.abc import Mapping

from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.records import Batch, Embedded
from perdure.strategies.ranking import DEFAULT_RANKING, Ranking
from perdure.strategies.strategy import refuse_state

__all__ = ["FineTune"]


class FineTune:
    """L = the ranking terms on the new task alone."""

    reads_earlier_tasks = False
    restarts = False

    def __init__(self, *, ranking: Ranking = DEFAULT_RANKING) -> None:
        self._ranking = ranking
        self._class_ids: Tensor | None = None

    def begin_task(self, encoder: Encoder, task_index: int, class_ids: Tensor) -> None:
        """Remember which classes are learned now."""
        self._class_ids = class_ids

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """There is no teacher."""
        return {}

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """The ranking terms."""
        return self._ranking.terms(encoder, batch, self._class_ids)

    def end_task(self, encoder: Encoder) -> None:
        """Nothing is kept."""

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Only the empty state fits."""
        refuse_state("fine_tune", state)
