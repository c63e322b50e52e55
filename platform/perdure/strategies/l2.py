"""L2 distillation: the student's embedding of an item stays where the teacher put it.

A baseline of Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 5 and 6 (weight 10 there). It holds
coordinates, so queries of the new encoder can still be compared with old gallery vectors (index policy `keep`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.losses import l2_distance, unit_rows
from perdure.records import Batch, Embedded
from perdure.strategies.ranking import DEFAULT_RANKING, Ranking, Weight
from perdure.strategies.strategy import refuse_state
from perdure.strategies.teacher import FrozenTeacher, taught_pairs

__all__ = ["L2Distillation"]


class L2Distillation:
    """L = ranking terms + weight * mean squared distance between the teacher's and the student's unit embeddings.

    Where the batch has text, the mean over pictures and captions.
    """

    reads_earlier_tasks = False
    restarts = False

    def __init__(self, *, weight: Weight = 2.0, ranking: Ranking = DEFAULT_RANKING) -> None:
        self._weight = weight
        self._ranking = ranking
        self._class_ids: Tensor | None = None
        self._teacher: FrozenTeacher | None = None

    def begin_task(self, encoder: Encoder, task_index: int, class_ids: Tensor) -> None:
        """Freeze the parent."""
        self._class_ids = class_ids
        self._teacher = FrozenTeacher(encoder) if task_index > 0 else None

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's embeddings."""
        return {} if self._teacher is None else self._teacher.observe(batch)

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """The ranking terms and, from the second task on, `l2`."""
        terms = self._ranking.terms(encoder, batch, self._class_ids)
        if self._teacher is not None:
            losses = [l2_distance(unit_rows(teacher), unit_rows(student)) for teacher, student in taught_pairs(batch)]
            terms["l2"] = self._weight * torch.stack(losses).mean()
        return terms

    def end_task(self, encoder: Encoder) -> None:
        """Let go of the teacher."""
        self._teacher = None

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Only the empty state fits."""
        refuse_state("l2", state)
