"""The orders in which old items move, each against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import ConfigError
from perdure.retrieval.orders import ORDERS, distance_from_class_mean, moving_order, uncertainty


def some(count: int, seed: int, classes: int = 3) -> tuple[list[str], list[str], np.ndarray]:
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((count, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [f"item-{at}" for at in range(count)], [f"c{one}" for one in draw.integers(0, classes, count)], vectors.astype(np.float32)


@given(count=st.integers(1, 40), seed=st.integers(0, 10**6), order=st.sampled_from(ORDERS))
@settings(max_examples=80, deadline=None)
def test_every_order_names_each_item_once_whatever_order_they_came_in(count, seed, order):
    ids, labels, vectors = some(count, seed)
    counts = {item_id: at % 3 for at, item_id in enumerate(ids)}
    rows = moving_order(order, ids, labels, vectors, counts=counts)
    assert sorted(rows.tolist()) == list(range(count))
    shuffled = np.random.default_rng(seed).permutation(count)
    again = moving_order(order, [ids[at] for at in shuffled], [labels[at] for at in shuffled], vectors[shuffled], counts=counts)
    if order in ("random", "most_queried"):  # the others sum in another order, which may swap what is equal but for rounding
        assert [ids[row] for row in rows] == [ids[shuffled[row]] for row in again]


def test_distance_and_entropy_equal_their_definitions_written_as_loops():
    _, labels, vectors = some(30, 1)
    names = sorted(set(labels))
    mean = {name: vectors[np.array(labels) == name].mean(axis=0, dtype=np.float64) for name in names}
    np.testing.assert_allclose(
        distance_from_class_mean(labels, vectors),
        [np.sqrt(((x - mean[name]) ** 2).sum()) for name, x in zip(labels, vectors, strict=True)],
        atol=1e-6,
    )
    for x, found in zip(vectors, uncertainty(labels, vectors), strict=True):
        e = np.exp([float(x @ mean[name]) / np.linalg.norm(mean[name]) / 0.1 for name in names])
        p = e / e.sum()
        assert found == pytest.approx(-(p * np.log(p)).sum(), abs=1e-4)


def test_the_farthest_the_least_sure_and_the_most_asked_for_are_first():
    ids, labels, vectors = some(30, 2)
    for order, key in (("farthest_from_class_mean", distance_from_class_mean), ("by_uncertainty", uncertainty)):
        assert (np.diff(key(labels, vectors)[moving_order(order, ids, labels, vectors)]) <= 0).all()
    rows = moving_order("most_queried", ids, labels, vectors, counts={"item-7": 5, "item-3": 9, "gone": 99})
    assert [ids[row] for row in rows[:2]] == ["item-3", "item-7"]


def test_another_seed_is_another_random_order():
    ids, labels, vectors = some(30, 3)
    one, two = (moving_order("random", ids, labels, vectors, seed=seed).tolist() for seed in (0, 1))
    assert one != two and one == moving_order("random", ids, labels, vectors).tolist()


def test_an_unknown_order_and_one_without_counts_are_refused():
    ids, labels, vectors = some(3, 0)
    with pytest.raises(ConfigError, match="no order named 'best'; known: random, farthest"):
        moving_order("best", ids, labels, vectors)
    with pytest.raises(ConfigError, match="--counts FILE"):
        moving_order("most_queried", ids, labels, vectors)
