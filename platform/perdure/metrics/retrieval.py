"""How good a ranking is: Recall@K, mAP and MAP@R, computed in chunks so that memory does not follow Q x N.

Everything follows from the ranks of the relevant items. Let s_1 >= ... >= s_R be the scores of the R items relevant to a query and

    rank_i = i + #{ irrelevant items n : s_n >= s_i - TIE }                                                    (1)

Then a query is a hit at K when rank_1 <= K, its average precision is 1/R sum_i i / rank_i, and so on. An irrelevant item as good as
a relevant one thus ranks first (pessimistic ties): an encoder that maps everything to one point scores next to nothing. TIE is wider
than the rounding of a float32 inner product of unit rows, so the result does not depend on how the product was cut into chunks.

D embedding, N gallery, Q queries, K top-k, R relevant items of a query.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["DEFINITIONS", "TIE", "definitions", "pair_metrics", "recall_from_hits", "retrieval_metrics"]

TIE = 1e-6
"""Scores closer than this are equal; an inner product of two unit rows in float32 is off by about 1e-7."""

_RULES = (
    "Ranking by inner product of unit rows; a query never retrieves the gallery item of its own id; an irrelevant item whose score is "
    f"within {TIE:g} of a relevant one's ranks before it; queries without any relevant item are left out and counted in lone_queries."
)

DEFINITIONS: dict[str, str] = {
    "recall@k": "Share of queries with at least one relevant item (same label) among the first k: a hit, not the share of relevant items "
    f"found. {_RULES}",
    "map": f"Mean over queries of the average precision 1/R sum_i i / rank_i over all R relevant items of the whole ranking. {_RULES}",
    "map@r": f"Mean over queries of 1/R sum over those relevant items that rank within R of i / rank_i (Musgrave et al. 2020). {_RULES}",
    "queries": "Number of queries that the means are taken over.",
    "lone_queries": "Number of queries without any relevant gallery item other than themselves; they are in no mean.",
    "median_rank": "Median over queries of the rank of the one relevant gallery item, 1 = first. Ties rank before it.",
}
"""What each number means, word for word; `recall@k` stands for every K."""

Vectors = NDArray[Any] | Tensor
Names = NDArray[Any] | Tensor | Sequence[Any]


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

    with the ranks of equation (1) of this module. Labels may be ids of pictures, which makes captions the relevant items.

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
    queries_QD, gallery_ND = _vectors(queries, gallery)
    _check_ks(ks)
    relevant = _Matches.between(query_labels, gallery_labels, len(queries_QD), len(gallery_ND), "labels")
    if (query_ids is None) != (gallery_ids is None):
        raise ValueError("retrieval_metrics: got ids of only one of queries and gallery; give both, or neither to leave nothing out")
    itself = (
        None
        if query_ids is None or gallery_ids is None
        else _Matches.between(query_ids, gallery_ids, len(queries_QD), len(gallery_ND), "ids")
    )

    first_rank_Q = np.zeros(len(queries_QD), np.int64)
    average_precision_Q = np.zeros(len(queries_QD))
    precision_at_r_Q = np.zeros(len(queries_QD))
    num_relevant_Q = np.zeros(len(queries_QD), np.int64)
    for rows, ranks_qR, num_relevant_q in _ranks(queries_QD, gallery_ND, relevant, itself, chunk_bytes):
        place_R = np.arange(1, ranks_qR.shape[1] + 1)
        is_relevant_qR = place_R <= num_relevant_q[:, None]
        precision_qR = np.where(is_relevant_qR, place_R / ranks_qR, 0.0)
        share_q = 1 / np.maximum(num_relevant_q, 1)
        first_rank_Q[rows] = ranks_qR[:, 0] if len(place_R) else 0
        average_precision_Q[rows] = precision_qR.sum(axis=1) * share_q
        precision_at_r_Q[rows] = (precision_qR * (ranks_qR <= num_relevant_q[:, None])).sum(axis=1) * share_q
        num_relevant_Q[rows] = num_relevant_q

    counted = num_relevant_Q > 0
    result = {f"recall@{k}": _mean(first_rank_Q[counted] <= k) for k in ks}
    result |= {"map": _mean(average_precision_Q[counted]), "map@r": _mean(precision_at_r_Q[counted])}
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
    queries_QD, gallery_ND = _vectors(queries, gallery)
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
    result = {f"recall@{k}": _mean((ranks_Q <= k).numpy()) for k in ks}
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
    hits_QK, labels_Q = _numpy(hit_labels), _numpy(query_labels)
    if hits_QK.ndim != 2 or labels_Q.shape != (len(hits_QK),) or not len(labels_Q):
        raise ValueError(f"recall_from_hits: got hits {hits_QK.shape} and query labels {labels_Q.shape}; expected (Q, K) and (Q,), Q >= 1")
    if not 1 <= k <= hits_QK.shape[1]:
        raise ValueError(f"recall_from_hits: k={k}, but the lists hold {hits_QK.shape[1]} hits; choose 1..{hits_QK.shape[1]}")
    _check_kinds(hits_QK, labels_Q, "labels")
    return _mean((hits_QK[:, :k] == labels_Q[:, None]).any(axis=1))


@dataclass(frozen=True, eq=False)
class _Matches:
    """Which gallery items carry the same name as each query; never a Q x N mask."""

    order: NDArray[np.int64]  # (N,) gallery rows, those of one name side by side
    start: NDArray[np.int64]  # (Q,) where in `order` those of the query's name begin
    count: NDArray[np.int64]  # (Q,) how many there are

    @classmethod
    def between(cls, query_names: Names, gallery_names: Names, num_queries: int, num_gallery: int, what: str) -> "_Matches":
        names_Q, names_N = _numpy(query_names), _numpy(gallery_names)
        if names_Q.shape != (num_queries,) or names_N.shape != (num_gallery,):
            raise ValueError(
                f"retrieval_metrics: {num_queries} queries with {what} of shape {names_Q.shape} and {num_gallery} gallery items with "
                f"{what} of shape {names_N.shape}; expected one each"
            )
        _check_kinds(names_Q, names_N, what)
        codes = np.unique(np.concatenate([names_Q, names_N]), return_inverse=True)[1]
        codes_Q, codes_N = codes[:num_queries], codes[num_queries:]
        order_N = np.argsort(codes_N, kind="stable")
        sorted_N = codes_N[order_N]
        start_Q = np.searchsorted(sorted_N, codes_Q, side="left")
        return cls(order_N, start_Q, np.searchsorted(sorted_N, codes_Q, side="right") - start_Q)

    def pairs(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Every match of some queries as (position within `rows`, gallery row, number of the match within its query)."""
        count_q = self.count[rows]
        position = np.repeat(np.arange(len(rows)), count_q)
        number = np.arange(len(position)) - np.repeat(np.cumsum(count_q) - count_q, count_q)
        return position, self.order[np.repeat(self.start[rows], count_q) + number], number


