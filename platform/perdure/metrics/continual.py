"""What learning did to what was learned before: functions of the accuracy matrix.

A[t, j] is a metric on task j's test split after learning task t. A matrix is a list of rows, one per learned task; a row may be longer
than the number of rows (tasks yet to come, held-out classes) and None, or NaN, stands where nothing was measured. At least four
different numbers are called "forgetting" in the literature, so each has a name and a definition here. T rows; the last row is T - 1.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DEFINITIONS",
    "Matrix",
    "average_incremental",
    "backward_transfer",
    "forgetting",
    "forgetting_by_task",
    "forgetting_first",
    "forward_transfer",
    "gap_closed",
    "harmonic_mean",
    "intransigence",
    "last_average",
    "summarise",
]

Matrix = Sequence[Sequence[float | None]] | NDArray[np.float64]

DEFINITIONS: dict[str, str] = {
    "matrix": "A[t][j] = the metric on task j's test split after learning task t; null where not measured.",
    "forgetting": "Mean over earlier tasks j < T-1 of (best A[l][j] over all l < T-1) - A[T-1][j] (forgetting_max; may be negative).",
    "forgetting_first": "Mean over earlier tasks j < T-1 of A[j][j] - A[T-1][j]: against the moment it was learned; -BWT.",
    "backward_transfer": "Mean over earlier tasks j < T-1 of A[T-1][j] - A[j][j] (Lopez-Paz & Ranzato 2017).",
    "forward_transfer": "Mean over tasks j >= 1 of A[j-1][j] - b[j], b an untrained encoder (Lopez-Paz & Ranzato 2017).",
    "intransigence": "Mean over tasks t of A*[t][t] - A[t][t], A* the reference trained on all tasks so far (Chaudhry et al. 2018).",
    "average_incremental": "Mean over t of the mean over j <= t of A[t][j]; every task counts the same, whatever its size.",
    "last_average": "Mean over j <= T-1 of A[T-1][j].",
    "old": "Mean over earlier tasks j < T-1 of A[T-1][j].",
    "new": "A[T-1][T-1]: the task learned last.",
    "seen": "The same as last_average: test items of the classes that were learned.",
    "unseen": "The metric on held-out classes, which no task learned, after the last task.",
    "H": "Harmonic mean 2 s u / (s + u) of seen and unseen.",
    "gap_closed": "(A_method - A_finetune) / (A_reference - A_finetune) on old; 1 = as good as joint training, 0 = as bad as fine-tuning.",
}
"""What each number means, word for word, to be stored beside it."""


def forgetting(matrix: Matrix) -> float | None:
    """How far old tasks fell below their best.

        F = 1/(T-1) sum_{j<T-1} ( max_{l<T-1} A[l, j] - A[T-1, j] )               (thesis 6.12; Chaudhry et al. 2018)

    Returns:
        None when there is no earlier task, or none was measured before and after.
    Raises:
        ValueError: the matrix has no row, rows of different length, or fewer columns than rows.
    """
    return _mean(forgetting_by_task(matrix))


def forgetting_by_task(matrix: Matrix) -> list[float | None]:
    """The terms of `forgetting`: for each earlier task, its best before the last row minus the last row; None where not measured."""
    array_TJ = _array(matrix)
    earlier = range(len(array_TJ) - 1)
    return [_number(_best(array_TJ[:-1, j]) - array_TJ[-1, j]) for j in earlier]


def forgetting_first(matrix: Matrix) -> float | None:
    """How far old tasks fell below what they were when learned: mean over j < T-1 of A[j, j] - A[T-1, j]; None as in `forgetting`."""
    array_TJ = _array(matrix)
    return _mean([_number(array_TJ[j, j] - array_TJ[-1, j]) for j in range(len(array_TJ) - 1)])


def backward_transfer(matrix: Matrix) -> float | None:
    """Lopez-Paz & Ranzato 2017: mean over j < T-1 of A[T-1, j] - A[j, j]; None as in `forgetting`."""
    first = forgetting_first(matrix)
    return None if first is None else 0.0 - first


def forward_transfer(matrix: Matrix, baseline: Sequence[float | None]) -> float | None:
    """What earlier tasks did for a task before it was learned.

        FWT = 1/(T-1) sum_{j>=1} ( A[j-1, j] - b[j] )                              (Lopez-Paz & Ranzato 2017)

    Args:
        matrix: A, with the entries right of the diagonal measured.
        baseline: (T,) or longer: b, the metric of an untrained encoder on each task.
    Returns:
        None when no such entry was measured.
    Raises:
        ValueError: as `forgetting`, or a baseline shorter than the number of tasks.
    """
    array_TJ = _array(matrix)
    if len(baseline) < len(array_TJ):
        raise ValueError(f"forward_transfer: {len(array_TJ)} tasks, but a baseline of {len(baseline)} values; it needs one for each task")
    base_T = np.array(baseline, dtype=np.float64)
    return _mean([_number(array_TJ[j - 1, j] - base_T[j]) for j in range(1, len(array_TJ))])


def intransigence(matrix: Matrix, reference: Matrix) -> float | None:
    """What was not learned although joint training can: mean over t of A*[t, t] - A[t, t]; A* has as many rows as A."""
    array_TJ, reference_TJ = _array(matrix), _array(reference)
    if len(array_TJ) != len(reference_TJ):
        raise ValueError(f"intransigence: {len(array_TJ)} tasks learned and {len(reference_TJ)} in the reference; they have to be the same")
    return _mean([_number(reference_TJ[t, t] - array_TJ[t, t]) for t in range(len(array_TJ))])


def average_incremental(matrix: Matrix) -> float | None:
    """The average over a run's life: mean over t of the mean over j <= t of A[t, j]; entries that were not measured are left out."""
    array_TJ = _array(matrix)
    return _mean([_mean([_number(value) for value in array_TJ[t, : t + 1]]) for t in range(len(array_TJ))])


