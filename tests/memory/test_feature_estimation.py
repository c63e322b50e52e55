import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.memory.accuracy_drift import AccuracyDrift, measure_drift
from perdure.memory.feature_estimation import estimate_features

# Tasks 1, 2, 3. Where drop = gain the range is a point, and alpha is known.
KNOWN = (AccuracyDrift(-0.5, -0.5), AccuracyDrift(0.2, 0.2), AccuracyDrift(1.0, 1.0))


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, generator=draws(9), dtype=torch.float64)


@pytest.mark.parametrize(
    ("t", "factors"),
    [
        (1, []),
        (2, [1 - 0.5]),
        (3, [1 + 0.2, (1 + 0.2) * (1 - 0.5)]),
        (4, [1 + 1.0, (1 + 1.0) * (1 + 0.2), (1 + 1.0) * (1 + 0.2) * (1 - 0.5)]),
    ],
)
def test_goes_back_from_the_last_task_to_f_0_each_step_by_its_own_drift(t: int, factors: list[float]) -> None:
    """(6.9) by hand: F[t - 2] first, F[0] last."""
    embeddings = rows(5, 3)
    virtual = estimate_features(embeddings, KNOWN[: t - 1], draws())
    assert len(virtual) == len(factors) == t - 1
    for estimate, factor in zip(virtual, factors, strict=True):
        torch.testing.assert_close(estimate, factor * embeddings)


def test_k_scales_the_step() -> None:
    embeddings = rows(5, 3)
    half, none = (estimate_features(embeddings, KNOWN[:2], draws(), k=k) for k in (0.5, 0.0))
    torch.testing.assert_close(half, [1.1 * embeddings, 1.1 * 0.75 * embeddings])
    assert all(torch.equal(each, embeddings) for each in none)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 6), dim=st.integers(1, 5), k=st.sampled_from([0.5, 1.0, 2.0]), data=st.data())
def test_equals_equations_6_7_to_6_9_written_as_loops(seed: int, size: int, dim: int, k: float, data: st.DataObject) -> None:
    change = st.floats(-1, 5)
    drifts = [AccuracyDrift(data.draw(change), data.draw(change)) for _ in range(3)]
    embeddings = rows(size, dim)
    expected, current, generator = [], embeddings.tolist(), draws(seed)
    for task in (3, 2, 1):
        low, high = min(drifts[task - 1].drop, drifts[task - 1].gain), max(drifts[task - 1].drop, drifts[task - 1].gain)
        uniform = torch.rand(size, dim, generator=generator).tolist()
        for i in range(size):
            for d in range(dim):
                alpha = low + uniform[i][d] * (high - low)
                current[i][d] = current[i][d] + k * alpha * current[i][d]
        expected.append(torch.tensor(current, dtype=torch.float64))
    torch.testing.assert_close(estimate_features(embeddings, drifts, draws(seed), k=k), expected)


def test_alpha_is_drawn_for_every_element_over_the_whole_range() -> None:
    ones = torch.ones(400, 50)
    (virtual,) = estimate_features(ones, [AccuracyDrift(drop=-0.2, gain=0.6)], draws())
    assert 0.8 <= float(virtual.min()) < 0.801 and 1.599 < float(virtual.max()) <= 1.6
    assert float(virtual.mean()) == pytest.approx(1 + 0.5 * (-0.2 + 0.6), abs=0.005)
    assert float(virtual.std(dim=0).min()) > 0.1 and float(virtual.std(dim=1).min()) > 0.1


def test_a_drop_above_the_gain_is_the_same_range() -> None:
    """Learning did the old classes more good than the new ones."""
    one, other = (estimate_features(rows(4, 3), [drift], draws()) for drift in (AccuracyDrift(-0.1, 0.3), AccuracyDrift(0.3, -0.1)))
    assert torch.equal(one[0], other[0])


def test_everything_forgotten_leaves_zeros_at_most_and_turns_nothing_around() -> None:
    """No accuracy falls by more than itself, so at k = 1 no element changes its sign."""
    drift = measure_drift([1.0, 0.1], [0.0, 0.9], task=1)
    assert drift.drop == -1
    embeddings = rows(50, 20)
    (virtual,) = estimate_features(embeddings, [drift], draws())
    assert bool((virtual * embeddings >= 0).all()) and bool(virtual.isfinite().all())


def test_the_draws_depend_on_the_generator_alone() -> None:
    drifts = [AccuracyDrift(-0.2, 0.6), AccuracyDrift(-0.1, 2.0)]
    first, again, other, doubled = (
        estimate_features(embeddings, drifts, draws(seed))
        for embeddings, seed in ((rows(4, 3), 1), (rows(4, 3), 1), (rows(4, 3), 2), (2 * rows(4, 3), 1))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    torch.testing.assert_close(doubled, [2 * each for each in first])
