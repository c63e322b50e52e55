"""How the lists of a release's segments become one.

Segments that one encoder made and one queries are one space: their scores compare as they are. Between spaces:

merge            a hit is placed by
raw              its score
standardised     (score - mean) / std over all vectors of its space                          decision 6
reciprocal_rank  1 / (60 + rank in its space), summed where several spaces hold the item
calibrated       p(score): how likely a hit of this score in this space is right             `index.curve`
routed           p(score) times how likely the query is of the hit's task, softened          `index.routing`

Softened: P(task)^(1/3), brought to sum 1. A high score in a space is itself a sign that the query belongs there, and comes from the same
vectors as the router's opinion: their plain product counts that twice, and fills a first page from one task. The exponent was chosen on
drawn scenes and CIFAR-100, where anything from 1/2 to 1/4 is as good, at rank 1 and for precision at 10.

The last two need a `Calibration`, fitted when the release is made; it knows pictures that ask from texts that do. Only
where every vector is queried by its maker can one be fitted without old pictures: policies versioned and backfilling. Q queries, K top-k,
D embedding, S segments.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from perdure.errors import Incompatible
from perdure.index.merge import Curve, merge_by_probability, merge_by_rank, merge_partitions, merge_segments
from perdure.index.segment import Segment
from perdure.index.statistics import SegmentStatistics
from perdure.records import EncoderRef, Hits, QueryModality, Release, SegmentUse
from perdure.retrieval.calibration import Calibration

__all__ = ["LEARNED", "MERGES", "Merge", "merge_release", "softened"]

Merge = Literal["standardised", "raw", "reciprocal_rank", "calibrated", "routed"]
MERGES: tuple[Merge, ...] = ("standardised", "raw", "reciprocal_rank", "calibrated", "routed")
LEARNED: tuple[Merge, ...] = ("calibrated", "routed")
_SOFTENED = 3.0


def merge_release(
    release: Release,
    parts: Mapping[int, Hits],
    segments: Mapping[int, Segment],
    queries: Sequence[NDArray[np.float32]],
    k: int,
    calibration: Calibration | None,
    leave_out: Sequence[str | None] = (),
    modalities: Sequence[QueryModality | None] = (),
) -> Hits:
    """The best k over the segments of a release, under its merge. An item that several segments hold is listed as often.

    Args:
        release: says what its spaces are, and how they are merged.
        parts: hits of segments by their number in the release, each with that number in `segments`; some may be missing.
        segments: table and statistics of each, by number.
        queries: (Q, D) as they were put to each segment of the release, in its order.
        k: length of the merged list.
        calibration: of the release, where its merge is a learned one.
        leave_out: Q item ids that may not be found, None for none; empty for none at all. They take no rank.
        modalities: Q, what each query is made of; empty, and None, for pictures.

    Raises:
        Incompatible: the merge is a learned one, and there is no calibration, or it lacks the curve of a space.
    """
    if any(leave_out):
        parts = {number: _without(part, segments[number], leave_out) for number, part in parts.items()}
    if len({_space(use) for use in release.segments}) == 1:
        return merge_partitions(list(parts.values()), k)
    spaces: dict[tuple[EncoderRef, EncoderRef, bool | str], list[int]] = {}
    for number in sorted(parts):
        spaces.setdefault(_space(release.segments[number]), []).append(number)
    width = sum(part.rows.shape[1] for part in parts.values())
    lists = [merge_partitions([parts[number] for number in numbers], max(width, 1)) for numbers in spaces.values()]
    if release.merge in ("raw", "standardised"):
        statistics = [SegmentStatistics.pooled([segments[number].statistics for number in numbers]) for numbers in spaces.values()]
        put = [queries[numbers[0]] for numbers in spaces.values()]
        return merge_segments(lists, k, how=release.merge, statistics=statistics, queries=put)
    if release.merge == "reciprocal_rank":
        return merge_by_rank(lists, k, names=_numbered([_column(part, "id", segments) for part in lists]))
    if calibration is None:
        raise Incompatible(f"release {release.id} merges by '{release.merge}', but its calibration was not loaded")
    texts = np.array([each == "text" for each in modalities] or [False] * len(lists[0].rows), dtype=np.bool_)[:, None]
    curves = [_curve(calibration, made_by, texts) for made_by, _, _ in spaces]
    if release.merge == "calibrated":
        return merge_by_probability(lists, k, curves=curves)
    seen = {use.queried_by: queries[number] for number, use in enumerate(release.segments) if not use.compensated}
    return merge_by_probability(lists, k, curves=curves, shares=_shares(lists, segments, seen, calibration, texts))


def softened(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Q, T) how likely each query is of each task -> P^(1/3), brought to sum 1."""
    flatter = shares ** (1 / _SOFTENED)
    return flatter / flatter.sum(axis=1, keepdims=True)


