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


def code_metrics(embeddings: SplitEmbeddings, labels: NDArray[np.bool_]) -> dict[str, Any]:
    """Hamming ranking and hash lookup of pictures by captions and of captions by pictures, over everything that was embedded.

    Args:
        embeddings: of an encoder that hashes; K numbers, whose signs are the bits.
        labels: (n, C) which labels each picture has; a caption has those of its picture. What has one in common is relevant.
    Returns:
        `bits`, and for "i2t" and "t2i" the values of `CODE_DEFINITIONS`; the lookup's are lists over the radii 0 to K.
    Raises:
        ValueError: there are no captions.
    """
    if embeddings.text is None:
        raise ValueError("codes are measured across modalities, and there are no captions")
    of_text = labels[embeddings.text_of]
    sides = {"i2t": (embeddings.image, embeddings.text, labels, of_text), "t2i": (embeddings.text, embeddings.image, of_text, labels)}
    measured = {name: _direction(queries, gallery, share_a_label(mine, theirs)) for name, (queries, gallery, mine, theirs) in sides.items()}
    return {"bits": embeddings.image.shape[1], **measured}


def _direction(queries: NDArray[np.float32], gallery: NDArray[np.float32], relevant: NDArray[np.bool_]) -> dict[str, Any]:
    bits = queries.shape[1]
    distances = hamming_distances(queries >= 0, gallery >= 0)
    found = lookup(distances, relevant, bits)
    places = np.argsort(np.argsort(-(queries @ gallery.T), axis=1, kind="stable"), axis=1)
    curves = {"lookup_precision": found.precision, "lookup_recall": found.recall, "lookup_answered": found.answered}
    return {
        "hamming_map": hamming_map(distances, relevant),
        "real_map": hamming_map(places, relevant),
        **{name: np.round(values, _PLACES).tolist() for name, values in curves.items()},
    }
