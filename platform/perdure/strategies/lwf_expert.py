"""Learning without Forgetting with an expert: the student follows the old encoder on the old classes, and on the new ones an encoder
that was fine-tuned to them first and is forgotten with the task.

The expert is that of Hou, Pan, Loy, Wang and Lin, "Lifelong learning via progressive distillation and retrospection", ECCV 2018: its
distillation, without its retrospection, which keeps pictures of old classes. The rest is `lwf`, Eq. (5.3) of the thesis.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from perdure.encoders.encoder import Encoder
from perdure.losses import softened_cross_entropy
from perdure.records import Batch, Embedded
from perdure.strategies.distiller import Share
from perdure.strategies.fine_tune import FineTune
from perdure.strategies.lwf import LearningWithoutForgetting, require_classifier
from perdure.strategies.ranking import DEFAULT_RANKING, PositiveFloat, Ranking, Weight
from perdure.strategies.strategy import TaskContext
from perdure.strategies.teacher import FrozenTeacher, Mirrored, Teaching, expert_pairs

__all__ = ["LearningWithoutForgettingWithExpert"]


class BetterTeaching(Teaching):
    """A `Teaching` with other defaults; a type of its own, so that whoever sets one option leaves the others at theirs."""

    adapts: bool = Field(default=True, description=Teaching.model_fields["adapts"].description)
    mirrored: Mirrored = Field(default="auto", description=Teaching.model_fields["mirrored"].description)


_BETTER = BetterTeaching()


class LearningWithoutForgettingWithExpert(LearningWithoutForgetting):
    """L = ranking terms + weight * softened cross-entropy over the old classes against the parent, as in `lwf`, + expert_weight * the
    same over the task's own classes against the expert; both at one temperature.

    From the second task on, the task's epochs are gone through twice: a copy of the parent is fine-tuned to the task's own data and
    becomes the expert, then the student, which starts from the parent, learns the same batches. Where the batch has text, means over
    pictures and captions. Nothing is kept of the expert after its task, and no task reads another's data.

    The expert says what fine-tuning would have made of a picture, and how sure it was, mean over two views: softer targets than the
    labels, which cost the old classes less. A task takes 3.4 times the steps' time of fine-tuning.

    Raises:
        ConfigError: ranking.cross_entropy is 0, so that nothing trains the classifiers whose answers are followed.
    Deviations: ranking terms, weights and temperature are the house's, not those of Hou et al.; bound and class ratio of `Distiller` for
        the parent's term, whose pull is at most `max_share` of that of all other terms together; `teacher` is for both, see `Teaching`.
    """

    name = "lwf_expert"

    def __init__(
        self,
        *,
        weight: Weight = 6.0,
        expert_weight: Weight = 2.0,
        temperature: PositiveFloat = 2.0,
        max_share: Share | None = 0.5,
        class_ratio: bool = True,
        teacher: BetterTeaching = _BETTER,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        super().__init__(
            weight=weight, temperature=temperature, max_share=max_share, class_ratio=class_ratio, teacher=teacher, ranking=ranking
        )
        if expert_weight > 0:
            require_classifier(self.name, ranking, "another strategy, such as l2 or correlation")
        self._expert_weight = expert_weight
        self._fine_tuning = FineTune(ranking=ranking)
        self._expert: Encoder | None = None  # while it learns, and after
        self._asked: FrozenTeacher | None = None  # as what it teaches

    def begin_task(self, encoder: Encoder, task: TaskContext) -> None:
        """Freeze the parent."""
        super().begin_task(encoder, task)
        self._fine_tuning.begin_task(encoder, task)
        self._expert = self._asked = None

    def begin_training(self, encoder: Encoder) -> None:
        """From the second task on, the expert starts where the student does."""
        super().begin_training(encoder)
        if self._teacher is not None and self._expert_weight > 0:
            self._expert = copy.deepcopy(encoder)

    def trained(self) -> Mapping[str, nn.Module]:
        """The expert, too, and the parameters of its metric loss, where there is one."""
        if self._expert is None:
            return super().trained()
        return {
            **super().trained(),
            "expert": self._expert,
            **{f"expert_{name}": part for name, part in self._fine_tuning.trained().items()},
        }

    def learners(self, encoder: Encoder) -> Sequence[Encoder]:
        """The expert, then the student."""
        return [encoder] if self._expert is None else [self._expert, encoder]

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """The embeddings of the parent and of the expert, which has learned what it will."""
        seen = super().observe(batch)
        if self._expert is None or self._teacher is None:
            return seen
        if self._asked is None:
            self._asked = self._teacher.like(self._expert)
        return seen | {name.replace("teacher", "expert"): rows for name, rows in self._asked.observe(batch).items()}

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """The expert's ranking terms by names of their own; or the student's, `expert` and `lwf`."""
        if encoder is self._expert:
            return {f"expert_{name}": term for name, term in self._fine_tuning.loss_terms(encoder, batch).items()}
        return super().loss_terms(encoder, batch)

    def ranking_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """What the student learns the new task with: the expert, too, so `max_share` is a share of both."""
        terms = super().ranking_terms(encoder, batch)
        if self._asked is not None:
            terms["expert"] = self._expert_weight * self._new_logits(encoder, self._asked, batch)
        return terms

    def end_task(self, encoder: Encoder) -> None:
        """Let go of the parent and of the expert."""
        super().end_task(encoder)
        self._fine_tuning.end_task(encoder)
        self._expert = self._asked = None

    def _new_logits(self, encoder: Encoder, expert: FrozenTeacher, batch: Embedded) -> Tensor:
        """() the softened cross-entropy over the task's own classes, a mean over pictures and captions."""
        assert self._class_ids is not None
        own = self._class_ids.to(batch.labels.device)
        losses = [
            softened_cross_entropy(expert.logits(said)[:, own], encoder.classifier(student)[:, own], temperature=self._temperature)
            for said, student in expert_pairs(batch)
        ]
        return torch.stack(losses).mean()
