"""How good a ranking is: Recall@K, mAP and MAP@R.

Everything follows from the ranks of the relevant items, equation (1) of `metrics.ranks`: a query is a hit at K when rank_1 <= K, its
average precision is 1/R sum_i i / rank_i, and so on.

D embedding, N gallery, Q queries, K top-k, R relevant items of a query.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from perdure.metrics.ranks import RULES, TIE, Names, Vectors, as_names, as_vectors, mean_of, ranks_of_relevant, refuse_kinds

__all__ = ["DEFINITIONS", "TIE", "definitions", "pair_metrics", "recall_from_hits", "retrieval_metrics"]

DEFINITIONS: dict[str, str] = {
    "recall@k": "Share of queries with at least one relevant item (same label) among the first k: a hit, not the share of relevant items "
    f"found. {RULES}",
    "map": f"Mean over queries of the average precision 1/R sum_i i / rank_i over all R relevant items of the whole ranking. {RULES}",
    "map@r": f"Mean over queries of 1/R sum over those relevant items that rank within R of i / rank_i (Musgrave et al. 2020). {RULES}",
    "queries": "Number of queries that the means are taken over.",
    "lone_queries": "Number of queries without any relevant gallery item other than themselves; they are in no mean.",
    "median_rank": "Median over queries of the rank of the one relevant gallery item, 1 = first. Ties rank before it.",
}
"""What each number means, word for word; `recall@k` stands for every K."""


def definitions(keys: Sequence[str]) -> dict[str, str]:
    """The definition of each key of a result, `recall@5` included, to be stored beside the numbers."""
    return {key: DEFINITIONS["recall@k" if key.startswith("recall@") else key] for key in keys}


def retrieval_metrics(
    queries: Vectors,
    gallery: Vectors,
    query_labels: Names,
    gallery_labels: Names,
    *,
    query_ids: Names | None = None,
    gallery_ids: Names | None = None,
    ks: Sequence[int] = (1, 5, 10),
    chunk_bytes: int = 256 * 2**20,
) -> dict[str, float]:
    """Recall@K, mAP and MAP@R of a ranking in which the items of a query's label are relevant.

        recall@k = mean_q [rank_1 <= k]      map = mean_q 1/R sum_i i / rank_i      map@r = mean_q 1/R sum_{i: rank_i <= R} i / rank_i

    with the ranks of equation (1) of `metrics.ranks`. Labels may be ids of pictures, which makes captions the relevant items.

    Args:
        queries: (Q, D) rows of unit length; any float type, numpy or torch, on any device.
        gallery: (N, D) likewise.
        query_labels: (Q,) class of each query: integers or strings.
        gallery_labels: (N,) likewise.
        query_ids: (Q,) item ids, with `gallery_ids`: a query does not retrieve gallery items of its own id. None: nothing is left out.
        gallery_ids: (N,) likewise.
        ks: the K of Recall@K; a K above N asks for a relevant item anywhere.
        chunk_bytes: bound on what is allocated beside the inputs; at least one row of N scores is.
    Returns:
        `recall@k` for each k, `map`, `map@r` between 0 and 1 (NaN when no query has a relevant item), `queries`, `lone_queries`.
    Raises:
        ValueError: shapes that do not fit, a value that is not finite, a k below 1, ids on one side only.
    """
    _check_ks(ks)
    chunks = ranks_of_relevant(
        queries, gallery, query_labels, gallery_labels, query_ids=query_ids, gallery_ids=gallery_ids, chunk_bytes=chunk_bytes
    )
    first_rank_Q = np.zeros(len(queries), np.int64)
    average_precision_Q = np.zeros(len(queries))
    precision_at_r_Q = np.zeros(len(queries))
    num_relevant_Q = np.zeros(len(queries), np.int64)
    for chunk in chunks:
        place_R = np.arange(1, chunk.ranks.shape[1] + 1)
        is_relevant_qR = place_R <= chunk.count[:, None]
        precision_qR = np.where(is_relevant_qR, place_R / chunk.ranks, 0.0)
        share_q = 1 / np.maximum(chunk.count, 1)
        first_rank_Q[chunk.rows] = chunk.ranks[:, 0] if len(place_R) else 0
        average_precision_Q[chunk.rows] = precision_qR.sum(axis=1) * share_q
        precision_at_r_Q[chunk.rows] = (precision_qR * (chunk.ranks <= chunk.count[:, None])).sum(axis=1) * share_q
        num_relevant_Q[chunk.rows] = chunk.count

    counted = num_relevant_Q > 0
    result = {f"recall@{k}": mean_of(first_rank_Q[counted] <= k) for k in ks}
    result |= {"map": mean_of(average_precision_Q[counted]), "map@r": mean_of(precision_at_r_Q[counted])}
    return result | {"queries": float(counted.sum()), "lone_queries": float((~counted).sum())}


def pair_metrics(
    queries: Vectors,
    gallery: Vectors,
    relevant: NDArray[np.int64],
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk_bytes: int = 256 * 2**20,
) -> dict[str, float]:
    """Recall@K and median rank where each query (a caption, say) has exactly one relevant gallery item (its picture).

        rank_q = 1 + #{ n != relevant_q : s_qn >= s_q,relevant - TIE }          recall@k = mean_q [rank_q <= k]

    Args:
        queries: (Q, D) rows of unit length.
        gallery: (N, D) likewise.
        relevant: (Q,) gallery row that belongs to each query; several queries may share one.
        ks: the K of Recall@K.
        chunk_bytes: bound on what is allocated beside the inputs; at least one row of N scores is.
    Returns:
        `recall@k` for each k between 0 and 1, `median_rank` from 1, `queries`.
    Raises:
        ValueError: shapes that do not fit, a value that is not finite, a k below 1, a row outside the gallery.
    """
    queries_QD, gallery_ND = as_vectors(queries, gallery)
    _check_ks(ks)
    relevant_Q = torch.from_numpy(np.ascontiguousarray(relevant, np.int64))
    if relevant_Q.shape != (len(queries_QD),) or int(relevant_Q.min()) < 0 or int(relevant_Q.max()) >= len(gallery_ND):
        raise ValueError(f"pair_metrics: relevant has to hold one of {len(gallery_ND)} gallery rows for each of {len(queries_QD)} queries")
    num_rows = min(len(queries_QD), max(1, chunk_bytes // (5 * len(gallery_ND))))  # a score and a comparison each
    ranks_Q = torch.empty(len(queries_QD), dtype=torch.int64)
    scores = torch.from_numpy(np.empty((num_rows, len(gallery_ND)), np.float32))
    for start in range(0, len(queries_QD), num_rows):
        part = slice(start, min(start + num_rows, len(queries_QD)))
        scores_qN = torch.mm(queries_QD[part], gallery_ND.T, out=scores[: part.stop - part.start])
        own_q1 = scores_qN.gather(1, relevant_Q[part, None])
        ranks_Q[part] = torch.count_nonzero(scores_qN >= own_q1 - TIE, dim=1)  # the relevant item counts itself: rank 1 is the first
    result = {f"recall@{k}": mean_of((ranks_Q <= k).numpy()) for k in ks}
    return result | {"median_rank": float(np.median(ranks_Q.numpy())), "queries": float(len(ranks_Q))}


def recall_from_hits(hit_labels: Names, query_labels: Names, k: int) -> float:
    """Recall@K of hit lists that came from an index: the share of queries with their own label among the first k hits.

    The index has to leave the query's own item out; its order decides between equal scores. A list that is shorter than K is padded
    with a label that no query has (-1, or an empty string).

    Args:
        hit_labels: (Q, K) labels of the hits, best first.
        query_labels: (Q,) labels of the queries.
        k: from 1 to K.
    Raises:
        ValueError: shapes that do not fit, no queries, or a k outside 1..K.
    """
    hits_QK, labels_Q = as_names(hit_labels), as_names(query_labels)
    if hits_QK.ndim != 2 or labels_Q.shape != (len(hits_QK),) or not len(labels_Q):
        raise ValueError(f"recall_from_hits: got hits {hits_QK.shape} and query labels {labels_Q.shape}; expected (Q, K) and (Q,), Q >= 1")
    if not 1 <= k <= hits_QK.shape[1]:
        raise ValueError(f"recall_from_hits: k={k}, but the lists hold {hits_QK.shape[1]} hits; choose 1..{hits_QK.shape[1]}")
    refuse_kinds(hits_QK, labels_Q, "labels")
    return mean_of((hits_QK[:, :k] == labels_Q[:, None]).any(axis=1))


def _check_ks(ks: Sequence[int]) -> None:
    if any(k < 1 for k in ks):
        raise ValueError(f"metrics: ks={tuple(ks)}; Recall@K is defined for K of 1 and more")
