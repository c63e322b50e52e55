import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.losses import cross_entropy_over, softened_cross_entropy


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 8), classes=st.integers(1, 9), data=st.data())
def test_cross_entropy_equals_equation_5_1_written_as_loops(seed: int, size: int, classes: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    own = data.draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True))
    labels = torch.tensor([own[int(k)] for k in torch.randint(len(own), (size,), generator=generator)])
    expected = 0.0
    for i in range(size):
        total = sum(math.exp(float(logits[i, c])) for c in own)
        expected -= math.log(math.exp(float(logits[i, labels[i]])) / total) / size
    assert float(cross_entropy_over(logits, labels, torch.tensor(own))) == pytest.approx(expected, abs=1e-9)


def test_logits_of_other_classes_change_nothing_and_get_no_gradient() -> None:
    logits = torch.randn(5, 6)
    labels, own = torch.tensor([4, 2, 2, 5, 4]), torch.tensor([5, 2, 4])
    other = logits.clone()
    other[:, [0, 1, 3]] += 100.0
    other.requires_grad_()
    loss = cross_entropy_over(other, labels, own)
    loss.backward()
    torch.testing.assert_close(loss, cross_entropy_over(logits, labels, own))
    assert other.grad is not None
    assert not other.grad[:, [0, 1, 3]].any()
    assert other.grad[:, own].any()


def test_huge_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = cross_entropy_over(logits, torch.tensor([1, 1]), torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_an_empty_batch_is_zero_with_a_gradient() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    for loss in (
        cross_entropy_over(logits, torch.zeros(0, dtype=torch.int64), torch.tensor([0])),
        softened_cross_entropy(logits.detach(), logits),
    ):
        loss.backward()
        assert loss.item() == 0.0


def test_labels_that_are_not_learned_and_classes_that_are_not_there_are_refused() -> None:
    logits = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"labels \[1\] are not among the classes that are learned, \[2, 3\]"):
        cross_entropy_over(logits, torch.tensor([2, 3, 1]), torch.tensor([2, 3]))
    with pytest.raises(ValueError, match=r"\[3, 4\] for a classifier of 4 classes; call grow"):
        cross_entropy_over(logits, torch.tensor([3, 3, 3]), torch.tensor([3, 4]))
    with pytest.raises(ValueError, match=r"class_ids \[0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\]"):
        cross_entropy_over(logits, torch.tensor([3, 3, 3]), torch.arange(20))
    with pytest.raises(ValueError, match=r"labels \(2,\)"):
        cross_entropy_over(logits, torch.tensor([3, 3]), torch.tensor([3]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 8), classes=st.integers(1, 9), temperature=st.sampled_from([0.5, 1.0, 2.0, 10.0]))
def test_softened_cross_entropy_equals_equation_5_3_written_as_loops(seed: int, size: int, classes: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (4 * torch.randn(size, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = 0.0
    for i in range(size):
        p = [math.exp(float(v) / temperature) for v in teacher[i]]
        q = [math.exp(float(v) / temperature) for v in student[i]]
        expected -= sum(p[c] / sum(p) * math.log(q[c] / sum(q)) for c in range(classes)) / size
    assert float(softened_cross_entropy(teacher, student, temperature=temperature)) == pytest.approx(expected, abs=1e-9)


def test_at_teacher_equal_to_student_the_loss_is_the_entropy_and_the_gradient_zero() -> None:
    logits = 16 * torch.randn(6, 5)
    student = logits.clone().requires_grad_()
    loss = softened_cross_entropy(logits, student, temperature=2.0)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.distributions.Categorical(logits=logits / 2).entropy().mean(), atol=1e-5, rtol=1e-4)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-6, rtol=0)


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = torch.randn(3, 4, requires_grad=True)
    softened_cross_entropy(teacher, torch.randn(3, 4, requires_grad=True)).backward()
    assert teacher.grad is None


def test_neither_depends_on_batch_order() -> None:
    logits, teacher, labels = torch.randn(7, 5), torch.randn(7, 5), torch.randint(5, (7,))
    order = torch.randperm(7)
    torch.testing.assert_close(
        cross_entropy_over(logits, labels, torch.arange(5)), cross_entropy_over(logits[order], labels[order], torch.tensor([3, 1, 4, 0, 2]))
    )
    torch.testing.assert_close(softened_cross_entropy(teacher, logits), softened_cross_entropy(teacher[order], logits[order]))


def test_softened_cross_entropy_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"teacher \(3, 4\) and student \(3, 5\)"):
        softened_cross_entropy(torch.randn(3, 4), torch.randn(3, 5))
    with pytest.raises(ValueError, match="temperature=0"):
        softened_cross_entropy(torch.randn(3, 4), torch.randn(3, 4), temperature=0)
