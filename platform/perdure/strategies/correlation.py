"""Correlation distillation: who is similar to whom stays as the teacher saw it, and as the encoders before the teacher might have.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 6, Eq. (6.3) to (6.11).
"""

import torch
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.losses import Diagonal, cross_modal_gram_kl, gram_kl, unit_rows
from perdure.memory.accuracy_drift import AccuracyDrift
from perdure.memory.feature_estimation import estimate_features
from perdure.records import Embedded
from perdure.strategies.distiller import DEFAULT_SHARE, Distiller, Share
from perdure.strategies.ranking import DEFAULT_RANKING, PositiveFloat, Ranking, Weight
from perdure.strategies.strategy import TaskContext
from perdure.strategies.teacher import FrozenTeacher, taught_pairs

__all__ = ["CorrelationDistillation", "Lesson", "importances", "lesson_kl"]

Lesson = list[tuple[Tensor, Tensor]]
"""(a teacher's, the student's) embeddings (B, D) of the pictures and, where the batch has text, of the captions; not normalised."""


class CorrelationDistillation(Distiller):
    """L = ranking terms + weight * L_corr, the KL between the rows of the teacher's and the student's Gram matrix (6.3).

    Where the batch has text, the mean over the image-image, text-text, image-text and text-image matrices. What is held are
    neighbourhoods, not coordinates: the embedding space may turn as a whole, so re-embed the gallery or query it by the encoder
    that made it.

    With `estimation`, from the third task on, also the encoders before the teacher teach (6.11), by what they might have said of the
    batch (`memory.feature_estimation`). They are not kept: two numbers per task stand for each. The estimates start from the teacher's
    embeddings before normalisation and are then scaled to unit rows like every other; to start from unit rows, as the author's code
    does, gives the same. `k` scales how far they move.

    Deviations: a classifier term in the ranking (weight 0 gives the thesis's objective). A temperature, see `gram_kl`; the weight
    belongs to it (the thesis: 10 at 1; for small changes weight / temperature^2 is what counts). At 0.1 a row is about its nearest
    neighbours, which among new classes are the ones to be told apart: the same protection cost more of the new task than at 0.5.
    Bound and class ratio of `Distiller`. Figures: docs/reproductions.md.
    """

    name = "correlation"

    def __init__(
        self,
        *,
        weight: Weight = 37.0,
        temperature: PositiveFloat = 0.5,
        estimation: bool = False,
        k: Weight = 1.0,
        max_share: Share | None = DEFAULT_SHARE,
        class_ratio: bool = True,
        diagonal: Diagonal = "drop",
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        super().__init__(max_share=max_share, class_ratio=class_ratio, ranking=ranking)
        self._weight = weight
        self._temperature = temperature
        self._estimation = estimation
        self._k = k
        self._diagonal: Diagonal = diagonal
        self._drifts: tuple[AccuracyDrift, ...] = ()

    def begin_task(self, encoder: Encoder, task: TaskContext) -> None:
        """Freeze the parent; take the drifts of the tasks that its forerunners are estimated by.

        Raises:
            ValueError: `estimation` is on, and a drift is missing.
        """
        super().begin_task(encoder, task)
        self._drifts = task.drifts if self._estimation else ()
        missing = max(task.index - 1, 0) - len(self._drifts)
        if self._estimation and missing:
            raise ValueError(
                f"{self.name}: estimation needs the drift of every task from 1 to {task.index - 1}, and {missing} of them were not "
                "recorded, as by versions that did not measure it. Begin the run anew under another name, or set strategy.estimation=false"
            )

    def distilled(self, encoder: Encoder, teacher: FrozenTeacher, batch: Embedded) -> dict[str, Tensor]:
        """`correlation`."""
        lessons = self.lessons(batch)
        counted = [counts * self._divergence(lesson) for counts, lesson in zip(importances(len(lessons)), lessons, strict=True)]
        return {"correlation": self._weight * torch.stack(counted).sum()}

    def lessons(self, batch: Embedded) -> list[Lesson]:
        """What each teacher says of the batch, the newest first: the frozen one, then the estimated ones."""
        actual = taught_pairs(batch)
        generator = torch.Generator().manual_seed(batch.seed)
        by_tower = [estimate_features(taught, self._drifts, generator, k=self._k) for taught, _ in actual]
        students = [student for _, student in actual]
        return [actual, *(list(zip(virtual, students, strict=True)) for virtual in zip(*by_tower, strict=True))]

    def _divergence(self, lesson: Lesson) -> Tensor:
        return lesson_kl(lesson, temperature=self._temperature, diagonal=self._diagonal)


def lesson_kl(lesson: Lesson, *, temperature: float, diagonal: Diagonal) -> Tensor:
    """() L_corr of one teacher (6.5) on unit rows; with captions, the mean over the four Gram matrices."""
    units = [(unit_rows(teacher), unit_rows(student)) for teacher, student in lesson]
    if len(units) == 1:
        return gram_kl(*units[0], temperature=temperature, diagonal=diagonal)
    (teacher_image, student_image), (teacher_text, student_text) = units
    return cross_modal_gram_kl(teacher_image, teacher_text, student_image, student_text, temperature=temperature, diagonal=diagonal)


def importances(num_teachers: int) -> list[float]:
    """What each of t teachers counts, f_{t-1} first and f_0 last (6.11): 1, 1/(t-1), 0.1/(t-2), ..., 0.1^(t-2)/1.

    Reading: the last term is printed as distilled from task 1, but with one factor for each of f_{t-2} to f_0 it is that of f_0.
    """
    return [1.0, *(0.1 ** (age - 1) / (num_teachers - age) for age in range(1, num_teachers))]
