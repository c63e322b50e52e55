"""What a release knows of its scores and of its queries: curves for each space, and a router, for pictures and for texts that ask.

Fitted when the release is made, from what is at hand then: the gallery vectors of every live encoder with their labels, and what the
older encoders make of the items that have just come (their pictures are there; those of earlier tasks are not asked for). Stored beside
the release as safetensors, under the sha256 of its bytes.

Curves: each item of a sample asks its own space, itself left out; its first hits are the pairs (score, one class or not). So a curve says
how likely a hit is right where the query has something right, and which space that is, is the router's to say. Captions are asked in the
same way, and have curves and views of their own, where the items of the gallery have captions. n items, D embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from perdure.errors import Corrupt, Incompatible
from perdure.index.curve import ScoreCurve
from perdure.index.merge import merge_partitions
from perdure.index.partition import partition_of
from perdure.index.routing import TaskRouter, View
from perdure.index.segment import Segment
from perdure.records import EncoderRef, QueryModality, Release
from perdure.registry.registry import Registry

__all__ = ["FOLDS", "Calibration", "Known", "fit_calibration", "fold_of", "held_back", "load_calibration", "spaced"]

FOLDS = 5
_CURVE_QUERIES = 1_000  # of a space, at most
_CURVE_DEPTH = 10  # first hits of each that are its pairs
_VIEW_ROWS = 10_000  # that a view is fitted on, at most


@dataclass(frozen=True, eq=False)
class Known:
    """What one encoder makes of the pictures, or of n captions, of items whose class and task are known."""

    ids: Sequence[str]  # of the items; of n captions, an item's as often as it has some
    labels: Sequence[str]
    tasks: NDArray[np.int64]  # (n,)
    vectors: NDArray[np.float32]  # (n, D) unit rows
    modality: QueryModality = "image"


@dataclass(frozen=True, eq=False)
class Calibration:
    """A curve for each encoder that made vectors of the release and each modality that asks, and the router between tasks."""

    curves: Mapping[tuple[EncoderRef, QueryModality], ScoreCurve]
    router: TaskRouter

    def curve(self, made_by: EncoderRef, modality: QueryModality = "image") -> ScoreCurve:
        """The curve of an encoder's space; for texts that of pictures, where it was fitted without captions.

        Raises:
            Incompatible: there is none.
        """
        found = self.curves.get((made_by, modality), self.curves.get((made_by, "image")))
        if found is None:
            known = ", ".join(dict.fromkeys(str(ref) for ref, _ in self.curves)) or "no encoder"
            raise Incompatible(f"no calibrated scores for vectors made by {made_by}; known: {known}. Publish the release again")
        return found

    def to_bytes(self) -> bytes:
        """As safetensors; the same calibration gives the same bytes."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for (ref, modality), curve in self.curves.items():
            arrays |= {f"curve {ref} {modality} scores": curve.scores, f"curve {ref} {modality} probabilities": curve.probabilities}
        for at, view in enumerate(self.router.views):
            title = f"view {view.encoder} {view.modality} {at:04d}"
            arrays |= {f"{title} {name}": getattr(view, name) for name in ("weight", "bias", "task", "count")}
        return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` gave.

        Raises:
            Corrupt: it is something else.
        """
        try:
            arrays = load(data)
            names = [name.split() for name in sorted(arrays)]
            curves: dict[tuple[EncoderRef, QueryModality], ScoreCurve] = {}
            for ref, asks in dict.fromkeys((name[1], name[2]) for name in names if name[0] == "curve"):
                scores, probabilities = (arrays[f"curve {ref} {asks} {part}"] for part in ("scores", "probabilities"))
                curves[EncoderRef.parse(ref), _modality(asks)] = ScoreCurve(scores, probabilities)
            views: list[View] = []
            for at, ref, asks in sorted({(name[3], name[1], name[2]) for name in names if name[0] == "view"}):
                weight, bias, task, count = (arrays[f"view {ref} {asks} {at} {part}"] for part in ("weight", "bias", "task", "count"))
                views.append(View(EncoderRef.parse(ref), weight, bias, task, count, _modality(asks)))
        except Exception as error:  # safetensors raises its own SafetensorError, KeyError, ValueError or IndexError
            raise Corrupt(f"not the calibration of a release ({error})") from None
        return cls(curves, TaskRouter(tuple(views)))


def fold_of(item_id: str) -> int:
    """The part of all items that one belongs to, by a hash of its id: what is fitted on the others is measured on it."""
    return partition_of(f"fold of {item_id}", FOLDS)


def held_back(item_id: str) -> bool:
    """Whether an item is of the first part, which nothing that is published is fitted to: those who watch a release ask it about these."""
    return fold_of(item_id) == 0


def fit_calibration(
    release: Release,
    segments: Sequence[Segment],
    known: Mapping[EncoderRef, Sequence[Known]],
    previous: Calibration | None = None,
    *,
    use: Callable[[str], bool] = lambda item_id: True,
) -> Calibration:
    """Curves and router of a release in which every vector is queried by the encoder that made it.

    Args:
        release: its segments say who made what.
        segments: in its order, loaded with all of their partitions.
        known: what live encoders make of the pictures of items that have just come, and of captions.
        previous: of the release before; its views are carried on where nothing newer knows as much, and so are curves.
        use: whether an item may be asked for its class, by id; the others are in the gallery, no more.

    Raises:
        Incompatible: a segment is queried by another encoder than made it.
    """
    strangers = [str(part.segment) for part in release.segments if part.queried_by != part.made_by]
    if strangers:
        raise Incompatible(
            f"release {release.id}: {', '.join(strangers)} is queried by an encoder that did not make it, and what that one makes of old "
            "items cannot be known without their pictures; choose index.policy=versioned, or index.merge standardised, raw or "
            "reciprocal_rank"
        )
    makers = list(dict.fromkeys(part.made_by for part in release.segments))
    curves = {} if previous is None else {key: curve for key, curve in previous.curves.items() if key[0] in makers}
    views: list[View | None] = []
    for maker in makers:
        own = [segment for segment in segments if segment.made_by == maker]
        pictures, captions = ([each for each in known.get(maker, ()) if each.modality == modality] for modality in ("image", "text"))
        curves[maker, "image"] = _curve_of_pictures(own, maker, use)
        views.append(_view(maker, [*(_stored(segment, use) for segment in own), *pictures], use))
        if captions:
            curves[maker, "text"] = _curve_of_captions(own, maker, captions, use)
            views.append(_view(maker, captions, use))
    router = TaskRouter(tuple(view for view in views if view is not None))
    return Calibration(curves, router if previous is None else router.carrying(previous.router, makers))


def load_calibration(registry: Registry, release: Release) -> Calibration | None:
    """The calibration of a release, its bytes checked; None where its merge needs none.

    Raises:
        Corrupt: the bytes are not those that were published.
    """
    return None if release.calibration is None else Calibration.from_bytes(registry.calibration(release.calibration))


def spaced(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of some rows, evenly spaced."""
    return rows[np.unique(np.linspace(0, max(len(rows) - 1, 0), min(len(rows), most)).astype(np.int64))]


def _sample(ids: Sequence[str], most: int, use: Callable[[str], bool]) -> NDArray[np.int64]:
    """Rows of at most so many items that may be used, evenly spaced."""
    rows = np.array([row for row, item_id in enumerate(ids) if use(item_id)], dtype=np.int64)
    return spaced(rows, most)


def _stored(segment: Segment, use: Callable[[str], bool]) -> Known:
    """A sample of what a segment holds."""
    rows = _sample(segment.table.ids, _VIEW_ROWS, use)
    ids, labels, tasks = (segment.table.values(column, rows) for column in ("id", "label", "task"))
    return Known(ids, labels, np.array(tasks, dtype=np.int64), segment.vectors(rows))


def _view(maker: EncoderRef, known: Sequence[Known], use: Callable[[str], bool]) -> View | None:
    """The view of an encoder on what is known under it, each picture once; of captions, each."""
    ids = [item_id for each in known for item_id in each.ids]
    modality = known[0].modality
    first = {item_id: row for row, item_id in reversed(list(enumerate(ids)))}.values() if modality == "image" else range(len(ids))
    rows = np.array(sorted(row for row in first if use(ids[row])), dtype=np.int64)
    rows = spaced(rows, _VIEW_ROWS)
    if len(rows) == 0:
        return None
    labels = [label for each in known for label in each.labels]
    tasks, vectors = np.concatenate([each.tasks for each in known]), np.concatenate([each.vectors for each in known])
    return View.fit(maker, vectors[rows], [labels[row] for row in rows.tolist()], tasks[rows], modality)


def _curve_of_pictures(own: Sequence[Segment], maker: EncoderRef, use: Callable[[str], bool]) -> ScoreCurve:
    """The curve of one space, from leave-one-out pairs; queries without another item of their class are left out."""
    counted: dict[str, set[str]] = {}
    for segment in own:
        for item_id, label in zip(segment.table.ids, segment.table.labels, strict=True):
            counted.setdefault(label, set()).add(item_id)
    pairs: list[tuple[NDArray[np.float32], NDArray[np.bool_]]] = []
    for asking in own:
        sample = _sample(asking.table.ids, _CURVE_QUERIES // len(own) + 1, use)
        rows = np.array([row for row in sample.tolist() if len(counted[asking.table.values("label", np.array([row]))[0]]) > 1], np.int64)
        labels, ids = asking.table.values("label", rows), asking.table.values("id", rows)
        pairs.append(_asked(own, maker, labels, asking.vectors(rows), but=ids))
    return _fitted(pairs)


def _curve_of_captions(own: Sequence[Segment], maker: EncoderRef, captions: Sequence[Known], use: Callable[[str], bool]) -> ScoreCurve:
    """The same for texts: captions of what the space holds ask it, their own pictures among the hits."""
    held = {item_id for segment in own for item_id in segment.table.ids}
    pairs: list[tuple[NDArray[np.float32], NDArray[np.bool_]]] = []
    for each in captions:
        rows = _sample(each.ids, _CURVE_QUERIES, lambda item_id: item_id in held and use(item_id))
        pairs.append(_asked(own, maker, [str(each.labels[row]) for row in rows.tolist()], each.vectors[rows]))
    return _fitted(pairs)


def _asked(
    own: Sequence[Segment], maker: EncoderRef, labels: Sequence[str], vectors: NDArray[np.float32], but: Sequence[str] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores of the first hits of some queries in one space, and which are of the query's class; without those `but` names."""
    if len(labels) == 0:
        return np.zeros(0, np.float32), np.zeros(0, np.bool_)
    parts = [each.search(vectors, _CURVE_DEPTH + 1, encoder=maker, number=number) for number, each in enumerate(own)]
    found = merge_partitions(parts, _CURVE_DEPTH + 1)
    scores: list[NDArray[np.float32]] = []
    right: list[NDArray[np.bool_]] = []
    wanted = np.array(labels, dtype=object)
    for number, segment in enumerate(own):
        q, at = np.nonzero((found.segments == number) & (found.rows >= 0))
        rows = found.rows[q, at]
        kept = np.ones(len(q), np.bool_)
        if but is not None:
            kept = np.array(segment.table.values("id", rows), dtype=object) != np.array(but, dtype=object)[q]
        scores.append(found.scores[q, at][kept])
        right.append((np.array(segment.table.values("label", rows), dtype=object) == wanted[q])[kept])
    return np.concatenate(scores), np.concatenate(right).astype(np.bool_)


def _fitted(pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.bool_]]]) -> ScoreCurve:
    return ScoreCurve.fit(np.concatenate([scores for scores, _ in pairs]), np.concatenate([right for _, right in pairs]))


def _modality(word: str) -> QueryModality:
    if word not in ("image", "text"):
        raise ValueError(f"no modality '{word}'")
    return word
