import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.losses import projected, projected_logits, projection_kl, symmetric_posterior_kl


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(a: Tensor, b: Tensor) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def length(a: Tensor) -> float:
    return math.sqrt(dot(a, a))


def softmax(values: list[float]) -> list[float]:
    exps = [math.exp(value) for value in values]
    return [each / sum(exps) for each in exps]


def projection_kl_as_loops(image: Tensor, text: Tensor, common: list[list[float]], epsilon: float) -> float:
    total = 0.0
    for rows, columns in ((image, text), (text, image)):
        for j in range(len(rows)):
            p = softmax([dot(rows[j], columns[k]) / length(columns[k]) for k in range(len(columns))])
            q = softmax(common[j])
            total += sum(p_k * math.log(p_k / (q_k + epsilon)) for p_k, q_k in zip(p, q, strict=True)) / len(rows)
    return total


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 6), dim=st.integers(1, 5), epsilon=st.sampled_from([1e-8, 1e-2]))
def test_projection_kl_equals_4_6_to_4_9_written_as_loops(seed: int, size: int, dim: int, epsilon: float) -> None:
    image, text = 2 * draw(seed, size, dim), draw(seed + 1, size, dim)
    labels = torch.randint(0, 3, (size,), generator=torch.Generator().manual_seed(seed))
    common = [[float(labels[j] == labels[k]) for k in range(size)] for j in range(size)]
    expected = projection_kl_as_loops(image, text, common, epsilon)
    assert float(projection_kl(image, text, labels, epsilon=epsilon)) == pytest.approx(expected, abs=1e-6)


def test_several_labels_of_an_item_count_by_how_many_are_common() -> None:
    image, text = draw(0, 4, 3), draw(1, 4, 3)
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]])
    common = [[dot(a, b) for b in labels] for a in labels]
    assert common[0][0] == 2
    assert float(projection_kl(image, text, labels)) == pytest.approx(projection_kl_as_loops(image, text, common, 1e-8), abs=1e-6)


def test_one_label_is_the_same_as_a_row_with_one_one() -> None:
    image, text, labels = draw(2, 5, 3), draw(3, 5, 3), torch.tensor([0, 2, 2, 1, 0])
    torch.testing.assert_close(projection_kl(image, text, labels), projection_kl(image, text, torch.nn.functional.one_hot(labels)))


def test_descending_projection_kl_draws_pairs_of_a_class_together() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    rows = [draw(4, 4, 3).requires_grad_(), draw(5, 4, 3).requires_grad_()]

    def margin() -> float:
        similarity = rows[0] @ torch.nn.functional.normalize(rows[1]).T
        same = labels[:, None] == labels
        return (similarity[same].mean() - similarity[~same].mean()).item()

    before = margin()
    for _ in range(200):
        gradients = torch.autograd.grad(projection_kl(rows[0], rows[1], labels), rows)
        rows = [(row - 0.1 * gradient).detach().requires_grad_() for row, gradient in zip(rows, gradients, strict=True)]
    assert margin() > before and margin() > 0.5


def test_a_projection_lies_along_its_partner_and_is_the_nearest_point_there() -> None:
    z, onto = draw(6, 5, 4), 7 * draw(7, 5, 4)
    shadow = projected(z, onto)
    for j in range(5):
        expected = [dot(z[j], onto[j]) / dot(onto[j], onto[j]) * float(value) for value in onto[j]]
        assert shadow[j].tolist() == pytest.approx(expected)
        assert dot(z[j] - shadow[j], onto[j]) == pytest.approx(0, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 4), classes=st.integers(1, 4))
def test_projected_logits_equal_those_of_4_10_written_as_loops(seed: int, size: int, classes: int) -> None:
    image, text, weight = draw(seed, size, 3), draw(seed + 1, size, 3), 5 * draw(seed + 2, classes, 3)
    found = projected_logits(image, text, weight)
    for logits, (from_, onto) in zip(found, ((image, text), (text, image)), strict=True):
        for j in range(size):
            shadow = torch.tensor([dot(from_[j], onto[j]) / dot(onto[j], onto[j]) * float(value) for value in onto[j]])
            assert logits[j].tolist() == pytest.approx([dot(shadow, w) / length(w) for w in weight], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(0, 5), classes=st.integers(1, 5), tau=st.sampled_from([0.5, 1.0, 4.0]))
def test_posterior_kl_equals_4_11_as_it_is_read_written_as_loops(seed: int, size: int, classes: int, tau: float) -> None:
    a, b = draw(seed, size, classes), draw(seed + 1, size, classes)
    expected = 0.0
    for j in range(size):
        p, q = (softmax([float(value) / tau for value in each[j]]) for each in (a, b))
        expected += tau**2 / size * sum(x * math.log(x / y) + y * math.log(y / x) for x, y in zip(p, q, strict=True))
    assert float(symmetric_posterior_kl(a, b, temperature=tau)) == pytest.approx(expected, abs=1e-9)


def test_posteriors_that_agree_cost_nothing_and_those_that_do_not_cost_something() -> None:
    """As printed, (4.11) would be 0 for both."""
    a, b = draw(8, 6, 5), draw(9, 6, 5)
    assert float(symmetric_posterior_kl(a, a)) == pytest.approx(0, abs=1e-12)
    assert float(symmetric_posterior_kl(a, b)) > 0.1
    torch.testing.assert_close(symmetric_posterior_kl(a, b), symmetric_posterior_kl(b, a))


def test_at_high_temperatures_the_size_stays_where_it_is() -> None:
    a, b = draw(10, 6, 5), draw(11, 6, 5)
    assert float(symmetric_posterior_kl(a, b, temperature=50)) == pytest.approx(
        float(symmetric_posterior_kl(a, b, temperature=100)), rel=0.1
    )


@pytest.mark.parametrize("size", [0, 1])
def test_too_few_rows_are_zero_with_a_finite_gradient(size: int) -> None:
    image, text = torch.zeros(size, 3, requires_grad=True), torch.zeros(size, 3, requires_grad=True)
    loss = projection_kl(image, text, torch.zeros(size, dtype=torch.long)) + symmetric_posterior_kl(image, text)
    loss.backward()
    assert loss.item() == 0.0
    assert image.grad is not None and image.grad.isfinite().all()


def test_rows_of_zeros_and_long_rows_have_a_finite_gradient() -> None:
    image = torch.cat([torch.zeros(2, 3), torch.full((2, 3), 1e4)]).requires_grad_()
    text = draw(12, 4, 3).float().requires_grad_()
    weight = torch.randn(5, 3, requires_grad=True)
    loss = projection_kl(image, text, torch.tensor([0, 1, 0, 1])) + symmetric_posterior_kl(*projected_logits(image, text, weight))
    loss.backward()
    for leaf in (image, text, weight):
        assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\)"):
        projected(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"labels \(2,\) for 3 pairs"):
        projection_kl(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(2))
    with pytest.raises(ValueError, match="epsilon=0"):
        projection_kl(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3), epsilon=0)
    with pytest.raises(ValueError, match=r"weight \(5, 3\)"):
        projected_logits(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="temperature=0"):
        symmetric_posterior_kl(torch.zeros(3, 4), torch.zeros(3, 4), temperature=0)
