"""How well codes of bits find, across the modalities, beside exact search among the numbers that the bits are the signs of.

Q queries, N gallery, K bits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.metrics.hashing import HASHING_DEFINITIONS, hamming_distances, hamming_map, lookup, share_a_label
from perdure.retrieval.evaluation import SplitEmbeddings

__all__ = ["CODE_DEFINITIONS", "code_metrics"]

CODE_DEFINITIONS: dict[str, str] = {
    **HASHING_DEFINITIONS,
    "real_map": "As hamming_map, ranked by the cosine of the K numbers that the bits are the signs of.",
}
_PLACES = 5  # of a figure in a curve
_MOST_PAIRS = 20_000_000  # of a query and an item, at a time


def code_metrics(
    queries: SplitEmbeddings,
    labels: NDArray[np.bool_],
    gallery: SplitEmbeddings,
    gallery_labels: NDArray[np.bool_],
) -> dict[str, Any]:
    """Hamming ranking and hash lookup of pictures by captions and of captions by pictures.

    Args:
        queries: of an encoder that hashes; K numbers, whose signs are the bits.
        labels: (Q, C) which labels each picture has; a caption has those of its picture. What has one in common is relevant.
        gallery: what is searched, by the same encoder; it may be the queries.
        gallery_labels: (N, C) of its pictures.
    Returns:
        `bits`, and for "i2t" and "t2i" the values of `CODE_DEFINITIONS`; the lookup's are lists over the radii 0 to K.
    Raises:
        ValueError: there are no captions, or no query has anything relevant.
    """
    if queries.text is None or gallery.text is None:
        raise ValueError("codes are measured across modalities, and there are no captions")
    sides = {
        "i2t": (queries.image, gallery.text, labels, gallery_labels[gallery.text_of]),
        "t2i": (queries.text, gallery.image, labels[queries.text_of], gallery_labels),
    }
    return {"bits": queries.image.shape[1], **{name: _direction(*side) for name, side in sides.items()}}


def _direction(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], labels: NDArray[np.bool_], gallery_labels: NDArray[np.bool_]
) -> dict[str, Any]:
    """Means over the queries, some of them at a time: every one of them has a distance to the whole gallery."""
    bits, size = queries.shape[1], max(1, _MOST_PAIRS // max(1, len(gallery)))
    counted: list[int] = []
    parts: list[dict[str, Any]] = []
    for start in range(0, len(queries), size):
        own = slice(start, start + size)
        relevant = share_a_label(labels[own], gallery_labels)
        answerable = relevant.any(axis=1)
        if not answerable.any():
            continue
        relevant, asked = relevant[answerable], queries[own][answerable]
        distances = hamming_distances(asked >= 0, gallery >= 0)
        found = lookup(distances, relevant, bits)
        places = np.argsort(np.argsort(-(asked @ gallery.T), axis=1, kind="stable"), axis=1)
        counted.append(len(asked))
        parts.append(
            {
                "hamming_map": hamming_map(distances, relevant),
                "real_map": hamming_map(places, relevant),
                "lookup_precision": found.precision,
                "lookup_recall": found.recall,
                "lookup_answered": found.answered,
            }
        )
    if not parts:
        raise ValueError("codes: no query has anything relevant in the gallery, so there is nothing to find")
    means = {name: np.average([part[name] for part in parts], axis=0, weights=counted) for name in parts[0]}
    return {name: float(value) if value.ndim == 0 else np.round(value, _PLACES).tolist() for name, value in means.items()}