def _without(part: Hits, segment: Segment, leave_out: Sequence[str | None]) -> Hits:
    """A list without one item of each query, what is behind it moved up."""
    own = [None if item_id is None else segment.table.row(item_id) for item_id in leave_out]
    gone = part.rows == np.array([-2 if row is None else row for row in own], dtype=np.int64)[:, None]
    order = np.argsort(gone, axis=1, kind="stable")
    rows = np.where(gone, -1, part.rows)
    scores, rows, numbers = (np.take_along_axis(each, order, axis=1) for each in (part.scores, rows, part.segments))
    return Hits(scores, rows, numbers, part.metric)


def _space(use: SegmentUse) -> tuple[EncoderRef, EncoderRef, bool | str]:
    return use.made_by, use.queried_by, use.compensated


def _column(part: Hits, column: str, segments: Mapping[int, Segment]) -> NDArray[np.object_]:
    """(Q, K) one column of the hits' tables; None where a list is shorter."""
    out = np.full(part.rows.shape, None, dtype=object)
    for number in np.unique(part.segments[part.rows >= 0]).tolist():
        here = (part.segments == number) & (part.rows >= 0)
        out[here] = segments[number].table.values(column, part.rows[here])
    return out


def _numbered(names: Sequence[NDArray[np.object_]]) -> list[NDArray[np.int64]]:
    """The same texts as numbers, equal where they are; None is -1."""
    code: dict[Any, int] = {None: -1}
    for name in [name for each in names for name in each.ravel().tolist()]:
        code.setdefault(name, len(code))
    return [np.array([code[name] for name in each.ravel().tolist()], dtype=np.int64).reshape(each.shape) for each in names]


def _curve(calibration: Calibration, made_by: EncoderRef, texts: NDArray[np.bool_]) -> Curve:
    """The curve of a space for (Q, K) scores, of texts where (Q, 1) says so."""
    of_pictures, of_texts = calibration.curve(made_by), calibration.curve(made_by, "text")
    return lambda scores: np.where(texts, of_texts(scores), of_pictures(scores))


def _shares(
    lists: Sequence[Hits],
    segments: Mapping[int, Segment],
    seen: Mapping[EncoderRef, NDArray[np.float32]],
    calibration: Calibration,
    texts: NDArray[np.bool_],
) -> list[NDArray[np.float64]]:
    """For each list (Q, K) how likely the query is of the hit's task, among the tasks of the whole release, softened."""
    tasks = sorted({task for segment in segments.values() for task in segment.table.distinct_tasks()})
    shares = np.where(texts, calibration.router.shares(seen, tasks, "text"), calibration.router.shares(seen, tasks, "image"))
    shares = softened(shares)
    place = {task: at for at, task in enumerate(tasks)}
    out: list[NDArray[np.float64]] = []
    for part in lists:
        of_hit = _column(part, "task", segments)
        at = np.array([place.get(task, 0) for task in of_hit.ravel().tolist()], dtype=np.int64).reshape(of_hit.shape)
        out.append(np.take_along_axis(shares, at, axis=1))
    return out
