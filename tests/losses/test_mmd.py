import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.losses import BANDWIDTHS, mmd, unit_rows

EPSILON = 1e-6


def draw(seed: int, size: int, dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (unit_rows(torch.randn(size, dim, generator=generator, dtype=torch.float64)) for _ in range(2))
    return teacher, student


def squared_as_loops(teacher: Tensor, student: Tensor, bandwidths: tuple[float, ...]) -> float:
    """The square of (5.5), pair by pair."""
    size = len(teacher)

    def apart(a: Tensor, b: Tensor) -> float:
        return math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))

    spread = sorted(apart(teacher[i], teacher[j]) for i in range(size) for j in range(i + 1, size))
    median = spread[(len(spread) - 1) // 2] if spread else 1.0

    def kernel(a: Tensor, b: Tensor) -> float:
        return sum(math.exp(-(apart(a, b) ** 2) / (2 * (factor * median) ** 2)) for factor in bandwidths)

    total = 0.0
    for i in range(size):
        for j in range(size):
            total += kernel(teacher[i], teacher[j]) - 2 * kernel(teacher[i], student[j]) + kernel(student[i], student[j])
    return total / size**2


@pytest.mark.parametrize("bandwidths", [(1.0,), (0.5, 2.0), BANDWIDTHS])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 7), dim=st.integers(2, 5))
def test_equals_equation_5_5_written_as_loops(bandwidths: tuple[float, ...], seed: int, size: int, dim: int) -> None:
    teacher, student = draw(seed, size, dim)
    expected = math.sqrt(squared_as_loops(teacher, student, bandwidths) + EPSILON) - math.sqrt(EPSILON)
    assert float(mmd(teacher, student, bandwidths=bandwidths)) == pytest.approx(expected, abs=1e-8)


def test_at_teacher_equal_to_student_loss_and_gradient_are_zero() -> None:
    for rows in (torch.randn(16, 8), torch.ones(16, 8), torch.zeros(16, 8)):
        student = rows.clone().requires_grad_()
        loss = mmd(unit_rows(rows), unit_rows(student))
        loss.backward()
        assert loss.item() == 0.0
        assert student.grad is not None and not student.grad.any()


def test_near_the_teacher_it_is_quadratic_and_farther_a_cone() -> None:
    teacher, other = draw(0, 20, 8)
    direction = other - teacher
    for step, steepness in ((1e-5, 2.0), (1e-1, 1.0)):  # doubling a small step: four times the loss; a large one: twice
        ratio = float(mmd(teacher, teacher + 2 * step * direction) / mmd(teacher, teacher + step * direction))
        assert math.log2(ratio) == pytest.approx(steepness, abs=0.1)


def test_the_pull_grows_from_nothing_to_a_strength_that_it_keeps() -> None:
    """In single precision, from less than what rounding leaves of a unit row to a visible distance."""
    generator = torch.Generator().manual_seed(0)
    rows, direction = (torch.randn(32, 16, generator=generator) for _ in range(2))
    pulls = []
    for step in (1e-10, 1e-6, 1e-4, 1e-2, 3e-2):
        student = (rows + step * direction).requires_grad_()
        mmd(unit_rows(rows), unit_rows(student)).backward()
        assert student.grad is not None and student.grad.isfinite().all()
        pulls.append(float(student.grad.norm()))
    assert pulls == sorted(pulls)
    assert pulls[1] < 1e-3 * pulls[-1] and pulls[-1] < 1.2 * pulls[-2]


def test_each_embedding_may_take_the_place_of_another() -> None:
    teacher, student = draw(1, 9, 4)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mmd(teacher, student[order]), mmd(teacher, student))
    assert float(mmd(teacher, teacher[order])) == pytest.approx(0, abs=1e-9)


def test_the_gradient_is_that_of_finite_differences_and_none_reaches_the_teacher() -> None:
    teacher, student = (each.requires_grad_() for each in draw(2, 6, 3))
    assert torch.autograd.gradcheck(lambda z: mmd(teacher, z), student)
    mmd(teacher, student).backward()
    assert teacher.grad is None


def test_a_step_against_the_gradient_brings_the_student_nearer() -> None:
    teacher, student = draw(3, 12, 5)
    student.requires_grad_()
    loss = mmd(teacher, student)
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(mmd(teacher, (student - 0.05 * gradient / gradient.norm()).detach())) < loss.item()


def test_the_yardstick_is_the_teachers_so_scaling_both_changes_nothing_but_a_wide_student_is_far() -> None:
    teacher, student = draw(4, 10, 4)
    torch.testing.assert_close(mmd(5 * teacher, 5 * student), mmd(teacher, student))
    assert float(mmd(teacher, 5 * student)) > float(mmd(teacher, student))


def test_one_item_and_equal_items_are_measured_in_units_of_one() -> None:
    teacher = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    expected = math.sqrt(2 - 2 * math.exp(-(0.5**2) / 2) + EPSILON) - math.sqrt(EPSILON)
    for copies in (1, 4):
        rows = teacher.expand(copies, 2)
        assert float(mmd(rows, rows - 0.5 * rows, bandwidths=(1.0,))) == pytest.approx(expected)


def test_autocast_does_not_change_the_value() -> None:
    teacher, student = (each.float() for each in draw(5, 16, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = mmd(teacher, student)
    assert float(low) == float(mmd(teacher, student))


def test_an_empty_batch_is_zero_with_a_gradient() -> None:
    student = torch.zeros(0, 3, requires_grad=True)
    loss = mmd(torch.zeros(0, 3), student)
    loss.backward()
    assert loss.item() == 0.0


def test_refuses_what_does_not_fit() -> None:
    teacher, student = draw(0, 4, 3)
    with pytest.raises(ValueError, match=r"teacher \(4, 3\) and student \(3, 3\)"):
        mmd(teacher, student[:3])
    for wrong in ((), (1.0, 0.0), (-1.0,)):
        with pytest.raises(ValueError, match="at least one bandwidth, and all above 0"):
            mmd(teacher, student, bandwidths=wrong)
    with pytest.raises(ValueError, match="epsilon=0"):
        mmd(teacher, student, epsilon=0)
