"""A partition that is walked: a navigable small-world graph, approximate.

Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World
graphs", TPAMI 2020; faiss's implementation.
"""

from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from perdure.index.mapped import MappedPartition, one_thread
from perdure.index.partition import apply_threads, check_queries, exact_search, in_order, new_map, read_map
from perdure.records import Hits

__all__ = ["HNSWPartition"]


class HNSWPartition(MappedPartition):
    """n vectors in a graph; a search looks at a few hundred of them. About 4 D + 8 M + 24 bytes a vector.

    Built by one thread, so that the same vectors give the same graph and the same bytes; build partitions side by side in
    processes to use more cores. Nothing can be removed from the graph.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        vectors: NDArray[np.float32],
        *,
        hnsw_links: int = 32,
        ef_construction: int = 200,
        ef_search: int = 64,
    ) -> None:
        """Build from (n,) ascending rows and (n, D) vectors.

        Args:
            rows: rows of the segment.
            vectors: their vectors.
            hnsw_links: M, links of a vector on each level (2 M on the lowest).
            ef_construction: candidates looked at when a vector is inserted.
            ef_search: candidates looked at by a search, or k if that is more.
        """
        graph = faiss.IndexHNSWFlat(vectors.shape[1], hnsw_links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = ef_construction
        graph.hnsw.efSearch = ef_search  # saved with the graph
        with one_thread():
            self._map = new_map(graph, rows, vectors)
        self._graph: Any = graph
        self._flat = faiss.downcast_index(graph.storage)
        self._rows = rows.astype(np.int64)

    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None) -> Hits:
        """See `Partition.search`; approximate, but exact (a scan) with `allowed`, and when k reaches n.

        A graph walked under a filter can run dry before it has found k of the allowed vectors; a scan of them cannot. The effort is
        `ef_search`, or the next power of two from k, so that shorter lists are the beginnings of longer ones as far as it reaches: pages
        fit together.
        """
        queries = check_queries(queries, k, self.dim)
        if allowed is not None or k >= len(self._rows):
            return exact_search(self._flat, self._rows, queries, k, allowed, self.metric)
        apply_threads()
        effort = max(self._graph.hnsw.efSearch, 1 << (k - 1).bit_length())
        how: Any = getattr(faiss, "SearchParametersHNSW")(efSearch=effort)  # noqa: B009 - not in faiss's stubs
        scores, positions = self._graph.search(queries, min(effort, len(self._rows)), params=how)
        scores, rows = in_order(scores, np.where(positions < 0, -1, self._rows[positions]))
        return Hits(scores[:, :k], rows[:, :k], np.zeros((len(queries), k), np.int32), self.metric)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        partition = cls.__new__(cls)
        partition._map, partition._graph, partition._rows = read_map(path, faiss.IndexHNSWFlat, "hnsw")
        partition._flat = faiss.downcast_index(partition._graph.storage)
        return partition
