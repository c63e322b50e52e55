"""Several lists of hits become one: of the partitions of a segment, and of the segments of a release.

Q queries, K top-k, S segments. The metric travels with the hits, and lists of different metrics are never merged.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perdure.index.statistics import SegmentStatistics
from perdure.records import Hits

__all__ = ["larger_is_better", "merge_partitions", "merge_segments"]


def larger_is_better(metric: str) -> bool:
    """Whether a larger score is a better hit: so for "ip" and "z", not for "l2" and "hamming".

    Raises:
        ValueError: an unknown metric.
    """
    if metric not in ("ip", "z", "l2", "hamming"):
        raise ValueError(f"no metric named '{metric}'; known: ip, z, l2, hamming")
    return metric in ("ip", "z")


def merge_partitions(parts: Sequence[Hits], k: int) -> Hits:
    """The best k of several lists of the same queries, equal scores by segment and row; K shrinks to the longest list.

    Raises:
        ValueError: no list, k < 1, lists of different metrics or numbers of queries.
    """
    metrics = {part.metric for part in parts}
    if len(metrics) != 1 or k < 1:
        raise ValueError(f"merge: {len(parts)} lists, metrics {sorted(metrics)}, k={k}; expected lists of one metric and k of 1 or more")
    if len({len(part.rows) for part in parts}) != 1:
        raise ValueError(f"merge: lists of {[len(part.rows) for part in parts]} queries; every list must answer the same queries")
    metric = metrics.pop()
    scores = np.concatenate([part.scores for part in parts], axis=1)
    rows = np.concatenate([part.rows for part in parts], axis=1)
    segments = np.concatenate([part.segments for part in parts], axis=1)
    cost = np.where(rows < 0, np.inf, -scores if larger_is_better(metric) else scores)
    order = np.lexsort((rows, segments, cost), axis=-1)[:, :k]
    rows = np.take_along_axis(rows, order, axis=1)
    longest = int((rows >= 0).sum(axis=1).max()) if len(rows) else 0
    scores, segments = np.take_along_axis(scores, order, axis=1), np.take_along_axis(segments, order, axis=1)
    return Hits(scores[:, :longest], rows[:, :longest], segments[:, :longest], metric)


def merge_segments(
    parts: Sequence[Hits],
    k: int,
    *,
    how: Literal["raw", "standardised"] | str,
    statistics: Sequence[SegmentStatistics] = (),
    queries: Sequence[NDArray[np.float32]] = (),
) -> Hits:
    """The best k over segments whose scores may not be comparable, because different encoders made them.

    raw: by the score as it is. standardised: by how far a score stands out in its own segment,

        z = (score - mean_s(q_s)) / std_s(q_s)

    over all vectors of segment s, with the query q_s as the encoder of that segment sees it (see `SegmentStatistics`). Inside a
    segment the order does not change. A segment whose scores hardly vary (one item) gets z near 0: it stands out from nothing.

    Args:
        parts: S lists; `segments` of each holds its number in the release.
        k: length of the merged list.
        how: "raw" or "standardised".
        statistics: S, of each segment; for "standardised".
        queries: S times (Q, D_s); for "standardised".
    Returns:
        Hits with metric "z" for "standardised", else the metric of the parts.
    """
    if how == "raw":
        return merge_partitions(parts, k)
    if how != "standardised":
        raise ValueError(f"no way to merge named '{how}'; known: raw, standardised")
    return merge_partitions([_standardise(part, s, q) for part, s, q in zip(parts, statistics, queries, strict=True)], k)


def _standardise(part: Hits, statistics: SegmentStatistics, queries: NDArray[np.float32]) -> Hits:
    if part.metric != "ip":
        raise ValueError(f"merge: scores of metric '{part.metric}' cannot be standardised; only inner products have this closed form")
    mean, std = statistics.mean_std(queries)
    z = (part.scores - mean[:, None]) / std[:, None]
    return Hits(np.where(part.rows < 0, -np.inf, z).astype(np.float32), part.rows, part.segments, "z")