def _ranks(
    queries_QD: Tensor, gallery_ND: Tensor, relevant: _Matches, itself: _Matches | None, chunk_bytes: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Chunks of queries: rows (q,), the ranks (q, R) of their relevant items, best first, and how many columns of it count (q,)."""
    num_gallery = len(gallery_ND)
    num_threads = torch.get_num_threads()
    chunks = _chunks(relevant.count, num_gallery, chunk_bytes)
    scores = np.empty((max(len(rows) for rows in chunks), num_gallery), np.float32)
    with ThreadPoolExecutor(num_threads) as threads:
        for rows in chunks:
            scores_qN = scores[: len(rows)]
            torch.mm(queries_QD[torch.from_numpy(rows)], gallery_ND.T, out=torch.from_numpy(scores_qN))
            if itself is not None:
                position, columns, _ = itself.pairs(rows)
                scores_qN[position, columns] = -np.inf

            position, columns, number = relevant.pairs(rows)
            own_qR = np.full((len(rows), int(relevant.count[rows].max(initial=0))), -np.inf, np.float32)
            own_qR[position, number] = scores_qN[position, columns]
            scores_qN[position, columns] = -np.inf  # only irrelevant items are left in the chunk
            own_qR = -np.sort(-own_qR, axis=1)
            num_relevant_q = np.isfinite(own_qR).sum(axis=1)

            # Sorting each row in place costs no memory, and numpy's vectorised sort beats comparing N scores with R others.
            list(threads.map(lambda part: part.sort(axis=1), np.array_split(scores_qN, num_threads)))
            threshold_qR = torch.from_numpy(own_qR - np.float32(TIE))
            worse_qR = torch.searchsorted(torch.from_numpy(scores_qN), threshold_qR, side="left").numpy()
            yield rows, np.arange(1, own_qR.shape[1] + 1) + (num_gallery - worse_qR), num_relevant_q


def _chunks(num_relevant_Q: NDArray[np.int64], num_gallery: int, chunk_bytes: int) -> list[NDArray[np.int64]]:
    """Rows of queries, those with many relevant items first and together, so that a chunk is hardly padded.

    Half of `chunk_bytes` is for the scores, which are held throughout, and half for what is computed of the relevant items.
    """
    order_Q = np.argsort(-num_relevant_Q, kind="stable")
    chunks: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order_Q):
        widest = max(4 * num_gallery, _BYTES_PER_RELEVANT * int(num_relevant_Q[order_Q[start]]))
        size = max(1, chunk_bytes // 2 // widest)
        chunks.append(order_Q[start : start + size])
        start += size
    return chunks


_BYTES_PER_RELEVANT = 80
"""What is held at once for one relevant item: pairs, scores, ranks, precisions."""


def _vectors(queries: Vectors, gallery: Vectors) -> tuple[Tensor, Tensor]:
    """Both as float32 on the CPU, without a copy where they are that already."""
    queries_QD, gallery_ND = (torch.as_tensor(vectors).detach().to("cpu", torch.float32) for vectors in (queries, gallery))
    if queries_QD.ndim != 2 or gallery_ND.ndim != 2 or queries_QD.shape[1] != gallery_ND.shape[1]:
        raise ValueError(
            f"metrics: got queries {tuple(queries_QD.shape)} and gallery {tuple(gallery_ND.shape)}; expected (Q, D) and (N, D)"
        )
    if not len(queries_QD) or not len(gallery_ND):
        raise ValueError(f"metrics: {len(queries_QD)} queries and {len(gallery_ND)} gallery items; there has to be at least one of each")
    for name, vectors in (("queries", queries_QD), ("gallery", gallery_ND)):
        finite = torch.isfinite(vectors.sum(dim=1))
        if not bool(finite.all()):
            raise ValueError(
                f"metrics: {int((~finite).sum())} of {len(vectors)} {name} are NaN or infinite, first row {int((~finite).int().argmax())}"
            )
    return queries_QD, gallery_ND


def _check_ks(ks: Sequence[int]) -> None:
    if any(k < 1 for k in ks):
        raise ValueError(f"metrics: ks={tuple(ks)}; Recall@K is defined for K of 1 and more")


def _check_kinds(left: NDArray[Any], right: NDArray[Any], what: str) -> None:
    kinds = [("text" if array.dtype.kind in "US" else "numbers" if array.dtype.kind in "biuf" else "objects") for array in (left, right)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"metrics: the {what} of queries are {kinds[0]} and those of the gallery {kinds[1]}; they would never be equal")


def _numpy(names: Names) -> NDArray[Any]:
    return names.detach().cpu().numpy() if isinstance(names, Tensor) else np.asarray(names)


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else float("nan")
