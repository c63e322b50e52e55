"""PKSampler: P x K batches that cover the data, mix classes, and depend on nothing but seed and step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.data.sampler import PKSampler


def labels_of(sizes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)


def epoch(sampler: PKSampler, number: int = 0) -> np.ndarray:
    return np.stack([sampler.batch(number * sampler.steps_per_epoch + step) for step in range(sampler.steps_per_epoch)])


def test_equal_classes_give_p_classes_of_k_and_each_item_once() -> None:
    labels = labels_of([40] * 10)
    batches = epoch(PKSampler(labels, batch_size=20, per_class=4, seed=0))
    assert np.array_equal(np.sort(batches.ravel()), np.arange(400))
    for batch in batches:
        groups = labels[batch].reshape(5, 4)
        assert (groups == groups[:, :1]).all()


def test_no_item_of_a_class_is_left_without_a_positive_when_sizes_do_not_fit_k() -> None:
    labels = labels_of([9] * 12)  # 3 + 3 + 3 at K = 4
    batches = epoch(PKSampler(labels, batch_size=36, per_class=4, seed=3))
    for batch in batches:
        assert set(np.bincount(labels[batch])) <= {0, 3, 6, 9}


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    batch_size=st.integers(2, 48),
    per_class=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=200, deadline=None)
def test_batches_have_b_different_items_two_classes_and_nearly_all_items(
    sizes: list[int], batch_size: int, per_class: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(labels_of(sizes))
    sampler = PKSampler(labels, batch_size=batch_size, per_class=per_class, seed=seed)
    n, B = len(labels), sampler.batch_size
    assert (batch_size == B) if n >= batch_size else (1 <= B <= n and n - B < per_class)
    assert sampler.steps_per_epoch == -(-n // B)
    for batch in epoch(sampler):
        assert batch.shape == (B,) and batch.dtype == np.int64 and len(np.unique(batch)) == B
        assert batch.min() >= 0 and batch.max() < n
        if len(sizes) > 1 and B > 1:
            assert len(np.unique(labels[batch])) >= 2
    seen = np.unique(epoch(sampler))
    replaced = sampler.steps_per_epoch * per_class if max(sizes) > B // 2 else 0
    assert n - len(seen) <= replaced


def test_a_class_that_is_nearly_everything_still_meets_the_others_in_every_batch() -> None:
    labels = labels_of([990, 6])
    batches = epoch(PKSampler(labels, batch_size=32, per_class=4, seed=0))
    assert all(len(np.unique(labels[batch])) == 2 for batch in batches)


def test_each_class_is_spread_over_the_epoch() -> None:
    labels = labels_of([400, 100, 100, 100, 100])
    batches = epoch(PKSampler(labels, batch_size=80, per_class=4, seed=0))
    shares = (labels[batches] == 0).mean(axis=1)
    assert shares.min() > 0.35 and shares.max() < 0.65


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    labels = labels_of([7, 13, 30, 11])
    one, other = (PKSampler(labels, batch_size=12, per_class=3, seed=5) for _ in range(2))
    forward = [one.batch(step) for step in range(23)]
    for step in reversed(range(23)):
        assert np.array_equal(other.batch(step), forward[step])
    different = PKSampler(labels, batch_size=12, per_class=3, seed=6)
    assert any(not np.array_equal(different.batch(step), forward[step]) for step in range(5))
    assert not np.array_equal(epoch(one, 0), epoch(one, 1))


def test_resumes_from_its_position_and_refuses_another_sequence() -> None:
    labels = labels_of([20, 20])
    one = PKSampler(labels, batch_size=8, per_class=4, seed=1)
    for step in range(7):
        one.batch(step)
    resumed = PKSampler(labels, batch_size=8, per_class=4, seed=1)
    resumed.load_state_dict(one.state_dict())
    assert resumed.position == 7 and np.array_equal(resumed.batch(resumed.position), one.batch(7))
    with pytest.raises(ValueError, match="seed was 1, is 2"):
        PKSampler(labels, batch_size=8, per_class=4, seed=2).load_state_dict(one.state_dict())


def test_fewer_items_than_a_batch_make_one_of_whole_groups() -> None:
    sampler = PKSampler(labels_of([3, 3, 3, 4]), batch_size=128, per_class=4, seed=0)
    assert (sampler.batch_size, sampler.steps_per_epoch) == (12, 2)
    assert PKSampler(labels_of([1]), batch_size=128, per_class=4, seed=0).batch(0).tolist() == [0]


@pytest.mark.parametrize(("labels", "batch_size", "per_class"), [([], 4, 2), ([0, 1], 0, 1), ([0, 1], 4, 0)])
def test_refuses_nothing_to_sample(labels: list[int], batch_size: int, per_class: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PKSampler(np.array(labels, dtype=np.int64), batch_size=batch_size, per_class=per_class, seed=0)
