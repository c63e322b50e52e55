"""Strategy: a continual method, as the training loop sees it.

    for each task:  begin_task(parent) -> [the encoder grows] -> begin_training(student) -> prepare, unless the task is resumed
                    -> per learner, per step: synthetic, observe, loss_terms, backward, before_step, [optimiser], after_step
                    -> consolidate -> end_task

A strategy is composed of losses, a teacher and a memory; the loop, the optimiser and the workers know nothing of it but this. Most
methods need two or three of the hooks, and the others do nothing. Adding one is a file here, a line in `STRATEGIES` and a test.
Letters: B global batch, b one worker's slice, D embedding, n classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from perdure.encoders.encoder import Encoder
from perdure.losses.metric.objective import MetricObjective
from perdure.memory.accuracy_drift import AccuracyDrift
from perdure.records import Batch, Embedded
from perdure.strategies.ranking import DEFAULT_RANKING, Ranking

__all__ = ["Examples", "Strategy", "TaskContext"]


def _no_ancestor(task_index: int) -> Encoder:
    raise ValueError(f"this task was begun without access to the encoder of task {task_index}")


def _nothing_fresh() -> Encoder:
    raise ValueError("this task was begun without access to a fresh encoder")


@dataclass(frozen=True, eq=False)
class TaskContext:
    """What a strategy may know of the task that begins."""

    index: int  # 0 for the first task, which has no teacher
    class_ids: Tensor  # (n,) int64, the classes that are learned now
    drifts: tuple[AccuracyDrift, ...] = ()  # of the tasks 1..index-1, as measured after each
    ancestor: Callable[[int], Encoder] = _no_ancestor  # the encoder after a task, from the registry
    fresh: Callable[[], Encoder] = _nothing_fresh  # an encoder as it was before the first task: random or pre-trained weights
    seed: int = 0  # of the strategy's own draws in this task
    flips: bool = False  # whether pictures are learned from their mirror images, too
    num_tags: int = 0  # C of the labels that items so far have, for a strategy that `reads_tags`


class Examples(Protocol):
    """The training items of the task that was just learned, for what is computed from them once, after the last step."""

    def batches(self, *, size: int, per_class: int, count: int) -> Iterator[Batch]:
        """`count` batches of `size` items, `per_class` of a class, without augmentation; the same on every worker."""
        ...


class Strategy:
    """What every continual method offers; this class learns the ranking terms and protects nothing."""

    name: ClassVar[str] = "fine_tune"
    reads_earlier_tasks: ClassVar[bool] = False  # whether a task is learned on the training rows of all tasks so far (joint)
    own_objective: ClassVar[bool] = False  # whether also a first task is learned by other terms than the ranking's
    reads_tags: ClassVar[bool] = False  # whether batches are to say every label that applies, not the class alone
    restarts: ClassVar[bool] = False  # whether a task starts from fresh weights (joint), not from the parent's

    def __init__(self, *, ranking: Ranking = DEFAULT_RANKING) -> None:
        self._ranking = ranking
        self._class_ids: Tensor | None = None
        self._metric: MetricObjective | None = None

    def classifies(self, tasks: int) -> bool:
        """Whether the classifier has learned the classes of all of the first `tasks` tasks once they are over."""
        return self._ranking.cross_entropy > 0

    def begin_task(self, encoder: Encoder, task: TaskContext) -> None:
        """Get ready for a task; what takes long belongs into `prepare`.

        Args:
            encoder: the parent, before it grows; it may be copied, never changed.
            task: see there.
        """
        self._class_ids = task.class_ids
        self._metric = self._ranking.metric_objective(task.class_ids, encoder.joint_dim, task.seed)

    def begin_training(self, encoder: Encoder) -> None:
        """The student has grown and its optimiser is not made yet: the place to freeze a part of it."""

    def prepare(self) -> None:
        """Long work before the first step; what it makes is in `state_dict`, so that a resumed task does not do it again."""

    def trained(self) -> Mapping[str, nn.Module]:
        """Modules that are trained beside the encoder by the same optimiser; the checkpoint holds them. Asked after `begin_task`.

        Here the ranking's metric loss, where it has one; a strategy with modules of its own adds them to these.
        """
        return {} if self._metric is None else {"metric": self._metric}

    def learners(self, encoder: Encoder) -> Sequence[Encoder]:
        """Who learns the task, one after the other, each through all of its epochs and a learning-rate schedule of its own.

        The last one is the encoder itself; any other is one of `trained`. Asked after `begin_training`.
        """
        return [encoder]

    def synthetic(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """Made-up pictures to be learned beside the global batch of `size` of a step: (B', 3, H, W) in [0, 1] and their labels (B',)."""
        return None

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """What other encoders say of one worker's slice, by the names of `Embedded`'s fields; the loop gathers them over the workers.

        Asked in the encoder's own turn, not in that of a learner before it.
        """
        return {}

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """The loss of the global batch as named, weighted terms, each (); their sum is what is minimised.

        Args:
            encoder: the learner whose turn it is.
            batch: embedded by it.
        """
        return self.ranking_terms(encoder, batch)

    def ranking_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """The terms that the new task is learned with, by whatever strategy."""
        return self._ranking.terms(encoder, batch, self._class_ids, self._metric)

    def before_step(self, encoder: Encoder) -> None:
        """The gradients are there, averaged over the workers, and the optimiser has not moved yet."""

    def after_step(self, encoder: Encoder) -> None:
        """The optimiser has moved."""

    def consolidate(self, encoder: Encoder, examples: Examples) -> None:
        """Long work after the last step, with the task's own items at hand; the encoder is in evaluation mode."""

    def pictures(self) -> dict[str, Tensor]:
        """What a person may look at of the pictures that were made up in this task, asked before `end_task`; empty where there are none.

        `images` (n, H, W, 3) uint8, `labels` (n,), `curve` (iterations,) the BatchNorm loss while they were made, and `noise`
        (n', H, W, 3) uint8, what such pictures started from; `named` () bool, False where the labels are numbers of groups that the
        pictures form, not of classes; it may be left out where they are classes.
        """
        return {}

    def end_task(self, encoder: Encoder) -> None:
        """The task is learned: let go of the teacher, keep what the next task needs."""

    def state_dict(self) -> dict[str, Tensor]:
        """What must survive a stop in the middle of a task, and between tasks; a teacher is not in it, it is made anew from the parent."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it was written by another strategy.
        """
        if state:
            raise ValueError(
                f"{self.name} keeps no state between tasks, but got {', '.join(sorted(state))}: was this saved by another strategy?"
            )
