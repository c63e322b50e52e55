"""What learning did to what was learned before: functions of the accuracy matrix.

A[t, j] is a metric on task j's test split after learning task t. A matrix is a list of rows, one per learned task; a row may be longer
than the number of rows (tasks yet to come, held-out classes) and None, or NaN, stands where nothing was measured. At least four
different numbers are called "forgetting" in the literature, and two "backward transfer", so each has a name and a definition here; the
plain `forgetting` of a summary is `forgetting_max`. T rows; the last row is T - 1.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DEFINITIONS",
    "Matrix",
    "average_incremental",
    "averages",
    "backward_transfer",
    "backward_transfer_libcontinual",
    "forgetting",
    "forgetting_by_task",
    "forgetting_continuum",
    "forgetting_first",
    "forgetting_mammoth",
    "forgetting_max",
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
    "forgetting": "The same as forgetting_max.",
    "forgetting_max": "Mean over earlier tasks j < T-1 of (best A[l][j] over all l < T-1) - A[T-1][j] (Chaudhry et al. 2018; Renate); "
    "negative where a task got better than it ever was.",
    "forgetting_first": "Mean over earlier tasks j < T-1 of A[j][j] - A[T-1][j]: against the moment it was learned; -BWT (Avalanche).",
    "forgetting_mammoth": "Mean over earlier tasks j < T-1 of (best A[l][j] over j <= l <= T-1) - A[T-1][j]: the last row counts among "
    "the best, so it is never negative (Mammoth, PILOT).",
    "forgetting_continuum": "1/(T-1) times the sum over tasks j < T-2 of A[j][j] - A[T-1][j]: the task learned last but one is left out, "
    "so after two tasks it is 0 whatever was forgotten (Continuum, LibContinual).",
    "backward_transfer": "Mean over earlier tasks j < T-1 of A[T-1][j] - A[j][j] (Lopez-Paz & Ranzato 2017).",
    "backward_transfer_libcontinual": "2/(T(T-1)) times the sum over t >= 2 and j <= t-2 of A[t][j] - A[j][j]; the row right after a task "
    "was learned is left out of the sum but counted in the divisor (LibContinual).",
    "forward_transfer": "Mean over tasks j >= 1 of A[j-1][j] - b[j] (Lopez-Paz & Ranzato 2017), b the encoder of the same configuration "
    "before its first step: random weights, or pretrained ones where the configuration names them.",
    "intransigence": "Mean over tasks t of A*[t][t] - A[t][t], A* the reference trained on all tasks so far (Chaudhry et al. 2018).",
    "average_incremental": "Mean over t of the mean over j <= t of A[t][j]; every task counts the same, whatever its size.",
    "average_incremental_micro": "Mean over t of the mean over j <= t of A[t][j] weighted by the number of queries of task j.",
    "last_average": "Mean over j <= T-1 of A[T-1][j].",
    "last_average_micro": "Mean over j <= T-1 of A[T-1][j] weighted by the number of queries of task j.",
    "old": "Mean over earlier tasks j < T-1 of A[T-1][j].",
    "new": "A[T-1][T-1]: the task learned last.",
    "seen": "The same as last_average: test items of the classes that were learned.",
    "unseen": "The metric on held-out classes, which no task learned, after the last task.",
    "H": "Harmonic mean 2 s u / (s + u) of seen and unseen.",
    "gap_closed": "(A_method - A_finetune) / (A_reference - A_finetune) on old; 1 = as good as joint training, 0 = as bad as fine-tuning.",
}
"""What each number means, word for word, to be stored beside it."""


def forgetting_max(matrix: Matrix) -> float | None:
    """How far old tasks fell below their best.

        F = 1/(T-1) sum_{j<T-1} ( max_{l<T-1} A[l, j] - A[T-1, j] )               (thesis 6.12; Chaudhry et al. 2018)

    Rows before task j was learned count too, as in Renate.

    Returns:
        None when there is no earlier task, or none was measured before and after.
    Raises:
        ValueError: the matrix has no row, rows of different length, or fewer columns than rows.
    """
    return _mean(forgetting_by_task(matrix))


forgetting = forgetting_max
"""The one that is meant where a page, a table or a gate says forgetting and no more."""


def forgetting_by_task(matrix: Matrix) -> list[float | None]:
    """The terms of `forgetting_max`: for each earlier task, its best before the last row minus the last row; None where not measured."""
    array_TJ = _array(matrix)
    earlier = range(len(array_TJ) - 1)
    return [_number(_best(array_TJ[:-1, j]) - array_TJ[-1, j]) for j in earlier]


def forgetting_first(matrix: Matrix) -> float | None:
    """How far old tasks fell below what they were when learned: mean over j < T-1 of A[j, j] - A[T-1, j]; None as in `forgetting_max`."""
    array_TJ = _array(matrix)
    return _mean([_number(array_TJ[j, j] - array_TJ[-1, j]) for j in range(len(array_TJ) - 1)])


def forgetting_mammoth(matrix: Matrix) -> float | None:
    """As `forgetting_max`, with the last row among those that the best is taken of: never below 0.

        F = 1/(T-1) sum_{j<T-1} ( max_{j<=l<=T-1} A[l, j] - A[T-1, j] )           (Mammoth; PILOT, PyCIL)

    Rows before task j was learned do not count: Mammoth holds zeros there.
    """
    array_TJ = _array(matrix)
    return _mean([_number(_best(array_TJ[j:, j]) - array_TJ[-1, j]) for j in range(len(array_TJ) - 1)])


def forgetting_continuum(matrix: Matrix) -> float | None:
    """As `forgetting_first`, without the task learned last but one, which still counts in the divisor.

        F = 1/(T-1) sum_{j<T-2} ( A[j, j] - A[T-1, j] )                           (Continuum; LibContinual)

    Returns:
        0 after two tasks, by this definition; None after one, and where a term was not measured.
    """
    array_TJ = _array(matrix)
    last = len(array_TJ) - 1
    return _shared_out([array_TJ[j, j] - array_TJ[last, j] for j in range(last - 1)], last)


def backward_transfer(matrix: Matrix) -> float | None:
    """Lopez-Paz & Ranzato 2017: mean over j < T-1 of A[T-1, j] - A[j, j]; None as in `forgetting_max`."""
    first = forgetting_first(matrix)
    return None if first is None else 0.0 - first


def backward_transfer_libcontinual(matrix: Matrix) -> float | None:
    """LibContinual's, over all rows but those right after a task was learned.

        BWT = 2/(T(T-1)) sum_{t>=2} sum_{j<=t-2} ( A[t, j] - A[j, j] )

    Returns:
        0 after two tasks, by this definition; None after one, and where a term was not measured.
    """
    array_TJ = _array(matrix)
    count = len(array_TJ)
    terms = [array_TJ[t, j] - array_TJ[j, j] for t in range(2, count) for j in range(t - 1)]
    return _shared_out(terms, count * (count - 1) // 2)


def forward_transfer(matrix: Matrix, baseline: Sequence[float | None]) -> float | None:
    """What earlier tasks did for a task before it was learned.

        FWT = 1/(T-1) sum_{j>=1} ( A[j-1, j] - b[j] )                              (Lopez-Paz & Ranzato 2017)

    Args:
        matrix: A, with the entries right of the diagonal measured.
        baseline: (T,) or longer: b, the metric of an untrained encoder on each task.
    Returns:
        None when no such entry was measured.
    Raises:
        ValueError: as `forgetting_max`, or a baseline shorter than the number of tasks.
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


