import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perdure.losses import share_factor


def pulls(loss: Tensor, embeddings: list[Tensor]) -> float:
    gradients = torch.autograd.grad(loss, embeddings, retain_graph=True, allow_unused=True)
    return sum(float((g * g).sum()) for g in gradients if g is not None) ** 0.5


@given(weight=st.floats(0.01, 1000), share=st.floats(0, 2), seed=st.integers(0, 1000))
def test_the_pull_is_the_smaller_of_its_own_and_the_allowed(weight: float, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pictures, captions = (torch.randn(6, 3, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    others = (pictures @ captions.T).square().mean() + pictures.abs().mean()
    term = weight * (pictures - 1).square().mean()
    bounded = term * share_factor(term, others, [pictures, captions], share=share)
    expected = min(pulls(term, [pictures, captions]), share * pulls(others, [pictures, captions]))
    assert pulls(bounded, [pictures, captions]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_weak_term_is_left_exactly_as_it_is() -> None:
    rows = torch.randn(4, 3).requires_grad_()
    term = 1e-3 * rows.square().mean()
    assert share_factor(term, rows.square().mean(), [rows], share=0.25).item() == 1


def test_the_direction_stays_and_the_factor_is_a_number() -> None:
    rows = torch.randn(4, 3, dtype=torch.float64).requires_grad_()
    term, others = 50 * (rows - 1).pow(4).mean(), rows.square().mean()
    (free,) = torch.autograd.grad(term, rows, retain_graph=True)
    (bounded,) = torch.autograd.grad(term * share_factor(term, others, [rows], share=0.5), rows)
    torch.testing.assert_close(bounded / bounded.norm(), free / free.norm())


def test_nothing_is_scaled_where_nothing_is_differentiated() -> None:
    rows = torch.randn(4, 3)
    term, others = 100 * rows.square().mean(), rows.mean()
    assert share_factor(term, others, [rows], share=0.1).item() == 1
    with torch.no_grad():
        leaf = rows.clone().requires_grad_()
        assert share_factor(term, others, [leaf], share=0.1).item() == 1


def test_a_term_that_pulls_on_nothing_stays_finite() -> None:
    rows = torch.randn(4, 3).requires_grad_()
    still = (rows * 0).sum()
    bounded = still * share_factor(still, rows.square().mean(), [rows], share=0.25)
    bounded.backward()
    assert bounded.item() == 0 and rows.grad is not None and not rows.grad.any()


def test_others_that_pull_on_nothing_leave_nothing_to_share() -> None:
    rows = torch.randn(4, 3).requires_grad_()
    for others in (torch.tensor(3.0), torch.ones(2, requires_grad=True).sum()):
        assert share_factor(rows.square().mean(), others, [rows], share=0.25).item() == 0


def test_a_negative_share_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        share_factor(torch.ones(()), torch.ones(()), [], share=-1)
