import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.losses import bidirectional_triplet, unit_rows


def draw(seed: int, size: int, dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (unit_rows(torch.randn(size, dim, generator=generator, dtype=torch.float64)) for _ in range(2))
    return image, text


def as_loops(x: Tensor, y: Tensor, margin: float, mining: str, same: list[int]) -> float:
    """(4.12), pair by pair."""
    total = 0.0
    for towards_captions in (True, False):
        terms = []
        for i in range(len(x)):
            own = float(x[i] @ y[i])
            others = [float(x[i] @ y[j]) if towards_captions else float(x[j] @ y[i]) for j in range(len(x)) if same[j] != same[i]]
            violations = [margin - own + other for other in others]
            if mining == "hard" and others:
                terms.append(max(0.0, *violations))
            if mining == "all":
                terms += [violation for violation in violations if violation > 0]
        total += sum(terms) / len(terms) if terms else 0.0
    return total


@pytest.mark.parametrize("mining", ["hard", "all"])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 12),
    dim=st.integers(1, 5),
    margin=st.sampled_from([0.0, 0.2, 0.5]),
    items=st.integers(0, 6),
)
def test_equals_equation_4_12_written_as_loops(mining: str, seed: int, size: int, dim: int, margin: float, items: int) -> None:
    image, text = draw(seed, size, dim)
    same = torch.randint(items, (size,), generator=torch.Generator().manual_seed(seed)) if items else None
    ours = bidirectional_triplet(image, text, margin=margin, mining=mining, same=same)
    numbers = list(range(size)) if same is None else same.tolist()
    assert float(ours) == pytest.approx(as_loops(image, text, margin, mining, numbers), abs=1e-9)


@pytest.mark.parametrize("mining", ["hard", "all"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 12))
def test_does_not_depend_on_batch_order_nor_on_which_side_is_called_text(mining: str, seed: int, size: int) -> None:
    image, text = draw(seed, size, 4)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    loss = bidirectional_triplet(image, text, mining=mining)
    torch.testing.assert_close(loss, bidirectional_triplet(image[order], text[order], mining=mining))
    torch.testing.assert_close(loss, bidirectional_triplet(text, image, mining=mining))


@pytest.mark.parametrize("mining", ["hard", "all"])
@pytest.mark.parametrize("same", [[0], [5, 5, 5]], ids=["one pair", "one item"])
def test_is_zero_with_a_gradient_when_no_pair_has_a_negative(mining: str, same: list[int]) -> None:
    image, text = (unit_rows(torch.randn(len(same), 3)).requires_grad_() for _ in range(2))
    loss = bidirectional_triplet(image, text, mining=mining, same=torch.tensor(same))
    loss.backward()
    assert loss.item() == 0.0
    for side in (image, text):
        assert side.grad is not None and not side.grad.any()


@pytest.mark.parametrize("mining", ["hard", "all"])
def test_captions_of_the_same_item_are_not_pushed_apart(mining: str) -> None:
    image = torch.eye(3)[[0, 0, 1]]
    loss = bidirectional_triplet(image, image, margin=0.2, mining=mining, same=torch.tensor([7, 7, 8]))
    assert loss.item() == 0.0
    assert float(bidirectional_triplet(image, image, margin=0.2, mining=mining)) > 0


@pytest.mark.parametrize("mining", ["hard", "all"])
def test_the_gradient_is_that_of_finite_differences_and_finite_at_a_collapsed_point(mining: str) -> None:
    image, text = (side.requires_grad_() for side in draw(1, 6, 3))
    assert torch.autograd.gradcheck(lambda x, y: bidirectional_triplet(x, y, mining=mining), (image, text))
    raw = torch.ones(5, 4, requires_grad=True)
    bidirectional_triplet(unit_rows(raw), unit_rows(raw), mining=mining).backward()
    assert raw.grad is not None and raw.grad.isfinite().all()


def test_refuses_what_does_not_fit() -> None:
    image, text = draw(0, 4, 3)
    with pytest.raises(ValueError, match=r"images \(4, 3\), texts \(3, 3\)"):
        bidirectional_triplet(image, text[:3])
    with pytest.raises(ValueError, match=r"same \(2,\)"):
        bidirectional_triplet(image, text, same=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="margin=-1"):
        bidirectional_triplet(image, text, margin=-1)
    with pytest.raises(ValueError, match="known: hard, all"):
        bidirectional_triplet(image, text, mining="semi_hard")  # type: ignore[arg-type]


@pytest.mark.parametrize("mining", ["hard", "all"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 10), tasks=st.integers(1, 4), items=st.integers(0, 4))
def test_pairs_of_different_tasks_are_no_negatives_where_it_is_asked_written_as_loops(
    mining: str, seed: int, size: int, tasks: int, items: int
) -> None:
    image, text = draw(seed, size, 3)
    generator = torch.Generator().manual_seed(seed)
    within = torch.randint(tasks, (size,), generator=generator)
    same = torch.randint(items, (size,), generator=generator) if items else None
    total = 0.0
    for towards_captions in (True, False):
        terms = []
        for i in range(size):
            others = [j for j in range(size) if within[j] == within[i] and (j != i if same is None else same[j] != same[i])]
            scores = [float(image[i] @ text[j]) if towards_captions else float(image[j] @ text[i]) for j in others]
            violations = [0.2 - float(image[i] @ text[i]) + score for score in scores]
            terms += (
                [max(0.0, *violations)] if mining == "hard" and others else [each for each in violations if each > 0 and mining == "all"]
            )
        total += sum(terms) / len(terms) if terms else 0.0
    ours = bidirectional_triplet(image, text, mining=mining, same=same, within=within)
    assert float(ours) == pytest.approx(total, abs=1e-9)
    assert torch.equal(
        bidirectional_triplet(image, text, mining=mining, same=same, within=torch.zeros(size, dtype=torch.int64)),
        bidirectional_triplet(image, text, mining=mining, same=same),
    )


def test_numbers_that_are_not_one_for_each_pair_are_refused_by_name() -> None:
    image, text = draw(0, 4, 3)
    with pytest.raises(ValueError, match=r"and within \(3,\); it needs"):
        bidirectional_triplet(image, text, within=torch.zeros(3))
