import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.losses import info_nce, unit_rows


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 10),
    classes=st.integers(1, 4),
    negatives=st.integers(1, 12),
    temperature=st.floats(0.05, 3),
)
def test_equals_its_equation_written_as_loops(seed: int, size: int, classes: int, negatives: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = unit_rows(torch.randn(size, 3, generator=generator, dtype=torch.float64))
    labels = torch.randint(classes, (size,), generator=generator)
    terms = []
    for a in range(size):
        positives = [float(z[a] @ z[p]) for p in range(size) if p != a and labels[p] == labels[a]]
        others = sorted((float(z[a] @ z[j]) for j in range(size) if labels[j] != labels[a]), reverse=True)
        if positives and others:
            up = math.exp(min(positives) / temperature)
            terms.append(-math.log(up / (up + sum(math.exp(other / temperature) for other in others[:negatives]))))
    expected = sum(terms) / len(terms) if terms else 0.0
    assert float(info_nce(z, labels, negatives=negatives, temperature=temperature)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_does_not_depend_on_the_order_of_the_batch() -> None:
    z, labels = unit_rows(torch.randn(12, 4, dtype=torch.float64)), torch.arange(12) % 4
    order = torch.randperm(12)
    torch.testing.assert_close(info_nce(z, labels), info_nce(z[order], labels[order]))


def test_anchor_positive_and_negatives_all_learn() -> None:
    z = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], requires_grad=True)
    info_nce(z, torch.tensor([0, 0, 1])).backward()
    assert z.grad is not None and bool((z.grad != 0).any(dim=1).all())


def test_is_zero_with_a_gradient_when_no_row_has_both() -> None:
    z = torch.randn(3, 4, requires_grad=True)
    for labels in (torch.zeros(3, dtype=torch.int64), torch.arange(3)):
        loss = info_nce(z, labels)
        loss.backward()
        assert loss.item() == 0


def test_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\) and labels \(2,\)"):
        info_nce(torch.randn(3, 4), torch.zeros(2, dtype=torch.int64))
    for wrong in ({"negatives": 0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="at least 1, and above 0"):
            info_nce(torch.randn(3, 4), torch.zeros(3, dtype=torch.int64), **wrong)
