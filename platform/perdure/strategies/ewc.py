"""Elastic Weight Consolidation: parameters that the earlier tasks' loss is sensitive to stay near where they were.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017; accumulation over tasks also by Schwarz et al.,
"Progress & Compress", ICML 2018 (online), and by the mean that continual vision-language pre-training uses. A baseline of Chen,
"Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 5 and 6.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.memory.importance import fisher
from perdure.records import Batch, Embedded
from perdure.strategies.protector import DEFAULT_PULL, Share
from perdure.strategies.quadratic_protector import Count, Decay, GroupSize, QuadraticProtector
from perdure.strategies.ranking import DEFAULT_RANKING, Ranking, Weight
from perdure.strategies.strategy import Strategy

__all__ = ["EWC"]


class EWC(QuadraticProtector):
    """L = ranking terms + weight * 1/2 sum_k F_k (theta_k - theta*_k)^2, F the Fisher information of the ranking terms (Eq. 3).

    How tasks add up, by `accumulate`:

    - "sum": a penalty for each task with its own anchor, as in the paper. Their sum is, but for a constant, one penalty with the sum of
      the F and the F-weighted mean of the anchors, so the memory does not grow with the tasks.
    - "mean": the same divided by the number of tasks, so old and new weigh as they did.
    - "online": F = gamma F_old + F_new, and one anchor, the parameters after the latest task (Schwarz et al., Eq. 9).

    Deviations: F is per item, see `memory.importance.fisher`, and in units of its mean, so the thesis's weight of 8000 has no counterpart
    here; the bound of `Protector` (None: none, as there). Not repeated from published code: F of squared mini-batch gradients, F of a
    loss that has the penalty in it, and the F of the latest task alone.
    """

    name = "ewc"
    term = "ewc"

    def __init__(
        self,
        *,
        weight: Weight = 1.0,
        accumulate: Literal["sum", "mean", "online"] = "sum",
        gamma: Decay = 0.9,
        items: Count = 256,
        group: GroupSize = 32,
        per_class: Count = 4,
        max_share: Share | None = DEFAULT_PULL,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        super().__init__(weight=weight, items=items, group=group, per_class=per_class, max_share=max_share, ranking=ranking)
        self._accumulate = accumulate
        self._gamma = gamma

    def measure(self, encoder: Encoder, groups: Iterator[Batch]) -> dict[str, Tensor]:
        """The Fisher information of the objective without the penalty."""
        return fisher(encoder, groups, lambda group: self.objective(encoder, group), heads=[encoder.classifier])

    def objective(self, encoder: Encoder, batch: Embedded) -> Tensor:
        """() what the task is learned with, the penalty left out."""
        return torch.stack(list(Strategy.loss_terms(self, encoder, batch).values())).sum()

    def kept_and_added(self) -> tuple[float, float]:
        """See the class."""
        if self._accumulate == "mean":
            return self._task_index / (self._task_index + 1), 1 / (self._task_index + 1)
        return self._gamma if self._accumulate == "online" else 1.0, 1.0

    def fastened(self, earlier: Tensor, earlier_importance: Tensor, latest: Tensor, latest_importance: Tensor) -> Tensor:
        """Of the sum of two quadratics: the mean of their anchors, weighted by importance; the latest where nothing mattered before."""
        if self._accumulate == "online":
            return latest.clone()
        mean = (earlier_importance * earlier + latest_importance * latest) / (earlier_importance + latest_importance)
        return torch.where(earlier_importance > 0, mean, latest)
