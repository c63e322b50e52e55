"""A partition of bits: the signs of the vectors, scanned by Hamming distance; exact among codes.

K bits of a vector are its K signs. Codes of -1 and 1, scaled to unit length, have the inner product 1 - 2 d / K at Hamming distance d, so
scores fall as distances rise and lie in -1..1 like those of other partitions.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from perdure.errors import BadQuery, Corrupt
from perdure.index.partition import apply_threads, check_queries, check_vectors, positions_of
from perdure.records import Hits

__all__ = ["BinaryPartition"]

_faiss: Any = faiss  # its stubs describe the C++ constructors, not the Python ones that wrap them


class BinaryPartition:
    """n codes side by side; a search compares all of them, 64 bits at a time. K / 4 + 16 bytes a vector."""

    metric: ClassVar[str] = "ip"

    def __init__(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Build from (n,) ascending rows and (n, K) vectors, of which the signs are kept.

        Raises:
            ValueError: K is no multiple of 8; as for every partition.
        """
        check_vectors(rows, vectors)
        if vectors.shape[1] % 8:
            raise ValueError(f"binary partition: vectors of K={vectors.shape[1]}; bits are kept in bytes, so K has to be a multiple of 8")
        self._hold(rows.astype(np.int64), _packed(vectors))

    @property
    def dim(self) -> int:
        """K."""
        return self._codes.shape[1] * 8

    @property
    def rows(self) -> NDArray[np.int64]:
        """(n,) rows of the segment, ascending."""
        return self._rows

    @staticmethod
    def kept(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, K) -> (n, K) what a search multiplies: the signs at unit length, 0 counts as positive."""
        return (np.where(vectors >= 0, 1.0, -1.0) / np.sqrt(max(1, vectors.shape[1]))).astype(np.float32)

    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None) -> Hits:
        """See `Partition.search`; exact among codes, with `allowed` too. Of the queries (Q, K), too, only the signs count."""
        queries = check_queries(queries, k, self.dim)
        index, rows = self._index, self._rows
        if allowed is not None:
            here = allowed[rows]
            rows = rows[here]
            index = _index_of(self._codes[here])  # K / 8 bytes a vector: copying is cheaper than asking at each comparison
        k = min(k, len(rows))
        if k == 0 or len(queries) == 0:
            empty = np.empty((len(queries), k), np.int64)
            return Hits(empty.astype(np.float32), empty, empty.astype(np.int32), self.metric)
        apply_threads()
        distances, positions = index.search(_packed(queries), k)
        return Hits(self._scores(distances), rows[positions], np.zeros(positions.shape, np.int32), self.metric)

    def within(self, queries: NDArray[np.float32], radius: int) -> list[NDArray[np.int64]]:
        """Hash lookup: for each query the rows at Hamming distance 0 .. radius, ascending.

        Raises:
            BadQuery: a negative radius; queries as for `search`.
        """
        if radius < 0:
            raise BadQuery(f"radius={radius}: 0 or more bits may differ")
        queries = check_queries(queries, 1, self.dim)
        if len(self._rows) == 0:
            return [self._rows] * len(queries)
        apply_threads()
        limits, _, positions = self._index.range_search(_packed(queries), radius + 1)
        return [np.sort(self._rows[positions[start:end]]) for start, end in pairwise(limits)]

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Partition.vectors`: the signs, at unit length."""
        return self.kept(np.unpackbits(self._codes[positions_of(self._rows, rows)], axis=1).astype(np.float32) - 0.5)

    def save(self, path: Path) -> None:
        """Write the codes and their rows into one file."""
        index: Any = faiss.IndexBinaryIDMap(_index_of(self._codes[:0]))
        index.add_with_ids(self._codes, self._rows)
        faiss.write_index_binary(index, str(path))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            Corrupt: faiss cannot read the file, or it holds another kind of index.
        """
        try:
            index: Any = faiss.read_index_binary(str(path))
        except RuntimeError as error:
            raise Corrupt(f"{path}: not a partition that faiss can read ({str(error).splitlines()[0][:120]})") from None
        inside: Any = faiss.downcast_IndexBinary(index.index) if isinstance(index, faiss.IndexBinaryIDMap) else None
        if not isinstance(inside, faiss.IndexBinaryFlat):
            raise Corrupt(f"{path}: not a binary partition")
        flat: Any = inside
        codes = faiss.vector_to_array(flat.xb).reshape(-1, flat.d // 8)
        partition = cls.__new__(cls)
        partition._hold(faiss.vector_to_array(index.id_map).astype(np.int64), codes)
        return partition

    def _hold(self, rows: NDArray[np.int64], codes: NDArray[np.uint8]) -> None:
        self._rows, self._codes, self._index = rows, codes, _index_of(codes)

    def _scores(self, distances: NDArray[np.int32]) -> NDArray[np.float32]:
        return (1 - 2 * distances / self.dim).astype(np.float32)


def _packed(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(n, K) -> (n, K / 8) bits."""
    return np.packbits(vectors >= 0, axis=1)


def _index_of(codes: NDArray[np.uint8]) -> Any:
    """A faiss index of codes. By counting, not by a heap: of codes at one distance it gives the first, so that ties fall by row."""
    index = _faiss.IndexBinaryFlat(codes.shape[1] * 8)
    index.use_heap = False
    index.add(np.ascontiguousarray(codes))
    return index
