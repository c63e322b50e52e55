import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.losses import batch_triplet, unit_rows
from perdure.losses.quadruplet import batch_quadruplet


def draw(seed: int, size: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return unit_rows(torch.randn(size, 4, generator=generator, dtype=torch.float64)), torch.randint(classes, (size,), generator=generator)


def as_loops(z: Tensor, y: list[int], margin: float, other_margin: float) -> float:
    """Both sums of the definition, quadruplet by quadruplet; a row is no pair with itself."""
    rows = range(len(y))
    s = (z @ z.T).tolist()
    first = [margin + s[a][n] - s[a][p] for a in rows for p in rows for n in rows if a != p and y[a] == y[p] != y[n]]
    second = [
        other_margin + s[k][m] - s[a][p]
        for a in rows
        for p in rows
        if a != p and y[a] == y[p]
        for k in rows
        for m in rows
        if y[a] != y[k] and y[a] != y[m] and y[k] != y[m]
    ]
    means = [[term for term in terms if term > 0] for terms in (first, second)]
    return sum(sum(terms) / len(terms) for terms in means if terms)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 9),
    classes=st.integers(1, 4),
    margin=st.sampled_from([0.0, 0.5]),
    other_margin=st.sampled_from([0.0, 0.25]),
)
def test_equals_its_definition_written_as_loops(seed: int, size: int, classes: int, margin: float, other_margin: float) -> None:
    embeddings, labels = draw(seed, size, classes)
    ours = batch_quadruplet(embeddings, labels, margin=margin, other_margin=other_margin)
    assert float(ours) == pytest.approx(as_loops(embeddings, labels.tolist(), margin, other_margin), abs=1e-9)


def test_with_two_classes_it_is_the_triplet_loss() -> None:
    embeddings, labels = draw(1, 8, 2)
    torch.testing.assert_close(batch_quadruplet(embeddings, labels), batch_triplet(embeddings, labels, mining="all"))


@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1, 2]], ids=["one row", "one class", "no positives"])
def test_is_zero_with_a_gradient_when_there_is_no_quadruplet(labels: list[int]) -> None:
    embeddings = unit_rows(torch.randn(len(labels), 3)).requires_grad_()
    loss = batch_quadruplet(embeddings, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0.0
    assert embeddings.grad is not None and not embeddings.grad.any()


def test_the_gradient_is_that_of_finite_differences() -> None:
    embeddings, labels = draw(3, 9, 3)
    assert torch.autograd.gradcheck(lambda z: batch_quadruplet(z, labels), embeddings.requires_grad_())


def test_refuses_what_does_not_fit() -> None:
    z = unit_rows(torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"embeddings \(4, 3\) and labels \(3,\)"):
        batch_quadruplet(z, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="margin=-1"):
        batch_quadruplet(z, torch.tensor([0, 0, 1, 1]), margin=-1)
    with pytest.raises(ValueError, match="other_margin=-2"):
        batch_quadruplet(z, torch.tensor([0, 0, 1, 1]), other_margin=-2)
