"""A number that others have published and that is not what its name says, kept to read their tables; nothing here judges a run.

Q queries, N gallery.
"""

import numpy as np
import torch

from perdure.metrics.ranks import Names, Vectors, as_names, as_vectors

__all__ = ["DEFINITION", "map_legacy_chen"]

DEFINITION = (
    "Not a mean average precision: 1/R sum_i (i - 1) / rank_i, where R counts the query itself, which stays in the gallery with its score "
    "lowered by 1; ties in gallery order. A perfect embedding of 5, 20 or 60 items a class scores 0.41, 0.78 or 0.91."
)
"""What the number means, word for word."""


def map_legacy_chen(vectors: Vectors, labels: Names, *, chunk_bytes: int = 256 * 2**20) -> float:
    """What the public code beside the thesis (ch. 6) prints as mAP, of a gallery that is also the queries.

        AP_q = 1/R sum_{i=1..R} (i - 1) / rank_i            over all R items of the query's class, the query included

    Hits strictly before the i-th are counted where the definition of precision counts the i-th too, and the query itself is ranked with
    the score s_qq - 1, near 0. Whether the printed tables were made by it is not known.

    Args:
        vectors: (N, D) rows of unit length.
        labels: (N,) class of each.
        chunk_bytes: bound on what is allocated beside the inputs; at least a few rows of N numbers are.
    Raises:
        ValueError: as `retrieval_metrics`.
    Deviations: equal scores rank in gallery order; there the order is that of an unstable sort.
    """
    vectors_ND, _ = as_vectors(vectors, vectors)
    labels_N = as_names(labels)
    if labels_N.shape != (len(vectors_ND),):
        raise ValueError(f"map_legacy_chen: {len(vectors_ND)} vectors and labels of shape {labels_N.shape}; expected one each")
    num_rows = max(1, chunk_bytes // (40 * len(vectors_ND)))
    place_N = np.arange(1, len(vectors_ND) + 1)
    total = 0.0
    for start in range(0, len(vectors_ND), num_rows):
        rows = np.arange(start, min(start + num_rows, len(vectors_ND)))
        scores_qN = torch.mm(vectors_ND[start : rows[-1] + 1], vectors_ND.T).numpy()
        scores_qN[rows - start, rows] -= 1.0
        hit_qN = labels_N[np.argsort(-scores_qN, axis=1, kind="stable")] == labels_N[rows, None]
        before_qN = np.cumsum(hit_qN, axis=1) - 1  # hits strictly before, where there is a hit
        total += float((np.where(hit_qN, before_qN / place_N, 0.0).sum(axis=1) / hit_qN.sum(axis=1)).sum())
    return total / len(vectors_ND)
