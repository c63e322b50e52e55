"""Partitions: exact search is exact to the last tie, approximate search is close, and faiss's traps are closed."""

import threading
import tracemalloc
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import BadQuery, Corrupt
from perdure.index import PARTITIONS, BinaryPartition, FlatPartition, HNSWPartition, IVFPQPartition, limit_threads, partition_of

KINDS = list(PARTITIONS.values())


def unit(count: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_hand(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """Every pair scored, sorted by falling score and rising row."""
    found, scores = [], []
    for query in queries:
        ranked = sorted((-float(query @ vector), int(row)) for vector, row in zip(vectors, rows, strict=True))[:k]
        found.append([row for _, row in ranked])
        scores.append([-score for score, _ in ranked])
    return found, scores


@given(
    # Halves between -1 and 1 multiply and add exactly in float32, so that equal scores are equal whichever way they were computed.
    table=st.integers(1, 40).flatmap(lambda n: st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=n, max_size=n)),
    asked=st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=25),
    k=st.integers(1, 50),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_flat_equals_a_double_loop_ties_by_row_with_and_without_a_filter(table, asked, k, data):
    vectors, queries = np.array(table, np.float32) / 2, np.array(asked, np.float32) / 2
    rows = np.arange(len(vectors)) * 3 + 1
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=3 * len(rows) + 1, max_size=3 * len(rows) + 1)))
    partition = FlatPartition(rows, vectors)
    hits = partition.search(queries, k)
    assert (hits.rows.tolist(), hits.scores.tolist()) == by_hand(queries, vectors, rows, k)
    here = allowed[rows]
    hits = partition.search(queries, k, allowed)
    assert (hits.rows.tolist(), hits.scores.tolist()) == by_hand(queries, vectors[here], rows[here], k)


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 60),
    bits=st.sampled_from([8, 16, 64]),
    k=st.integers(1, 70),
    radius=st.integers(0, 10),
    share=st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_binary_equals_a_double_loop_over_bits_ties_by_row_with_and_without_a_filter(seed, count, bits, k, radius, share):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (count, bits)).astype(np.float32)  # zeros, too
    vectors[: count // 2] = vectors[0]  # many at one distance
    queries = np.concatenate([vectors[:1], rng.standard_normal((3, bits)).astype(np.float32)])
    rows = np.arange(count) * 3 + 1
    partition = BinaryPartition(rows, vectors)
    apart = [[sum((q >= 0) != (v >= 0) for q, v in zip(query, vector, strict=True)) for vector in vectors] for query in queries]
    allowed = rng.random(3 * count + 1) < share
    for mask in (None, allowed):
        here = [i for i in range(count) if mask is None or mask[rows[i]]]
        hits = partition.search(queries, k, mask)
        for number, distances in enumerate(apart):
            best = sorted((distances[i], int(rows[i])) for i in here)[:k]
            assert hits.rows[number].tolist() == [row for _, row in best]
            assert hits.scores[number].tolist() == pytest.approx([1 - 2 * distance / bits for distance, _ in best], abs=1e-6)
    found = partition.within(queries, radius)
    assert [each.tolist() for each in found] == [[int(rows[i]) for i in range(count) if d[i] <= radius] for d in apart]


def test_a_score_of_codes_is_their_inner_product_at_unit_length():
    vectors, queries, rows = unit(50, 16), unit(4, 16, seed=1), np.arange(50)
    hits = BinaryPartition(rows, vectors).search(queries, 50)
    products = BinaryPartition.kept(queries) @ BinaryPartition.kept(vectors).T
    np.testing.assert_allclose(hits.scores, np.take_along_axis(products, hits.rows, axis=1), atol=1e-6)


def test_bits_that_fill_no_byte_and_a_negative_radius_are_clear_errors():
    with pytest.raises(ValueError, match="multiple of 8"):
        BinaryPartition(np.arange(3), unit(3, 12))
    with pytest.raises(BadQuery, match="radius=-1"):
        BinaryPartition(np.arange(3), unit(3, 8)).within(unit(1, 8), -1)


def test_a_gallery_of_equal_vectors_gives_its_first_rows_in_bounded_memory():
    vectors, rows = np.tile(unit(1, 4), (20_000, 1)), np.arange(20_000)
    partition, queries = FlatPartition(rows, vectors), unit(300, 4, seed=1)
    tracemalloc.start()
    hits = partition.search(queries, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (hits.rows == np.arange(5)).all()
    assert peak < 160e6  # all candidates of all queries at once would be 300 x 20,000 x 12 bytes several times over, 300 MB and more


def test_what_a_query_finds_does_not_depend_on_the_queries_beside_it():
    rng = np.random.default_rng(0)
    crowded = unit(40, 128)[rng.integers(40, size=3_000)] + 1e-7 * rng.standard_normal((3_000, 128)).astype(np.float32)  # ties, nearly
    partition, queries = FlatPartition(np.arange(3_000), crowded), unit(64, 128, seed=1)
    together = partition.search(queries, 50)
    for count in (1, 7, 33):
        apart = [partition.search(queries[start : start + count], 50) for start in range(0, 64, count)]
        assert (np.concatenate([hits.rows for hits in apart]) == together.rows).all()
        assert (np.concatenate([hits.scores for hits in apart]) == together.scores).all()


def test_hnsw_finds_nearly_all_that_flat_finds():
    vectors, queries = unit(4000, 32), unit(200, 32, seed=1)
    rows = np.arange(4000)
    exact = FlatPartition(rows, vectors).search(queries, 10)
    near = HNSWPartition(rows, vectors, hnsw_links=16, ef_construction=100, ef_search=128).search(queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.rows.tolist(), near.rows.tolist(), strict=True)])
    assert recall > 0.95
    assert near.metric == exact.metric == "ip"
    assert (np.diff(near.scores, axis=1) <= 0).all()
    np.testing.assert_allclose(near.scores, np.einsum("qd,qkd->qk", queries, vectors[near.rows]), atol=1e-5)


