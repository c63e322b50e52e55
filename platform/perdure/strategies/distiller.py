"""Distillation: what strategies with one frozen teacher share."""

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.losses import share_factor
from perdure.records import Batch, Embedded
from perdure.strategies.ranking import DEFAULT_RANKING, Ranking
from perdure.strategies.strategy import Strategy, TaskContext
from perdure.strategies.teacher import DEFAULT_TEACHING, FrozenTeacher, Teaching

__all__ = ["DEFAULT_SHARE", "Distiller", "Share"]

Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]
DEFAULT_SHARE = 0.25


class Distiller(Strategy):
    """L = ranking terms + what `distilled` says, from the second task on.

    The distilled terms together pull on the embeddings at most `max_share` times as hard as the ranking terms do (None: no bound),
    because a weight that protects one stream freezes another; see `losses.share`. With `class_ratio` the distilled terms are multiplied,
    below that bound, by sqrt(n_old / n_new): the more there is to keep beside what there is to learn, the harder the teacher holds (the
    adaptive weight of Hou et al., "Learning a Unified Classifier Incrementally via Rebalancing", CVPR 2019; measured in
    docs/decisions/0011-class-ratio.md). max_share=None with class_ratio=False is a method as its own paper has it.
    """

    def __init__(
        self,
        *,
        max_share: float | None = DEFAULT_SHARE,
        class_ratio: bool = True,
        teacher: Teaching = DEFAULT_TEACHING,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        super().__init__(ranking=ranking)
        self._teaching = teacher
        self._max_share = max_share
        self._class_ratio = class_ratio
        self._ratio = 1.0
        self._teacher: FrozenTeacher | None = None

    def begin_task(self, encoder: Encoder, task: TaskContext) -> None:
        """Freeze the parent."""
        super().begin_task(encoder, task)
        self._teacher = FrozenTeacher(encoder, self._teaching, flips=task.flips) if task.index > 0 else None
        if self._teacher is not None and self._class_ratio:
            self._ratio = math.sqrt(self._teacher.num_classes / len(task.class_ids))

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's embeddings."""
        return {} if self._teacher is None else self._teacher.observe(batch)

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """The ranking terms and, from the second task on, the distilled ones."""
        terms = super().loss_terms(encoder, batch)
        if self._teacher is None:
            return terms
        distilled = {name: self._ratio * term for name, term in self.distilled(encoder, self._teacher, batch).items()}
        return terms | self._bounded(distilled, torch.stack(list(terms.values())).sum(), batch)

    def distilled(self, encoder: Encoder, teacher: FrozenTeacher, batch: Embedded) -> dict[str, Tensor]:
        """The named, weighted terms that hold the student to the teacher; a strategy's own part."""
        raise NotImplementedError

    def end_task(self, encoder: Encoder) -> None:
        """Let go of the teacher."""
        self._teacher = None
        self._ratio = 1.0

    def _bounded(self, distilled: Mapping[str, Tensor], ranking: Tensor, batch: Embedded) -> dict[str, Tensor]:
        if self._max_share is None or not distilled:
            return dict(distilled)
        embeddings = [each for each in (batch.image, batch.synthetic, batch.text) if each is not None]
        factor = share_factor(torch.stack(list(distilled.values())).sum(), ranking, embeddings, share=self._max_share)
        return {name: factor * term for name, term in distilled.items()}
