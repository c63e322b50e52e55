"""Several lists of hits become one: of the partitions of a segment, and of the segments of a release.

Q queries, K top-k, S segments. The metric travels with the hits, and lists of different metrics are never merged. Three rules for
segments whose scores may not be comparable, because different encoders made them: `merge_segments`, `merge_by_rank` and
`merge_by_probability`. Among the items of one task that one segment alone holds, none of them changes the order.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perdure.index.curve import TIE
from perdure.index.statistics import SegmentStatistics
from perdure.records import Hits

__all__ = ["RANK_OFFSET", "Curve", "larger_is_better", "merge_by_probability", "merge_by_rank", "merge_partitions", "merge_segments"]

Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # see `index.curve`

RANK_OFFSET = 60  # of the reciprocal ranks, as in its paper
_LARGER = {"ip": True, "z": True, "rank": True, "probability": True, "l2": False, "hamming": False}


def larger_is_better(metric: str) -> bool:
    """Whether a larger score is a better hit: so for "ip", "z", "rank" and "probability", not for "l2" and "hamming".

    Raises:
        ValueError: an unknown metric.
    """
    if metric not in _LARGER:
        raise ValueError(f"no metric named '{metric}'; known: {', '.join(_LARGER)}")
    return _LARGER[metric]


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
    query = np.arange(len(order))[:, None]
    rows = rows[query, order]
    longest = int((rows >= 0).sum(axis=1).max()) if len(rows) else 0
    order = order[:, :longest]
    return Hits(scores[query, order], rows[:, :longest], segments[query, order], metric)


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


def merge_by_rank(parts: Sequence[Hits], k: int, *, names: Sequence[NDArray[np.int64]]) -> Hits:
    """The best k by reciprocal rank (Cormack, Clarke and Buettcher, SIGIR 2009); what scores mean does not matter.

        score(item) = sum over the lists that have it of  1 / (60 + its rank there, from 1)

    Args:
        parts: S lists.
        k: length of the merged list.
        names: S times (Q, K), a number for each item: an item that several lists have is listed as often, each time with the sum.
    Returns:
        Hits with metric "rank".
    """
    own = [np.where(part.rows < 0, 0.0, 1.0 / (RANK_OFFSET + 1.0 + np.arange(part.rows.shape[1]))) for part in parts]
    everyone, gained = np.concatenate([*names], axis=1), np.concatenate(own, axis=1)
    ranked: list[Hits] = []
    for part, name in zip(parts, names, strict=True):
        total = np.zeros(part.rows.shape)
        for column in range(part.rows.shape[1]):
            total[:, column] = np.where(everyone == name[:, column, None], gained, 0.0).sum(axis=1)
        ranked.append(Hits(np.where(part.rows < 0, -np.inf, total), part.rows, part.segments, "rank"))
    return _rounded(merge_partitions(ranked, k))


def merge_by_probability(
    parts: Sequence[Hits], k: int, *, curves: Sequence[Curve], shares: Sequence[NDArray[np.float64]] | None = None
) -> Hits:
    """The best k by how likely a hit is right.

        score = P(task of the item | query) p_s(score)

    p_s is the curve of the list that the hit is in: the probability that it is right, given that the query has something right there.
    Without shares the first factor is left out: every task is as likely.

    Args:
        parts: S lists of metric "ip".
        k: length of the merged list.
        curves: S, of scores (Q, K).
        shares: S times (Q, K), for each hit how likely its task is the query's; see `routing`. None: calibrated, not routed.
    Returns:
        Hits with metric "probability"; equal ones in the order of their scores.
    """
    likely: list[Hits] = []
    for number, (part, curve) in enumerate(zip(parts, curves, strict=True)):
        if part.metric != "ip":
            raise ValueError(f"merge: scores of metric '{part.metric}' cannot be calibrated; the curves are of inner products")
        share = 1.0 if shares is None else shares[number]
        found = np.where(part.rows < 0, 0.0, part.scores).astype(np.float64)
        probability = share * (curve(found) + TIE * found)
        likely.append(Hits(np.where(part.rows < 0, -np.inf, probability), part.rows, part.segments, "probability"))
    return _rounded(merge_partitions(likely, k))


def _rounded(hits: Hits) -> Hits:
    """Scores that were ordered in double precision as they are handed on."""
    return Hits(hits.scores.astype(np.float32), hits.rows, hits.segments, hits.metric)
