import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.losses import asymmetric_surrogate, quadratic_penalty


def drawn(seed: int, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """A parameter, its anchor and its importance."""
    generator = torch.Generator().manual_seed(seed)
    parameter, anchor = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return parameter, anchor, torch.rand(shape, generator=generator, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5), columns=st.integers(1, 4))
def test_the_quadratic_penalty_equals_its_equation_written_as_loops(seed: int, rows: int, columns: int) -> None:
    parameter, anchor, importance = drawn(seed, rows, columns)
    expected = 0.0
    for i in range(rows):
        for j in range(columns):
            expected += 0.5 * float(importance[i, j]) * (float(parameter[i, j]) - float(anchor[i, j])) ** 2
    assert float(quadratic_penalty(parameter, anchor, importance)) == pytest.approx(expected, rel=1e-12)


def test_the_pull_of_the_quadratic_penalty_is_importance_times_displacement() -> None:
    parameter, anchor, importance = drawn(0, 3, 4)
    (pull,) = torch.autograd.grad(quadratic_penalty(parameter.requires_grad_(), anchor, importance), parameter)
    torch.testing.assert_close(pull, importance * (parameter.detach() - anchor))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 8), a=st.floats(1, 5), eps=st.floats(0, 2))
def test_the_asymmetric_surrogate_equals_its_equation_written_as_loops(seed: int, size: int, a: float, eps: float) -> None:
    parameter, anchor, importance = drawn(seed, size)
    side = torch.randint(-1, 2, (size,), generator=torch.Generator().manual_seed(seed)).double()
    surrogate = asymmetric_surrogate(parameter, anchor, importance, side, overestimation=a, floor=eps)
    for k in range(size):
        moved, weight = float(parameter[k] - anchor[k]), float(importance[k])
        came_from_there = (moved > 0 and side[k] == 1) or (moved < 0 and side[k] == -1)
        expected = weight * moved**2 if came_from_there else (a * weight + eps) * moved**2
        assert float(surrogate[k]) == pytest.approx(expected, rel=1e-12)


def test_the_side_that_was_not_seen_is_steeper_and_both_are_flat_at_the_anchor() -> None:
    anchor, importance, side = torch.zeros(2), torch.ones(2), torch.ones(2)
    options = {"overestimation": 2.0, "floor": 0.5}
    seen, unseen = (asymmetric_surrogate(torch.full((2,), to), anchor, importance, side, **options) for to in (0.1, -0.1))
    assert bool((unseen > 2 * seen).all())
    at_anchor = anchor.clone().requires_grad_()
    value = asymmetric_surrogate(at_anchor, anchor, importance, side, **options).sum()
    value.backward()
    assert value.item() == 0 and at_anchor.grad is not None and not at_anchor.grad.any()


def test_with_no_overestimation_it_is_symmetric_and_twice_the_quadratic_penalty() -> None:
    parameter, anchor, importance = drawn(1, 7)
    either = [
        asymmetric_surrogate(parameter, anchor, importance, torch.full((7,), s).double(), overestimation=1, floor=0) for s in (-1.0, 1.0)
    ]
    assert torch.equal(*either)
    torch.testing.assert_close(either[0].sum(), 2 * quadratic_penalty(parameter, anchor, importance))


def test_no_gradient_reaches_anchor_or_importance() -> None:
    parameter, anchor, importance = (each.requires_grad_() for each in drawn(2, 3))
    loss = quadratic_penalty(parameter, anchor, importance)
    loss = loss + asymmetric_surrogate(parameter, anchor, importance, torch.ones(3), overestimation=2, floor=0).sum()
    loss.backward()
    assert parameter.grad is not None and anchor.grad is None and importance.grad is None


def test_refuses_shapes_that_differ_and_options_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"shapes \(3, 4\), \(2, 4\), \(3, 4\); they must be alike"):
        quadratic_penalty(torch.zeros(3, 4), torch.zeros(2, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="asymmetric_surrogate: got tensors"):
        asymmetric_surrogate(torch.zeros(3), torch.zeros(3), torch.zeros(3), torch.zeros(2), overestimation=1, floor=0)
    for a, eps in ((0.5, 0.0), (1.0, -0.1)):
        with pytest.raises(ValueError, match="a >= 1 and eps >= 0"):
            asymmetric_surrogate(*[torch.zeros(3)] * 4, overestimation=a, floor=eps)
