import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.losses import cluster_margin


def draw(seed: int, size: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, generator=generator, dtype=torch.float64), torch.randint(0, classes, (size,), generator=generator)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 12), classes=st.integers(2, 5), margin=st.floats(0, 3))
def test_equals_equation_7_5_written_as_loops(seed: int, size: int, classes: int, margin: float) -> None:
    rows, labels = draw(seed, size, classes)
    expected = 0.0
    present = sorted(set(labels.tolist()))
    for k in present if len(present) > 1 else []:
        own = [rows[i] for i in range(size) if int(labels[i]) == k]
        mean = sum(own) / len(own)
        intra = max(float((row - mean).norm()) for row in own)
        inter = min(float((rows[i] - mean).norm()) for i in range(size) if int(labels[i]) != k)
        expected += max(0.0, margin + intra - inter)
    assert float(cluster_margin(rows, labels, margin=margin)) == pytest.approx(expected, abs=1e-9)


def test_is_zero_for_tight_clusters_farther_apart_than_the_margin_and_not_for_nearer_ones() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    rows = torch.tensor([[0.0, 0.1], [0.0, -0.1], [2.0, 0.1], [2.0, -0.1]])
    assert float(cluster_margin(rows, labels, margin=1.0)) == 0.0
    assert float(cluster_margin(rows, labels, margin=2.0)) > 0


def test_descent_pulls_the_clusters_apart() -> None:
    rows, labels = draw(0, 12, 3)
    rows.requires_grad_()
    optimizer = torch.optim.SGD([rows], lr=0.1)
    start = cluster_margin(rows, labels).item()
    for _ in range(100):
        optimizer.zero_grad()
        cluster_margin(rows, labels).backward()
        optimizer.step()
    assert cluster_margin(rows, labels).item() < 0.1 * start


def test_a_class_of_one_row_has_a_finite_gradient() -> None:
    rows = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.2]], requires_grad=True)  # nearer to each other than the margin
    cluster_margin(rows, torch.tensor([0, 1, 2])).backward()
    assert rows.grad is not None and rows.grad.isfinite().all() and rows.grad.any()


@pytest.mark.parametrize("size", [0, 1, 4])
def test_is_zero_with_a_gradient_when_there_is_no_other_class(size: int) -> None:
    rows = torch.randn(size, 3, requires_grad=True)
    loss = cluster_margin(rows, torch.zeros(size, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0 and rows.grad is not None and not rows.grad.any()


def test_neither_the_order_of_the_rows_nor_autocast_changes_it() -> None:
    rows, labels = draw(1, 12, 3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cluster_margin(rows, labels), cluster_margin(rows[order], labels[order]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = cluster_margin(rows.float(), labels)
    assert float(low) == float(cluster_margin(rows.float(), labels))


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"embeddings \(4, 3\) and labels \(3,\)"):
        cluster_margin(torch.zeros(4, 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"margin=-1"):
        cluster_margin(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), margin=-1)
