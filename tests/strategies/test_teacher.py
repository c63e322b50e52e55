"""How a frozen teacher looks at the new task's items."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from perdure.encoders import build_encoder
from perdure.encoders.encoder import Encoder
from perdure.records import Batch, Embedded
from perdure.strategies import STRATEGIES
from perdure.strategies.strategy import TaskContext
from perdure.strategies.teacher import FrozenTeacher, Teaching


@pytest.fixture
def parent() -> Encoder:
    """Whose BatchNorm layers remember other pictures than those of `batch`."""
    encoder = build_encoder("small_resnet", {"embedding_dim": 8, "width": 4, "image_size": 16}, with_text=False, seed=0)
    encoder.grow(num_classes=3)
    encoder.train()
    for seed in range(3):
        encoder(5 + 2 * pictures(seed))
    return encoder


def pictures(seed: int) -> Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def batch() -> Batch:
    return Batch(torch.arange(6), torch.arange(6) % 3 + 3, pictures(9))


def said(parent: Encoder, **teaching: bool) -> Tensor:
    return FrozenTeacher(parent, Teaching(**teaching)).observe(batch())["teacher_image"]


def test_one_that_adapts_sees_what_a_student_of_the_same_weights_sees(parent: Encoder) -> None:
    adapted, plain = said(parent, adapts=True), said(parent)
    torch.testing.assert_close(plain, parent.eval()(batch().images)[0])
    student, _ = parent.train()(batch().images)
    torch.testing.assert_close(adapted, student)
    assert (plain - student).abs().max() > 0.1 * student.abs().max()


def test_one_that_adapts_keeps_what_the_old_tasks_left_and_its_student_is_not_touched(parent: Encoder) -> None:
    before = {name: value.clone() for name, value in parent.state_dict().items()}
    teacher = FrozenTeacher(parent, Teaching(adapts=True))
    teacher.observe(batch())
    for name, value in teacher.encoder.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.encoder.parameters())


def test_one_that_looks_at_mirror_images_says_the_mean_over_both(parent: Encoder) -> None:
    parent.eval()
    expected = [
        (parent(one[None])[0] + parent(torch.stack([column for column in one.unbind(-1)][::-1], -1)[None])[0])[0] / 2 for one in pictures(9)
    ]
    torch.testing.assert_close(said(parent, mirrored=True), torch.stack(expected))
    assert (said(parent, mirrored=True) - said(parent)).abs().max() > 1e-3


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("mirrored", [False, True, "auto"])
def test_auto_looks_at_mirror_images_where_the_student_does_and_so_does_one_like_it(
    parent: Encoder, flips: bool, mirrored: Literal[False, True, "auto"]
) -> None:
    teacher = FrozenTeacher(parent, Teaching(mirrored=mirrored, adapts=True), flips=flips)
    expected = said(parent, mirrored=flips if mirrored == "auto" else mirrored, adapts=True)
    for each in (teacher, teacher.like(parent)):
        torch.testing.assert_close(each.observe(batch())["teacher_image"], expected)


def test_lwf_distils_what_such_a_teacher_says(parent: Encoder) -> None:
    strategy = STRATEGIES.build(
        "lwf", {"teacher": {"adapts": True, "mirrored": True}, "max_share": None, "class_ratio": False, "weight": 1.0}
    )
    strategy.begin_task(parent, TaskContext(1, torch.arange(3, 6)))
    parent.grow(num_classes=6)
    taught = strategy.observe(batch())["teacher_image"]
    torch.testing.assert_close(taught, said(parent, adapts=True, mirrored=True))
    student = 2 * taught
    term = strategy.loss_terms(parent, Embedded(batch().labels, student, teacher_image=taught))["lwf"]
    old = [parent.classifier(each)[:, :3] / 2.0 for each in (taught, student)]
    rows = [-(old[0][row].softmax(0) * old[1][row].log_softmax(0)).sum() for row in range(6)]
    torch.testing.assert_close(term / (torch.stack(rows).mean()), torch.tensor(1.0))
