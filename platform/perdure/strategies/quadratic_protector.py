"""Quadratic protection: what strategies share that measure an importance after each task and fasten a spring to every parameter.

Measured once, after the last step, on the task's own items; EWC and MAS differ in what they measure and how tasks add up.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.losses import quadratic_penalty
from perdure.memory.importance import per_mean
from perdure.records import Batch
from perdure.strategies.protector import Protector, padded
from perdure.strategies.ranking import DEFAULT_RANKING, Ranking
from perdure.strategies.strategy import Examples

__all__ = ["Count", "Decay", "GroupSize", "QuadraticProtector"]

log = logging.getLogger(__name__)

Count = Annotated[int, Field(ge=1)]
GroupSize = Annotated[int, Field(ge=2)]
Decay = Annotated[float, Field(ge=0, le=1)]


class QuadraticProtector(Protector):
    """L = ranking terms + weight * 1/2 sum_k F_k (theta_k - theta*_k)^2, F measured after each task on its own items.

    F is brought to mean 1 before it is added to that of earlier tasks, so a weight means the same for every stream, and every task
    counts the same. It is measured on `items` items in groups of `group`, `per_class` of a class, without augmentation, whatever the
    training's batches are.
    """

    def __init__(
        self, *, weight: float, items: int, group: int, per_class: int, max_share: float | None, ranking: Ranking = DEFAULT_RANKING
    ) -> None:
        super().__init__(weight=weight, max_share=max_share, ranking=ranking)
        self._items = items
        self._group = group
        self._per_class = per_class

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """1/2 sum_k F_k (theta_k - theta*_k)^2 over all protected entries."""
        importance, anchor = self.memory["importance"], self.memory["anchor"]
        return torch.stack([quadratic_penalty(each, anchor[name], importance[name]) for name, each in parameters.items()]).sum()

    def measure(self, encoder: Encoder, groups: Iterator[Batch]) -> dict[str, Tensor]:
        """F of the task that was just learned; a strategy's own part."""
        raise NotImplementedError

    def kept_and_added(self) -> tuple[float, float]:
        """What the F of earlier tasks, and that of this one, are multiplied by when they are added."""
        raise NotImplementedError

    def consolidate(self, encoder: Encoder, examples: Examples) -> None:
        """Measure F, add it to what there is, and take the parameters as they are for the anchor."""
        count = -(-self._items // self._group)
        fresh = per_mean(self.measure(encoder, examples.batches(size=self._group, per_class=self._per_class, count=count)))
        log.info("%s: mean importance after task %d: %s", self.name, self._task_index, _by_tower(fresh))
        old, anchor = self.memory["importance"], self.memory["anchor"]
        kept, added = self.kept_and_added() if old else (0.0, 1.0)
        parameters = {name: parameter.detach() for name, parameter in encoder.named_parameters() if name in fresh}
        for name, parameter in parameters.items():
            earlier, latest = kept * padded(old.get(name), parameter), added * fresh[name]
            anchor[name] = self.fastened(padded(anchor.get(name), parameter), earlier, parameter, latest)
            old[name] = earlier + latest

    def fastened(self, earlier: Tensor, earlier_importance: Tensor, latest: Tensor, latest_importance: Tensor) -> Tensor:
        """Where the springs are fastened after a task: at the parameters as they are."""
        return latest.clone()


def _by_tower(importance: Mapping[str, Tensor]) -> str:
    """`image 1.21, text 0.83, classifier 2.50`: the mean over the entries of each part of the encoder."""
    towers = dict.fromkeys(name.partition(".")[0] for name in importance)
    parts = {tower: [values for name, values in importance.items() if name.partition(".")[0] == tower] for tower in towers}
    return ", ".join(f"{tower} {float(torch.cat([each.flatten() for each in values]).mean()):.3g}" for tower, values in parts.items())
