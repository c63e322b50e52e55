"""The precision-recall curve and Recall@1 by label, against sorted lists written as loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.metrics.profile import ranking_profile
from perdure.metrics.retrieval import retrieval_metrics


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def written_out(vectors, labels, ids, points):
    """Curve and Recall@1 by label of a gallery that is also the queries; of equal scores the irrelevant ones come first."""
    curve, counted = [0.0] * points, 0
    hits = {label: [] for label in sorted(set(labels))}
    for q in range(len(vectors)):
        ranking = []
        for n in range(len(vectors)):
            if ids[n] != ids[q]:
                score = sum(float(a) * float(b) for a, b in zip(vectors[q], vectors[n], strict=True))
                ranking.append((-round(score, 5), labels[q] == labels[n]))
        ranking.sort()
        right = [is_right for _, is_right in ranking]
        total = sum(right)
        if not total:
            continue
        counted += 1
        hits[labels[q]].append(right[0])
        for point in range(points):
            best = 0.0
            for place in range(1, len(right) + 1):
                found = sum(right[:place])
                reached = found * (points - 1) >= point * total  # recall >= point / (points - 1), without rounding
                if right[place - 1] and reached:
                    best = max(best, found / place)
            curve[point] += best
    by_label = {label: (sum(found) / len(found) if found else math.nan, len(found)) for label, found in hits.items()}
    return [value / counted if counted else math.nan for value in curve], by_label


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 14), st.integers(2, 12), st.integers(1, 2000), st.integers(0, 2**32 - 1))
def test_equals_sorted_lists_written_as_loops_with_ties_and_lone_queries(count, points, chunk_bytes, seed):
    rng = np.random.default_rng(seed)
    vectors = unit(rng.integers(-2, 3, (count, 3)) + 1e-9 + rng.integers(0, 2, (count, 1)) * 3)
    labels, ids = rng.integers(0, 5, count), rng.integers(0, 20, count)
    got = ranking_profile(vectors, vectors, labels, labels, query_ids=ids, gallery_ids=ids, points=points, chunk_bytes=chunk_bytes)
    curve, by_label = written_out(vectors, labels.tolist(), ids.tolist(), points)
    assert got.recall == pytest.approx(np.linspace(0, 1, points))
    assert got.precision == pytest.approx(curve, nan_ok=True)
    assert list(got.by_label) == list(by_label)
    for label, (recall, queries) in by_label.items():
        assert got.by_label[label].recall == pytest.approx(recall, nan_ok=True)
        assert got.by_label[label].queries == queries


def test_a_worked_example_by_hand():
    # Ranked: right, wrong, right, wrong, wrong, right, right: R = 4, precisions 1, 2/3, 3/6, 4/7 at recall 1/4, 1/2, 3/4, 1
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    gallery = np.stack([scores, np.sqrt(1 - scores**2)], axis=1)
    found = ranking_profile(np.array([[1.0, 0.0]]), gallery, ["a"], ["a", "b", "a", "b", "b", "a", "a"])
    assert found.precision == pytest.approx([1, 1, 1, 2 / 3, 2 / 3, 2 / 3, 4 / 7, 4 / 7, 4 / 7, 4 / 7, 4 / 7])
    assert found.by_label["a"].recall == 1.0


@pytest.mark.parametrize("per_class", [2, 5, 20])
def test_a_perfect_embedding_is_one_at_every_recall_and_in_every_class(per_class):
    labels = np.repeat(np.arange(6), per_class)
    vectors, ids = np.eye(6, dtype=np.float32)[labels], np.arange(len(labels))
    found = ranking_profile(vectors, vectors, labels, labels, query_ids=ids, gallery_ids=ids, points=101)
    assert found.precision.tolist() == [1.0] * 101
    assert {label: (one.recall, one.queries) for label, one in found.by_label.items()} == {label: (1.0, per_class) for label in range(6)}


def test_a_curve_never_rises_and_one_point_for_everything_is_worth_next_to_nothing():
    rng = np.random.default_rng(0)
    vectors, labels, ids = unit(rng.standard_normal((200, 8))), rng.integers(0, 10, 200), np.arange(200)
    curve = ranking_profile(vectors, vectors, labels, labels, query_ids=ids, gallery_ids=ids).precision
    assert (np.diff(curve) <= 0).all()
    same = np.repeat(vectors[:1], 200, axis=0)
    collapsed = ranking_profile(same, same, labels, labels, query_ids=ids, gallery_ids=ids)
    assert collapsed.precision.max() < 0.2
    assert all(one.recall == 0 for one in collapsed.by_label.values())


def test_recall_by_label_weighted_by_its_queries_is_recall_at_1():
    rng = np.random.default_rng(1)
    vectors, labels, ids = unit(rng.standard_normal((150, 6))), rng.zipf(1.6, 150) % 25, np.arange(150)
    by_label = ranking_profile(vectors, vectors, labels, labels, query_ids=ids, gallery_ids=ids).by_label.values()
    whole = retrieval_metrics(vectors, vectors, labels, labels, query_ids=ids, gallery_ids=ids)
    assert sum(one.recall * one.queries for one in by_label if one.queries) / whole["queries"] == pytest.approx(whole["recall@1"])
    assert sum(one.queries for one in by_label) == whole["queries"]


def test_where_no_query_has_a_relevant_item_the_curve_is_nan_and_not_zero():
    found = ranking_profile(np.eye(2), np.eye(2), ["a", "b"], ["a", "b"], query_ids=[0, 1], gallery_ids=[0, 1])
    assert np.isnan(found.precision).all()
    assert [one.queries for one in found.by_label.values()] == [0, 0]


def test_a_curve_of_one_point_is_refused():
    with pytest.raises(ValueError, match="2 recall levels or more"):
        ranking_profile(np.eye(2), np.eye(2), [0, 1], [0, 1], points=1)
