"""Search among codes of 64 bits by Hamming distance beside exact search among their 128 floats: time, memory, what is found.

    python benchmarks/hamming_search.py [--items 1000000] [--queries 100] [--rounds 5] [--threads 1]

Vectors lie around 1,000 centres, as embeddings of classes do; the codes are the signs of 64 random directions through their mean, that is,
codes that nothing was learned for. The two take turns on one partition each; a figure is the median of the rounds. *found*: of the ten
nearest by floats, the share among the k best codes; with k candidates scored again by floats, that is the recall of both steps.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from perdure.index import BinaryPartition, FlatPartition, limit_threads
from perdure.index.sizing import vector_bytes

DIM, BITS, CENTRES, BEST = 128, 64, 1000, 10
CANDIDATES = (10, 100, 1000)

Rows = NDArray[np.float32]


def gallery(items: int, queries: int) -> tuple[Rows, Rows]:
    """Unit vectors (N, 128) and (Q, 128) around the same centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CENTRES, DIM)).astype(np.float32)

    def around(count: int) -> Rows:
        vectors = centres[rng.integers(CENTRES, size=count)] + 0.7 * rng.standard_normal((count, DIM), dtype=np.float32)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    return around(items), around(queries)


def to_bits(vectors: Rows, mean: Rows) -> Rows:
    """(n, 128) -> (n, 64), whose signs are the codes."""
    directions = np.random.default_rng(1).standard_normal((DIM, BITS)).astype(np.float32)
    return np.matmul(vectors - mean, directions, dtype=np.float32)


def seconds(search: Callable[[], object]) -> float:
    started = time.perf_counter()
    search()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    limit_threads(asked.threads)
    vectors, queries = gallery(asked.items, asked.queries)
    mean = vectors.mean(axis=0)
    rows = np.arange(asked.items)
    flat, binary = FlatPartition(rows, vectors), BinaryPartition(rows, to_bits(vectors, mean))
    codes = to_bits(queries, mean)
    nearest = flat.search(queries, BEST).rows

    def both_steps(candidates: int) -> NDArray[np.int64]:
        found = binary.search(codes, candidates).rows
        scores = np.einsum("qd,qkd->qk", queries, vectors[found])
        return np.take_along_axis(found, np.argsort(-scores, axis=1)[:, :BEST], axis=1)

    by_floats: list[float] = []
    by_codes: dict[int, list[float]] = {k: [] for k in CANDIDATES}
    again: dict[int, list[float]] = {k: [] for k in CANDIDATES}
    for _ in range(asked.rounds):
        by_floats.append(seconds(lambda: flat.search(queries, BEST)))
        for k in CANDIDATES:
            by_codes[k].append(seconds(lambda k=k: binary.search(codes, k)))
            again[k].append(seconds(lambda k=k: both_steps(k)))

    def line(name: str, times: list[float], found: float, size: int) -> str:
        ratio = statistics.median(floats / own for floats, own in zip(by_floats, times, strict=True))
        each = 1000 * statistics.median(times) / asked.queries
        memory = size * asked.items / 2**20
        return f"{name:<44}{each:>9.2f} ms a query {ratio:>7.1f} x as fast  found {100 * found:>5.1f} %  {memory:>7.0f} MiB"

    print(f"{asked.items:,} items, {asked.queries} queries, {asked.threads} thread(s), median of {asked.rounds} rounds")
    floats, bits = vector_bytes(DIM, "flat"), vector_bytes(BITS, "binary")
    print(line(f"{DIM} floats, exact", by_floats, 1.0, floats))
    for k in CANDIDATES:
        found = binary.search(codes, k).rows
        share = float(np.mean([np.isin(near, among).mean() for near, among in zip(nearest, found, strict=True)]))
        print(line(f"{BITS} bits, the {k} best codes", by_codes[k], share, bits))
        print(line(f"{BITS} bits, then floats of the {k} best", again[k], share, floats + bits))


if __name__ == "__main__":
    main()