def averages(matrix: Matrix, weights: Sequence[float] | None = None) -> list[float | None]:
    """After each task t, the mean over the tasks learned so far, j <= t, of A[t, j]; entries that were not measured are left out.

    Args:
        matrix: A.
        weights: (T,) or longer: of each task, its number of queries or test items, which makes the mean one over all of them (micro);
            None: every task counts the same (macro).
    Returns:
        (T,); None where nothing was measured.
    Raises:
        ValueError: as `forgetting_max`, or fewer weights than tasks.
    """
    array_TJ = _array(matrix)
    weight_T = np.ones(len(array_TJ)) if weights is None else np.array(weights, dtype=np.float64)
    if len(weight_T) < len(array_TJ):
        raise ValueError(f"averages: {len(array_TJ)} tasks, but {len(weight_T)} weights; it needs one for each task")
    out: list[float | None] = []
    for t in range(len(array_TJ)):
        row, weight = array_TJ[t, : t + 1], weight_T[: t + 1]
        counts = ~np.isnan(row) & (weight > 0)
        out.append(float(np.average(row[counts], weights=weight[counts])) if counts.any() else None)
    return out


def average_incremental(matrix: Matrix, weights: Sequence[float] | None = None) -> float | None:
    """The average over a run's life: mean over t of `averages`.

    AIR = 1/T sum_t  sum_{j<=t} n_j A[t, j] / sum_{j<=t} n_j                  n_j = 1 without weights
    """
    return _mean(averages(matrix, weights))


