"""The ranks of the relevant items of every query, in chunks so that memory does not follow Q x N.

Let s_1 >= ... >= s_R be the scores of the R items relevant to a query and

    rank_i = i + #{ irrelevant items n : s_n >= s_i - TIE }                                                    (1)

An irrelevant item as good as a relevant one thus ranks first (pessimistic ties): an encoder that maps everything to one point scores
next to nothing. TIE is wider than the rounding of a float32 inner product of unit rows, so the result does not depend on how the
product was cut into chunks.

D embedding, N gallery, Q queries, q queries of a chunk, R relevant items of a query.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["RULES", "TIE", "Names", "Ranks", "Vectors", "as_names", "as_vectors", "mean_of", "ranks_of_relevant", "refuse_kinds"]

TIE = 1e-6
"""Scores closer than this are equal; an inner product of two unit rows in float32 is off by about 1e-7."""

RULES = (
    "Ranking by inner product of unit rows; a query never retrieves the gallery item of its own id; an irrelevant item whose score is "
    f"within {TIE:g} of a relevant one's ranks before it; queries without any relevant item are left out and counted in lone_queries."
)
"""What holds for every number that is made of these ranks, to be stored beside it."""

Vectors = NDArray[Any] | Tensor
Names = NDArray[Any] | Tensor | Sequence[Any]


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of the relevant items of some queries."""

    rows: NDArray[np.int64]  # (q,) which queries
    ranks: NDArray[np.int64]  # (q, R) best first; of the query with most relevant items, the others are padded
    count: NDArray[np.int64]  # (q,) how many of them count


def ranks_of_relevant(
    queries: Vectors,
    gallery: Vectors,
    query_labels: Names,
    gallery_labels: Names,
    *,
    query_ids: Names | None,
    gallery_ids: Names | None,
    chunk_bytes: int,
) -> Iterator[Ranks]:
    """The ranks (1) of every query's relevant items, those of its label, a chunk of queries at a time; each query comes once.

    Args:
        queries: (Q, D) rows of unit length; any float type, numpy or torch, on any device.
        gallery: (N, D) likewise.
        query_labels: (Q,) class of each query: integers or strings.
        gallery_labels: (N,) likewise.
        query_ids: (Q,) item ids, with `gallery_ids`: a query does not retrieve gallery items of its own id. None: nothing is left out.
        gallery_ids: (N,) likewise.
        chunk_bytes: bound on what is allocated beside the inputs; at least one row of N scores is.
    Raises:
        ValueError: shapes that do not fit, a value that is not finite, ids on one side only; before the first chunk.
    """
    queries_QD, gallery_ND = as_vectors(queries, gallery)
    relevant = _Matches.between(query_labels, gallery_labels, len(queries_QD), len(gallery_ND), "labels")
    if (query_ids is None) != (gallery_ids is None):
        raise ValueError("retrieval_metrics: got ids of only one of queries and gallery; give both, or neither to leave nothing out")
    itself = (
        None
        if query_ids is None or gallery_ids is None
        else _Matches.between(query_ids, gallery_ids, len(queries_QD), len(gallery_ND), "ids")
    )
    return _ranks(queries_QD, gallery_ND, relevant, itself, chunk_bytes)


def as_vectors(queries: Vectors, gallery: Vectors) -> tuple[Tensor, Tensor]:
    """Both as float32 on the CPU, without a copy where they are that already.

    Raises:
        ValueError: shapes that do not fit, nothing on one side, a value that is not finite.
    """
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


def as_names(names: Names) -> NDArray[Any]:
    """Labels or ids as an array."""
    return names.detach().cpu().numpy() if isinstance(names, Tensor) else np.asarray(names)


def refuse_kinds(left: NDArray[Any], right: NDArray[Any], what: str) -> None:
    """Let labels (or ids) of one kind pass.

    Raises:
        ValueError: one side is text and the other is numbers.
    """
    kinds = [("text" if array.dtype.kind in "US" else "numbers" if array.dtype.kind in "biuf" else "objects") for array in (left, right)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"metrics: the {what} of queries are {kinds[0]} and those of the gallery {kinds[1]}; they would never be equal")


def mean_of(values: NDArray[Any]) -> float:
    """The mean in float64; NaN of nothing."""
    return float(values.mean(dtype=np.float64)) if len(values) else float("nan")


@dataclass(frozen=True, eq=False)
class _Matches:
    """Which gallery items carry the same name as each query; never a Q x N mask."""

    order: NDArray[np.int64]  # (N,) gallery rows, those of one name side by side
    start: NDArray[np.int64]  # (Q,) where in `order` those of the query's name begin
    count: NDArray[np.int64]  # (Q,) how many there are

    @classmethod
    def between(cls, query_names: Names, gallery_names: Names, num_queries: int, num_gallery: int, what: str) -> "_Matches":
        names_Q, names_N = as_names(query_names), as_names(gallery_names)
        if names_Q.shape != (num_queries,) or names_N.shape != (num_gallery,):
            raise ValueError(
                f"retrieval_metrics: {num_queries} queries with {what} of shape {names_Q.shape} and {num_gallery} gallery items with "
                f"{what} of shape {names_N.shape}; expected one each"
            )
        refuse_kinds(names_Q, names_N, what)
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


def _ranks(queries_QD: Tensor, gallery_ND: Tensor, relevant: _Matches, itself: _Matches | None, chunk_bytes: int) -> Iterator[Ranks]:
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
            yield Ranks(rows, np.arange(1, own_qR.shape[1] + 1) + (num_gallery - worse_qR), num_relevant_q)


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