def last_average(matrix: Matrix) -> float | None:
    """What is left at the end: mean over j <= T-1 of A[T-1, j]."""
    array_TJ = _array(matrix)
    return _mean([_number(value) for value in array_TJ[-1, : len(array_TJ)]])


def harmonic_mean(seen: float, unseen: float) -> float:
    """H = 2 s u / (s + u) of the accuracy on seen and on unseen classes (thesis 7.10); 0 when both are 0."""
    return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0


def gap_closed(method: float, finetune: float, reference: float) -> float | None:
    """The share of what fine-tuning loses on old classes that a method keeps.

        (A_method - A_finetune) / (A_reference - A_finetune)

    None when the reference is no better than fine-tuning: there is no gap to close.
    """
    return (method - finetune) / (reference - finetune) if reference > finetune else None


def summarise(matrix: Matrix, unseen: float | None = None) -> dict[str, float | None]:
    """The named numbers of one matrix that belong in a report; see `DEFINITIONS`.

    Args:
        matrix: A, as far as it was learned.
        unseen: the metric on held-out classes after the last task, where a stream has such.
    Raises:
        ValueError: as `forgetting`.
    """
    array_TJ = _array(matrix)
    last = len(array_TJ) - 1
    seen = last_average(array_TJ)
    summary = {
        "forgetting": forgetting(array_TJ),
        "forgetting_first": forgetting_first(array_TJ),
        "backward_transfer": backward_transfer(array_TJ),
        "average_incremental": average_incremental(array_TJ),
        "last_average": seen,
        "old": _mean([_number(value) for value in array_TJ[last, :last]]),
        "new": _number(array_TJ[last, last]),
        "seen": seen,
    }
    if unseen is not None and np.isfinite(unseen):
        summary |= {"unseen": unseen, "H": None if seen is None else harmonic_mean(seen, unseen)}
    return summary


def _array(matrix: Matrix) -> NDArray[np.float64]:
    """The matrix as (T, J) float64 with NaN where nothing was measured."""
    lengths = sorted({len(row) for row in matrix})
    if len(lengths) != 1 or lengths[0] < len(matrix):
        raise ValueError(
            f"accuracy matrix: {len(matrix)} rows of {lengths} values; expected rows of one length, at least one value for each row"
        )
    return np.array(matrix, dtype=np.float64)


def _best(values: NDArray[np.float64]) -> float:
    measured = values[~np.isnan(values)]
    return float(measured.max()) if len(measured) else float("nan")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None
