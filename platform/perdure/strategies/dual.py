"""Dual knowledge distillation: a frozen teacher for what was learned, another that learns beside the student for what is new.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 7, Eq. (7.2) to (7.9) and Algorithm 2.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from perdure.encoders.encoder import Encoder
from perdure.errors import ConfigError
from perdure.losses import Diagonal, l1_distance, l2_distance, mmd, unit_rows
from perdure.memory.inversion import InversionOptions, Inverted, batch_norm_layers, invert, starting_noise
from perdure.records import Batch, Embedded
from perdure.strategies.correlation import Lesson, lesson_kl
from perdure.strategies.distiller import DEFAULT_SHARE, Distiller, Share
from perdure.strategies.guide import OnTheFlyTeacher, said_by_guide
from perdure.strategies.ranking import DEFAULT_RANKING, PositiveFloat, Ranking, Weight
from perdure.strategies.strategy import TaskContext
from perdure.strategies.teacher import FrozenTeacher, taught_pairs

__all__ = ["Distance", "DualDistillation"]

log = logging.getLogger(__name__)

Distance = Literal["kl", "l1", "l2", "mmd"]
_COORDINATES = {"l1": l1_distance, "l2": l2_distance, "mmd": mmd}
_DEFAULT_INVERSION = InversionOptions()
_STATE = ("pictures", "labels", "curve")
_SHOWN_CLASSES, _SHOWN_EACH = 8, 8


class DualDistillation(Distiller):
    """L = s_weight L_s + kd1_weight L_kd1 + kd2_weight L_kd2 + te2_weight L_te2, from the second task on (7.9).

    - Before the first step, pictures X' of old classes are made from the frozen teacher alone (`memory.inversion`); each step learns the
      mixed batch of X and about as many X', `mixed` for each picture of X.
    - L_s: the ranking terms of the student, its triplets over the mixed batch (7.6).
    - L_kd1: the distance from the frozen teacher to the student on the mixed batch (7.3).
    - L_te2: the ranking terms of the on-the-fly teacher on X alone (7.7). It starts each task as an encoder before the first task
      (`guide_from: fresh`), or as the parent, and is trained by the same optimiser beside the student.
    - L_kd2: the distance from the on-the-fly teacher to the student on X; no gradient reaches the teacher (7.8).

    `distance`: kl, between the rows of Gram matrices, or l1, l2, mmd, between unit rows (Tables 7.1 to 7.3). Rows of those tables, and
    the cases of Table 7.6, by options:

    - KD alone, case 1: inversion=null kd2_weight=0.      KD + BN statistics, case 2: kd2_weight=0.
    - case 3: inversion=null kd1_weight=0.                case 4: s_weight=0 max_share=null.
    - case 5: inversion=null.                             DKD + BN statistics, "ours": the defaults.
    - As printed: max_share=null class_ratio=false temperature=1 diagonal=keep ranking.cross_entropy=0 inversion.targets=cluster
      inversion.iterations=2000 inversion.betas=[0.9,0.999] inversion.decay=false inversion.jitter=0 inversion.flip=false.

    The pull of kd1 and kd2 together on the student's embeddings is at most `max_share` of that of L_s (None, or no L_s: no bound);
    `class_ratio` multiplies kd1 as in `Distiller`, not kd2, which is about what is new.

    Where the batch has text, kd1 holds the captions too, as `correlation`, `l2` and the others do; the on-the-fly teacher sees
    pictures only, and X' have no captions.

    Deviations: the bound and the ratio; unit rows, a temperature and the choice for the diagonal, see `gram_kl`; means over rows; a
    classifier term in both rankings, over the task's own classes and X alone (weight 0 gives the thesis's objective); deviations of
    `invert`.
    """

    name = "dual"

    def __init__(
        self,
        *,
        s_weight: Weight = 1.0,
        kd1_weight: Weight = 80.0,
        kd2_weight: Weight = 20.0,
        te2_weight: Weight = 1.0,
        distance: Distance = "kl",
        temperature: PositiveFloat = 0.5,
        diagonal: Diagonal = "drop",
        inversion: InversionOptions | None = _DEFAULT_INVERSION,
        mixed: PositiveFloat = 1.0,
        guide_from: Literal["fresh", "parent"] = "fresh",
        max_share: Share | None = DEFAULT_SHARE,
        class_ratio: bool = True,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        super().__init__(max_share=max_share, class_ratio=class_ratio, ranking=ranking)
        self._s_weight = s_weight
        self._kd1_weight = kd1_weight
        self._kd2_weight = kd2_weight
        self._te2_weight = te2_weight
        self._distance: Distance = distance
        self._temperature = temperature
        self._diagonal: Diagonal = diagonal
        self._inversion = inversion
        self._mixed = mixed
        self._guide_from = guide_from
        self._task: TaskContext | None = None
        self._guide: OnTheFlyTeacher | None = None
        self._made: Inverted | None = None
        self._refuse_what_cannot_be_learned()

    def classifies(self, tasks: int) -> bool:
        """Without L_s, in the first task alone."""
        return super().classifies(tasks) and (self._s_weight > 0 or tasks == 1)

    def begin_task(self, encoder: Encoder, task: TaskContext) -> None:
        """Freeze the parent; from the second task on, bring the on-the-fly teacher to its start."""
        super().begin_task(encoder, task)
        self._task = task
        self._made = self._guide = None
        if task.index > 0 and self._kd2_weight > 0:
            start = task.fresh() if self._guide_from == "fresh" else copy.deepcopy(encoder)
            self._guide = OnTheFlyTeacher(start, task, self._ranking)

    def begin_training(self, encoder: Encoder) -> None:
        """Refuse, in the first task already, an encoder whose BatchNorm layers will remember nothing of the tasks.

        Raises:
            ConfigError: it has none, or they are frozen as they were before the first task.
        """
        super().begin_training(encoder)
        assert self._task is not None
        if self._guide is not None:
            self._guide.encoder.set_batch_norm_frozen(encoder.batch_norm_frozen)
        if self._inversion is None:
            return
        layers = batch_norm_layers(encoder.image)
        if encoder.batch_norm_frozen and _same_statistics(layers, batch_norm_layers(self._task.fresh().image)):
            raise ConfigError(
                "strategy 'dual'",
                [
                    "train.freeze_batch_norm=true keeps the running statistics as they were before the first task (of the pre-training, or "
                    "of nothing), so pictures made from them would show nothing of this stream: set it to false, or "
                    "strategy.inversion=null to do without such pictures"
                ],
            )

    def prepare(self) -> None:
        """Make the pictures of old classes."""
        if self._teacher is None or self._inversion is None or self._task is None:
            return
        self._made = invert(
            self._teacher.encoder.image_path,
            torch.arange(self._teacher.num_classes),
            self._inversion,
            image_size=self._teacher.encoder.image_size,
            seed=self._task.seed,
            logits=self._teacher.encoder.classifier if self.classifies(self._task.index) else None,
        )
        log.info("%s: made %d pictures of %d old classes", self.name, len(self._made.labels), len(self._made.labels.unique()))

    def trained(self) -> Mapping[str, nn.Module]:
        """The on-the-fly teacher."""
        return {**super().trained(), **({} if self._guide is None else self._guide.modules())}

    def synthetic(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """X' and Y' of a step."""
        if self._made is None:
            return None
        rows = self._made.draw(max(1, round(self._mixed * size)), generator)
        return self._made.pictures[rows].float(), self._made.labels[rows]

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """The frozen teacher's embeddings of the mixed batch, and those of the on-the-fly teacher, with gradient, of X."""
        seen = super().observe(batch)
        return seen if self._guide is None else seen | self._guide.observe(batch)

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """The ranking terms and, from the second task on, `kd1`, `kd2` and the ranking terms of the on-the-fly teacher, `te2_...`."""
        if self._teacher is None:
            return super().loss_terms(encoder, batch)
        terms: dict[str, Tensor] = {}
        held = self.distilled(encoder, self._teacher, batch)
        if self._s_weight > 0:
            terms = {name: self._s_weight * term for name, term in self.ranking_terms(encoder, batch).items()}
            held = self._bounded(held, torch.stack(list(terms.values())).sum(), batch)
        if self._guide is not None and self._te2_weight > 0:
            terms |= {f"te2_{name}": self._te2_weight * term for name, term in self._guide.terms(batch).items()}
        return terms | held

    def distilled(self, encoder: Encoder, teacher: FrozenTeacher, batch: Embedded) -> dict[str, Tensor]:
        """`kd1` (7.3) and `kd2` (7.8)."""
        terms: dict[str, Tensor] = {}
        if self._kd1_weight > 0:
            terms["kd1"] = self._ratio * self._kd1_weight * self._between(taught_pairs(batch))
        if self._guide is not None:
            terms["kd2"] = self._kd2_weight * self._between([(said_by_guide(batch), batch.image)])
        return terms

    def end_task(self, encoder: Encoder) -> None:
        """Let go of both teachers and of the pictures: the next task makes its own from its own teacher."""
        super().end_task(encoder)
        self._guide = self._made = self._task = None

    def pictures(self) -> dict[str, Tensor]:
        """See `Strategy`: up to eight of up to eight classes."""
        if self._made is None or self._inversion is None or self._task is None:
            return {}
        labels = self._made.labels
        known = labels.unique()
        classes = known[torch.linspace(0, len(known) - 1, min(_SHOWN_CLASSES, len(known))).round().long()]
        rows = torch.cat([(labels == each).nonzero().flatten()[:_SHOWN_EACH] for each in classes])
        side = self._made.pictures.shape[-1]
        noise = starting_noise(len(rows), self._inversion, image_size=side, seed=self._task.seed)
        return {
            "images": _bytes(self._made.pictures[rows].float()),
            "labels": labels[rows],
            "curve": self._made.curve,
            "noise": _bytes(noise),
            "named": torch.tensor(self._inversion.by_class(classifier=self.classifies(self._task.index))),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The pictures, while a task is learned."""
        return {} if self._made is None else {name: getattr(self._made, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Strategy`."""
        if set(state) == set(_STATE):
            self._made = Inverted(**state)
        else:
            super().load_state_dict(state)

    def _between(self, lesson: Lesson) -> Tensor:
        """() the distance from a teacher to the student, a mean over pictures and captions."""
        if self._distance == "kl":
            return lesson_kl(lesson, temperature=self._temperature, diagonal=self._diagonal)
        distance = _COORDINATES[self._distance]
        return torch.stack([distance(unit_rows(taught), unit_rows(student)) for taught, student in lesson]).mean()

    def _refuse_what_cannot_be_learned(self) -> None:
        ranking = self._ranking
        problems: list[str] = []
        targets = "auto" if self._inversion is None else self._inversion.targets
        if targets in ("classifier", "both") and ranking.cross_entropy == 0:
            problems.append(
                f"inversion.targets={targets} asks the classifier, but with ranking.cross_entropy=0 nothing trains it: give that a weight, "
                "or set inversion.targets=cluster"
            )
        if self._s_weight == self._kd1_weight == self._kd2_weight == 0:
            problems.append("s_weight, kd1_weight and kd2_weight are all 0, so nothing would be learned; give one of them a weight")
        if self._kd2_weight > 0 and self._te2_weight > 0 and ranking.triplet == ranking.cross_entropy == 0 and ranking.metric is None:
            problems.append(
                "the on-the-fly teacher sees pictures only, but ranking.pairs is the only ranking term with a weight: give "
                "ranking.triplet or ranking.cross_entropy a weight, or set kd2_weight=0 to do without that teacher"
            )
        if problems:
            raise ConfigError("strategy 'dual'", problems)


def _same_statistics(layers: list[_BatchNorm], others: list[_BatchNorm]) -> bool:
    """Whether no layer has seen anything that the other has not."""
    pairs = [
        (mine, other)
        for layer, fresh in zip(layers, others, strict=True)
        for mine, other in ((layer.running_mean, fresh.running_mean), (layer.running_var, fresh.running_var))
    ]
    return all(mine is not None and other is not None and torch.equal(mine.cpu(), other.cpu()) for mine, other in pairs)


def _bytes(pictures: Tensor) -> Tensor:
    """(n, 3, H, W) in [0, 1] -> (n, H, W, 3) uint8."""
    return (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
