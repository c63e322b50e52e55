"""What partitions have in common that keep their vectors as they are, in a faiss index inside a map that remembers their rows."""

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
from numpy.typing import NDArray

from perdure.index.partition import stored_vectors

__all__ = ["MappedPartition", "one_thread"]


class MappedPartition:
    """n vectors (n, D) and their rows; who searches them, and by which index, is up to the subclass."""

    metric: ClassVar[str] = "ip"
    _map: Any  # what is saved
    _flat: Any  # the part of it that has the vectors
    _rows: NDArray[np.int64]

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

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Partition.vectors`."""
        return stored_vectors(self._flat, self._rows, rows)

    def save(self, path: Path) -> None:
        """Write the index, the vectors and their rows into one file."""
        faiss.write_index(self._map, str(path))


@contextlib.contextmanager
def one_thread() -> Generator[None]:
    """Build an index by one thread, so that the same vectors give the same bytes."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
