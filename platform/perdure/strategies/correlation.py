"""Correlation distillation: who is similar to whom stays as the teacher saw it.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 6, Eq. (6.3) to (6.5), without feature estimation.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.losses import Diagonal, cross_modal_gram_kl, gram_kl, unit_rows, within_share
from perdure.records import Batch, Embedded
from perdure.strategies.ranking import DEFAULT_RANKING, PositiveFloat, Ranking, Weight
from perdure.strategies.strategy import refuse_state
from perdure.strategies.teacher import FrozenTeacher, taught_pairs

__all__ = ["CorrelationDistillation"]


class CorrelationDistillation:
    """L = ranking terms + weight * KL between the rows of the teacher's and the student's Gram matrix (6.3).

    Where the batch has text, the mean over the image-image, text-text, image-text and text-image matrices. What is held are
    neighbourhoods, not coordinates: the embedding space may turn as a whole, so re-embed the gallery or query it by the encoder
    that made it.

    Deviations: a classifier term in the ranking (weight 0 gives the thesis's objective). A temperature, see `gram_kl`; the weight
    belongs to it (the thesis: 10 at 1; for small changes weight / temperature^2 is what counts). At 0.1 a row is about its nearest
    neighbours, which among new classes are the ones to be told apart: the same protection cost more of the new task than at 0.5.
    The pull of the distilled term on the embeddings is at most `max_share` of that of the ranking terms (None: no bound, as in the
    thesis), because the weight that protects one stream freezes another, see `within_share`. Figures: docs/reproductions.md.
    """

    reads_earlier_tasks = False
    restarts = False

    def __init__(
        self,
        *,
        weight: Weight = 37.0,
        temperature: PositiveFloat = 0.5,
        max_share: Weight | None = 0.25,
        diagonal: Diagonal = "drop",
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        self._weight = weight
        self._temperature = temperature
        self._max_share = max_share
        self._diagonal: Diagonal = diagonal
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
        """The ranking terms and, from the second task on, `correlation`."""
        terms = self._ranking.terms(encoder, batch, self._class_ids)
        if self._teacher is not None:
            terms["correlation"] = self._bounded(self._weight * self._divergence(batch), terms, batch)
        return terms

    def end_task(self, encoder: Encoder) -> None:
        """Let go of the teacher."""
        self._teacher = None

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Only the empty state fits."""
        refuse_state("correlation", state)

    def _bounded(self, distilled: Tensor, terms: Mapping[str, Tensor], batch: Embedded) -> Tensor:
        if self._max_share is None:
            return distilled
        embeddings = [batch.image] if batch.text is None else [batch.image, batch.text]
        return within_share(distilled, torch.stack(list(terms.values())).sum(), embeddings, share=self._max_share)

    def _divergence(self, batch: Embedded) -> Tensor:
        units = [(unit_rows(teacher), unit_rows(student)) for teacher, student in taught_pairs(batch)]
        if len(units) == 1:
            return gram_kl(*units[0], temperature=self._temperature, diagonal=self._diagonal)
        (teacher_image, student_image), (teacher_text, student_text) = units
        return cross_modal_gram_kl(
            teacher_image, teacher_text, student_image, student_text, temperature=self._temperature, diagonal=self._diagonal
        )
