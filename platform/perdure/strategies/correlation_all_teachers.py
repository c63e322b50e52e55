"""Correlation distillation from every earlier encoder: what feature estimation is measured against.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 6: "two-model distillation" of Table 6.3, for any number.
"""

import torch
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.losses import Diagonal
from perdure.records import Batch, Embedded
from perdure.strategies.correlation import CorrelationDistillation, Lesson
from perdure.strategies.distiller import DEFAULT_SHARE, Share
from perdure.strategies.ranking import DEFAULT_RANKING, PositiveFloat, Ranking, Weight
from perdure.strategies.strategy import TaskContext
from perdure.strategies.teacher import FrozenTeacher, taught_pairs

__all__ = ["CorrelationAllTeachers"]


class CorrelationAllTeachers(CorrelationDistillation):
    """`CorrelationDistillation` with the encoders of all earlier tasks as frozen teachers, each counting as in (6.11).

    The costly reference: task t holds t old encoders in memory and asks each of them at every step.

    Deviations: those of `CorrelationDistillation`.
    """

    name = "correlation_all_teachers"

    def __init__(
        self,
        *,
        weight: Weight = 37.0,
        temperature: PositiveFloat = 0.5,
        max_share: Share | None = DEFAULT_SHARE,
        class_ratio: bool = True,
        diagonal: Diagonal = "drop",
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        super().__init__(
            weight=weight, temperature=temperature, max_share=max_share, class_ratio=class_ratio, diagonal=diagonal, ranking=ranking
        )
        self._elders: list[FrozenTeacher] = []

    def begin_task(self, encoder: Encoder, task: TaskContext) -> None:
        """Freeze the parent, and fetch its forerunners: f_{t-2}, ..., f_0."""
        super().begin_task(encoder, task)
        self._elders = [FrozenTeacher(task.ancestor(index)) for index in reversed(range(task.index - 1))]

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """The parent's embeddings, and those of its forerunners beside each other."""
        seen = super().observe(batch)
        said = [elder.observe(batch) for elder in self._elders]
        for tower in ("image", "text"):
            if said and f"teacher_{tower}" in said[0]:
                seen[f"elder_{tower}"] = torch.stack([each[f"teacher_{tower}"] for each in said], dim=1)
        return seen

    def lessons(self, batch: Embedded) -> list[Lesson]:
        """What each teacher says of the batch, the newest first.

        Raises:
            ValueError: embeddings of the forerunners are missing: what `observe` returned was not put into the batch.
        """
        actual = taught_pairs(batch)
        by_tower = [elder for elder in (batch.elder_image, batch.elder_text) if elder is not None]
        if self._elders and (len(by_tower) != len(actual) or any(elder.shape[1] != len(self._elders) for elder in by_tower)):
            raise ValueError(
                f"this strategy has {len(self._elders)} teachers beside the parent, but the batch came without what they say; "
                "pass on what observe() returned"
            )
        students = [student for _, student in actual]
        earlier = zip(*(elder_BmD.unbind(dim=1) for elder_BmD in by_tower), strict=True)
        return [actual, *(list(zip(taught, students, strict=True)) for taught in earlier)]

    def end_task(self, encoder: Encoder) -> None:
        """Let go of all teachers."""
        super().end_task(encoder)
        self._elders = []
