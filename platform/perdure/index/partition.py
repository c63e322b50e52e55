"""What every kind of partition does, and the exact scan that both kinds share.

n vectors of the partition, N rows of its segment, Q queries, D embedding, K top-k. Larger scores are better ("ip").

Traps of faiss that are closed here: a list that is longer than the index is padded with -1; a NaN query returns only -1; a
wrong dimension is a bare AssertionError; equal scores come in no particular order; an id added twice is accepted; and the
number of OpenMP threads is a setting of the calling thread, so it is set at each search.
"""

import hashlib
import math
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from perdure.errors import BadQuery, Corrupt
from perdure.records import Hits

__all__ = [
    "Partition",
    "apply_threads",
    "check_queries",
    "check_vectors",
    "exact_search",
    "in_order",
    "limit_threads",
    "new_map",
    "partition_of",
    "positions_of",
    "read_map",
    "stored_vectors",
]

_faiss: Any = faiss  # its stubs describe the C++ constructors, not the Python ones that wrap them
_threads: int | None = None
_CANDIDATES = 2_000_000  # held at a time by an exact search
_SCORED = 65_536  # of them at a time
_SPARE = 8  # candidates beyond k that an exact search begins with
_PRODUCT_FROM = 3  # queries; from so many on, a scan is a product of matrices: the gallery goes through the processor once for all of them
_ROUNDING = 4e-6  # of the sum of a unit vector's products in float32, whatever its order


def limit_threads(threads: int | None) -> None:
    """OpenMP threads of each later search in this process, whichever thread runs it; None leaves faiss as it is."""
    global _threads
    _threads = threads


def apply_threads() -> None:
    """Give the calling thread the number that `limit_threads` set."""
    if _threads is not None:
        faiss.omp_set_num_threads(_threads)


def partition_of(item_id: str, partitions: int) -> int:
    """The partition of an item, 0 .. partitions-1: a hash of its id, the same on every machine and for ever."""
    return int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "big") % partitions


class Partition(Protocol):
    """Some vectors of one segment, and the rows of the segment's table that they belong to."""

    metric: ClassVar[str]

    @property
    def dim(self) -> int:
        """D."""
        ...

    @property
    def rows(self) -> NDArray[np.int64]:
        """(n,) rows of the segment, ascending."""
        ...

    @staticmethod
    def kept(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, D) -> (n, D) what of the vectors a search multiplies."""
        ...

    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None) -> Hits:
        """The best k rows of each query among those allowed; a shorter list where there are fewer, ties by row.

        Args:
            queries: (Q, D).
            k: at least 1.
            allowed: (N,) over the rows of the segment; None allows all.
        """
        ...

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(len(rows), D) stored vectors; KeyError for a row that is not here."""
        ...

    def save(self, path: Path) -> None:
        """Write one file; the same vectors give the same bytes."""
        ...

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        ...


