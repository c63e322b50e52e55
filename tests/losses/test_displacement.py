from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.losses import l1_distance, l2_distance, unit_rows

Distance = Callable[[Tensor, Tensor], Tensor]
BOTH: list[Distance] = [l1_distance, l2_distance]


@pytest.mark.parametrize(("distance", "power"), [(l1_distance, 1), (l2_distance, 2)])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 10), dim=st.integers(1, 6))
def test_equals_its_equation_written_as_loops(distance: Distance, power: int, seed: int, size: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(size, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = sum(abs(float(teacher[i, d]) - float(student[i, d])) ** power for i in range(size) for d in range(dim)) / size
    assert float(distance(teacher, student)) == pytest.approx(expected, abs=1e-9)


def test_l2_on_unit_rows_is_two_minus_two_cosines_whatever_the_dimension() -> None:
    for dim in (2, 512):
        teacher, student = unit_rows(torch.randn(20, dim)), unit_rows(torch.randn(20, dim))
        torch.testing.assert_close(l2_distance(teacher, student), 2 - 2 * (teacher * student).sum(dim=1).mean())
        assert float(l2_distance(teacher, -teacher)) == pytest.approx(4, rel=1e-5)


def test_l1_of_a_displacement_lies_between_its_length_and_the_root_of_the_dimension_times_that() -> None:
    teacher = torch.randn(1, 16, dtype=torch.float64)
    one_axis, all_alike = torch.zeros_like(teacher), torch.full_like(teacher, 3 / 4)
    one_axis[0, 5] = 3
    for displacement, expected in ((one_axis, 3.0), (all_alike, 12.0)):
        assert float(displacement.norm()) == pytest.approx(3)
        assert float(l1_distance(teacher, teacher + displacement)) == pytest.approx(expected)


def test_l1_pulls_as_hard_from_near_as_from_far_and_l2_does_not() -> None:
    teacher = torch.randn(6, 4)
    pulls: dict[str, list[float]] = {"l1_distance": [], "l2_distance": []}
    for away in (1e-3, 1.0):
        for distance in BOTH:
            student = (teacher + away).requires_grad_()
            distance(teacher, student).backward()
            assert student.grad is not None
            pulls[distance.__name__].append(float(student.grad.norm()))
    assert pulls["l1_distance"][0] == pytest.approx(pulls["l1_distance"][1])
    assert pulls["l2_distance"][0] < 0.01 * pulls["l2_distance"][1]


@pytest.mark.parametrize("distance", BOTH)
def test_at_teacher_equal_to_student_loss_and_gradient_are_zero(distance: Distance) -> None:
    raw = torch.randn(6, 4)
    student = raw.clone().requires_grad_()
    loss = distance(unit_rows(raw), unit_rows(student))
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None and not student.grad.any()


@pytest.mark.parametrize("distance", BOTH)
def test_the_gradient_is_that_of_finite_differences(distance: Distance) -> None:
    teacher, student = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: distance(teacher, z), student)


@pytest.mark.parametrize("distance", BOTH)
def test_no_gradient_reaches_the_teacher_and_the_order_of_the_batch_does_not_matter(distance: Distance) -> None:
    teacher, student = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    loss = distance(teacher, student)
    loss.backward()
    assert teacher.grad is None
    order = torch.randperm(5)
    torch.testing.assert_close(loss, distance(teacher[order], student[order]))


@pytest.mark.parametrize("distance", BOTH)
def test_an_empty_batch_is_zero_with_a_gradient(distance: Distance) -> None:
    student = torch.zeros(0, 3, requires_grad=True)
    loss = distance(torch.zeros(0, 3), student)
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize("distance", BOTH)
def test_refuses_shapes_that_differ_by_its_name(distance: Distance) -> None:
    with pytest.raises(ValueError, match=rf"{distance.__name__}: got teacher \(3, 4\) and student \(3, 5\)"):
        distance(torch.randn(3, 4), torch.randn(3, 5))
