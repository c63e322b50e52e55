"""A partition that is probed: inverted lists of compressed vectors, whose best candidates are compared again, exactly.

Jegou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", TPAMI 2011 (IVFADC); the second comparison is the re-ranking of
Jegou, Tavenard, Douze and Amsaleg, "Searching in one billion vectors: re-rank with source coding", ICASSP 2011, here with the very vectors
in place of a second code. Both are faiss's.
"""

import math
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from perdure.errors import Corrupt
from perdure.index.mapped import MappedPartition, one_thread
from perdure.index.partition import apply_threads, check_queries, check_vectors, exact_search, in_order, new_map, read_map
from perdure.records import Hits

__all__ = ["IVFPQPartition"]

_faiss: Any = faiss  # its stubs describe the C++ constructors, not the Python ones that wrap them

_TOO_FEW = 1024  # vectors: a code book of 256 words is learned from them, and a scan of so few is quicker anyway
_CODE_BITS = 8


class IVFPQPartition(MappedPartition):
    """n vectors in lists, as codes and as they are; a search reads the codes of a few lists, then the vectors of the best of them.

    About 4 D + pq_bytes + 16 bytes a vector: the vectors stay in memory, so what is saved is time. Scores are exact, like those of HNSW;
    what is approximate is which vectors are looked at. Built by one thread with a fixed seed, so that the same vectors give the same bytes.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        vectors: NDArray[np.float32],
        *,
        ivf_lists: int = 0,
        ivf_probes: int = 32,
        pq_bytes: int = 0,
        rerank: int = 8,
    ) -> None:
        """Build from (n,) ascending rows and (n, D) vectors; fewer than 1,024 vectors are scanned.

        Args:
            rows: rows of the segment.
            vectors: their vectors.
            ivf_lists: how many lists; 0 = 4 sqrt(n).
            ivf_probes: lists that a search reads.
            pq_bytes: bytes of a code, a divisor of D; 0 = the largest one up to D / 4.
            rerank: candidates that are compared exactly, for each hit that is asked for.
        Raises:
            ValueError: pq_bytes does not divide D; as for every partition.
        """
        check_vectors(rows, vectors)
        count, dim = vectors.shape
        code = pq_bytes or max(size for size in range(1, max(1, dim // 4) + 1) if dim % size == 0)
        if dim % code:
            raise ValueError(f"ivfpq partition: pq_bytes={code} does not divide D={dim}; choose a divisor, or 0")
        with one_thread():
            base: Any = _faiss.IndexFlatIP(dim)
            if count >= _TOO_FEW:
                lists = min(ivf_lists or 4 * math.isqrt(count), count)
                base = _faiss.IndexIVFPQ(base, dim, lists, code, _CODE_BITS, faiss.METRIC_INNER_PRODUCT)
                base.nprobe = min(ivf_probes, lists)  # saved with the lists
                base.cp.min_points_per_centroid = base.pq.cp.min_points_per_centroid = 1  # what is too little to learn is compared again
                base.train(np.ascontiguousarray(vectors, dtype=np.float32))
            refined = _faiss.IndexRefineFlat(base)
            refined.k_factor = float(rerank)  # saved, too
            self._map = new_map(refined, rows, vectors)
        self._hold(refined, rows.astype(np.int64))

    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None) -> Hits:
        """See `Partition.search`; approximate, but exact (a scan) with `allowed`, where few vectors are here, and when k reaches n.

        A query whose lists hold fewer than k vectors is answered by a scan, never by a shorter list. As with HNSW the effort goes by the
        next power of two from k, so that shorter lists are the beginnings of longer ones as far as it reaches.
        """
        queries = check_queries(queries, k, self.dim)
        if allowed is not None or not self._probed or k >= len(self._rows):
            return exact_search(self._flat, self._rows, queries, k, allowed, self.metric)
        apply_threads()
        scores, positions = self._refined.search(queries, min(1 << (k - 1).bit_length(), len(self._rows)))
        scores, rows = in_order(scores, np.where(positions < 0, -1, self._rows[positions]))
        hits = Hits(scores[:, :k], rows[:, :k], np.zeros((len(queries), k), np.int32), self.metric)
        short = np.flatnonzero(hits.rows[:, -1] < 0)
        if len(short):
            whole = exact_search(self._flat, self._rows, queries[short], k, None, self.metric)
            hits.scores[short], hits.rows[short] = whole.scores, whole.rows
        return hits

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            Corrupt: faiss cannot read the file, or it holds another kind of index.
        """
        partition = cls.__new__(cls)
        partition._map, refined, rows = read_map(path, _faiss.IndexRefineFlat, "ivfpq")
        if not isinstance(faiss.downcast_index(refined.base_index), faiss.IndexFlat | faiss.IndexIVFPQ):
            raise Corrupt(f"{path}: not an ivfpq partition")
        partition._hold(refined, rows)
        return partition

    def _hold(self, refined: Any, rows: NDArray[np.int64]) -> None:
        self._refined, self._rows = refined, rows
        self._flat = faiss.downcast_index(refined.refine_index)
        self._probed = isinstance(faiss.downcast_index(refined.base_index), faiss.IndexIVFPQ)
