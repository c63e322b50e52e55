"""In which order old items move to a new encoder, from what is stored of them: vectors, classes, and how often each was found.

order                     first to move
random                    as a hash of the id falls
farthest_from_class_mean  those whose vector is farthest from the mean of its class: an old encoder failed them most
by_uncertainty            those whose class the old vectors tell least surely
most_queried              those that searches found most often: where moving is noticed soonest

FastFill (Jaeckle et al., ICLR 2023) moves by a predicted error of a learned map, highest first; ours, for want of such a map, is the
entropy of what the class means say. N items, D embedding, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perdure.errors import ConfigError
from perdure.index.partition import partition_of

__all__ = ["ORDERS", "Order", "distance_from_class_mean", "moving_order", "uncertainty"]

Order = Literal["random", "farthest_from_class_mean", "by_uncertainty", "most_queried"]
ORDERS: tuple[Order, ...] = ("random", "farthest_from_class_mean", "by_uncertainty", "most_queried")
_TEMPERATURE = 0.1  # of the softmax over class means
_ROWS = 8192  # compared with all class means at a time


def moving_order(
    order: str,
    ids: Sequence[str],
    labels: Sequence[str],
    vectors: NDArray[np.float32],
    *,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
) -> NDArray[np.int64]:
    """(N,) rows, first to move first; equal ones as their hash falls, so that the order is the same on every machine.

    Args:
        order: one of ORDERS.
        ids: N.
        labels: N.
        vectors: (N, D) unit rows of one encoder.
        seed: of the hash.
        counts: for most_queried, how often searches found an item, by id; 0 for those that are missing.

    Raises:
        ConfigError: an unknown order, or most_queried without counts.
    """
    if order not in ORDERS:
        raise ConfigError("backfill order", [f"no order named '{order}'; known: {', '.join(ORDERS)}"])
    if order == "farthest_from_class_mean":
        key = distance_from_class_mean(labels, vectors)
    elif order == "by_uncertainty":
        key = uncertainty(labels, vectors)
    elif order == "most_queried":
        if counts is None:
            raise ConfigError(
                "backfill order", ["most_queried needs to know how often each item was found: --counts FILE, or another order"]
            )
        key = np.array([counts.get(item_id, 0) for item_id in ids], dtype=np.float64)
    else:
        key = np.zeros(len(ids))
    hashed = np.array([partition_of(f"{seed}/{item_id}", 2**62) for item_id in ids], dtype=np.int64)
    return np.lexsort((hashed, -key)).astype(np.int64)


def distance_from_class_mean(labels: Sequence[str], vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) | x - m_c |, m_c the mean vector of the item's class."""
    means, of_class = _class_means(labels, vectors)
    return np.linalg.norm(vectors - means[of_class], axis=1)


def uncertainty(labels: Sequence[str], vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) the entropy  - sum_c p_c log p_c  of  p = softmax_c( x . m_c / (|m_c| tau) ),  tau = 0.1."""
    means, _ = _class_means(labels, vectors)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    out = np.empty(len(vectors))
    for start in range(0, len(vectors), _ROWS):
        logits = vectors[start : start + _ROWS] @ means.T / _TEMPERATURE
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        out[start : start + _ROWS] = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1)
    return out


def _class_means(labels: Sequence[str], vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(C, D) means and (N,) the class of each item."""
    _, of_class, count = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), vectors.shape[1]))
    np.add.at(sums, of_class, vectors)
    return sums / count[:, None], of_class.astype(np.int64)