def test_hnsw_is_exact_under_a_filter_and_when_everything_is_asked():
    vectors, queries, rows = unit(800, 16), unit(30, 16, seed=1), np.arange(800)
    flat, hnsw = FlatPartition(rows, vectors), HNSWPartition(rows, vectors, hnsw_links=4, ef_construction=8, ef_search=1)
    allowed = np.random.default_rng(2).random(800) < 0.05
    for k, mask in ((10, allowed), (1000, allowed), (800, None), (2000, None)):
        np.testing.assert_array_equal(hnsw.search(queries, k, mask).rows, flat.search(queries, k, mask).rows)


def clustered(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Unit vectors about 40 centres, as embeddings of classes are."""
    rng = np.random.default_rng(seed)
    vectors = unit(40, dim)[rng.integers(0, 40, count)] + 0.15 * rng.standard_normal((count, dim)).astype(np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def probed() -> tuple[np.ndarray, IVFPQPartition]:
    vectors = clustered(3000, 16)
    return vectors, IVFPQPartition(np.arange(3000) * 2, vectors, ivf_lists=50, ivf_probes=8, pq_bytes=4, rerank=8)


def test_ivfpq_finds_nearly_all_that_flat_finds_by_comparing_again(probed):
    vectors, partition = probed
    queries = clustered(150, 16, seed=1)
    exact = FlatPartition(np.arange(3000) * 2, vectors).search(queries, 10)
    near = partition.search(queries, 10)

    def recall(found) -> float:
        return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.rows.tolist(), found.tolist(), strict=True)]))

    _, coded = faiss.downcast_index(partition._refined.base_index).search(queries, 10)
    assert recall(near.rows) > 0.95 > 0.8 > recall(coded * 2), "the codes alone are coarse; the second comparison is what finds"
    np.testing.assert_allclose(near.scores, np.einsum("qd,qkd->qk", queries, vectors[near.rows // 2]), atol=1e-5)
    assert (np.diff(near.scores, axis=1) <= 0).all() and near.metric == "ip"


def test_ivfpq_never_gives_a_shorter_list_and_is_exact_under_a_filter(probed):
    vectors, partition = probed
    queries, flat = clustered(12, 16, seed=2), FlatPartition(np.arange(3000) * 2, vectors)
    for k in (1, 500, 1000, 2999, 3000, 5000):
        rows = partition.search(queries, k).rows
        assert rows.shape == (12, min(k, 3000)) and (rows >= 0).all() and all(len(set(own)) == len(own) for own in rows.tolist())
    allowed = np.random.default_rng(3).random(6000) < 0.03
    for k, mask in ((10, allowed), (1000, allowed), (10, np.ones(6000, bool)), (3000, None)):
        np.testing.assert_array_equal(partition.search(queries, k, mask).rows, flat.search(queries, k, mask).rows)


def test_ivfpq_comes_back_from_its_file_with_its_effort_and_the_same_bytes(probed, tmp_path: Path):
    vectors, partition = probed
    partition.save(tmp_path / "a")
    again, queries = IVFPQPartition.load(tmp_path / "a"), clustered(30, 16, seed=4)
    for k in (5, 700):
        np.testing.assert_array_equal(again.search(queries, k).rows, partition.search(queries, k).rows)
    IVFPQPartition(np.arange(3000) * 2, vectors, ivf_lists=50, ivf_probes=8, pq_bytes=4, rerank=8).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    np.testing.assert_array_equal(again.vectors(np.array([8, 0])), vectors[[4, 0]])
    other = faiss.IndexIDMap(faiss.IndexRefineFlat(faiss.IndexHNSWFlat(16, 4, faiss.METRIC_INNER_PRODUCT)))
    faiss.write_index(other, str(tmp_path / "other"))
    with pytest.raises(Corrupt, match="other: not an ivfpq partition"):
        IVFPQPartition.load(tmp_path / "other")


def test_a_code_that_does_not_divide_the_vector_is_a_clear_error():
    with pytest.raises(ValueError, match="pq_bytes=5 does not divide D=16"):
        IVFPQPartition(np.arange(3), unit(3, 16), pq_bytes=5)


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_shorter_lists_of_an_approximate_partition_are_the_beginnings_of_longer_ones(kind, probed):
    vectors, partition = probed
    if kind == "hnsw":
        partition = HNSWPartition(np.arange(3000) * 2, vectors, hnsw_links=8, ef_construction=40, ef_search=64)
    queries = clustered(20, 16, seed=5)
    whole = partition.search(queries, 64).rows
    for k in (33, 48, 63):
        np.testing.assert_array_equal(partition.search(queries, k).rows, whole[:, :k])


@pytest.mark.parametrize("kind", KINDS)
def test_k_beyond_the_end_gives_a_shorter_list_without_padding(kind):
    vectors = unit(5, 8)
    partition = kind(np.arange(5), vectors)
    hits = partition.search(vectors, 50)
    assert hits.rows.shape == (5, 5) and (np.sort(hits.rows, axis=1) == np.arange(5)).all()
    allowed = np.array([True, False, True, False, False])
    assert set(partition.search(vectors, 4, allowed).rows.ravel().tolist()) == {0, 2}
    assert partition.search(vectors, 4, np.zeros(5, bool)).rows.shape == (5, 0)
    assert partition.search(vectors[:0], 4).rows.shape[0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_partition_answers_nothing(kind, tmp_path: Path):
    partition = kind(np.empty(0, np.int64), np.empty((0, 8), np.float32))
    partition.save(tmp_path / "p")
    for one in (partition, kind.load(tmp_path / "p")):
        assert one.search(unit(2, 8), 3).rows.shape == (2, 0)
        assert one.dim == 8 and len(one.rows) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_comes_back_and_the_same_vectors_give_the_same_bytes(kind, tmp_path: Path):
    vectors, rows = unit(300, 16), np.arange(300) * 7
    partition = kind(rows, vectors)
    partition.save(tmp_path / "a")
    kind(rows, vectors).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = kind.load(tmp_path / "a")
    queries = unit(20, 16, seed=3)
    np.testing.assert_array_equal(again.search(queries, 10).rows, partition.search(queries, 10).rows)
    np.testing.assert_array_equal(again.search(queries, 10).scores, partition.search(queries, 10).scores)
    np.testing.assert_array_equal(again.rows, rows)
    np.testing.assert_array_equal(again.vectors(np.array([14, 0, 2093])), kind.kept(vectors[[2, 0, 299]]))
    again.save(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()


def test_the_effort_of_a_graph_search_is_saved_with_it(tmp_path: Path):
    vectors, queries, rows = unit(3000, 32), unit(100, 32, seed=1), np.arange(3000)
    exact = FlatPartition(rows, vectors).search(queries, 1).rows
    found = []
    for effort in (1, 200):
        HNSWPartition(rows, vectors, hnsw_links=4, ef_construction=20, ef_search=effort).save(tmp_path / "p")
        found.append((HNSWPartition.load(tmp_path / "p").search(queries, 1).rows == exact).mean())
    assert found[0] < found[1] - 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_bad_queries_are_clear_errors(kind):
    partition = kind(np.arange(4), unit(4, 8))
    with pytest.raises(BadQuery, match=r"\(2, 7\) for an index of D=8"):
        partition.search(unit(2, 7), 1)
    with pytest.raises(BadQuery, match="k=0"):
        partition.search(unit(2, 8), 0)
    for bad in (np.nan, np.inf):
        with pytest.raises(BadQuery, match="NaN or infinity"):
            partition.search(np.full((1, 8), bad, np.float32), 1)
    with pytest.raises(BadQuery, match="expected"):
        partition.search(unit(1, 8)[0], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_vectors_are_clear_errors(kind):
    with pytest.raises(ValueError, match="NaN or infinity"):
        kind(np.arange(1), np.full((1, 8), np.nan, np.float32))
    with pytest.raises(ValueError, match="ascend without repeats"):
        kind(np.array([1, 1]), unit(2, 8))
    with pytest.raises(ValueError, match="expected"):
        kind(np.arange(3), unit(2, 8))
    with pytest.raises(KeyError, match="row 9"):
        kind(np.arange(2), unit(2, 8)).vectors(np.array([0, 9]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_such_a_partition_is_corrupt(kind, tmp_path: Path):
    (tmp_path / "text").write_text("not an index")
    kind(np.arange(50), unit(50, 8)).save(tmp_path / "whole")
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:-100])
    other = HNSWPartition if kind is FlatPartition else FlatPartition
    other(np.arange(50), unit(50, 8)).save(tmp_path / "other")
    for name in ("text", "half", "other"):
        with pytest.raises(Corrupt, match=name):
            kind.load(tmp_path / name)


def test_the_partition_of_an_id_is_stable_and_even():
    # Each is `printf %s NAME | b2sum -l 64`, modulo 1000: changing this would orphan every stored segment.
    assert [partition_of(name, 1000) for name in ("a", "b", "train.parquet:17", "ü")] == [343, 333, 767, 335]
    counts = np.bincount([partition_of(f"item-{i}", 8) for i in range(8000)], minlength=8)
    assert counts.min() > 850 and counts.max() < 1150
    assert partition_of("anything", 1) == 0


def test_the_limit_of_threads_holds_in_threads_that_are_started_later():
    partition = FlatPartition(np.arange(10), unit(10, 8))
    seen: list[int] = []

    def search_elsewhere() -> None:
        partition.search(unit(1, 8), 1)
        seen.append(faiss.omp_get_max_threads())

    before = faiss.omp_get_max_threads()
    try:
        for limit in (1, 2):
            limit_threads(limit)
            thread = threading.Thread(target=search_elsewhere)
            thread.start()
            thread.join()
    finally:
        limit_threads(None)
        faiss.omp_set_num_threads(before)
    assert seen == [1, 2]
