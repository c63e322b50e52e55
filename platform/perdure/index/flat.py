"""A partition that is scanned: exact."""

from pathlib import Path
from typing import Self

import faiss
import numpy as np
from numpy.typing import NDArray

from perdure.index.mapped import MappedPartition
from perdure.index.partition import check_queries, exact_search, new_map, read_map
from perdure.records import Hits

__all__ = ["FlatPartition"]


class FlatPartition(MappedPartition):
    """n vectors side by side; a search multiplies all of them. 4 D + 8 bytes a vector."""

    def __init__(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Build from (n,) ascending rows and (n, D) vectors."""
        self._flat = faiss.IndexFlatIP(vectors.shape[1])
        self._map = new_map(self._flat, rows, vectors)
        self._rows = rows.astype(np.int64)

    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None) -> Hits:
        """See `Partition.search`; exact, with `allowed` too."""
        return exact_search(self._flat, self._rows, check_queries(queries, k, self.dim), k, allowed, self.metric)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        partition = cls.__new__(cls)
        partition._map, partition._flat, partition._rows = read_map(path, faiss.IndexFlat, "flat")
        return partition
