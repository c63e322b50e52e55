"""Merging: sharded equals whole, the metric decides the direction, standardised scores equal mean and deviation by brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.index import FlatPartition, SegmentStatistics, merge_partitions, merge_segments, partition_of
from perdure.index.statistics import STD_FLOOR
from perdure.records import Hits


def hits(scores, rows, segment: int = 0, metric: str = "ip") -> Hits:
    rows = np.array(rows, np.int64)
    return Hits(np.array(scores, np.float32), rows, np.full(rows.shape, segment, np.int32), metric)


def cloud(count: int, dim: int, seed: int, centre: float = 0.0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)) + centre
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@given(
    table=st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=60),
    asked=st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=5),
    partitions=st.integers(1, 9),
    k=st.integers(1, 70),
)
@settings(max_examples=150, deadline=None)
def test_sharded_equals_whole_ties_by_row(table, asked, partitions, k):
    vectors, queries, rows = np.array(table, np.float32) / 2, np.array(asked, np.float32) / 2, np.arange(len(table))
    whole = FlatPartition(rows, vectors).search(queries, k)
    place = np.array([partition_of(f"item {row}", partitions) for row in rows])
    parts = [FlatPartition(rows[place == p], vectors[place == p]).search(queries, k) for p in range(partitions)]
    merged = merge_partitions(parts[::-1], k)
    np.testing.assert_array_equal(merged.rows, whole.rows)
    np.testing.assert_array_equal(merged.scores, whole.scores)


def test_sharded_equals_whole_on_real_numbers():
    vectors, queries, rows = cloud(3000, 24, 0), cloud(40, 24, 1), np.arange(3000)
    whole = FlatPartition(rows, vectors).search(queries, 10)
    merged = merge_partitions([FlatPartition(rows[p::7], vectors[p::7]).search(queries, 10) for p in range(7)], 10)
    np.testing.assert_allclose(merged.scores, whole.scores, atol=1e-6)
    np.testing.assert_array_equal(merged.rows, whole.rows)


def test_the_metric_decides_which_end_is_best():
    parts = [hits([[0.9, 0.1]], [[0, 1]]), hits([[0.5, 0.4]], [[2, 3]])]
    assert merge_partitions(parts, 3).rows.tolist() == [[0, 2, 3]]
    for metric in ("l2", "hamming"):
        parts = [hits([[0.1, 0.9]], [[1, 0]], metric=metric), hits([[0.4, 0.5]], [[3, 2]], metric=metric)]
        assert merge_partitions(parts, 3).rows.tolist() == [[1, 3, 2]]


def test_lists_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"metrics \['ip', 'l2'\]"):
        merge_partitions([hits([[1.0]], [[0]]), hits([[1.0]], [[1]], metric="l2")], 1)
    with pytest.raises(ValueError, match="the same queries"):
        merge_partitions([hits([[1.0]], [[0]]), hits([[1.0], [1.0]], [[1], [2]])], 1)
    with pytest.raises(ValueError, match="0 lists"):
        merge_partitions([], 1)
    with pytest.raises(ValueError, match="k=0"):
        merge_partitions([hits([[1.0]], [[0]])], 0)
    with pytest.raises(ValueError, match="no metric named 'cosine'"):
        merge_partitions([hits([[1.0]], [[0]], metric="cosine")], 1)
    with pytest.raises(ValueError, match="no way to merge named 'best'"):
        merge_segments([hits([[1.0]], [[0]])], 1, how="best")
    with pytest.raises(ValueError, match="metric 'l2' cannot be standardised"):
        stats = SegmentStatistics.of(cloud(3, 2, 0))
        merge_segments([hits([[1.0]], [[0]], metric="l2")], 1, how="standardised", statistics=[stats], queries=[cloud(1, 2, 0)])


def test_padding_comes_last_whatever_the_metric_and_columns_of_it_are_cut():
    for metric, worst in (("ip", -1e9), ("l2", 1e9)):
        parts = [hits([[worst, 0.0]], [[4, -1]], metric=metric), hits([[0.0, 0.0]], [[-1, -1]], metric=metric)]
        merged = merge_partitions(parts, 4)
        assert merged.rows.tolist() == [[4]] and merged.scores.tolist() == [[np.float32(worst)]]
    uneven = merge_partitions([hits([[0.5, 0.0], [0.5, 0.4]], [[0, -1], [1, 2]])], 4)
    assert uneven.rows.tolist() == [[0, -1], [1, 2]]


def test_equal_scores_of_segments_come_by_segment_and_row():
    parts = [hits([[0.5, 0.5]], [[7, 9]], segment=1), hits([[0.5, 0.5]], [[8, 9]], segment=0)]
    merged = merge_segments(parts, 4, how="raw")
    assert list(zip(merged.segments[0].tolist(), merged.rows[0].tolist(), strict=True)) == [(0, 8), (0, 9), (1, 7), (1, 9)]


@given(sizes=st.lists(st.integers(2, 40), min_size=1, max_size=4), dim=st.integers(2, 12), seed=st.integers(0, 10**6), k=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_standardised_equals_mean_and_deviation_over_every_vector_of_the_segment(sizes, dim, seed, k):
    segments = [cloud(size, dim, seed + s, centre=s / 2) for s, size in enumerate(sizes)]
    queries = [cloud(5, dim, seed + 100 + s) for s in range(len(sizes))]  # each segment sees the query through its own encoder
    parts = []
    for s, vectors in enumerate(segments):
        found = FlatPartition(np.arange(len(vectors)), vectors).search(queries[s], k)
        parts.append(Hits(found.scores, found.rows, np.full(found.rows.shape, s, np.int32)))
    merged = merge_segments(parts, k, how="standardised", statistics=[SegmentStatistics.of(v) for v in segments], queries=queries)
    assert merged.metric == "z"
    for q in range(5):
        expected = {}
        for s, vectors in enumerate(segments):
            scores = [float(queries[s][q].astype(np.float64) @ vector.astype(np.float64)) for vector in vectors]
            mean, std = np.mean(scores), max(np.std(scores), STD_FLOOR)
            expected |= {(s, row): (score - mean) / std for row, score in enumerate(scores)}
        best = sorted(expected.values(), reverse=True)[:k]
        np.testing.assert_allclose(merged.scores[q], best, atol=2e-3)
        for score, segment, row in zip(merged.scores[q], merged.segments[q], merged.rows[q], strict=True):
            assert abs(expected[(int(segment), int(row))] - score) < 2e-3


def test_standardising_does_not_change_the_order_inside_a_segment_and_undoes_an_offset_between_segments():
    gallery, query = cloud(200, 8, 0), cloud(3, 8, 1)
    found = FlatPartition(np.arange(200), gallery).search(query, 20)
    raw = merge_segments([found], 20, how="raw")
    z = merge_segments([found], 20, how="standardised", statistics=[SegmentStatistics.of(gallery)], queries=[query])
    np.testing.assert_array_equal(raw.rows, z.rows)
    # The same gallery by an encoder whose scores are all half as large: raw never lists it, standardised lists both alike.
    small = Hits(found.scores / 2, found.rows, np.ones_like(found.segments))
    assert (merge_segments([found, small], 10, how="raw").segments == 0).mean() > 0.9
    statistics = [SegmentStatistics.of(gallery), SegmentStatistics.of(gallery / 2)]
    both = merge_segments([found, small], 10, how="standardised", statistics=statistics, queries=[query, query])
    assert 0.4 <= (both.segments == 0).mean() <= 0.6


def test_moments_equal_numpy_and_come_back_from_a_file(tmp_path):
    vectors = cloud(500, 6, 0, centre=0.3)
    moments = SegmentStatistics.of(vectors)
    np.testing.assert_allclose(moments.mean, vectors.astype(np.float64).mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(vectors.T.astype(np.float64), ddof=0), atol=1e-12)
    moments.save(tmp_path / "s")
    again = SegmentStatistics.load(tmp_path / "s")
    assert again.count == 500 and (again.mean == moments.mean).all() and (again.covariance == moments.covariance).all()


def test_a_segment_of_one_item_stands_out_from_nothing():
    one, query = cloud(1, 4, 0), cloud(2, 4, 1)
    found = FlatPartition(np.arange(1), one).search(query, 5)
    z = merge_segments([found], 5, how="standardised", statistics=[SegmentStatistics.of(one)], queries=[query])
    np.testing.assert_allclose(z.scores, 0, atol=1e-3)
