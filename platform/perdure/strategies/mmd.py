"""LwF with maximum mean discrepancy: the classifier's answer and the distribution of the embeddings stay as the teacher had them.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 5, Eq. (5.6); by itself (alpha = 0) a baseline of ch. 6 and 7.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.losses import BANDWIDTHS, mmd, unit_rows
from perdure.records import Embedded
from perdure.strategies.distiller import Distiller, Share
from perdure.strategies.lwf import old_logits, require_classifier
from perdure.strategies.ranking import DEFAULT_RANKING, PositiveFloat, Ranking, Weight
from perdure.strategies.teacher import FrozenTeacher, taught_pairs

__all__ = ["Bandwidths", "MMDDistillation"]

Bandwidths = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]


class MMDDistillation(Distiller):
    """L = ranking terms + alpha * L_dist (5.3) + beta * L_mmd (5.5) on unit rows (5.6); a weight of 0 leaves a term out.

    Where the batch has text, each is the mean over pictures and captions.

    Raises:
        ConfigError: alpha is above 0, but ranking.cross_entropy is 0: nothing would train the classifier whose answers are held.
    Deviations: alpha is 3 as in `lwf` (the thesis: 1); the thesis distils pictures only; the bandwidths, see `losses.mmd`; bound and
    class ratio of `Distiller`. The bound is a tenth where others have a quarter: a distribution is pulled as one, in the same direction in
    every step, and a quarter of the pull kept a large task of an unlike group from being learned (docs/reproductions.md, emoji).
    """

    name = "mmd"

    def __init__(
        self,
        *,
        alpha: Weight = 3.0,
        beta: Weight = 1.0,
        temperature: PositiveFloat = 2.0,
        bandwidths: Bandwidths = BANDWIDTHS,
        max_share: Share | None = 0.1,
        class_ratio: bool = True,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        super().__init__(max_share=max_share, class_ratio=class_ratio, ranking=ranking)
        self._alpha = alpha
        self._beta = beta
        self._temperature = temperature
        self._bandwidths = bandwidths
        if alpha > 0:
            require_classifier(self.name, ranking, "alpha=0")

    def distilled(self, encoder: Encoder, teacher: FrozenTeacher, batch: Embedded) -> dict[str, Tensor]:
        """`lwf` and `mmd`."""
        terms: dict[str, Tensor] = {}
        if self._alpha > 0:
            terms["lwf"] = self._alpha * old_logits(encoder, teacher, batch, self._temperature)
        if self._beta > 0:
            losses = [mmd(unit_rows(taught), unit_rows(student), bandwidths=self._bandwidths) for taught, student in taught_pairs(batch)]
            terms["mmd"] = self._beta * torch.stack(losses).mean()
        return terms
