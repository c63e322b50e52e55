"""Ranks over several lists: one list is the rank that every metric here is made of, and many are loops over all of their items."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.metrics.lists import best_of_own, first_hits, num_before
from perdure.metrics.ranks import TIE
from perdure.metrics.retrieval import pair_metrics, retrieval_metrics


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def drawn(seed: int, queries: int, items: int, names: int):
    """Unit rows of few different values, so that there are many ties."""
    rng = np.random.default_rng(seed)
    coarse = [unit(rng.integers(-1, 2, (count, 3)) + 0.125) for count in (queries, items)]
    return *coarse, rng.integers(0, names, queries), rng.integers(0, names, items)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 12), st.integers(1, 5), st.sampled_from([1, 200, 2**20]))
def test_the_own_list_is_counted_as_in_loops(seed: int, num_queries: int, num_items: int, names: int, chunk_bytes: int) -> None:
    queries, items, query_names, item_names = drawn(seed, num_queries, num_items, names)
    best, before = best_of_own(queries, items, query_names, item_names, chunk_bytes=chunk_bytes)
    for q in range(num_queries):
        right = [float(queries[q] @ items[n]) for n in range(num_items) if item_names[n] == query_names[q]]
        wrong = [float(queries[q] @ items[n]) for n in range(num_items) if item_names[n] != query_names[q]]
        if right:
            assert best[q] == pytest.approx(max(right), abs=1e-6)
            assert before[q] == sum(score >= max(right) - TIE for score in wrong)
        else:
            assert best[q] == -np.inf


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(0, 12), st.integers(1, 15), st.sampled_from([1, 200, 2**20]))
def test_the_first_hits_are_the_best_of_all_in_order(seed: int, num_queries: int, num_items: int, k: int, chunk_bytes: int) -> None:
    queries, items, _, _ = drawn(seed, num_queries, num_items, 1)
    scores, places = first_hits(queries, items, k, chunk_bytes=chunk_bytes)
    assert scores.shape == places.shape == (num_queries, min(k, num_items))
    for q in range(num_queries):
        every = sorted((float(queries[q] @ items[n]) for n in range(num_items)), reverse=True)
        assert scores[q] == pytest.approx(every[:k], abs=1e-6)
        assert len(set(places[q].tolist())) == len(places[q])
        assert [float(queries[q] @ items[n]) for n in places[q]] == pytest.approx(scores[q], abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_one_list_gives_the_ranks_of_the_retrieval_metrics(seed: int) -> None:
    queries, items, query_names, item_names = drawn(seed, 20, 30, 6)
    best, before = best_of_own(queries, items, query_names, item_names)
    expected = retrieval_metrics(queries, items, query_names, item_names)
    ranks = 1 + before[np.isfinite(best)]
    assert {k: float((ranks <= k).mean()) for k in (1, 5, 10)} == pytest.approx({k: expected[f"recall@{k}"] for k in (1, 5, 10)})
    own = query_names % 30
    pairs = pair_metrics(queries, items, own)
    _, before = best_of_own(queries, items, own, np.arange(30))
    assert float(np.median(1 + before)) == pairs["median_rank"] and float((before == 0).mean()) == pairs["recall@1"]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 20))
def test_a_gallery_cut_into_lists_has_the_ranks_of_the_whole(seed: int, cut: int) -> None:
    """Every query's relevant items are in the first list."""
    queries, items, query_names, item_names = drawn(seed, 8, 30, 6)
    item_names[cut:] = 99
    whole_best, whole = best_of_own(queries, items, query_names, item_names)
    best, before = best_of_own(queries, items[:cut], query_names, item_names[:cut])
    before = before + num_before(queries, items[cut:], best)
    asked = np.isfinite(whole_best)
    np.testing.assert_allclose(best, whole_best, atol=1e-6)
    assert np.array_equal(before[asked], whole[asked])


def test_an_item_as_good_as_the_best_right_one_ranks_before_it_and_one_just_below_does_not() -> None:
    queries = np.array([[1, 0]], np.float32)
    items = np.array([[0.5, 0], [0.5 - 0.5 * TIE, 0], [0.5 - 2 * TIE, 0], [0.25, 0]], np.float32)
    assert num_before(queries, items, np.array([0.5])).tolist() == [2]
    best, before = best_of_own(queries, items, np.array([7]), np.array([7, 0, 0, 7]))
    assert (best.tolist(), before.tolist()) == ([0.5], [1])


def test_a_list_without_items_has_nothing_before_and_nothing_relevant() -> None:
    queries, nothing = np.eye(2, dtype=np.float32), np.zeros((0, 2), np.float32)
    assert num_before(queries, nothing, np.zeros(2)).tolist() == [0, 0]
    best, before = best_of_own(queries, nothing, np.arange(2), np.zeros(0, np.int64))
    assert best.tolist() == [-np.inf] * 2 and before.tolist() == [0, 0]


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        num_before(np.full((1, 2), np.nan, np.float32), np.eye(2, dtype=np.float32), np.zeros(1))
