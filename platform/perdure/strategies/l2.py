"""L2 distillation: the student's embedding of an item stays where the teacher put it.

A baseline of Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 5 and 6 (weight 10 there). It holds
coordinates, so queries of the new encoder can still be compared with old gallery vectors (index policy `keep`).
"""

import torch
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.losses import l2_distance, unit_rows
from perdure.records import Embedded
from perdure.strategies.distiller import DEFAULT_SHARE, Distiller, Share
from perdure.strategies.ranking import DEFAULT_RANKING, Ranking, Weight
from perdure.strategies.teacher import FrozenTeacher, taught_pairs

__all__ = ["L2Distillation"]


class L2Distillation(Distiller):
    """L = ranking terms + weight * mean squared distance between the teacher's and the student's unit embeddings.

    Where the batch has text, the mean over pictures and captions.

    Deviations: bound and class ratio of `Distiller`.
    """

    name = "l2"

    def __init__(
        self,
        *,
        weight: Weight = 2.0,
        max_share: Share | None = DEFAULT_SHARE,
        class_ratio: bool = True,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        super().__init__(max_share=max_share, class_ratio=class_ratio, ranking=ranking)
        self._weight = weight

    def distilled(self, encoder: Encoder, teacher: FrozenTeacher, batch: Embedded) -> dict[str, Tensor]:
        """`l2`."""
        losses = [l2_distance(unit_rows(taught), unit_rows(student)) for taught, student in taught_pairs(batch)]
        return {"l2": self._weight * torch.stack(losses).mean()}
