"""Rankings by Hamming distance: equal to every order of the ties written out, and lookups equal to sets."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.metrics.hashing import hamming_distances, hamming_map, lookup, share_a_label
from perdure.metrics.retrieval import retrieval_metrics


def average_precision(ranked: list[bool]) -> float:
    found, total = 0, 0.0
    for place, right in enumerate(ranked, start=1):
        if right:
            found += 1
            total += found / place
    return total / found


def every_order(distances: list[int], relevant: list[bool]) -> float:
    """The mean of the average precision over all rankings in which distances do not fall."""
    rankings = [
        [relevant[i] for i in order]
        for order in permutations(range(len(distances)))
        if all(distances[a] <= distances[b] for a, b in pairwise(order))
    ]
    return float(np.mean([average_precision(ranked) for ranked in rankings]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6))
def test_average_precision_is_the_mean_over_every_order_of_the_ties(items: list[tuple[int, bool]]) -> None:
    distances, relevant = [list(each) for each in zip(*items, strict=True)]
    found = hamming_map(np.array([distances]), np.array([relevant]))
    assert found == pytest.approx(every_order(distances, relevant)) if any(relevant) else np.isnan(found)


def test_without_ties_it_is_the_average_precision_of_every_other_ranking() -> None:
    rng = np.random.default_rng(0)
    distances = np.stack([rng.permutation(30) for _ in range(5)])
    labels, asked = rng.integers(0, 3, 30), np.array([0, 1, 2, 0, 1])
    expected = []
    for row, label in zip(distances, asked, strict=True):
        angle = row / 100  # nearer is more similar
        gallery = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
        expected.append(retrieval_metrics(np.array([[1.0, 0.0]], np.float32), gallery, np.array([label]), labels)["map"])
    assert hamming_map(distances, share_a_label(asked, labels)) == pytest.approx(np.mean(expected))


def test_the_order_of_the_gallery_changes_nothing() -> None:
    """Sorted by class, a ranking that broke ties by row would look better than it is."""
    rng = np.random.default_rng(1)
    queries, gallery = rng.random((6, 4)) < 0.5, rng.random((200, 4)) < 0.5
    labels = np.sort(rng.integers(0, 2, 200))
    relevant = share_a_label(np.zeros(6, int), labels)
    distances = hamming_distances(queries, gallery)
    shuffled = rng.permutation(200)
    assert hamming_map(distances, relevant) == pytest.approx(hamming_map(distances[:, shuffled], relevant[:, shuffled]))
    assert hamming_map(np.zeros_like(distances), relevant) == pytest.approx((labels == 0).mean(), abs=0.02)  # codes that say nothing


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), queries=st.integers(1, 4), items=st.integers(1, 30), bits=st.integers(1, 9))
def test_lookup_equals_sets(seed: int, queries: int, items: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    asked, gallery = rng.random((queries, bits)) < 0.5, rng.random((items, bits)) < 0.5
    relevant = rng.random((queries, items)) < 0.4
    relevant[0, 0] = True
    distances = hamming_distances(asked, gallery)
    assert distances.tolist() == [[sum(bool(a) != bool(b) for a, b in zip(q, g, strict=True)) for g in gallery] for q in asked]
    curve = lookup(distances, relevant, bits)
    for radius in range(bits + 1):
        precision, recall, answered = [], [], []
        for q in range(queries):
            good = {i for i in range(items) if relevant[q, i]}
            found = {i for i in range(items) if distances[q, i] <= radius}
            if good:
                precision.append(len(good & found) / len(found) if found else 0.0)
                recall.append(len(good & found) / len(good))
                answered.append(bool(found))
        assert curve.precision[radius] == pytest.approx(np.mean(precision))
        assert curve.recall[radius] == pytest.approx(np.mean(recall))
        assert curve.answered[radius] == pytest.approx(np.mean(answered))
    assert curve.recall[-1] == 1 and curve.answered[-1] == 1


def test_items_with_several_labels_are_relevant_by_one_in_common() -> None:
    mine, other = np.array([[1, 1, 0], [0, 0, 0]]), np.array([[0, 1, 1], [0, 0, 1], [1, 0, 0]])
    assert share_a_label(mine, other).tolist() == [[True, False, True], [False, False, False]]


def test_queries_with_nothing_relevant_are_in_no_mean() -> None:
    distances = np.array([[0, 1], [0, 1]])
    assert hamming_map(distances, np.array([[True, False], [False, False]])) == 1.0
    assert lookup(distances, np.array([[True, False], [False, False]]), 1).recall.tolist() == [1.0, 1.0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        hamming_distances(np.zeros((2, 3), bool), np.zeros((2, 4), bool))
    with pytest.raises(ValueError, match="both"):
        hamming_map(np.zeros((2, 3), int), np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="nothing to find"):
        lookup(np.zeros((1, 3), int), np.zeros((1, 3), bool), 4)
    with pytest.raises(ValueError, match="codes of 4 bits"):
        lookup(np.full((1, 3), 5), np.ones((1, 3), bool), 4)
    with pytest.raises(ValueError, match="share_a_label"):
        share_a_label(np.zeros((2, 3), int), np.zeros(2, int))
