"""Strategy: a continual method, as the training loop sees it.

    for each task:  begin_task(parent encoder) -> [grow the encoder] -> per step: observe, loss_terms -> end_task

A strategy is composed of losses and a frozen teacher; the loop, the optimiser and the workers know nothing of it but this.
Adding one is a file here, a line in `STRATEGIES` and a test. Letters: B global batch, b one worker's slice, D embedding, n classes.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.records import Batch, Embedded

__all__ = ["Strategy", "refuse_state"]


class Strategy(Protocol):
    """What every continual method offers."""

    @property
    def reads_earlier_tasks(self) -> bool:
        """Whether a task is learned on the training rows of all tasks so far (joint), not on its own alone."""
        ...

    @property
    def restarts(self) -> bool:
        """Whether a task starts from fresh weights (joint), not from the parent's."""
        ...

    def begin_task(self, encoder: Encoder, task_index: int, class_ids: Tensor) -> None:
        """Get ready for a task: from `task_index` 1 on, keep a frozen copy of the parent as the teacher.

        Args:
            encoder: the parent, before it grows; it is copied, never changed.
            task_index: 0 for the first task, which has no teacher.
            class_ids: (n,) int64, the classes that are learned now.
        """
        ...

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """What the teacher says of one worker's slice: `teacher_image` (b, D), `teacher_text` (b, D) where the batch has tokens.

        No gradient; the names are fields of `Embedded`, and the loop gathers them over the workers. Empty without a teacher.
        """
        ...

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """The loss of the global batch as named, weighted terms, each (); their sum is what is minimised."""
        ...

    def end_task(self, encoder: Encoder) -> None:
        """The task is learned: let go of the teacher, keep what the next task needs."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What must survive between tasks; a teacher is made anew from the parent by `begin_task` and is not in it."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave."""
        ...


def refuse_state(strategy: str, state: Mapping[str, Tensor]) -> None:
    """For strategies that keep nothing between tasks.

    Raises:
        ValueError: there is state; it was written by another strategy.
    """
    if state:
        raise ValueError(
            f"{strategy} keeps no state between tasks, but got {', '.join(sorted(state))}: was this saved by another strategy?"
        )
