import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.losses import modality_cross_entropy, negative_entropy, reverse_gradient


def draw(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior(row: Tensor) -> list[float]:
    exps = [math.exp(float(value)) for value in row]
    return [each / sum(exps) for each in exps]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(0, 7), modalities=st.integers(2, 4))
def test_negative_entropy_equals_4_4_written_as_loops(seed: int, size: int, modalities: int) -> None:
    logits = draw(seed, size, modalities)
    expected = sum(p * math.log(p) for row in logits for p in posterior(row)) / max(size, 1)
    assert float(negative_entropy(logits)) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(0, 5), min_size=2, max_size=4))
def test_modality_cross_entropy_equals_4_5_written_as_loops(seed: int, sizes: list[int]) -> None:
    logits = [draw(seed + m, size, len(sizes)) for m, size in enumerate(sizes)]
    expected = 0.0
    for m, rows in enumerate(logits):
        expected -= sum(math.log(posterior(row)[m]) for row in rows) / max(len(rows), 1)
    assert float(modality_cross_entropy(logits)) == pytest.approx(expected, abs=1e-9)


def test_an_undecided_discriminator_is_the_least_and_a_sure_one_the_most() -> None:
    assert float(negative_entropy(torch.zeros(5, 2))) == pytest.approx(-math.log(2))
    assert float(negative_entropy(torch.tensor([[100.0, -100.0]]))) == pytest.approx(0.0, abs=1e-6)


def test_descending_negative_entropy_leaves_the_discriminator_undecided() -> None:
    rows = (0.2 * draw(0, 6, 3).float()).requires_grad_()
    discriminator = torch.tensor([[2.0, -2.0], [1.0, 0.5], [-1.0, 3.0]])
    for _ in range(300):
        (gradient,) = torch.autograd.grad(negative_entropy(rows @ discriminator), rows)
        rows = (rows - 0.2 * gradient).detach().requires_grad_()
    assert negative_entropy(rows @ discriminator).item() == pytest.approx(-math.log(2), abs=1e-3)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_a_reversed_gradient_is_the_gradient_times_minus_the_scale(scale: float) -> None:
    rows = draw(1, 4, 3).requires_grad_()
    passed = reverse_gradient(rows, scale)
    assert torch.equal(passed, rows)
    (plain,) = torch.autograd.grad((rows**3).sum(), rows)
    (turned,) = torch.autograd.grad((passed**3).sum(), rows)
    torch.testing.assert_close(turned, -scale * plain)


def test_behind_a_reversed_gradient_the_discriminator_descends_and_the_encoder_climbs() -> None:
    rows, weight = draw(2, 8, 3).requires_grad_(), draw(3, 3, 2).requires_grad_()
    plain = torch.autograd.grad(modality_cross_entropy((rows[:4] @ weight, rows[4:] @ weight)), (rows, weight))
    through = reverse_gradient(rows)
    turned = torch.autograd.grad(modality_cross_entropy((through[:4] @ weight, through[4:] @ weight)), (rows, weight))
    torch.testing.assert_close(turned[0], -plain[0])
    torch.testing.assert_close(turned[1], plain[1])


def test_nothing_to_look_at_is_zero_with_a_gradient() -> None:
    for loss in (negative_entropy, lambda logits: modality_cross_entropy((logits, logits))):
        empty = torch.zeros(0, 2, requires_grad=True)
        value = loss(empty)
        value.backward()
        assert value.item() == 0.0 and empty.grad is not None


def test_sure_answers_have_a_finite_loss_and_gradient() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    total = negative_entropy(logits) + modality_cross_entropy((logits, logits))
    total.backward()
    assert total.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logits \(3,\)"):
        negative_entropy(torch.zeros(3))
    with pytest.raises(ValueError, match="two modalities or more"):
        negative_entropy(torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"3 modalities, but logits \(4, 2\)"):
        modality_cross_entropy([torch.zeros(4, 2)] * 3)
    with pytest.raises(ValueError, match="got 0 modalities"):
        modality_cross_entropy([])
    with pytest.raises(ValueError, match="scale=-1"):
        reverse_gradient(torch.zeros(1), -1)
