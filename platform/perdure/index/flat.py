"""A partition that is scanned: exact."""

from pathlib import Path
from typing import Any, ClassVar, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from perdure.index.partition import check_queries, exact_search, new_map, read_map, stored_vectors
from perdure.records import Hits

__all__ = ["FlatPartition"]


class FlatPartition:
    """n vectors side by side; a search multiplies all of them. 4 D + 8 bytes a vector."""

    metric: ClassVar[str] = "ip"

    def __init__(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Build from (n,) ascending rows and (n, D) vectors."""
        self._flat: Any = faiss.IndexFlatIP(vectors.shape[1])
        self._map: Any = new_map(self._flat, rows, vectors)
        self._rows = rows.astype(np.int64)

    @property
    def dim(self) -> int:
        """D."""
        return self._flat.d

    @property
    def rows(self) -> NDArray[np.int64]:
        """(n,) rows of the segment, ascending."""
        return self._rows

    @staticmethod
    def kept(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Partition.kept`: all of them."""
        return vectors

    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None) -> Hits:
        """See `Partition.search`; exact, with `allowed` too."""
        return exact_search(self._flat, self._rows, check_queries(queries, k, self.dim), k, allowed, self.metric)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Partition.vectors`."""
        return stored_vectors(self._flat, self._rows, rows)

    def save(self, path: Path) -> None:
        """Write the vectors and their rows into one file."""
        faiss.write_index(self._map, str(path))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        partition = cls.__new__(cls)
        partition._map, partition._flat, partition._rows = read_map(path, faiss.IndexFlat, "flat")
        return partition
