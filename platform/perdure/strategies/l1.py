"""L1 distillation: the student's embedding of an item stays where the teacher put it, held as hard near as far.

A baseline of Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 7 (Tables 7.1 to 7.3).
"""

import torch
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.losses import l1_distance, unit_rows
from perdure.records import Embedded
from perdure.strategies.distiller import DEFAULT_SHARE, Distiller, Share
from perdure.strategies.ranking import DEFAULT_RANKING, Ranking, Weight
from perdure.strategies.teacher import FrozenTeacher, taught_pairs

__all__ = ["L1Distillation"]


class L1Distillation(Distiller):
    """L = ranking terms + weight * mean absolute difference (a sum over D) of the teacher's and the student's unit embeddings.

    Where the batch has text, the mean over pictures and captions.

    Deviations: bound and class ratio of `Distiller`. The thesis gives no weight.
    """

    name = "l1"

    def __init__(
        self,
        *,
        weight: Weight = 0.2,
        max_share: Share | None = DEFAULT_SHARE,
        class_ratio: bool = True,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        super().__init__(max_share=max_share, class_ratio=class_ratio, ranking=ranking)
        self._weight = weight

    def distilled(self, encoder: Encoder, teacher: FrozenTeacher, batch: Embedded) -> dict[str, Tensor]:
        """`l1`."""
        losses = [l1_distance(unit_rows(taught), unit_rows(student)) for taught, student in taught_pairs(batch)]
        return {"l1": self._weight * torch.stack(losses).mean()}
