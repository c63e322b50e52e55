"""How much a task cost the old classes and gave the new ones: two numbers that stand for the model that is not kept.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 6, Eq. (6.6).
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["AccuracyDrift", "measure_drift"]


@dataclass(frozen=True)
class AccuracyDrift:
    """Relative changes of an accuracy by learning one task; drop is below 0 when the old classes were forgotten."""

    drop: float  # alpha_drop, of the classes learned before
    gain: float  # alpha_gain, of the classes learned by it


def measure_drift(before: Sequence[float | None], after: Sequence[float | None], task: int) -> AccuracyDrift:
    """The drift of learning a task, from two rows of an accuracy matrix (6.6).

        alpha_drop = (old_after - old_before) / old_before,        alpha_gain = (new_after - new_before) / new_before

    old: the mean over the tasks 0..task-1; new: the task itself.

    Args:
        before: (J,) A[task - 1], the row of the encoder that the task started from.
        after: (J,) A[task].
        task: at least 1.
    Returns:
        a part that was not measured, or was 0 before, counts as no change.
    Raises:
        ValueError: the first task has nothing before it, or a row is too short.
    Deviations: where several tasks are old, the mean of their accuracies, each task counting the same.
    """
    if task < 1 or min(len(before), len(after)) <= task:
        raise ValueError(
            f"measure_drift: task {task} with rows of {len(before)} and {len(after)} values; it needs task + 1 of each, task >= 1"
        )
    old = range(task)
    return AccuracyDrift(drop=_change(before, after, old), gain=_change(before, after, [task]))


def _change(before: Sequence[float | None], after: Sequence[float | None], columns: Sequence[int]) -> float:
    pairs = [(before[j], after[j]) for j in columns]
    measured = [(b, a) for b, a in pairs if b is not None and a is not None]
    total = sum(b for b, _ in measured)
    return (sum(a for _, a in measured) - total) / total if total > 0 else 0.0
