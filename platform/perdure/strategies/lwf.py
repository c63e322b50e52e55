"""Learning without Forgetting: the student's logits of the old classes follow the teacher's.

Li and Hoiem, ECCV 2016; as a retrieval baseline Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), Eq. (5.3).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.losses import softened_cross_entropy
from perdure.records import Batch, Embedded
from perdure.strategies.ranking import DEFAULT_RANKING, PositiveFloat, Ranking, Weight
from perdure.strategies.strategy import refuse_state
from perdure.strategies.teacher import FrozenTeacher, taught_pairs

__all__ = ["LearningWithoutForgetting"]


class LearningWithoutForgetting:
    """L = ranking terms + weight * softened cross-entropy over the n old classes, at a temperature (5.3).

    Where the batch has text, the mean over pictures and captions.

    Deviations: the thesis distils pictures only.
    """

    reads_earlier_tasks = False
    restarts = False

    def __init__(self, *, weight: Weight = 1.0, temperature: PositiveFloat = 2.0, ranking: Ranking = DEFAULT_RANKING) -> None:
        self._weight = weight
        self._temperature = temperature
        self._ranking = ranking
        self._class_ids: Tensor | None = None
        self._teacher: FrozenTeacher | None = None

    def begin_task(self, encoder: Encoder, task_index: int, class_ids: Tensor) -> None:
        """Freeze the parent; its classifier's rows are the old classes."""
        self._class_ids = class_ids
        self._teacher = FrozenTeacher(encoder) if task_index > 0 else None

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's embeddings."""
        return {} if self._teacher is None else self._teacher.observe(batch)

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """The ranking terms and, from the second task on, `lwf`."""
        terms = self._ranking.terms(encoder, batch, self._class_ids)
        if self._teacher is not None:
            old = self._teacher.num_classes
            losses = [
                softened_cross_entropy(self._teacher.logits(teacher), encoder.classifier(student)[:, :old], temperature=self._temperature)
                for teacher, student in taught_pairs(batch)
            ]
            terms["lwf"] = self._weight * torch.stack(losses).mean()
        return terms

    def end_task(self, encoder: Encoder) -> None:
        """Let go of the teacher."""
        self._teacher = None

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Only the empty state fits."""
        refuse_state("lwf", state)