def check_vectors(rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
    """Refuse what faiss would swallow.

    Raises:
        ValueError: shapes disagree, a value is not finite, or rows are not ascending without repeats.
    """
    if vectors.ndim != 2 or rows.shape != (len(vectors),):
        raise ValueError(f"partition: {rows.shape} rows and {vectors.shape} vectors; expected (n,) and (n, D)")
    if not np.isfinite(vectors).all():
        raise ValueError("partition: a vector holds NaN or infinity; look at the encoder that made it")
    if len(rows) > 1 and not (np.diff(rows) > 0).all():
        raise ValueError("partition: rows must ascend without repeats")


def check_queries(queries: NDArray[np.float32], k: int, dim: int) -> NDArray[np.float32]:
    """The queries as a contiguous float32 array.

    Raises:
        BadQuery: k < 1, not (Q, D), or a value that is not finite.
    """
    if k < 1:
        raise BadQuery(f"k={k}: ask for 1 hit or more")
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise BadQuery(f"queries of shape {queries.shape} for an index of D={dim}; expected (Q, {dim})")
    if not np.isfinite(queries).all():
        raise BadQuery("a query vector holds NaN or infinity; it would match nothing")
    return np.ascontiguousarray(queries, dtype=np.float32)


def in_order(scores: NDArray[np.float32], rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Each list (Q, K) by falling score, equal scores by rising row, padding (row -1, score -inf) last."""
    scores = np.where(rows < 0, -np.inf, scores).astype(np.float32)
    order = np.lexsort((rows, -scores), axis=-1)
    query = np.arange(len(order))[:, None]  # take_along_axis takes twice as long for a short list
    return scores[query, order], rows[query, order]


def exact_search(
    flat: Any, rows: NDArray[np.int64], queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None, metric: str
) -> Hits:
    """Scan every allowed vector of a faiss flat index: exact, equal scores by row, K = min(k, number allowed).

    faiss sums in another order for many queries than for few, so its scores find candidates, and each candidate is scored again by
    itself: what a query finds does not depend on the queries beside it. A few candidates more than k are fetched; where the k-th can
    not be told from the last of them, because they tie or all but tie, four times as many, until it can: only then are the best k
    known, and of a tie the lowest rows.
    """
    apply_threads()
    # faiss 1.15 compares Q x D with this, and begins at 128,000. One query by itself takes half as long as by a product, three a tenth
    # more, eight three times as long (200,000 x 128, one thread). A setting of the process: at worst a search beside it takes longer.
    _faiss.cvar.distance_compute_blas_threshold = _PRODUCT_FROM * flat.d
    here = None if allowed is None else allowed[rows]
    available = len(rows) if here is None else int(here.sum())
    k = min(k, available)
    best = Hits(
        np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64), np.zeros((len(queries), k), np.int32), metric
    )
    if k == 0 or len(queries) == 0:
        return best
    options: dict[str, Any] = {}
    if here is not None:
        options["params"] = _faiss.SearchParameters(sel=_faiss.IDSelectorBitmap(np.packbits(here, bitorder="little")))
    pending = np.arange(len(queries))
    fetch = min(k + _SPARE, available)
    while len(pending):
        unsure: list[NDArray[np.int64]] = []
        # A few queries at a time: where all scores tie (a collapsed encoder), whole galleries are fetched.
        for chunk in np.array_split(pending, math.ceil(len(pending) * fetch / _CANDIDATES)):
            rough, positions = flat.search(queries[chunk], fetch, **options)
            scores, found = in_order(_scores(flat, queries[chunk], positions), rows[positions])
            rounding = _ROUNDING * np.maximum(np.abs(rough[:, 0]), 1.0)
            still = (scores[:, k - 1] <= rough[:, -1] + rounding) if fetch < available else np.zeros(len(chunk), np.bool_)
            best.scores[chunk[~still]] = scores[~still, :k]
            best.rows[chunk[~still]] = found[~still, :k]
            unsure.append(chunk[still])
        pending = np.concatenate(unsure)
        fetch = min(4 * fetch, available)
    return best


def _scores(flat: Any, queries: NDArray[np.float32], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """(Q, K) inner products of queries (Q, D) with the vectors at positions (Q, K), each summed in the same order."""
    out = np.empty(positions.size, np.float32)
    owner = np.repeat(np.arange(len(queries)), positions.shape[1])
    flat_positions = positions.ravel()
    for start in range(0, len(out), _SCORED):
        part = slice(start, start + _SCORED)
        out[part] = (flat.reconstruct_batch(flat_positions[part]) * queries[owner[part]]).sum(axis=1)
    return out.reshape(positions.shape)


def new_map(inner: Any, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> Any:
    """Add vectors to an empty faiss index inside a map that remembers their rows; the map, which is what is saved."""
    check_vectors(rows, vectors)
    index = faiss.IndexIDMap(inner)
    index.add_with_ids(np.ascontiguousarray(vectors, dtype=np.float32), rows)
    return index


def read_map(path: Path, inner: type, kind: str) -> tuple[Any, Any, NDArray[np.int64]]:
    """A saved partition: the faiss map (keep it alive), the index inside it, and its rows.

    Raises:
        Corrupt: faiss cannot read the file, or it holds another kind of index.
    """
    try:
        index: Any = faiss.read_index(str(path))
    except RuntimeError as error:
        raise Corrupt(f"{path}: not a partition that faiss can read ({str(error).splitlines()[0][:120]})") from None
    inside = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else None
    if not isinstance(inside, inner):
        raise Corrupt(f"{path}: not a {kind} partition")
    return index, inside, faiss.vector_to_array(index.id_map).astype(np.int64)


def stored_vectors(flat: Any, rows: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.float32]:
    """(len(wanted), D) vectors of some rows out of a faiss flat index.

    Raises:
        KeyError: a row is not in this partition.
    """
    return flat.reconstruct_batch(positions_of(rows, wanted))


def positions_of(rows: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where some rows stand in a partition's ascending rows.

    Raises:
        KeyError: a row is not in this partition.
    """
    missing = ~np.isin(wanted, rows)
    if missing.any():
        raise KeyError(f"row {int(wanted[missing][0])} is not in this partition")
    return np.searchsorted(rows, wanted)
