"""Example queries through the real search path: what the last release finds, and what the one before it found.

Q queries, K hits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.encoders import Encoder
from perdure.index import Segment
from perdure.pipeline import Prepared
from perdure.records import EncoderRef, Item, Release, SegmentRef, Task
from perdure.registry.registry import Registry
from perdure.report import Change, Example
from perdure.report.thumbnails import thumbnail
from perdure.retrieval.evaluation import SplitEmbeddings
from perdure.retrieval.retriever import Hit, Query, Retriever

__all__ = ["Asking", "Embeddings"]

_HITS = 6
_ASKED = 400  # queries of earlier tasks that are asked of two releases, at most
_LOST, _WON = 2, 1  # of them, those whose answer changed most are shown

Embeddings = Callable[[EncoderRef], SplitEmbeddings]
"""What the run's encoders make of its test rows."""


@dataclass(frozen=True, eq=False)
class Asking:
    """The last release and the one before it, ready for queries that are test items of the stream."""

    now: Retriever
    before: Retriever | None
    prepared: Prepared
    embeddings: Embeddings

    @classmethod
    def open(cls, registry: Registry, release: Release, prepared: Prepared, embeddings: Embeddings) -> "Asking":
        """Load both; what they share is loaded once."""
        encoders: dict[EncoderRef, Encoder] = {}
        segments: dict[SegmentRef, Segment] = {}

        def load(id: str) -> Retriever:
            return Retriever.load(registry, id, encoders_cache=encoders, segments_cache=segments)

        return cls(load(release.id), load(release.parent) if release.parent is not None else None, prepared, embeddings)

    def spread(self, kind: str, task: Task, count: int) -> list[int]:
        """Query rows of a task: the first of each of a few classes, spread over its classes."""
        rows = self._askable(kind, task.query)
        _, first = np.unique(self.prepared.stream.labels[rows], return_index=True)
        return [int(rows[at]) for at in first[:: max(1, len(first) // count)][:count]]

    def example(self, kind: str, row: int, task: int, why: str = "") -> Example:
        """A query as a user would ask it, with its hits; as of the release before, too, where that knew the query's task."""
        item = self._item(row)
        image = self.prepared.dataset.image_bytes(row)
        query = Query(image=image) if kind == "image" else Query(text=item.captions[0])
        before = None
        if self.before is not None and task <= self.before.release.task:
            before = self._hits(kind, row, query, self.before)
        text = item.captions[0] if item.captions else item.label
        hits = self._hits(kind, row, query, self.now)
        return Example(kind, text, thumbnail(image) if kind == "image" else None, item.label, hits, task, before, why)

    def change(self, kind: str, earlier: Sequence[Task], leave_out: Sequence[int] = ()) -> tuple[list[Change], list[Example]]:
        """What became of queries of earlier tasks, asked by their embeddings; and, as examples, those whose answer changed most.

        An answer is judged by the sum over its right hits k of 1/k, now less before.

        Args:
            kind: "image", "text", or "words", of items that are words alone.
            earlier: the tasks before the last one.
            leave_out: rows that are examples already.
        Returns:
            one change, none where nothing can be asked of two releases; up to two queries that lost and one that won.
        """
        asked = [(int(row), task.index) for task in earlier for row in self._answerable(kind, task)]
        if self.before is None or not asked:
            return [], []
        asked = [asked[at] for at in np.unique(np.linspace(0, len(asked) - 1, min(_ASKED, len(asked))).astype(int))]
        rows = [row for row, _ in asked]
        before_QK, now_QK = (self._right(kind, rows, retriever) for retriever in (self.before, self.now))
        was, is_ = before_QK[:, 0], now_QK[:, 0]
        change = Change(
            kind=kind,
            queries=len(rows),
            right_before=int(was.sum()),
            right_after=int(is_.sum()),
            lost=int((was & ~is_).sum()),
            won=int((is_ & ~was).sum()),
        )
        gain_Q = (now_QK.astype(float) - before_QK) @ (1 / np.arange(1, _HITS + 1))
        order = [at for at in np.argsort(gain_Q, kind="stable").tolist() if rows[at] not in leave_out]
        picked = [(at, "lost") for at in order[:_LOST] if gain_Q[at] < 0] + [(at, "won") for at in order[::-1][:_WON] if gain_Q[at] > 0]
        return [change], [self.example(kind, *asked[at], why=why) for at, why in picked]

    def _hits(self, kind: str, row: int, query: Query, retriever: Retriever) -> list[dict[str, Any]]:
        return [
            {
                "id": hit.id,
                "label": hit.label,
                "score": hit.score,
                "encoder": hit.encoder,
                "png": _shown(retriever.picture(hit.id)),
                "right": self._is_right(kind, row, hit),
                "task": hit.task,
            }
            for hit in self._others(kind, row, retriever.search(query, _HITS + 1).hits)
        ]

    def _right(self, kind: str, rows: Sequence[int], retriever: Retriever) -> NDArray[np.bool_]:
        """(Q, K) whether each hit is right, False where a list is shorter; queries by the embeddings that are there already."""
        picked = np.array(rows, dtype=np.int64)
        parts = {ref: self.embeddings(ref).of(picked) for ref in retriever.release.encoders()}
        vectors = {ref: _first_captions(part) if kind == "text" else part.image for ref, part in parts.items()}
        modality = "text" if kind == "text" else "image"
        queries = [Query(vectors={ref: matrix[at] for ref, matrix in vectors.items()}, made_of=modality) for at in range(len(rows))]
        out = np.zeros((len(rows), _HITS), dtype=np.bool_)
        for at, (row, found) in enumerate(zip(rows, retriever.search_many(queries, _HITS + 1), strict=True)):
            for place, hit in enumerate(self._others(kind, row, found.hits)):
                out[at, place] = self._is_right(kind, row, hit)
        return out

    def _others(self, kind: str, row: int, hits: Sequence[Hit]) -> list[Hit]:
        """The first K hits; an item does not find itself, but a caption its picture."""
        return [hit for hit in hits if kind == "text" or hit.id != self._item(row).id][:_HITS]

    def _is_right(self, kind: str, row: int, hit: Hit) -> bool:
        """To a caption, its own picture; to an item, another one of its class."""
        return hit.id == self._item(row).id if kind == "text" else hit.label == self._item(row).label

    def _askable(self, kind: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows that have what a query of this kind needs."""
        has_it: dict[str, Callable[[Item], bool]] = {
            "image": lambda item: item.modality != "text",
            "text": lambda item: item.modality is None and bool(item.captions),
            "words": lambda item: item.modality == "text",
        }
        return np.array([row for row in rows if has_it[kind](self._item(row))], dtype=np.int64)

    def _answerable(self, kind: str, task: Task) -> NDArray[np.int64]:
        """Query rows of a task that have a right answer: to a caption, its own picture; to an item, another one of its class."""
        rows, labels = self._askable(kind, task.query), self.prepared.stream.labels
        if kind == "text":
            return rows[np.isin(rows, task.gallery)]
        classes, counts = np.unique(labels[task.gallery], return_counts=True)
        return rows[np.isin(labels[rows], classes[counts > 1])]

    def _item(self, row: int | np.int64) -> Item:
        return self.prepared.dataset.items[int(row)]


def _shown(picture: bytes | None) -> bytes | None:
    return None if picture is None else thumbnail(picture)


def _first_captions(part: SplitEmbeddings) -> NDArray[np.float32]:
    """(Q, D) the embedding of each picture's first caption; every picture has one."""
    assert part.text is not None
    _, first = np.unique(part.text_of, return_index=True)
    return part.text[first]
