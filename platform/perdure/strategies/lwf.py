"""Learning without Forgetting: the student's logits of the old classes follow the teacher's.

Li and Hoiem, ECCV 2016; as a retrieval baseline Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), Eq. (5.3).
"""

import torch
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.errors import ConfigError
from perdure.losses import softened_cross_entropy
from perdure.records import Embedded
from perdure.strategies.distiller import Distiller, Share
from perdure.strategies.ranking import DEFAULT_RANKING, PositiveFloat, Ranking, Weight
from perdure.strategies.teacher import DEFAULT_TEACHING, FrozenTeacher, Teaching, taught_pairs

__all__ = ["LearningWithoutForgetting", "old_logits", "require_classifier"]


class LearningWithoutForgetting(Distiller):
    """L = ranking terms + weight * softened cross-entropy over the n old classes, at a temperature (5.3).

    Where the batch has text, the mean over pictures and captions.

    Raises:
        ConfigError: ranking.cross_entropy is 0, so that nothing trains the classifier whose answers are held.
    Deviations: the thesis distils pictures only, and its weight is 1; bound and class ratio of `Distiller`; `teacher`, see `Teaching`.
    """

    name = "lwf"

    def __init__(
        self,
        *,
        weight: Weight = 3.0,
        temperature: PositiveFloat = 2.0,
        max_share: Share | None = 0.5,
        class_ratio: bool = True,
        teacher: Teaching = DEFAULT_TEACHING,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        super().__init__(max_share=max_share, class_ratio=class_ratio, teacher=teacher, ranking=ranking)
        self._weight = weight
        self._temperature = temperature
        if weight > 0:
            require_classifier(self.name, ranking, "another strategy, such as l2 or correlation")

    def distilled(self, encoder: Encoder, teacher: FrozenTeacher, batch: Embedded) -> dict[str, Tensor]:
        """`lwf`."""
        return {"lwf": self._weight * old_logits(encoder, teacher, batch, self._temperature)}


def require_classifier(name: str, ranking: Ranking, instead: str) -> None:
    """Refuse to hold the answers of a classifier that is not trained.

    Raises:
        ConfigError: ranking.cross_entropy is 0.
    """
    if ranking.cross_entropy == 0:
        raise ConfigError(
            f"strategy '{name}'",
            [f"it holds what the old classifier answers, but ranking.cross_entropy=0 trains none: give that a weight, or choose {instead}"],
        )


def old_logits(encoder: Encoder, teacher: FrozenTeacher, batch: Embedded, temperature: float) -> Tensor:
    """() the softened cross-entropy (5.3) over the classes that the teacher knows, a mean over pictures and captions."""
    losses = [
        softened_cross_entropy(teacher.logits(taught), encoder.classifier(student)[:, : teacher.num_classes], temperature=temperature)
        for taught, student in taught_pairs(batch)
    ]
    return torch.stack(losses).mean()
