"""Memory Aware Synapses: parameters that the length of the embeddings is sensitive to stay near where they were.

Aljundi et al., "Memory Aware Synapses: learning what (not) to forget", ECCV 2018.
"""

from collections.abc import Iterator

from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.memory.importance import sensitivity
from perdure.records import Batch
from perdure.strategies.protector import DEFAULT_PULL, Share
from perdure.strategies.quadratic_protector import Count, Decay, QuadraticProtector
from perdure.strategies.ranking import DEFAULT_RANKING, Ranking, Weight

__all__ = ["MAS"]


class MAS(QuadraticProtector):
    """L = ranking terms + weight * 1/2 sum_k F_k (theta_k - theta*_k)^2, F = mean over items of |d ||z||^2 / d theta_k| (Eq. 2 and 4).

    Tasks add up as F = alpha F_old + (1 - alpha) F_new, with one anchor, the parameters after the latest task.

    Deviations: the paper's penalty has no 1/2; it adds the F of all tasks, the running mean is that of later implementations (alpha 0.5).
    F is in units of its mean; the bound of `Protector` (None: none). z is the embedding before normalisation: of unit rows, F would be 0
    everywhere. The classifier has no part in an embedding and is not protected.
    """

    name = "mas"
    term = "mas"

    def __init__(
        self,
        *,
        weight: Weight = 1.0,
        alpha: Decay = 0.5,
        items: Count = 256,
        max_share: Share | None = DEFAULT_PULL,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        super().__init__(weight=weight, items=items, group=min(items, 32), per_class=4, max_share=max_share, ranking=ranking)
        self._alpha = alpha

    def measure(self, encoder: Encoder, groups: Iterator[Batch]) -> dict[str, Tensor]:
        """The sensitivity of the embeddings' length, pictures' and captions'."""
        return sensitivity(encoder, groups)

    def kept_and_added(self) -> tuple[float, float]:
        """alpha and 1 - alpha."""
        return self._alpha, 1 - self._alpha
