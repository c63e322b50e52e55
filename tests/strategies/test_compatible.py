"""The influence loss against its definition, and the rows that new classes get in the old encoder's space."""

import pytest
import torch

from perdure.encoders import Encoder, build_encoder
from perdure.errors import ConfigError
from perdure.losses import influence_loss, l2_distance, unit_rows
from perdure.records import Embedded
from perdure.strategies import STRATEGIES, TaskContext


def encoder(classes: int) -> Encoder:
    made = build_encoder("small_resnet", {"embedding_dim": 8, "width": 4, "image_size": 16}, with_text=False, seed=0)
    made.grow(num_classes=classes, captions=[])
    return made


def batch(seed: int) -> Embedded:
    generator = torch.Generator().manual_seed(seed)
    image, taught = (4 * torch.randn(6, 8, generator=generator) for _ in range(2))
    return Embedded(torch.arange(6) % 3 + 3, image.requires_grad_(), teacher_image=taught)


def begun(**options: object):
    strategy = STRATEGIES.build("compatible", {"max_share": None, "class_ratio": False, **options})
    student = encoder(3)
    strategy.begin_task(student, TaskContext(1, torch.arange(3, 6)))
    old = student.classifier.weight.detach().clone()
    student.grow(num_classes=6)
    return strategy, student, old


def test_influence_equals_its_definition_written_as_loops():
    generator = torch.Generator().manual_seed(0)
    z, w = torch.randn(4, 5, generator=generator), torch.randn(3, 5, generator=generator)
    labels = torch.tensor([0, 2, 2, 1])
    expected = 0.0
    for i in range(4):
        logits = [7.0 * float(z[i] @ w[c] / (z[i].norm() * w[c].norm())) for c in range(3)]
        expected -= torch.tensor(logits).log_softmax(dim=0)[labels[i]].item() / 4
    assert influence_loss(z, labels, w, scale=7.0).item() == pytest.approx(expected, abs=1e-5)


def test_a_row_of_zeros_takes_no_part_and_a_label_needs_a_row():
    z, w = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4)
    without = influence_loss(z, torch.tensor([0, 1]), w[:2], scale=3.0)
    torch.testing.assert_close(influence_loss(z, torch.tensor([0, 1]), torch.cat([w[:2], torch.zeros(1, 4)]), scale=3.0), without)
    for labels in (torch.tensor([0, 2]), torch.tensor([0, 9])):
        with pytest.raises(ValueError, match="classes have a row"):
            influence_loss(z, labels, torch.cat([w[:2], torch.zeros(1, 4)]), scale=3.0)
    assert influence_loss(z[:0], torch.zeros(0, dtype=torch.int64), w, scale=3.0).item() == 0


def test_new_classes_stand_where_the_old_encoder_puts_their_items_so_far():
    strategy, student, old = begun(influence=0.5, hold=0.0)
    seen = []
    for seed in (0, 1):
        embedded = batch(seed)
        seen.append(embedded)
        terms = strategy.loss_terms(student, embedded)
        means = torch.stack(
            [torch.cat([unit_rows(each.teacher_image)[each.labels == label] for each in seen]).mean(dim=0) for label in (3, 4, 5)]
        )
        expected = influence_loss(embedded.image, embedded.labels, torch.cat([old, means]), scale=student.classifier.scale)
        torch.testing.assert_close(terms["influence"], 0.5 * expected)
    terms["influence"].backward()
    assert seen[-1].image.grad is not None and student.classifier.weight.grad is None


def test_the_other_term_is_that_of_l2():
    strategy, student, _ = begun(hold=3.0)
    embedded = batch(0)
    expected = 3.0 * l2_distance(unit_rows(embedded.teacher_image), unit_rows(embedded.image))
    torch.testing.assert_close(strategy.loss_terms(student, embedded)["l2"], expected)


def test_a_task_that_is_resumed_goes_on_with_its_means():
    whole, student, _ = begun()
    parts, twin, _ = begun()
    for strategy, own in ((whole, student), (parts, twin)):
        strategy.loss_terms(own, batch(0))
    again, third, _ = begun()
    again.load_state_dict(parts.state_dict())
    torch.testing.assert_close(again.loss_terms(third, batch(1))["influence"], whole.loss_terms(student, batch(1))["influence"])
    whole.end_task(student)
    assert whole.state_dict() == {}


def test_without_a_classifier_there_is_no_influence():
    with pytest.raises(ConfigError, match=r"ranking\.cross_entropy=0"):
        STRATEGIES.build("compatible", {"ranking": {"cross_entropy": 0.0}})
