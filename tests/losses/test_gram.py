import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.losses import cross_modal_gram_kl, gram_kl, unit_rows

DIAGONALS = ["drop", "keep"]


def draw(seed: int, size: int, dim: int, count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [unit_rows(torch.randn(size, dim, generator=generator, dtype=torch.float64)) for _ in range(count)]


def as_loops(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], tau: float, skip_own: bool) -> float:
    """(6.4) and (6.5), entry by entry; old and new are (rows, columns)."""
    size, total = len(old[0]), 0.0
    for i in range(size):
        columns = [j for j in range(size) if not (skip_own and i == j)]
        p, q = (
            [math.exp(sum(float(a) * float(b) for a, b in zip(rows[i], cols[j], strict=True)) / tau) for j in columns]
            for rows, cols in (old, new)
        )
        total += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True)) / size
    return total


@pytest.mark.parametrize("diagonal", DIAGONALS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 9), dim=st.integers(1, 5), tau=st.sampled_from([0.05, 0.1, 1.0, 4.0]))
def test_equals_equations_6_4_and_6_5_written_as_loops(diagonal: str, seed: int, size: int, dim: int, tau: float) -> None:
    old, new = draw(seed, size, dim)
    expected = as_loops((old, old), (new, new), tau, skip_own=diagonal == "drop") if size > 1 else 0.0
    assert float(gram_kl(old, new, temperature=tau, diagonal=diagonal)) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("diagonal", DIAGONALS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 7), tau=st.sampled_from([0.1, 1.0]))
def test_the_cross_modal_form_is_the_mean_over_four_gram_matrices(diagonal: str, seed: int, size: int, tau: float) -> None:
    old_x, old_y, new_x, new_y = draw(seed, size, 4, count=4)
    skip = diagonal == "drop"
    expected = (
        as_loops((old_x, old_x), (new_x, new_x), tau, skip)
        + as_loops((old_y, old_y), (new_y, new_y), tau, skip)
        + as_loops((old_x, old_y), (new_x, new_y), tau, skip_own=False)
        + as_loops((old_y, old_x), (new_y, new_x), tau, skip_own=False)
    ) / 4
    assert float(cross_modal_gram_kl(old_x, old_y, new_x, new_y, temperature=tau, diagonal=diagonal)) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("diagonal", DIAGONALS)
@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
def test_at_teacher_equal_to_student_loss_and_gradient_are_zero_and_finite(diagonal: str, tau: float) -> None:
    raw = torch.randn(16, 8)
    student, text = raw.clone().requires_grad_(), (raw + 1).requires_grad_()
    same = unit_rows(raw)
    image_loss = gram_kl(same, unit_rows(student), temperature=tau, diagonal=diagonal)
    both = cross_modal_gram_kl(same, unit_rows(raw + 1), unit_rows(student), unit_rows(text), temperature=tau, diagonal=diagonal)
    (image_loss + both).backward()
    assert image_loss.item() == pytest.approx(0.0, abs=1e-6)
    assert both.item() == pytest.approx(0.0, abs=1e-6)
    for leaf in (student, text):
        assert leaf.grad is not None and leaf.grad.isfinite().all()
        assert float(leaf.grad.abs().max()) < 1e-4


def test_a_turn_of_the_whole_space_costs_nothing_and_dimensions_may_differ() -> None:
    (old,) = draw(0, 12, 6, count=1)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    assert float(gram_kl(old, old @ turn)) == pytest.approx(0.0, abs=1e-12)
    assert float(gram_kl(old, torch.cat([old, torch.zeros(12, 3)], dim=1))) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("diagonal", DIAGONALS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 10))
def test_is_never_negative_and_does_not_depend_on_batch_order(diagonal: str, seed: int, size: int) -> None:
    old, new = draw(seed, size, 4)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    one, other = new.clone().requires_grad_(), new[order].clone().requires_grad_()
    first, second = gram_kl(old, one, diagonal=diagonal), gram_kl(old[order], other, diagonal=diagonal)
    assert first.item() >= -1e-12
    torch.testing.assert_close(first, second)
    first.backward()
    second.backward()
    assert one.grad is not None and other.grad is not None
    torch.testing.assert_close(one.grad[order], other.grad)


def test_extreme_temperatures_stay_finite_in_float32() -> None:
    old, new = (unit_rows(torch.randn(32, 8)) for _ in range(2))
    for diagonal in DIAGONALS:
        student = new.clone().requires_grad_()
        loss = gram_kl(old, student, temperature=1e-3, diagonal=diagonal)
        loss.backward()
        assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("size", [0, 1])
def test_is_zero_with_a_gradient_for_fewer_than_two_rows(size: int) -> None:
    image, text = (torch.ones(size, 3, requires_grad=True) for _ in range(2))
    loss = gram_kl(torch.ones(size, 3), image) + cross_modal_gram_kl(torch.ones(size, 3), torch.ones(size, 3), image, text)
    loss.backward()
    assert loss.item() == 0.0
    assert image.grad is not None and text.grad is not None and not image.grad.any() and not text.grad.any()


def test_no_gradient_reaches_the_teacher_and_the_students_is_that_of_finite_differences() -> None:
    teacher, student = (rows.requires_grad_() for rows in draw(2, 5, 3))
    gram_kl(teacher, student).backward()
    assert teacher.grad is None
    fixed = teacher.detach()
    for diagonal in DIAGONALS:
        assert torch.autograd.gradcheck(lambda z, d=diagonal: gram_kl(fixed, z, temperature=0.5, diagonal=d), student)
    image, text = draw(3, 4, 3)
    old_image, old_text = draw(4, 4, 3)
    assert torch.autograd.gradcheck(
        lambda x, y: cross_modal_gram_kl(old_image, old_text, x, y, temperature=0.5), (image.requires_grad_(), text.requires_grad_())
    )


def clusters(size: int) -> tuple[Tensor, Tensor]:
    """A teacher with 8 classes in 64 dimensions, and a student that has moved a little."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 64, generator=generator)
    teacher = unit_rows(centres[torch.arange(size) % 8] + torch.randn(size, 64, generator=generator))
    return teacher, unit_rows(teacher + 0.05 * torch.randn(size, 64, generator=generator))


def test_without_the_diagonal_neither_value_nor_gradient_follows_the_batch_size() -> None:
    values, gradients = [], []
    for size in (32, 256):
        teacher, student = clusters(size)
        student.requires_grad_()
        loss = gram_kl(teacher, student)
        loss.backward()
        assert student.grad is not None
        values.append(loss.item())
        gradients.append(size * float(student.grad.norm(dim=1).mean()))  # a mean over rows gives each row 1/B
    assert 0.6 < values[1] / values[0] < 1.6
    assert 0.6 < gradients[1] / gradients[0] < 1.6


def test_autocast_does_not_change_the_value() -> None:
    teacher, student = clusters(32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = gram_kl(teacher, student)
    assert float(low) == float(gram_kl(teacher, student))


def test_refuses_what_does_not_fit() -> None:
    old, new = draw(0, 4, 3)
    with pytest.raises(ValueError, match=r"\(4, 3\), \(3, 3\)"):
        gram_kl(old, new[:3])
    with pytest.raises(ValueError, match="temperature=0"):
        gram_kl(old, new, temperature=0)
    with pytest.raises(ValueError, match="known: drop, keep"):
        gram_kl(old, new, diagonal="mask")  # type: ignore[arg-type]
