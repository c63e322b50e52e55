"""Measuring an encoder on the test splits of a stream: one row of the accuracy matrix.

Letters: n test items, m captions, D embedding, T tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perdure.data.pixels import Pixels
from perdure.encoders.encoder import Encoder
from perdure.index.segment import Segment
from perdure.metrics.retrieval import pair_metrics, retrieval_metrics
from perdure.records import EncoderRef, Hits, Item, QueryModality, Release, Task
from perdure.retrieval.calibration import FOLDS, Calibration, fold_of
from perdure.retrieval.compensation import Compensation, asked
from perdure.retrieval.embedding import Embed, embed_here
from perdure.retrieval.merging import MERGES, merge_release

__all__ = [
    "TASK_DEFINITIONS",
    "SplitEmbeddings",
    "are_words",
    "embed_items",
    "embed_split",
    "merge_metrics",
    "search_metrics",
    "task_metrics",
]

TASK_DEFINITIONS = {
    "recall@k of a task": "Image to image by class label, leave-one-out inside the task's own test split (the known-task setting). "
    "Where no class of the task has two test items, and there are no captions, its training items can be found, too: then gallery is "
    "larger than query under tasks. With stream.gallery=rest the test items search all other items of the task, and no test item.",
    "t2i_recall@k": "Text to image inside the task's own test split: each caption has one relevant picture, the one it was written for.",
    "i2t_recall@k": "Image to text inside the task's own test split: a hit is any of the picture's own captions.",
    "search_recall@k": "Image to image by class label over everything that the release has indexed, leave-one-out, under its index policy. "
    "What a learned merge (calibrated, routed) is fitted to is fitted five times for this, each time without a fifth of the items by a "
    "hash of the id, and each query is answered by the fit that did not see it.",
    "search_t2i_recall@k": "Text to image over everything that the release has indexed; a hit is the picture the caption was written for. "
    "Captions of pictures that it has not indexed are left out.",
}
_BATCH = 256


@dataclass(frozen=True, eq=False)
class SplitEmbeddings:
    """One encoder version's embeddings of a set of rows, unit length."""

    rows: NDArray[np.int64]  # (n,) rows of the dataset
    image: NDArray[np.float32]  # (n, D) of the items: of their pictures, or of their words where they are words alone
    text: NDArray[np.float32] | None  # (m, D) every caption
    text_of: NDArray[np.int64]  # (m,) position in `rows` of the captioned picture

    def of(self, rows: NDArray[np.int64]) -> "SplitEmbeddings":
        """The part that belongs to some of the rows."""
        position = {int(row): at for at, row in enumerate(self.rows)}
        at = np.array([position[int(row)] for row in rows], dtype=np.int64)
        if self.text is None:
            return SplitEmbeddings(rows, self.image[at], None, np.zeros(0, dtype=np.int64))
        new_position = np.full(len(self.rows), -1, dtype=np.int64)
        new_position[at] = np.arange(len(at))
        kept = new_position[self.text_of] >= 0
        return SplitEmbeddings(rows, self.image[at], self.text[kept], new_position[self.text_of[kept]])


def embed_items(
    encoder: Encoder, pixels: Pixels, items: Sequence[Item], rows: NDArray[np.int64], embed: Embed = embed_here
) -> NDArray[np.float32]:
    """(n, D) unit embeddings of items: of their pictures, or of their first caption where they are words alone."""
    is_text = are_words(items, rows)
    out = np.empty((len(rows), encoder.embedding_dim), dtype=np.float32)
    if not is_text.all():
        shown = rows[~is_text]
        out[~is_text] = np.concatenate([*embed(encoder, (pixels.take(shown[at : at + _BATCH]) for at in range(0, len(shown), _BATCH)))])
    if is_text.any():
        out[is_text] = _embed_texts(encoder, [items[int(row)].captions[0] for row in rows[is_text]], embed)
    return out


