"""Merges by rank, by calibrated score and by routing, each against its definition; and what each of them promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.index import ScoreCurve, SegmentStatistics, TaskRouter, View, merge_by_probability, merge_by_rank
from perdure.index.routing import coupled
from perdure.records import EncoderRef, Hits

E1, E2, E3 = (EncoderRef("demo", version) for version in (1, 2, 3))


def hits(scores, rows, segment: int = 0) -> Hits:
    rows = np.array(rows, np.int64)
    return Hits(np.array(scores, np.float32), rows, np.full(rows.shape, segment, np.int32))


def unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)


def clouds(centres: list[list[float]], each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    rows = np.concatenate([np.array(centre) + 0.3 * draw.standard_normal((each, len(centre))) for centre in centres])
    return unit(rows), np.repeat(np.arange(len(centres)), each)


# -- reciprocal rank ------------------------------------------------------------------------------------------------------


@given(
    lists=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=8, unique=True), min_size=1, max_size=4),
    k=st.integers(1, 40),
)
@settings(max_examples=150, deadline=None)
def test_reciprocal_rank_equals_its_definition_written_as_loops(lists, k):
    parts = [hits([np.linspace(1, 0, len(names)) * (s + 1)], [list(range(len(names)))], s) for s, names in enumerate(lists)]
    merged = merge_by_rank(parts, k, names=[np.array([names]) for names in lists])
    expected: dict[int, float] = {}
    for names in lists:
        for rank, name in enumerate(names, start=1):
            expected[name] = expected.get(name, 0.0) + 1 / (60 + rank)
    found = [lists[s][row] for s, row in zip(merged.segments[0], merged.rows[0], strict=True)]
    np.testing.assert_allclose(merged.scores[0], [expected[name] for name in found], rtol=1e-6)
    listed = sorted((expected[name] for names in lists for name in names), reverse=True)[:k]
    np.testing.assert_allclose(merged.scores[0], listed, rtol=1e-6)
    assert merged.metric == "rank"


def test_reciprocal_rank_does_not_look_at_scores_and_leaves_padding_last():
    parts = [hits([[0.9, 0.8, 0.0]], [[4, 5, -1]], 0), hits([[0.1, 0.05]], [[6, 7]], 1)]
    merged = merge_by_rank(parts, 9, names=[np.array([[0, 1, -1]]), np.array([[2, 3]])])
    assert list(zip(merged.segments[0].tolist(), merged.rows[0].tolist(), strict=True)) == [(0, 4), (1, 6), (0, 5), (1, 7)]


# -- calibrated -----------------------------------------------------------------------------------------------------------


@given(pairs=st.lists(st.tuples(st.integers(-20, 20), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=150, deadline=None)
def test_a_curve_never_falls_and_is_the_best_of_all_that_do_not(pairs):
    scores, right = np.array([s for s, _ in pairs], np.float32) / 20, np.array([y for _, y in pairs])
    curve = ScoreCurve.fit(scores, right)
    grid = curve(np.linspace(-1.2, 1.2, 101).astype(np.float32))
    assert (np.diff(grid) >= -1e-12).all() and (grid >= 0).all() and (grid <= 1).all()
    if right.all() or not right.any():
        return
    # max-min formula of isotonic regression: p(s) = max over a <= s of min over b >= s of the mean of y with score in [a, b]
    for s in np.unique(scores):
        best = max(
            min(right[(scores >= a) & (scores <= b)].mean() for b in np.unique(scores[scores >= s])) for a in np.unique(scores[scores <= s])
        )
        assert curve(np.array([s]))[0] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("right", [[], [True, True], [False]])
def test_a_curve_without_both_kinds_of_pairs_is_the_cosine_itself(right):
    curve = ScoreCurve.fit(np.zeros(len(right), np.float32), np.array(right, np.bool_))
    np.testing.assert_allclose(curve(np.array([-1.0, 0.0, 1.0], np.float32)), [0, 0.5, 1])


@given(
    scores=st.lists(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=100, deadline=None)
def test_merging_by_probability_orders_by_share_times_curve_and_keeps_the_order_inside_a_list(scores, seed):
    draw = np.random.default_rng(seed)
    scores = [sorted(each, reverse=True) for each in scores]
    parts = [hits([each], [list(range(len(each)))], s) for s, each in enumerate(scores)]
    curves = [ScoreCurve(np.array([-1.0, 0.0, 1.0]), np.sort(draw.random(3))) for _ in scores]
    shares = [np.full((1, len(each)), draw.random()) for each in scores]
    merged = merge_by_probability(parts, 99, curves=curves, shares=shares)
    expected = [float(shares[s][0, 0] * curves[s](np.float32([x]))[0]) for s, each in enumerate(scores) for x in each]
    np.testing.assert_allclose(merged.scores[0], sorted(expected, reverse=True), atol=1e-6)
    for s, each in enumerate(scores):
        rows = merged.rows[0][merged.segments[0] == s]
        np.testing.assert_allclose(np.array(each)[rows], each, atol=1e-7)


def test_equal_probabilities_keep_the_order_of_their_scores():
    flat = ScoreCurve(np.array([0.0, 1.0]), np.array([0.5, 0.5]))
    merged = merge_by_probability([hits([[0.9, 0.2]], [[0, 1]], 0), hits([[0.7]], [[2]], 1)], 3, curves=[flat, flat])
    assert merged.rows.tolist() == [[0, 2, 1]] and merged.metric == "probability"


def test_scores_that_are_no_inner_products_are_not_calibrated():
    wrong = Hits(np.ones((1, 1), np.float32), np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int32), "l2")
    with pytest.raises(ValueError, match="metric 'l2' cannot be calibrated"):
        merge_by_probability([wrong], 1, curves=[ScoreCurve(np.array([0.0]), np.array([0.5]))])


# -- routing --------------------------------------------------------------------------------------------------------------


@given(p=st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_coupling_gives_back_a_distribution_from_its_own_pairs(p):
    p = np.array(p) / np.sum(p)
    between = p[:, None] / (p[:, None] + p)
    np.testing.assert_allclose(coupled(between[None])[0], p, atol=1e-9)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_coupling_of_any_pairs_is_a_distribution(seed, count):
    r = np.random.default_rng(seed).uniform(1e-6, 1 - 1e-6, (3, count, count))
    between = np.where(np.triu(np.ones((count, count)), 1) > 0, r, 1 - np.swapaxes(r, 1, 2))
    p = coupled(between)
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_a_view_is_the_softmax_over_classes_summed_by_task():
    vectors, classes = clouds([[2, 0, 0], [0, 2, 0], [0, 0, 2], [-2, 0, 0]], 30)
    tasks = np.array([0, 0, 1, 1])[classes]
    view = View.fit(E1, vectors, [f"c{one}" for one in classes], tasks)
    assert view is not None and view.weight.shape == (4, 3) and view.task.tolist() == [0, 0, 1, 1] and view.count.tolist() == [30] * 4
    logits = vectors.astype(np.float64) @ view.weight.T + view.bias
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(view.log_odds(vectors, 0, 1), np.log(p[:, :2].sum(axis=1) / p[:, 2:].sum(axis=1)), atol=1e-5)
    assert ((view.log_odds(vectors, 0, 1) > 0) == (tasks == 0)).mean() > 0.95
    assert view.seen(0, 1) == 60 and view.seen(0, 2) == 0


def test_two_classes_are_a_logistic_regression_and_one_task_is_no_view():
    vectors, classes = clouds([[2, 0], [0, 2]], 40)
    view = View.fit(E1, vectors, ["a"] * 80, classes)
    assert view is not None and view.weight[0].tolist() == [0, 0]
    assert ((view.log_odds(vectors, 1, 0) > 0) == (classes == 1)).mean() > 0.95
    assert View.fit(E1, vectors, ["a"] * 80, np.zeros(80, np.int64)) is None


def test_more_classes_than_a_view_can_hold_are_told_apart_as_tasks():
    draw = np.random.default_rng(0)
    vectors = unit(draw.standard_normal((600, 4)))
    view = View.fit(E1, vectors, [f"label {at}" for at in range(600)], (vectors[:, 0] > 0).astype(np.int64))
    assert view is not None and len(view.task) == 2


def test_classes_of_few_items_are_told_apart_as_tasks():
    vectors, tasks = clouds([[2, 0], [0, 2]], 40)
    few, many = (View.fit(E1, vectors, [f"c{at // items}" for at in range(80)], tasks) for items in (7, 8))
    assert few is not None and len(few.task) == 2
    assert many is not None and len(many.task) == 10


def test_a_task_weighs_the_same_however_many_items_it_has():
    """Two clouds, one forty times as often: what lies in the middle is of either; unweighted it would be of the many."""
    few, _ = clouds([[2, 1]], 20)
    many, _ = clouds([[1, 2]], 800)
    view = View.fit(E1, np.concatenate([few, many]), ["a"] * 820, np.repeat([0, 1], [20, 800]))
    assert view is not None
    middle = unit(np.array([[1.0, 1.0]]))
    assert abs(view.log_odds(middle, 0, 1)[0]) < 0.6 < np.log(40)
    assert (view.log_odds(few, 0, 1) > 0).mean() > 0.8 and (view.log_odds(many, 0, 1) < 0).mean() > 0.8


@given(seed=st.integers(0, 10**6), count=st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_the_lowest_score_that_is_worth_as_much_gives_its_worth_back(seed, count):
    draw = np.random.default_rng(seed)
    scores = draw.uniform(-1, 1, count).astype(np.float32)
    curve = ScoreCurve.fit(scores, draw.uniform(-1, 1, count) < scores)
    asked = draw.uniform(-1, 1, 50)
    np.testing.assert_allclose(curve.worth(curve.reaching(curve.worth(asked))), curve.worth(asked), rtol=0, atol=1e-12)
    assert curve.reaching(np.array([1.1]))[0] > 1 and curve.reaching(np.array([-0.1]))[0] < -1


def test_tasks_that_no_single_encoder_knows_are_told_apart_by_pairs():
    """Encoder 1 has seen tasks 0 and 1, and 0 and 2; encoder 2 tasks 1 and 2: as a stream of three tasks leaves them."""
    vectors, tasks = clouds([[2, 0, 0], [0, 2, 0], [0, 0, 2]], 60)
    views = []
    for maker, pair in ((E1, (0, 1)), (E1, (0, 2)), (E2, (1, 2))):
        own = np.isin(tasks, pair)
        view = View.fit(maker, vectors[own], ["x"] * int(own.sum()), tasks[own])
        assert view is not None
        views.append(view)
    shares = TaskRouter(tuple(views)).shares({E1: vectors, E2: vectors}, [0, 1, 2])
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert (shares.argmax(axis=1) == tasks).mean() > 0.95
    blind = TaskRouter(tuple(views)).shares({E3: vectors}, [0, 1, 2])
    np.testing.assert_allclose(blind, 1 / 3)
    np.testing.assert_allclose(TaskRouter(()).shares({E1: vectors}, [7]), 1)


def test_older_views_are_carried_on_while_their_encoder_lives_and_they_alone_know_a_pair():
    vectors, tasks = clouds([[2, 0, 0], [0, 2, 0], [0, 0, 2]], 20)

    def view(maker: EncoderRef, *pair: int) -> View:
        own = np.isin(tasks, pair)
        fitted = View.fit(maker, vectors[own], ["x"] * int(own.sum()), tasks[own])
        assert fitted is not None
        return fitted

    older = TaskRouter((view(E1, 0, 1), view(E2, 1, 2), view(E3, 0, 1, 2)))
    newer = TaskRouter((view(E2, 1, 2), view(E1, 0, 2)))
    carried = newer.carrying(older, [E1, E2])
    assert [(each.encoder, np.unique(each.task).tolist()) for each in carried.views] == [(E2, [1, 2]), (E1, [0, 2]), (E1, [0, 1])]


# -- pooled moments -------------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_pooled_moments_are_those_of_all_vectors_together(sizes, seed):
    draw = np.random.default_rng(seed)
    parts = [unit(draw.standard_normal((size, 5)) + at) for at, size in enumerate(sizes)]
    pooled = SegmentStatistics.pooled([SegmentStatistics.of(part) for part in parts])
    whole = SegmentStatistics.of(np.concatenate(parts))
    assert pooled.count == whole.count == sum(sizes)
    np.testing.assert_allclose(pooled.mean, whole.mean, atol=1e-6)
    np.testing.assert_allclose(pooled.covariance, whole.covariance, atol=1e-6)
