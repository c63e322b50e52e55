"""What a release must not lose, measured before it is published; `perdure promote` refuses one that did, with the figures.

Of each old task s, over its own test pictures, leave-one-out, as the release answers them (who made their vectors, who queries them):

    forgetting of s      Recall@1 by the release before - Recall@1 by this one
    negative flips of s  share of the pictures whose first hit was right before, and is wrong now
    approximate search   share of the exact 10 nearest that the index finds, over a sample of the test pictures

Under policy keep the first is what a compatible encoder must not have: old vectors, queried by the new one, against what their own maker
found. Under versioned it is 0. n test pictures, D embedding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.config import GatesConfig
from perdure.index.segment import Segment
from perdure.records import EncoderRef, QueryModality, Release, Task
from perdure.retrieval.compensation import Compensation, asked
from perdure.retrieval.evaluation import SplitEmbeddings

__all__ = ["Answers", "approximate_recall", "first_hits_right", "gates_of"]

_CHUNK = 1024
_SAMPLE = 200
_DEPTH = 10


class Answers:
    """How a release answers the test pictures of a task among the task's own gallery."""

    def __init__(
        self,
        release: Release,
        segments: Sequence[Segment],
        vectors: Mapping[EncoderRef, SplitEmbeddings],
        drifts: Mapping[int, Compensation],
    ) -> None:
        """Take a release, its segments in its order, what its encoders make of the test rows, and its compensations."""
        self._release = release
        self._segments = segments
        self._vectors = vectors
        self._drifts = drifts

    def right(self, task: Task, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether the first hit among the task's own gallery is of the picture's class."""
        holding = [at for at, segment in enumerate(self._segments) if task.index in segment.table.distinct_tasks()]
        number = holding[-1]  # where others hold it too (index.both), the last is by the encoder that learned it
        use = self._release.segments[number]
        pictures: list[QueryModality | None] = ["image"] * len(task.query)
        embedded = {ref: self._vectors[ref].of(task.query).image for ref in self._release.encoders()}
        queries = asked(self._release, embedded, pictures, self._drifts)[number]
        gallery = self._vectors[use.made_by].of(task.gallery).image
        return first_hits_right(queries, gallery, labels[task.query], labels[task.gallery], task.query, task.gallery)


def first_hits_right(
    queries: NDArray[np.float32],
    gallery: NDArray[np.float32],
    query_labels: NDArray[np.int64],
    gallery_labels: NDArray[np.int64],
    query_ids: NDArray[np.int64],
    gallery_ids: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """(n,) whether the nearest of the gallery (N, D), the query's own id left out, is of the query's class; False where there is none."""
    right = np.zeros(len(queries), np.bool_)
    for start in range(0, len(queries), _CHUNK):
        here = slice(start, start + _CHUNK)
        scores = queries[here] @ gallery.T
        scores[query_ids[here, None] == gallery_ids] = -np.inf
        if scores.shape[1]:
            first = scores.argmax(axis=1)
            found = scores[np.arange(len(first)), first] > -np.inf
            right[here] = found & (gallery_labels[first] == query_labels[here])
    return right


def approximate_recall(
    segments: Sequence[Segment], makers: Sequence[EncoderRef], queries: Mapping[EncoderRef, NDArray[np.float32]]
) -> float:
    """Share of the exact nearest that the partitions find, mean over the segments and a sample of queries (n, D) of each maker."""
    shares: list[float] = []
    for segment, maker in zip(segments, makers, strict=True):
        rows = queries[maker]
        sample = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).astype(np.int64))]
        quick = segment.search(sample, _DEPTH, encoder=maker)
        exact = segment.search(sample, _DEPTH, encoder=maker, rows=np.ones(len(segment), np.bool_))  # what is filtered is scanned
        for one, other in zip(quick.rows, exact.rows, strict=True):
            wanted = set(other[other >= 0].tolist())
            shares.append(len(wanted & set(one.tolist())) / max(len(wanted), 1))
    return float(np.mean(shares)) if shares else 1.0


def gates_of(
    limits: GatesConfig, old: Sequence[Task], labels: NDArray[np.int64], before: Answers | None, now: Answers, approximate: float | None
) -> list[dict[str, Any]]:
    """The gates of a release, for `metrics["gates"]`: name, found, limit (None: recorded alone) and whether it passed.

    Args:
        limits: what may be lost.
        old: the tasks that the release before held, too.
        labels: of the rows of the dataset.
        before: how the release before answers; None where there is none.
        now: how this one does.
        approximate: what `approximate_recall` says; None where search is exact.
    """
    out: list[dict[str, Any]] = []
    for task in old:
        assert before is not None, "old tasks were held by a release before"
        was, is_now = before.right(task, labels), now.right(task, labels)
        out.append(_at_most(f"forgetting of task {task.index + 1}", float(was.mean() - is_now.mean()), limits.forgetting))
        out.append(_at_most(f"negative flips of task {task.index + 1}", float((was & ~is_now).mean()), limits.negative_flips))
    if approximate is not None:
        least = limits.approximate
        passed = least is None or approximate >= least
        out.append({"name": "approximate search", "found": round(approximate, 4), "limit": least, "passed": passed})
    return out


def _at_most(name: str, found: float, limit: float | None) -> dict[str, Any]:
    return {"name": name, "found": round(found, 4), "limit": limit, "passed": limit is None or found <= limit}
