"""Ranks over several lists of gallery items whose scores may not be comparable as they are.

A gallery is cut into lists, one for each encoder that made vectors. The items relevant to a query stand in one of them, its own list. With
s* the best score of a relevant item and theta_l what s* corresponds to in list l,

    rank = 1 + #{ irrelevant items n of the own list : s_n >= s* - TIE } + sum over other lists l #{ items n of l : s_n >= theta_l - TIE }

With theta_l = s* everywhere this is rank_1 of equation (1) of `metrics.ranks` over all lists together: an item that is as good as a
relevant one ranks before it. D embedding, N items of a list, Q queries.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perdure.metrics.ranks import TIE, as_vectors

__all__ = ["best_of_own", "first_hits", "num_before"]


def best_of_own(
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    query_names: NDArray[np.int64],
    item_names: NDArray[np.int64],
    *,
    chunk_bytes: int = 64 * 2**20,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best relevant item of each query in its own list, and how many irrelevant ones of that list rank before it.

    Args:
        queries: (Q, D).
        items: (N, D) of the list; N may be 0.
        query_names: (Q,) an item is relevant to a query of the same name, such as the row of the picture that both belong to.
        item_names: (N,) likewise.
        chunk_bytes: bound on what is allocated beside the inputs; at least one row of N scores is.
    Returns:
        (Q,) s*, -inf where nothing is relevant, and (Q,) the first count of the module's equation.
    Raises:
        ValueError: shapes that do not fit, a value that is not finite.
    """
    best_Q = np.full(len(queries), -np.inf, np.float32)
    before_Q = np.zeros(len(queries), np.int64)
    for part, scores_qN in _chunks(queries, items, chunk_bytes):
        relevant_qN = torch.from_numpy(query_names[part, None] == item_names)
        best_q1 = scores_qN.masked_fill(~relevant_qN, -torch.inf).amax(dim=1, keepdim=True)
        before_q = torch.count_nonzero((scores_qN >= best_q1 - TIE) & ~relevant_qN, dim=1)
        best_Q[part], before_Q[part] = best_q1[:, 0].numpy(), before_q.numpy()
    return best_Q, before_Q


def num_before(
    queries: NDArray[np.float32], items: NDArray[np.float32], thresholds: NDArray[np.floating], *, chunk_bytes: int = 64 * 2**20
) -> NDArray[np.int64]:
    """How many items of a list that holds nothing relevant rank before each query's best relevant item.

    Args:
        queries: (Q, D) as they are put to this list.
        items: (N, D) of the list; N may be 0.
        thresholds: (Q,) theta of this list, in units of its scores.
        chunk_bytes: as for `best_of_own`.
    Returns:
        (Q,) the count of this list in the module's equation.
    Raises:
        ValueError: as for `best_of_own`.
    """
    before_Q = np.zeros(len(queries), np.int64)
    least_Q = torch.from_numpy(np.asarray(thresholds, dtype=np.float32)) - TIE
    for part, scores_qN in _chunks(queries, items, chunk_bytes):
        before_Q[part] = torch.count_nonzero(scores_qN >= least_Q[part, None], dim=1).numpy()
    return before_Q


def first_hits(
    queries: NDArray[np.float32], items: NDArray[np.float32], k: int, *, chunk_bytes: int = 64 * 2**20
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and places in a list of the best K items for each query, best first; K is k, or N where that is less.

    Args:
        queries: (Q, D).
        items: (N, D) of the list; N may be 0.
        k: how many.
        chunk_bytes: as for `best_of_own`.
    Returns:
        (Q, K) and (Q, K).
    Raises:
        ValueError: as for `best_of_own`.
    """
    most = min(k, len(items))
    scores_QK, places_QK = np.empty((len(queries), most), np.float32), np.empty((len(queries), most), np.int64)
    for part, scores_qN in _chunks(queries, items, chunk_bytes):
        best = torch.topk(scores_qN, most, dim=1)
        scores_QK[part], places_QK[part] = best.values.numpy(), best.indices.numpy()
    return scores_QK, places_QK


def _chunks(queries: NDArray[np.float32], items: NDArray[np.float32], chunk_bytes: int) -> Iterator[tuple[slice, Tensor]]:
    """(queries of a chunk, their scores (q, N)); none where one side is empty."""
    if not len(queries) or not len(items):
        return
    queries_QD, items_ND = as_vectors(queries, items)
    size = max(1, chunk_bytes // (6 * len(items_ND)))  # a score and two comparisons each
    for start in range(0, len(queries_QD), size):
        part = slice(start, min(start + size, len(queries_QD)))
        yield part, queries_QD[part] @ items_ND.T
