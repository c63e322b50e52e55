import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.losses import l2_distance, unit_rows


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 10), dim=st.integers(1, 6))
def test_equals_its_equation_written_as_loops(seed: int, size: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(size, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = sum((float(teacher[i, d]) - float(student[i, d])) ** 2 for i in range(size) for d in range(dim)) / size
    assert float(l2_distance(teacher, student)) == pytest.approx(expected, abs=1e-9)


def test_on_unit_rows_it_is_two_minus_two_cosines_whatever_the_dimension() -> None:
    for dim in (2, 512):
        teacher, student = unit_rows(torch.randn(20, dim)), unit_rows(torch.randn(20, dim))
        torch.testing.assert_close(l2_distance(teacher, student), 2 - 2 * (teacher * student).sum(dim=1).mean())
        assert float(l2_distance(teacher, -teacher)) == pytest.approx(4, rel=1e-5)


def test_at_teacher_equal_to_student_loss_and_gradient_are_zero() -> None:
    raw = torch.randn(6, 4)
    student = raw.clone().requires_grad_()
    loss = l2_distance(unit_rows(raw), unit_rows(student))
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None and not student.grad.any()


def test_no_gradient_reaches_the_teacher_and_the_order_of_the_batch_does_not_matter() -> None:
    teacher, student = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    loss = l2_distance(teacher, student)
    loss.backward()
    assert teacher.grad is None
    order = torch.randperm(5)
    torch.testing.assert_close(loss, l2_distance(teacher[order], student[order]))


def test_an_empty_batch_is_zero_with_a_gradient() -> None:
    student = torch.zeros(0, 3, requires_grad=True)
    loss = l2_distance(torch.zeros(0, 3), student)
    loss.backward()
    assert loss.item() == 0.0


def test_refuses_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"teacher \(3, 4\) and student \(3, 5\)"):
        l2_distance(torch.randn(3, 4), torch.randn(3, 5))
