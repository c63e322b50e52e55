"""How good codes of bits are: average precision of the ranking by Hamming distance, and what a lookup within a radius finds.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), section 3.4. A distance takes only K + 1 values, so most of a ranking
is ties, and whoever sorts them one way or the other gets another number: here the mean over all their orders counts (McSherry and
Najork, "Computing information retrieval performance measures efficiently in the presence of tied scores", ECIR 2008).

Q queries, N gallery, K bits, C labels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HASHING_DEFINITIONS", "Lookup", "hamming_distances", "hamming_map", "lookup", "share_a_label"]

Bits = NDArray[np.bool_]
Relevant = NDArray[np.bool_]
Labels = NDArray[np.integer[Any]] | NDArray[np.bool_]

HASHING_DEFINITIONS: dict[str, str] = {
    "hamming_map": "Mean over queries of the average precision of the whole gallery ranked by Hamming distance, averaged over all orders "
    "of the items at one distance; relevant is what has a label in common. Queries with nothing relevant are in no mean.",
    "lookup_precision": "At each radius, mean over queries of the share of relevant items among those at that distance or nearer; a query "
    "that finds nothing counts 0.",
    "lookup_recall": "At each radius, mean over queries of the share of the relevant items that are at that distance or nearer.",
    "lookup_answered": "At each radius, share of queries that find anything.",
}
"""What each number means, word for word."""


@dataclass(frozen=True, eq=False)
class Lookup:
    """What a lookup finds at the radii 0 .. K, each (K + 1,)."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    answered: NDArray[np.float64]


def hamming_distances(queries: Bits, gallery: Bits) -> NDArray[np.int64]:
    """(Q, K) and (N, K) bits -> (Q, N) how many differ.

    Raises:
        ValueError: not two matrices of one width.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"hamming_distances: got {queries.shape} and {gallery.shape}; it needs (Q, K) and (N, K)")
    mine, other = queries.astype(np.float32), gallery.astype(np.float32)
    apart = mine.sum(axis=1)[:, None] + other.sum(axis=1) - 2 * mine @ other.T  # |a| + |b| - 2 <a, b>, exact in float32 up to 2^24 bits
    return np.rint(apart).astype(np.int64)


def share_a_label(query_labels: Labels, gallery_labels: Labels) -> Relevant:
    """(Q, C) and (N, C) of 0 and 1 -> (Q, N) whether two items have a label in common; (Q,) and (N,), one label each: the same label.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if query_labels.ndim == gallery_labels.ndim == 1:
        return query_labels[:, None] == gallery_labels
    if query_labels.ndim != 2 or gallery_labels.ndim != 2 or query_labels.shape[1] != gallery_labels.shape[1]:
        raise ValueError(
            f"share_a_label: got {query_labels.shape} and {gallery_labels.shape}; it needs (Q, C) and (N, C), or (Q,) and (N,)"
        )
    return query_labels.astype(np.float32) @ gallery_labels.astype(np.float32).T > 0


def hamming_map(distances: NDArray[np.int64], relevant: Relevant) -> float:
    """Mean average precision of the ranking by distance, over all orders of ties.

    Of a group of n items at one distance with r relevant ones, behind N' items with R' relevant ones, the i-th place is relevant with the
    chance r / n, and then has R' + 1 + (i - 1)(r - 1)/(n - 1) relevant items up to it, in the mean: what it adds to R times the average
    precision is (r / n) (R' + 1 + (i - 1)(r - 1)/(n - 1)) / (N' + i).

    Args:
        distances: (Q, N).
        relevant: (Q, N).
    Returns:
        in 0..1; nan where no query has anything relevant.
    Raises:
        ValueError: shapes differ.
    """
    _check("hamming_map", distances, relevant)
    return _mean([_average_precision(*each) for each in zip(distances, relevant, strict=True) if each[1].any()])


def lookup(distances: NDArray[np.int64], relevant: Relevant, bits: int) -> Lookup:
    """Precision, recall and answered queries at every radius, by the words of `HASHING_DEFINITIONS`.

    Args:
        distances: (Q, N).
        relevant: (Q, N); queries with nothing relevant are left out.
        bits: K, the largest distance.
    Raises:
        ValueError: shapes differ, a distance outside 0..K, no query with anything relevant.
    """
    _check("lookup", distances, relevant)
    kept = relevant.any(axis=1)
    if not kept.any():
        raise ValueError("lookup: no query has anything relevant in the gallery, so there is nothing to find")
    if distances.min() < 0 or distances.max() > bits:
        raise ValueError(f"lookup: distances from {distances.min()} to {distances.max()}, but codes of {bits} bits; 0 to {bits}")
    found = np.stack([np.bincount(row, minlength=bits + 1) for row in distances[kept]]).cumsum(axis=1)
    right = np.stack(
        [np.bincount(row[good], minlength=bits + 1) for row, good in zip(distances[kept], relevant[kept], strict=True)]
    ).cumsum(axis=1)
    return Lookup(
        precision=(right / np.maximum(found, 1)).mean(axis=0),
        recall=(right / right[:, -1:]).mean(axis=0),
        answered=(found > 0).mean(axis=0),
    )


def _average_precision(distances: NDArray[np.int64], relevant: Relevant) -> float:
    n = np.bincount(distances)
    r = np.bincount(distances[relevant], minlength=len(n))
    before, right_before = n.cumsum() - n, r.cumsum() - r
    group = np.repeat(np.arange(len(n)), n)  # of each place of the ranking
    place = np.arange(len(distances)) - before[group]  # i - 1
    up_to = right_before[group] + 1 + place * (r[group] - 1) / np.maximum(n[group] - 1, 1)
    added = r[group] / n[group] * up_to / (np.arange(len(distances)) + 1)
    return float(added.sum() / relevant.sum())


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _check(what: str, distances: NDArray[np.int64], relevant: Relevant) -> None:
    if distances.ndim != 2 or distances.shape != relevant.shape:
        raise ValueError(f"{what}: got distances {distances.shape} and relevant {relevant.shape}; both (Q, N)")
