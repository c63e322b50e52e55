"""What a mean hides: precision over recall, and which classes are found.

Both follow from the ranks of equation (1) of `metrics.ranks`, in one pass. Q queries, R relevant items of a query, P points.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.metrics.ranks import RULES, Names, Vectors, as_names, mean_of, ranks_of_relevant

__all__ = ["DEFINITIONS", "LabelRecall", "Profile", "ranking_profile"]

DEFINITIONS: dict[str, str] = {
    "curves": "Precision over recall by the last encoder inside each task's test split: for each recall level r the mean over queries of "
    f"the interpolated precision, the best i / rank_i over those relevant items with i / R >= r (11 levels: 0, 0.1, ... 1). {RULES}",
    "per_class": "Recall@1 of the queries of one class by the last encoder, inside the task's test split; `queries` counts those with a "
    f"relevant item, and recall@1 is null where there are none. {RULES}",
}
"""What each part means, word for word."""


@dataclass(frozen=True)
class LabelRecall:
    """Recall@1 of the queries of one label."""

    recall: float  # NaN when no query of the label has a relevant item
    queries: int  # with a relevant item


@dataclass(frozen=True, eq=False)
class Profile:
    """A ranking beyond its means."""

    recall: NDArray[np.float64]  # (P,) levels from 0 to 1
    precision: NDArray[np.float64]  # (P,) never rising; NaN when no query has a relevant item
    by_label: dict[Any, LabelRecall]  # every label among the queries, sorted


def ranking_profile(
    queries: Vectors,
    gallery: Vectors,
    query_labels: Names,
    gallery_labels: Names,
    *,
    query_ids: Names | None = None,
    gallery_ids: Names | None = None,
    points: int = 11,
    chunk_bytes: int = 256 * 2**20,
) -> Profile:
    """Precision at fixed recall levels, and Recall@1 of each label.

        precision(r) = mean_q  max_{i : i / R >= r}  i / rank_i            r = 0, 1/(P-1), ..., 1

    the interpolated precision (Manning, Raghavan, Schütze, "Introduction to Information Retrieval", 2008, Eq. 8.9), at r = 0 over all
    relevant items. With 11 points it is the curve of TREC.

    Args:
        queries: (Q, D) rows of unit length; any float type, numpy or torch, on any device.
        gallery: (N, D) likewise.
        query_labels: (Q,) class of each query: integers or strings.
        gallery_labels: (N,) likewise.
        query_ids: (Q,) item ids, with `gallery_ids`: a query does not retrieve gallery items of its own id. None: nothing is left out.
        gallery_ids: (N,) likewise.
        points: P, at least 2.
        chunk_bytes: bound on what is allocated beside the inputs; at least one row of N scores is.
    Raises:
        ValueError: as `retrieval_metrics`, or fewer than 2 points.
    """
    if points < 2:
        raise ValueError(f"ranking_profile: points={points}; a curve has 2 recall levels or more, 0 and 1 among them")
    chunks = ranks_of_relevant(
        queries, gallery, query_labels, gallery_labels, query_ids=query_ids, gallery_ids=gallery_ids, chunk_bytes=chunk_bytes
    )
    steps_P = np.arange(points)
    first_rank_Q = np.zeros(len(queries), np.int64)
    counted_Q = np.zeros(len(queries), np.bool_)
    sum_P = np.zeros(points)
    for chunk in chunks:
        first_rank_Q[chunk.rows] = chunk.ranks[:, 0] if chunk.ranks.shape[1] else 0
        counted_Q[chunk.rows] = chunk.count > 0
        ranks_qR, count_q = chunk.ranks[chunk.count > 0], chunk.count[chunk.count > 0]
        place_R = np.arange(1, ranks_qR.shape[1] + 1)
        precision_qR = np.where(place_R <= count_q[:, None], place_R / ranks_qR, 0.0)
        best_qR = np.maximum.accumulate(precision_qR[:, ::-1], axis=1)[:, ::-1]  # over this relevant item and all later ones
        needed_qP = -(-steps_P * count_q[:, None] // (points - 1))  # the smallest i with i / R >= r, in whole numbers
        sum_P += np.take_along_axis(best_qR, np.maximum(needed_qP, 1) - 1, axis=1).sum(axis=0)
    return Profile(
        recall=steps_P / (points - 1),
        precision=sum_P / counted_Q.sum() if counted_Q.any() else np.full(points, np.nan),
        by_label=_by_label(as_names(query_labels), first_rank_Q, counted_Q),
    )


def _by_label(labels_Q: NDArray[np.generic], first_rank_Q: NDArray[np.int64], counted_Q: NDArray[np.bool_]) -> dict[Any, LabelRecall]:
    out: dict[Any, LabelRecall] = {}
    for label in np.unique(labels_Q):
        own = (labels_Q == label) & counted_Q
        out[label.item()] = LabelRecall(mean_of(first_rank_Q[own] == 1), int(own.sum()))
    return out
