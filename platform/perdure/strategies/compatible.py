"""Backward-compatible training: the new encoder's embeddings can be compared with the old gallery as it is (index policy `keep`).

Shen, Xiong, Xia and Soatto, "Towards backward-compatible representation learning", CVPR 2020: an influence loss through the old
classifier. New classes have no row there; their rows are the mean of the old encoder's embeddings of their items, as the authors answer in
an issue of their program.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from perdure.encoders.encoder import Encoder
from perdure.losses import influence_loss, l2_distance, unit_rows
from perdure.records import Embedded
from perdure.strategies.distiller import DEFAULT_SHARE, Distiller, Share
from perdure.strategies.lwf import require_classifier
from perdure.strategies.ranking import DEFAULT_RANKING, Ranking, Weight
from perdure.strategies.strategy import TaskContext
from perdure.strategies.teacher import FrozenTeacher, taught_pairs

__all__ = ["CompatibleTraining"]


class CompatibleTraining(Distiller):
    """L = ranking terms + influence * influence loss + hold * mean squared distance to the teacher's unit embeddings.

    Where the batch has text, either is the mean over pictures and captions; the rows are those of pictures.

    Raises:
        ConfigError: ranking.cross_entropy is 0, so that there is no old classifier.
    Deviations: rows of new classes are means over the items that were seen so far in the task, augmented, and get surer with each step;
        cosine logits whatever the classifier's kind; the `hold` term, which is `l2`'s; bound and class ratio of `Distiller`.
    """

    name = "compatible"

    def __init__(
        self,
        *,
        influence: Weight = 1.0,
        hold: Weight = 2.0,
        max_share: Share | None = DEFAULT_SHARE,
        class_ratio: bool = True,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        super().__init__(max_share=max_share, class_ratio=class_ratio, ranking=ranking)
        self._influence = influence
        self._hold = hold
        self._sums: Tensor | None = None  # (C, D) of the teacher's unit embeddings, by class; of this task alone
        if influence > 0:
            require_classifier(self.name, ranking, "another strategy, such as l2")

    def begin_task(self, encoder: Encoder, task: TaskContext) -> None:
        """Freeze the parent, and forget what its classes looked like in another task."""
        super().begin_task(encoder, task)
        self._sums = None

    def distilled(self, encoder: Encoder, teacher: FrozenTeacher, batch: Embedded) -> dict[str, Tensor]:
        """`influence` and `l2`."""
        pairs = taught_pairs(batch)
        rows = self._rows(encoder, teacher, batch)
        students = [each for each in (batch.image, batch.text) if each is not None]
        influences = [influence_loss(each, batch.labels, rows, scale=encoder.classifier.scale) for each in students]
        held = [l2_distance(unit_rows(taught), unit_rows(student)) for taught, student in pairs]
        return {"influence": self._influence * torch.stack(influences).mean(), "l2": self._hold * torch.stack(held).mean()}

    def end_task(self, encoder: Encoder) -> None:
        """Let go of the teacher and of the means."""
        super().end_task(encoder)
        self._sums = None

    def state_dict(self) -> dict[str, Tensor]:
        """The sums, in the middle of a task."""
        return {} if self._sums is None else {"class_sums": self._sums}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the sums.

        Raises:
            ValueError: they are another strategy's.
        """
        if state.keys() - {"class_sums"}:
            raise ValueError(f"{self.name} keeps sums by class, but got {', '.join(sorted(state))}: was this saved by another strategy?")
        self._sums = state.get("class_sums")

    @torch.no_grad()
    def _rows(self, encoder: Encoder, teacher: FrozenTeacher, batch: Embedded) -> Tensor:
        """(C, D) the teacher's classifier, and below it the directions of the new classes' means, this batch's items included."""
        assert batch.teacher_image is not None
        taught = unit_rows(batch.teacher_image).float()
        if self._sums is None:
            self._sums = torch.zeros(encoder.classifier.num_classes, taught.shape[1])
        self._sums = self._sums.to(taught.device).index_add(0, batch.labels, taught)
        old = functional.normalize(teacher.encoder.classifier.weight.to(taught.device), dim=1)
        return torch.cat([old, self._sums[teacher.num_classes :]])
