"""Measuring an encoder on the test splits of a stream: one row of the accuracy matrix.

Letters: n test items, m captions, D embedding, T tasks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from perdure.data.pixels import Pixels
from perdure.data.transforms import to_float
from perdure.encoders.encoder import Encoder
from perdure.index.merge import merge_segments
from perdure.index.segment import Segment
from perdure.metrics.retrieval import pair_metrics, retrieval_metrics
from perdure.records import EncoderRef, Hits, Item, Release, Task
from perdure.retrieval.compensation import Modality, QueryDrift, asked

__all__ = [
    "TASK_DEFINITIONS",
    "SplitEmbeddings",
    "are_words",
    "embed_images",
    "embed_items",
    "embed_split",
    "search_metrics",
    "task_metrics",
]

TASK_DEFINITIONS = {
    "recall@k of a task": "Image to image by class label, leave-one-out inside the task's own test split (the known-task setting).",
    "t2i_recall@k": "Text to image inside the task's own test split: each caption has one relevant picture, the one it was written for.",
    "i2t_recall@k": "Image to text inside the task's own test split: a hit is any of the picture's own captions.",
    "search_recall@k": "Image to image by class label over everything that the release has indexed, leave-one-out, under its index policy.",
    "search_t2i_recall@k": "Text to image over everything that the release has indexed; a hit is the picture the caption was written for.",
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


def embed_images(
    encoder: Encoder, pixels: Pixels, rows: NDArray[np.int64], progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """(n, D) unit embeddings of rows, in float32 whatever training used: these are stored and compared for years."""
    device = next(encoder.parameters()).device
    parts: list[NDArray[np.float32]] = []
    for start in range(0, len(rows), _BATCH):
        images = to_float(torch.from_numpy(pixels.take(rows[start : start + _BATCH])))
        parts.append(encoder.embed_images(images.to(device)).float().cpu().numpy())
        if progress is not None:
            progress(min(start + _BATCH, len(rows)), len(rows))
    return np.concatenate(parts) if parts else np.zeros((0, encoder.embedding_dim), dtype=np.float32)


def embed_items(encoder: Encoder, pixels: Pixels, items: Sequence[Item], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n, D) unit embeddings of items: of their pictures, or of their first caption where they are words alone."""
    is_text = are_words(items, rows)
    if not is_text.any():
        return embed_images(encoder, pixels, rows)
    out = np.empty((len(rows), encoder.embedding_dim), dtype=np.float32)
    out[~is_text] = embed_images(encoder, pixels, rows[~is_text])
    out[is_text] = _embed_texts(encoder, [items[int(row)].captions[0] for row in rows[is_text]])
    return out


def are_words(items: Sequence[Item], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) which items are words alone."""
    return np.array([items[int(row)].modality == "text" for row in rows], dtype=np.bool_)


def embed_split(encoder: Encoder, pixels: Pixels, items: Sequence[Item], rows: NDArray[np.int64]) -> SplitEmbeddings:
    """Items, and the captions of pictures when the encoder has a text tower."""
    image = embed_items(encoder, pixels, items, rows)
    captions = [(at, caption) for at, row in enumerate(rows) if items[int(row)].modality is None for caption in items[int(row)].captions]
    if encoder.text is None or not captions:
        return SplitEmbeddings(rows, image, None, np.zeros(0, dtype=np.int64))
    text = _embed_texts(encoder, [caption for _, caption in captions])
    return SplitEmbeddings(rows, image, text, np.array([at for at, _ in captions], dtype=np.int64))


def _embed_texts(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    parts = [encoder.embed_texts(texts[start : start + _BATCH]).float().cpu().numpy() for start in range(0, len(texts), _BATCH)]
    return np.concatenate(parts)


def task_metrics(embeddings: SplitEmbeddings, task: Task, labels: NDArray[np.int64]) -> dict[str, float | None]:
    """Every metric of one task's test split, searched inside that split (the known-task setting).

    Image to image: leave-one-out by class label. Text to image (`t2i_`): a caption finds its own picture; image to text (`i2t_`):
    a picture finds any of its captions.
    """
    query, gallery = embeddings.of(task.query), embeddings.of(task.gallery)
    out = retrieval_metrics(
        query.image, gallery.image, labels[task.query], labels[task.gallery], query_ids=task.query, gallery_ids=task.gallery
    )
    if query.text is not None and gallery.text is not None:
        position = {int(row): at for at, row in enumerate(task.gallery)}
        relevant = np.array([position.get(int(task.query[at]), -1) for at in query.text_of], dtype=np.int64)
        kept = relevant >= 0
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
    drifts: Mapping[int, QueryDrift] | None = None,
) -> dict[str, float | None]:
    """One task's test items as queries to everything a release has indexed, under its policy and merge (the unknown-task setting).

    Args:
        segments: of the release, in its order.
        vectors: what every encoder of the release makes of the test rows.
        drifts: of the compensated segments, by number; see `retrieval.compensation`.
    Returns:
        `search_recall@1` and so on (a hit has the query's label), and `search_t2i_recall@1` ... (the hit is the captioned picture).
    """
    ids = np.array([items[int(row)].id for row in task.query])
    labels = np.array([items[int(row)].label for row in task.query])
    parts = {use.queried_by: vectors[use.queried_by].of(task.query) for use in release.segments}
    found = _search(release, segments, {ref: part.image for ref, part in parts.items()}, "image", drifts or {}, k + 1)
    hit_ids, hit_labels = _names(found, segments)
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
        found = _search(release, segments, texts, "text", drifts or {}, k)
        right_NK = _names(found, segments)[0] == ids[first.text_of][:, None]
        out |= {f"search_t2i_recall@{top}": float(right_NK[:, :top].any(axis=1).mean()) for top in (1, 5, 10)}
    return out


def _search(
    release: Release,
    segments: Sequence[Segment],
    embedded: Mapping[EncoderRef, NDArray[np.float32]],
    modality: Modality,
    drifts: Mapping[int, QueryDrift],
    k: int,
) -> Hits:
    uses = release.segments
    modalities: list[Modality] = [modality] * len(embedded[uses[0].queried_by])
    queries = asked(release, embedded, modalities, drifts)
    hits = [
        segment.search(queries[number], k, encoder=use.queried_by, allowed=use.queried_by, number=number)
        for number, (use, segment) in enumerate(zip(uses, segments, strict=True))
    ]
    return merge_segments(hits, k, how=release.merge, statistics=[segment.statistics for segment in segments], queries=queries)


def _names(hits: Hits, segments: Sequence[Segment]) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """(Q, K) item ids and labels of hits; empty strings where a list is shorter."""
    ids = np.full(hits.rows.shape, "", dtype=object)
    labels = np.full(hits.rows.shape, "", dtype=object)
    for number, segment in enumerate(segments):
        here = (hits.segments == number) & (hits.rows >= 0)
        ids[here] = np.array(segment.table.ids, dtype=object)[hits.rows[here]]
        labels[here] = np.array(segment.table.labels, dtype=object)[hits.rows[here]]
    return ids, labels
