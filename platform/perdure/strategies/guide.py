"""The on-the-fly teacher: an encoder that learns the new task beside the student, and nothing else.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 7, section 7.4.4.
"""

from torch import Tensor, nn

from perdure.encoders.encoder import Encoder
from perdure.records import Batch, Embedded
from perdure.strategies.ranking import Ranking
from perdure.strategies.strategy import TaskContext

__all__ = ["OnTheFlyTeacher", "said_by_guide"]


class OnTheFlyTeacher:
    """Sees the pictures of the task alone: no captions, no made-up pictures. The optimiser trains it beside the student.

    Args:
        start: the encoder that it becomes; taken over and changed.
        task: that begins.
        ranking: what it learns by.
    """

    def __init__(self, start: Encoder, task: TaskContext, ranking: Ranking) -> None:
        start.text = start.vocabulary = None
        start.grow(num_classes=max(int(task.class_ids.max()) + 1, start.classifier.num_classes))
        self.encoder = start.requires_grad_(True)
        self._class_ids = task.class_ids
        self._ranking = ranking
        self._metric = ranking.metric_objective(task.class_ids, start.joint_dim, task.seed)

    def modules(self) -> dict[str, nn.Module]:
        """What is trained of it."""
        parts: dict[str, nn.Module | None] = {"guide": self.encoder, "guide_metric": self._metric}
        return {name: part for name, part in parts.items() if part is not None}

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """Its embeddings of one worker's slice, with gradient."""
        return {"guide_image": self.encoder(batch.images)[0]}

    def terms(self, batch: Embedded) -> dict[str, Tensor]:
        """The ranking terms of its own embeddings (7.7)."""
        seen = Embedded(batch.labels, said_by_guide(batch), seed=batch.seed)
        return self._ranking.terms(self.encoder, seen, self._class_ids, self._metric)


def said_by_guide(batch: Embedded) -> Tensor:
    """(B, D) the on-the-fly teacher's embeddings of the global batch, with gradient.

    Raises:
        ValueError: they are missing: what `observe` returned was not put into the batch.
    """
    if batch.guide_image is None:
        raise ValueError("this strategy has an on-the-fly teacher, but the batch came without guide_image; pass on what observe() returned")
    return batch.guide_image
