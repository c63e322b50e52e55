"""The regret guard of a backfill: held-out queries that are asked before and after a slice has moved.

The queries are items of the gallery, old and new alike, each left out of its own answer; a query is right where the first hit has its
class. What each encoder makes of them is computed once, so a reading costs a search and no encode. Q queries, D embedding.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.errors import ConfigError, DataError, Regret
from perdure.index.partition import partition_of
from perdure.records import EncoderRef
from perdure.retrieval.calibration import held_back
from perdure.retrieval.retriever import Query, Retriever, plan

__all__ = ["BACKFILL_DEFINITIONS", "Guard", "Reading", "area"]

_MOST = 500  # queries of old items, and as many of new ones
_CHUNK = 64  # encoded at a time

BACKFILL_DEFINITIONS = {
    "backfill": "Old items move to the newest encoder slice by slice, each slice a release; fraction = moved / all old items of the start.",
    "backfill.recall@1": "Share of held-out queries (items of the gallery, old and new, each left out of its own answer, at most "
    f"{_MOST} of either, and half of them; of those that no merge is fitted to, where it is a learned one) whose first hit over the whole "
    "release has their class; _old and _new: of either kind.",
    "backfill.negative_flips": "Share of the held-out queries that were right at the start and are wrong after this slice; positive_flips: "
    "the other way round.",
    "backfill.area": "Area under recall@1 over the fraction moved, by trapezoids from the start to where the backfill is, divided by that "
    "fraction: the mean quality on the way. The idea is FastFill's backfilling metric (Jaeckle et al., ICLR 2023); the queries are ours.",
}
"""What each number means, to be stored beside it."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Which of the queries one release answers right."""

    right: NDArray[np.bool_]  # (Q,)
    is_old: NDArray[np.bool_]  # (Q,) whether an older encoder made the item at the start

    @property
    def recall(self) -> float:
        """Recall@1 over all queries."""
        return float(self.right.mean())

    def plain(self) -> dict[str, float | None]:
        """Recall@1 of all queries, of the old ones and of the new ones; None where there are none."""
        parts = {"": np.ones_like(self.is_old), "_old": self.is_old, "_new": ~self.is_old}
        return {f"recall@1{name}": float(self.right[part].mean()) if part.any() else None for name, part in parts.items()}


@dataclass(frozen=True, eq=False)
class Guard:
    """Held-out queries as every encoder of the start sees them.

    `tolerance`: how much of Recall@1 may be lost, by a slice and since the start.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    is_old: NDArray[np.bool_]
    vectors: dict[EncoderRef, NDArray[np.float32]]
    tolerance: float

    @classmethod
    def of(cls, retriever: Retriever, *, tolerance: float = 0.01, most: int = _MOST) -> "Guard":
        """Choose the queries from a release's gallery, by a hash of their ids, and embed them by each of its encoders.

        Raises:
            ConfigError: a negative tolerance.
            DataError: no class has two items, so that nothing can be right.
            BadQuery: an item is stored without its picture.
        """
        if tolerance < 0:
            raise ConfigError("backfill", [f"--tolerance {tolerance}: how much of Recall@1 may be lost; 0 or more"])
        label_of: dict[str, str] = {}
        newest: set[str] = set()
        for use, segment in zip(retriever.release.segments, retriever.segments, strict=True):
            label_of |= dict(zip(segment.table.ids, segment.table.labels, strict=True))
            newest |= set(segment.table.ids) if use.made_by == retriever.release.encoder else set()
        labels, count = np.unique(list(label_of.values()), return_counts=True)
        known = set(labels[count > 1].tolist())
        ordered = sorted(
            (item_id for item_id, label in label_of.items() if label in known), key=lambda one: partition_of(f"guard/{one}", 2**62)
        )
        learned = retriever.calibration is not None
        ids: list[str] = []
        for kind in ([one for one in ordered if one not in newest], [one for one in ordered if one in newest]):
            unseen = [one for one in kind if held_back(one)] if learned else kind[: (len(kind) + 1) // 2]
            ids += unseen[:most]
        if not ids:
            raise DataError(
                f"release {retriever.release.id}: no class has two items, so no query can be right and a backfill cannot be watched"
            )
        vectors = {ref: _embedded(retriever, ids, ref) for ref in plan(retriever.release)}
        is_old = np.array([item_id not in newest for item_id in ids])
        return cls(tuple(ids), tuple(label_of[item_id] for item_id in ids), is_old, vectors, tolerance)

    def read(self, retriever: Retriever) -> Reading:
        """Ask a release every query."""
        encoders = list(plan(retriever.release))
        queries = [Query(vectors={ref: self.vectors[ref][at] for ref in encoders}, made_of="image") for at in range(len(self.ids))]
        right = np.zeros(len(queries), np.bool_)
        for at, found in enumerate(retriever.search_many(queries, 2)):
            others = [hit for hit in found.hits if hit.id != self.ids[at]]
            right[at] = bool(others) and others[0].label == self.labels[at]
        return Reading(right, self.is_old)

    def gates(self, first: Reading, before: Reading, after: Reading) -> list[dict[str, Any]]:
        """What the guard asks of a slice, as gates of its release."""
        limits = {"recall@1 beside the slice before": before, "recall@1 beside the start": first}
        return [
            {
                "name": name,
                "found": after.recall,
                "limit": each.recall - self.tolerance,
                "passed": after.recall >= each.recall - self.tolerance,
            }
            for name, each in limits.items()
        ]

    def judge(self, first: Reading, before: Reading, after: Reading, what: str) -> None:
        """Let a slice pass.

        Raises:
            Regret: it would make the queries worse, by more than the tolerance, than they were before it or at the start.
        """
        failed = [gate for gate in self.gates(first, before, after) if not gate["passed"]]
        if failed:
            worse, better = int((before.right & ~after.right).sum()), int((~before.right & after.right).sum())
            raise Regret(
                f"{what} would make queries worse: {'; '.join(_line(gate) for gate in failed)} ({worse} of {len(self.ids)} held-out "
                f"queries turn wrong, {better} right). Nothing was published. Leave the rest where it is, or allow more: --tolerance"
            )


def area(fractions: list[float], values: list[float]) -> float | None:
    """Mean of a broken line over [fractions[0], fractions[-1]]; None for less than two points."""
    if len(fractions) < 2 or fractions[-1] <= fractions[0]:
        return None
    x, y = np.array(fractions), np.array(values)
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def _line(gate: dict[str, Any]) -> str:
    return f"{gate['name']}: found {gate['found']:.4f}, limit {gate['limit']:.4f}"


def _embedded(retriever: Retriever, ids: list[str], encoder: EncoderRef) -> NDArray[np.float32]:
    parts = [retriever.embed([Query(id=one) for one in ids[start : start + _CHUNK]], encoder) for start in range(0, len(ids), _CHUNK)]
    return np.concatenate(parts)
