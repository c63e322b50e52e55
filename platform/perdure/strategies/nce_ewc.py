"""NCE_EWC: EWC beside a normalised cross-entropy of hard negatives.

Parshotam and Kilickaya, "Continual learning of object instances", CVPR workshops 2020; a baseline of Chen, "Continual and cross-modal
retrieval" (PhD thesis, Leiden 2021), section 6.4.
"""

from typing import Literal

from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.losses import info_nce, unit_rows
from perdure.records import Embedded
from perdure.strategies.ewc import EWC
from perdure.strategies.protector import DEFAULT_PULL, Share
from perdure.strategies.quadratic_protector import Count, Decay, GroupSize
from perdure.strategies.ranking import DEFAULT_RANKING, PositiveFloat, Ranking, Weight

__all__ = ["NCEWithEWC"]


class NCEWithEWC(EWC):
    """L = ranking terms + nce * InfoNCE + weight * the penalty of `EWC`, F the Fisher information of ranking terms and InfoNCE.

    InfoNCE is over pictures: the hardest positive against the `negatives` hardest negatives of the batch (the thesis: 9).

    Deviations: InfoNCE joins from the second task on, so that every strategy learns the same first task; F has it from the first on.
    Unit rows, where the paper compares embeddings as they are. The options and deviations of `EWC`. Not repeated from published code: an
    InfoNCE without gradient, and an F of the loss with the penalty in it.
    """

    name = "nce_ewc"

    def __init__(
        self,
        *,
        weight: Weight = 1.0,
        nce: Weight = 0.1,
        negatives: Count = 9,
        temperature: PositiveFloat = 1.0,
        accumulate: Literal["sum", "mean", "online"] = "sum",
        gamma: Decay = 0.9,
        items: Count = 256,
        group: GroupSize = 32,
        per_class: Count = 4,
        max_share: Share | None = DEFAULT_PULL,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        super().__init__(
            weight=weight,
            accumulate=accumulate,
            gamma=gamma,
            items=items,
            group=group,
            per_class=per_class,
            max_share=max_share,
            ranking=ranking,
        )
        self._nce = nce
        self._negatives = negatives
        self._temperature = temperature

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """The ranking terms and, from the second task on, `nce` and the penalty."""
        terms = super().loss_terms(encoder, batch)
        return terms if self._task_index == 0 else terms | {"nce": self._weighted_nce(batch)}

    def objective(self, encoder: Encoder, batch: Embedded) -> Tensor:
        """() what the task is learned with, the penalty left out."""
        return super().objective(encoder, batch) + self._weighted_nce(batch)

    def _weighted_nce(self, batch: Embedded) -> Tensor:
        return self._nce * info_nce(unit_rows(batch.image), batch.labels, negatives=self._negatives, temperature=self._temperature)