def are_words(items: Sequence[Item], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) which items are words alone."""
    return np.array([items[int(row)].modality == "text" for row in rows], dtype=np.bool_)


def embed_split(
    encoder: Encoder, pixels: Pixels, items: Sequence[Item], rows: NDArray[np.int64], embed: Embed = embed_here
) -> SplitEmbeddings:
    """Items, and the captions of pictures when the encoder has a text tower; computed in this process, or by what is handed in."""
    image = embed_items(encoder, pixels, items, rows, embed)
    captions = [(at, caption) for at, row in enumerate(rows) if items[int(row)].modality is None for caption in items[int(row)].captions]
    if encoder.text is None or not captions:
        return SplitEmbeddings(rows, image, None, np.zeros(0, dtype=np.int64))
    text = _embed_texts(encoder, [caption for _, caption in captions], embed)
    return SplitEmbeddings(rows, image, text, np.array([at for at, _ in captions], dtype=np.int64))


def _embed_texts(encoder: Encoder, texts: Sequence[str], embed: Embed) -> NDArray[np.float32]:
    return np.concatenate([*embed(encoder, (texts[at : at + _BATCH] for at in range(0, len(texts), _BATCH)))])


def task_metrics(embeddings: SplitEmbeddings, task: Task, labels: NDArray[np.int64]) -> dict[str, float | None]:
    """Every metric of one task's test split, searched inside that split (the known-task setting).

    Image to image: leave-one-out by class label. Text to image (`t2i_`): a caption finds its own picture; image to text (`i2t_`):
    a picture finds any of its captions. Both where some query's own partner is in the gallery.
    """
    query, gallery = embeddings.of(task.query), embeddings.of(task.gallery)
    out = retrieval_metrics(
        query.image, gallery.image, labels[task.query], labels[task.gallery], query_ids=task.query, gallery_ids=task.gallery
    )
    if query.text is not None and gallery.text is not None:
        position = {int(row): at for at, row in enumerate(task.gallery)}
        relevant = np.array([position.get(int(task.query[at]), -1) for at in query.text_of], dtype=np.int64)
        kept = relevant >= 0
        if kept.any():
            out |= {f"t2i_{name}": value for name, value in pair_metrics(query.text[kept], gallery.image, relevant[kept]).items()}
            i2t = retrieval_metrics(query.image, gallery.text, task.query, task.gallery[gallery.text_of])
            out |= {f"i2t_{name}": value for name, value in i2t.items() if name == "map" or name.startswith("recall@")}
    return {name: float(value) if np.isfinite(value) else None for name, value in out.items()}


def search_metrics(
    release: Release,
    segments: Sequence[Segment],
    vectors: Mapping[EncoderRef, SplitEmbeddings],
    task: Task,
    items: Sequence[Item],
    k: int = 10,
    drifts: Mapping[int, Compensation] | None = None,
    calibrations: Sequence[Calibration] = (),
) -> dict[str, float | None]:
    """One task's test items as queries to everything a release has indexed, under its policy and merge (the unknown-task setting).

    Args:
        segments: of the release, in its order.
        vectors: what every encoder of the release makes of the test rows.
        drifts: of the compensated segments, by number; see `retrieval.compensation`.
        calibrations: for a learned merge, one for each fold of `fold_of`, fitted on the items of the others.
    Returns:
        `search_recall@1` and so on (a hit has the query's label), and `search_t2i_recall@1` ... (the hit is the captioned picture).
    """
    ids = np.array([items[int(row)].id for row in task.query])
    labels = np.array([items[int(row)].label for row in task.query])
    parts = {use.queried_by: vectors[use.queried_by].of(task.query) for use in release.segments}
    images = {ref: part.image for ref, part in parts.items()}
    hit_ids, hit_labels = _search(release, segments, images, "image", drifts or {}, k + 1, calibrations, ids)
    others = hit_ids != ids[:, None]
    in_gallery = {label for segment in segments for label in segment.table.labels}
    answerable = np.isin(labels, list(in_gallery))
    out: dict[str, float | None] = {}
    for top in (1, 5, 10):
        right = [bool((row[keep][:top] == label).any()) for row, keep, label in zip(hit_labels, others, labels, strict=True)]
        out[f"search_recall@{top}"] = float(np.mean(np.array(right)[answerable])) if answerable.any() else None
    first = next(iter(parts.values()))
    if first.text is not None and all(part.text is not None for part in parts.values()):
        texts = {ref: part.text for ref, part in parts.items() if part.text is not None}
        captioned = ids[first.text_of]
        held = np.isin(captioned, [item_id for segment in segments for item_id in segment.table.ids])
        right_NK = _search(release, segments, texts, "text", drifts or {}, k, calibrations, captioned)[0] == captioned[:, None]
        for top in (1, 5, 10):
            out[f"search_t2i_recall@{top}"] = float(right_NK[held, :top].any(axis=1).mean()) if held.any() else None
    return out


def merge_metrics(
    release: Release,
    segments: Sequence[Segment],
    vectors: Mapping[EncoderRef, SplitEmbeddings],
    task: Task,
    items: Sequence[Item],
    calibrations: Sequence[Calibration],
) -> dict[str, dict[str, float | None]]:
    """What `search_metrics` would say of a release under every merge, by its name; for choosing one by figures."""
    measured = {merge: replace(release, merge=merge) for merge in MERGES}
    return {merge: search_metrics(each, segments, vectors, task, items, calibrations=calibrations) for merge, each in measured.items()}


def _search(
    release: Release,
    segments: Sequence[Segment],
    embedded: Mapping[EncoderRef, NDArray[np.float32]],
    modality: QueryModality,
    drifts: Mapping[int, Compensation],
    k: int,
    calibrations: Sequence[Calibration],
    of_item: NDArray[np.str_],
) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """(Q, at least k) ids and labels of hits, each item once; empty where a list is shorter.

    Args:
        of_item: (Q,) ids of the items that the queries are made of, for `fold_of`; a picture does not find itself.
    """
    uses = release.segments
    modalities: list[QueryModality | None] = [modality for _ in of_item]
    queries = asked(release, embedded, modalities, drifts)
    hits = {
        number: segment.search(queries[number], k, encoder=use.queried_by, allowed=use.queried_by, number=number)
        for number, (use, segment) in enumerate(zip(uses, segments, strict=True))
    }
    width, held = k * len(uses), dict(enumerate(segments))
    own_items = of_item.tolist() if modality == "image" else []
    if not calibrations:
        return _names(merge_release(release, hits, held, queries, width, None, own_items, modalities), segments)
    ids, labels = (np.full((len(of_item), width), "", dtype=object) for _ in range(2))
    folds = np.array([fold_of(item_id) for item_id in of_item])
    for fold in range(FOLDS):
        own = np.flatnonzero(folds == fold)
        parts = {number: Hits(each.scores[own], each.rows[own], each.segments[own], each.metric) for number, each in hits.items()}
        merged = merge_release(
            release,
            parts,
            held,
            [each[own] for each in queries],
            width,
            calibrations[fold],
            own_items and of_item[own].tolist(),
            modalities[: len(own)],
        )
        found = _names(merged, segments)
        ids[own, : found[0].shape[1]], labels[own, : found[0].shape[1]] = found
    return ids, labels


def _names(hits: Hits, segments: Sequence[Segment]) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """(Q, K) item ids and labels of hits, where an item is listed first; empty strings behind the end of a list."""
    ids = np.full(hits.rows.shape, "", dtype=object)
    labels = np.full(hits.rows.shape, "", dtype=object)
    for number, segment in enumerate(segments):
        here = (hits.segments == number) & (hits.rows >= 0)
        ids[here] = np.array(segment.table.ids, dtype=object)[hits.rows[here]]
        labels[here] = np.array(segment.table.labels, dtype=object)[hits.rows[here]]
    again = np.zeros(ids.shape, np.bool_)
    for column in range(1, hits.rows.shape[1]):
        again[:, column] = (ids[:, :column] == ids[:, column, None]).any(axis=1)
    order = np.argsort(again | (hits.rows < 0), axis=1, kind="stable")  # what is listed again goes behind the end
    ids[again], labels[again] = "", ""
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(labels, order, axis=1)
