"""Seen and unseen classes of each dataset of a lifelong stream.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 7, Eq. (7.10) and Table 7.3. A[t, j] is a metric on the
classes of dataset j that are learned, U[t, j] on its classes that no task learns, both after learning task t. T rows.
"""

from collections.abc import Sequence
from typing import Any

from perdure.metrics.continual import harmonic_mean

__all__ = ["DATASET_DEFINITIONS", "Rows", "by_dataset", "harmonic_matrix"]

Rows = Sequence[Sequence[float | None]]

DATASET_DEFINITIONS: dict[str, str] = {
    "unseen matrix": "U[t][j] = the metric on those classes of dataset j that no task learns, searched among their own items, "
    "leave-one-out, after learning task t; null where not measured.",
    "H matrix": "H[t][j] = 2 s u / (s + u) of s = A[t][j] and u = U[t][j] (thesis 7.10).",
    "datasets": "After each task t, for each dataset j learned so far: seen = A[t][j], unseen = U[t][j], H = H[t][j] on the main metric.",
    "unseen": "Mean over datasets j <= T-1 of U[T-1][j]: classes that no task learned, after the last task.",
    "H": "Harmonic mean 2 s u / (s + u) of seen and unseen, which are means over the datasets.",
    "H_datasets": "Mean over datasets j <= T-1 of H[T-1][j].",
}
"""What each number of such a stream means, word for word; `unseen` and `H` in place of those of a stream that is one dataset."""


def harmonic_matrix(seen: Rows, unseen: Rows) -> list[list[float | None]]:
    """H[t, j] = 2 s u / (s + u) of s = A[t, j] and u = U[t, j] (7.10); None where one of them was not measured.

    Raises:
        ValueError: the two are not of the same shape.
    """
    if [len(row) for row in seen] != [len(row) for row in unseen]:
        raise ValueError(f"harmonic_matrix: {len(seen)} and {len(unseen)} rows, or rows of different lengths; A and U have the same shape")
    return [
        [None if s is None or u is None else harmonic_mean(s, u) for s, u in zip(*pair, strict=True)]
        for pair in zip(seen, unseen, strict=True)
    ]


def by_dataset(names: Sequence[str], metric: str, seen: Rows, unseen: Rows) -> list[dict[str, Any]]:
    """The rows of Table 7.3, after every task: what became of each dataset that was learned so far.

    Args:
        names: of the datasets, in the order in which they are learned.
        metric: what A and U are.
        seen: A. unseen: U.
    Returns:
        `{name, task, after, metric, seen, unseen, H}`: dataset `task` after learning task `after`.
    """
    harmonic = harmonic_matrix(seen, unseen)
    return [
        {"name": names[j], "task": j, "after": t, "metric": metric, "seen": seen[t][j], "unseen": unseen[t][j], "H": harmonic[t][j]}
        for t in range(len(seen))
        for j in range(t + 1)
    ]
