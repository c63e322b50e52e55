"""What a search finds: hits of the segments of a release become one list for each query, and the page of it that was asked for.

Q queries, K top-k, D embedding, S segments of the release.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perdure.index import Entry, Segment
from perdure.records import Hits, QueryModality, Release, Scalar
from perdure.retrieval.asking import Search
from perdure.retrieval.calibration import Calibration
from perdure.retrieval.merging import merge_release

__all__ = ["Clock", "Hit", "SearchResult", "finish", "results"]


@dataclass(frozen=True, slots=True)
class Hit:
    """One item that was found. `score`: cosine similarity; with several spaces what their merge orders by, see `retrieval.merging`."""

    id: str
    score: float
    label: str
    text: tuple[str, ...]
    task: int
    encoder: str  # that made the vector
    group: str
    payload: Mapping[str, Scalar]
    segment: int  # number in the release
    row: int  # of the segment
    raw_score: float  # in its segment, before lists were merged


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first; a shorter list than asked when the gallery, or the filter, allows no more."""

    release: str
    hits: list[Hit]
    partial: bool = False
    timings_ms: dict[str, float] = field(default_factory=dict)
    more: bool = False  # whether there are hits after these
    moved_by: tuple[str, ...] = ()  # ids of the hits of a first search that were put into the query
    put: tuple[NDArray[np.float32], ...] = ()  # (D,) the query as it was put to each segment


def finish(
    release: Release,
    parts: Sequence[Hits],
    segments: Mapping[int, Segment],
    queries: Sequence[NDArray[np.float32]],
    k: int,
    *,
    leave_out: Sequence[str | None] = (),
    calibration: Calibration | None = None,
    modalities: Sequence[QueryModality | None] = (),
) -> list[list[Hit]]:
    """Hits of segments become one list for each query.

    An item that several segments hold is listed once, where it scores best.

    Args:
        release: says which encoder queries which segment, and how lists are merged.
        parts: hits of segments; `segments` in each is the segment's number in the release. Segments may be missing.
        segments: table and statistics of each segment in `parts`, by number; partitions are not needed.
        queries: (Q, D) as they were put to each segment of the release, in its order; see `compensation.asked`.
        k: length of a list; parts must hold k + 1 where an item is left out.
        leave_out: Q item ids that may not be found, None for none; empty for none at all.
        calibration: of the release; see `load_calibration`.
        modalities: Q, what each query is made of; see `Query.modality`.
    """
    if not parts:
        return [[] for _ in range(len(queries[0]))]
    numbers = [int(part.segments[0, 0]) if part.segments.size else None for part in parts]
    filled = {number: part for part, number in zip(parts, numbers, strict=True) if number is not None}
    if not filled:
        return [[] for _ in range(len(parts[0].rows))]
    width = sum(part.rows.shape[1] for part in filled.values())
    merged = merge_release(release, filled, segments, queries, width, calibration, leave_out, modalities)
    avoid = leave_out or [None] * len(merged.rows)
    return [_hits(merged, q, k, segments, avoid[q], filled) for q in range(len(merged.rows))]


def results(
    release: Release,
    searches: Sequence[Search],
    lists: Sequence[Sequence[Hit]],
    put: Sequence[NDArray[np.float32]],
    moved_by: Mapping[int, Sequence[Hit]],
    timings_ms: Mapping[str, float],
    partial: bool = False,
) -> list[SearchResult]:
    """The page of hits that each search asks for, out of its list of `wanted` hits."""
    return [
        SearchResult(
            release.id,
            list(hits[search.offset : search.offset + search.k]),
            partial,
            dict(timings_ms),
            more=len(hits) >= search.wanted,
            moved_by=tuple(hit.id for hit in moved_by.get(place, ())),
            put=tuple(queries[place] for queries in put),
        )
        for place, (search, hits) in enumerate(zip(searches, lists, strict=True))
    ]


class Clock:
    """Adds up what each step of an answer took."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def took(self, step: str, of_callee_ms: float | None = None) -> None:
        """The time since the last step was this one; where a callee says what it took itself, the rest is `<step>_hop`."""
        now = time.perf_counter()
        ms, self._last = (now - self._last) * 1e3, now
        if of_callee_ms is not None:
            self._add(f"{step}_hop", ms - of_callee_ms)
            ms = of_callee_ms
        self._add(step, ms)

    def _add(self, step: str, ms: float) -> None:
        self.timings_ms[step] = round(self.timings_ms.get(step, 0.0) + ms, 3)


def _hits(merged: Hits, q: int, k: int, segments: Mapping[int, Segment], leave_out: str | None, parts: Mapping[int, Hits]) -> list[Hit]:
    """One query's list, without padding, repeats and the item that is left out."""
    real = merged.rows[q] >= 0
    scores, rows, numbers = merged.scores[q][real], merged.rows[q][real], merged.segments[q][real]
    entries: dict[int, Entry] = {}
    raw = np.empty(len(scores), np.float32)
    for number in np.unique(numbers).tolist():
        places = np.flatnonzero(numbers == number)
        entries |= dict(zip(places.tolist(), segments[number].table.entries(rows[places]), strict=True))
        order = np.argsort(parts[number].rows[q])
        raw[places] = parts[number].scores[q][order[np.searchsorted(parts[number].rows[q], rows[places], sorter=order)]]
    hits: list[Hit] = []
    seen = {leave_out}
    for place, score in enumerate(scores.tolist()):
        entry, number = entries[place], int(numbers[place])
        if entry.id not in seen and len(hits) < k:
            seen.add(entry.id)
            hits.append(
                Hit(
                    entry.id,
                    score,
                    entry.label,
                    entry.text,
                    entry.task,
                    str(segments[number].made_by),
                    entry.group,
                    entry.payload,
                    number,
                    int(rows[place]),
                    float(raw[place]),
                )
            )
    return hits
