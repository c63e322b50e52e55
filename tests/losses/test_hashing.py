import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.losses import binary_codes, multi_label_cross_entropy, multi_level_similarity, pair_likelihood, quantisation

SIZES = st.tuples(st.integers(0, 5), st.integers(0, 5))


def draw(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_labels(seed: int, rows: int, classes: int) -> Tensor:
    return torch.randint(0, 2, (rows, classes), generator=torch.Generator().manual_seed(seed))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def dot(a: Tensor, b: Tensor) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(0, 5), bits=st.integers(1, 6))
def test_quantisation_equals_3_1_written_as_loops(seed: int, size: int, bits: int) -> None:
    codes = draw(seed, size, bits).tanh()
    expected = sum((float(h) - (1 if h >= 0 else -1)) ** 2 for row in codes for h in row) / max(1, size * bits)
    assert float(quantisation(codes)) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), sizes=SIZES, dim=st.integers(1, 4), classes=st.integers(1, 5))
def test_pairs_equal_3_3_and_3_5_written_as_loops(seed: int, sizes: tuple[int, int], dim: int, classes: int) -> None:
    image, text = draw(seed, sizes[0], dim), draw(seed + 1, sizes[1], dim)
    labels = draw_labels(seed, sizes[0], classes), draw_labels(seed + 1, sizes[1], classes)
    level = likelihood = 0.0
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            common, product = dot(labels[0][i], labels[1][j]), dot(image[i], text[j])
            level += (sigmoid(product) - common / classes) ** 2
            probability = sigmoid(product / 2)
            likelihood -= math.log(probability if common > 0 else 1 - probability)
    count = max(1, sizes[0] * sizes[1])
    assert float(multi_level_similarity(image, text, *labels)) == pytest.approx(level / count, abs=1e-9)
    assert float(pair_likelihood(image, text, *labels)) == pytest.approx(likelihood / count, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(0, 5), classes=st.integers(1, 5))
def test_label_cross_entropy_equals_3_6_written_as_loops(seed: int, size: int, classes: int) -> None:
    logits, labels = draw(seed, size, classes), draw_labels(seed, size, classes)
    expected = 0.0
    for i in range(size):
        for c in range(classes):
            p = sigmoid(float(logits[i, c]))
            expected -= math.log(p) if labels[i, c] else math.log(1 - p)
    assert float(multi_label_cross_entropy(logits, labels)) == pytest.approx(expected / max(1, size * classes), abs=1e-9)


def test_descending_the_likelihood_makes_similar_pairs_more_similar_than_others() -> None:
    """With the sign as it is printed in (3.5), it would do the opposite."""
    labels = torch.tensor([[1, 0], [1, 1], [0, 1]])
    rows = [draw(0, 3, 4).requires_grad_(), draw(1, 3, 4).requires_grad_()]
    for _ in range(200):
        gradients = torch.autograd.grad(pair_likelihood(rows[0], rows[1], labels, labels), rows)
        rows = [(row - gradient).detach().requires_grad_() for row, gradient in zip(rows, gradients, strict=True)]
    products = rows[0] @ rows[1].T
    similar = (labels @ labels.T) > 0
    assert products[similar].min() > 0 > products[~similar].max()


def test_codes_are_signs_and_zero_has_one_too() -> None:
    codes = torch.tensor([[0.3, -0.2, 0.0]], requires_grad=True)
    assert binary_codes(codes).tolist() == [[1.0, -1.0, 1.0]]
    assert not binary_codes(codes).requires_grad
    assert quantisation(binary_codes(codes)).item() == 0.0
    assert quantisation(torch.zeros(2, 3)).item() == 1.0


def test_quantisation_pulls_each_entry_to_its_own_sign() -> None:
    codes = torch.tensor([[0.3, -0.2, 0.9]], requires_grad=True)
    (gradient,) = torch.autograd.grad(quantisation(codes), codes)
    assert (gradient.sign() == -codes.detach().sign()).all()


def test_long_rows_have_a_finite_loss_and_gradient() -> None:
    image, text = torch.full((2, 3), 1e3, requires_grad=True), torch.full((2, 3), -1e3, requires_grad=True)
    labels = torch.tensor([[1, 0], [0, 1]])
    loss = (
        pair_likelihood(image, text, labels, labels)
        + multi_level_similarity(image, text, labels, labels)
        + multi_label_cross_entropy(image[:, :2], labels)
    )
    loss.backward()
    assert loss.isfinite() and image.grad is not None and image.grad.isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    ones = torch.ones(2, 3)
    for loss in (multi_level_similarity, pair_likelihood):
        with pytest.raises(ValueError, match=r"pictures \(2, 3\) with labels \(1, 3\)"):
            loss(ones, ones, torch.ones(1, 3), ones)
        with pytest.raises(ValueError, match=r"texts \(2, 4\)"):
            loss(ones, torch.ones(2, 4), ones, ones)
    with pytest.raises(ValueError, match=r"logits \(2, 3\) and labels \(2,\)"):
        multi_label_cross_entropy(ones, torch.ones(2))
    with pytest.raises(ValueError, match=r"codes \(3,\)"):
        quantisation(torch.ones(3))
