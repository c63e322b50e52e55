"""Top-1 over some classes of a classifier: as a loop, with ties, with strangers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.metrics.classification import top1


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_equals_a_loop_over_items_and_classes_with_ties(count, num_classes, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (count, num_classes)).astype(np.float32)
    labels = rng.integers(0, num_classes + 1, count)
    classes = rng.choice(num_classes, rng.integers(1, num_classes + 1), replace=False)
    right, possible = 0, 0
    for i in range(count):
        if labels[i] in classes:
            possible += 1
            right += all(scores[i, labels[i]] > scores[i, c] for c in classes if c != labels[i])
    assert top1(scores, labels, classes) == (pytest.approx(right / count) if possible else None)


def test_classes_that_take_no_part_do_not_compete():
    scores = np.array([[0.1, 0.5, 9.0]])
    assert top1(scores, np.array([1]), [0, 1]) == 1.0
    assert top1(scores, np.array([1]), [0, 1, 2]) == 0.0


def test_scores_that_are_all_equal_are_worth_nothing():
    assert top1(np.ones((10, 4)), np.arange(10) % 4, range(4)) == 0.0


def test_an_item_of_a_class_that_takes_no_part_can_not_be_right():
    scores = np.array([[5.0, 0.0], [5.0, 0.0]])
    assert top1(scores, np.array([0, 7]), [0, 1]) == 0.5


def test_there_is_nothing_to_tell_before_a_class_was_learned_or_of_no_items():
    assert top1(np.eye(2), np.array([1, 1]), [0]) is None
    assert top1(np.zeros((0, 2)), np.zeros(0, dtype=np.int64), [0]) is None
    assert top1(np.eye(2), np.array([1, 1]), []) is None


def test_the_only_class_that_takes_part_is_always_right():
    assert top1(np.array([[-3.0, 1.0]]), np.array([0]), [0]) == 1.0


@pytest.mark.parametrize(
    ("scores", "labels", "classes", "words"),
    [
        (np.ones((2, 3)), np.zeros(3, dtype=int), [0], r"expected \(n, C\)"),
        (np.ones((2, 3)), np.zeros(2, dtype=int), [0, 3], "a classifier with 3 classes"),
        (np.array([[np.nan, 1.0]]), np.array([0]), [0, 1], "1 of 1 items"),
    ],
)
def test_bad_input_is_refused_with_what_was_found(scores, labels, classes, words):
    with pytest.raises(ValueError, match=words):
        top1(scores, labels, classes)
