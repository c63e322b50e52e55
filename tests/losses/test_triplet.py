import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.losses import batch_triplet, unit_rows

MININGS = ["hard", "semi_hard", "all"]


def draw(seed: int, size: int, dim: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = unit_rows(torch.randn(size, dim, generator=generator, dtype=torch.float64))
    return embeddings, torch.randint(classes, (size,), generator=generator)


def as_loops(z: Tensor, y: list[int], margin: float, mining: str) -> float:
    """(5.2), triplet by triplet."""
    s = [[sum(float(a) * float(b) for a, b in zip(z[i], z[j], strict=True)) for j in range(len(y))] for i in range(len(y))]
    terms = []
    for a in range(len(y)):
        positives = [p for p in range(len(y)) if p != a and y[p] == y[a]]
        negatives = [n for n in range(len(y)) if y[n] != y[a]]
        if not positives or not negatives:
            continue
        if mining == "hard":
            terms.append(max(0.0, margin + max(s[a][n] for n in negatives) - min(s[a][p] for p in positives)))
        for p in positives:
            if mining == "semi_hard":
                below = [s[a][n] for n in negatives if s[a][n] < s[a][p]]
                terms.append(max(0.0, margin + (max(below) if below else min(s[a][n] for n in negatives)) - s[a][p]))
            if mining == "all":
                terms += [margin + s[a][n] - s[a][p] for n in negatives if margin + s[a][n] - s[a][p] > 0]
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("mining", MININGS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 14),
    dim=st.integers(1, 6),
    classes=st.integers(1, 5),
    margin=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_equals_equation_5_2_written_as_loops(mining: str, seed: int, size: int, dim: int, classes: int, margin: float) -> None:
    embeddings, labels = draw(seed, size, dim, classes)
    ours = batch_triplet(embeddings, labels, margin=margin, mining=mining)
    assert float(ours) == pytest.approx(as_loops(embeddings, labels.tolist(), margin, mining), abs=1e-9)


@pytest.mark.parametrize("mining", MININGS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 14), classes=st.integers(1, 5))
def test_does_not_depend_on_batch_order(mining: str, seed: int, size: int, classes: int) -> None:
    embeddings, labels = draw(seed, size, 4, classes)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    one, other = (z.clone().requires_grad_() for z in (embeddings, embeddings[order]))
    first, second = batch_triplet(one, labels, mining=mining), batch_triplet(other, labels[order], mining=mining)
    first.backward()
    second.backward()
    torch.testing.assert_close(first, second)
    assert one.grad is not None and other.grad is not None
    torch.testing.assert_close(one.grad[order], other.grad)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1, 2]], ids=["one row", "one class", "no positives"])
def test_is_zero_with_a_gradient_when_there_is_no_triplet(mining: str, labels: list[int]) -> None:
    embeddings = unit_rows(torch.randn(len(labels), 3)).requires_grad_()
    loss = batch_triplet(embeddings, torch.tensor(labels), mining=mining)
    loss.backward()
    assert loss.item() == 0.0
    assert embeddings.grad is not None and not embeddings.grad.any()


@pytest.mark.parametrize("mining", MININGS)
def test_is_zero_with_a_gradient_when_every_class_is_well_apart(mining: str) -> None:
    embeddings = torch.eye(2).repeat_interleave(3, dim=0).requires_grad_()
    loss = batch_triplet(embeddings, torch.tensor([0, 0, 0, 1, 1, 1]), margin=0.5, mining=mining)
    loss.backward()
    assert loss.item() == 0.0
    assert embeddings.grad is not None and not embeddings.grad.any()


@pytest.mark.parametrize("mining", MININGS)
def test_the_gradient_is_finite_when_all_rows_are_equal_or_zero(mining: str) -> None:
    for start in (torch.ones(8, 4), torch.zeros(8, 4)):
        raw = start.clone().requires_grad_()
        loss = batch_triplet(unit_rows(raw), torch.arange(8) // 2, mining=mining)
        loss.backward()
        assert loss.item() == pytest.approx(0.5)
        assert raw.grad is not None and raw.grad.isfinite().all()


@pytest.mark.parametrize("mining", MININGS)
def test_the_gradient_is_that_of_finite_differences(mining: str) -> None:
    embeddings, labels = draw(3, 9, 4, 3)
    assert torch.autograd.gradcheck(lambda z: batch_triplet(z, labels, mining=mining), embeddings.requires_grad_())


@pytest.mark.parametrize("mining", MININGS)
def test_repeating_the_batch_changes_neither_scale_nor_sign(mining: str) -> None:
    """A mean, not a sum: the weight need not be tuned anew for another batch size."""
    small, large = (float(batch_triplet(*draw(0, size, 64, classes), mining=mining)) for size, classes in ((32, 8), (256, 64)))
    assert 0.5 < large / small < 2


def test_refuses_what_does_not_fit() -> None:
    z = unit_rows(torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"embeddings \(4, 3\) and labels \(3,\)"):
        batch_triplet(z, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="margin=-1"):
        batch_triplet(z, torch.tensor([0, 0, 1, 1]), margin=-1)
    with pytest.raises(ValueError, match="known: hard, semi_hard, all"):
        batch_triplet(z, torch.tensor([0, 0, 1, 1]), mining="soft")  # type: ignore[arg-type]