def last_average(matrix: Matrix, weights: Sequence[float] | None = None) -> float | None:
    """What is left at the end: the last of `averages`."""
    return averages(matrix, weights)[-1]


def harmonic_mean(seen: float, unseen: float) -> float:
    """H = 2 s u / (s + u) of the accuracy on seen and on unseen classes (thesis 7.10); 0 when both are 0."""
    return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0


def gap_closed(method: float, finetune: float, reference: float) -> float | None:
    """The share of what fine-tuning loses on old classes that a method keeps.

        (A_method - A_finetune) / (A_reference - A_finetune)

    None when the reference is no better than fine-tuning: there is no gap to close.
    """
    return (method - finetune) / (reference - finetune) if reference > finetune else None


def summarise(
    matrix: Matrix,
    unseen: float | None = None,
    *,
    baseline: Sequence[float | None] | None = None,
    weights: Sequence[float] | None = None,
) -> dict[str, float | None]:
    """The named numbers of one matrix that belong in a report; see `DEFINITIONS`.

    Args:
        matrix: A, as far as it was learned.
        unseen: the metric on held-out classes after the last task, where a stream has such.
        baseline: (T,) or longer: b of `forward_transfer`, where it was measured.
        weights: (T,) or longer: queries of each task, for the numbers called micro.
    Raises:
        ValueError: as `forgetting_max`, or a baseline or weights shorter than the number of tasks.
    """
    array_TJ = _array(matrix)
    last = len(array_TJ) - 1
    seen = last_average(array_TJ)
    summary = {
        "forgetting": forgetting(array_TJ),
        "forgetting_max": forgetting_max(array_TJ),
        "forgetting_first": forgetting_first(array_TJ),
        "forgetting_mammoth": forgetting_mammoth(array_TJ),
        "forgetting_continuum": forgetting_continuum(array_TJ),
        "backward_transfer": backward_transfer(array_TJ),
        "backward_transfer_libcontinual": backward_transfer_libcontinual(array_TJ),
        "average_incremental": average_incremental(array_TJ),
        "last_average": seen,
        "old": _mean([_number(value) for value in array_TJ[last, :last]]),
        "new": _number(array_TJ[last, last]),
        "seen": seen,
    }
    if weights is not None:
        summary["average_incremental_micro"] = average_incremental(array_TJ, weights)
        summary["last_average_micro"] = last_average(array_TJ, weights)
    if baseline is not None:
        summary["forward_transfer"] = forward_transfer(array_TJ, baseline)
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


def _shared_out(terms: Sequence[float], over: int) -> float | None:
    """Their sum divided by a number that is not their count; None where that is 0 or a term was not measured."""
    return _number(float(np.sum(terms)) / over) if over else None


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None
