"""The expert: fine-tuned to the task before the student, followed on the task's own classes, forgotten with the task."""

import copy
import math

import pytest
import torch
from torch import Tensor

from perdure.encoders import Encoder, build_encoder
from perdure.errors import ConfigError
from perdure.records import Batch, Embedded
from perdure.strategies import STRATEGIES, Strategy, TaskContext

OWN = torch.tensor([3, 4, 5])
WORDS = ["red", "blue", "green", "grey", "pink", "cyan"]


@pytest.fixture
def parent() -> Encoder:
    encoder = build_encoder("small_resnet", {"embedding_dim": 8, "width": 4, "image_size": 16}, with_text=True, seed=0)
    encoder.grow(num_classes=3, captions=WORDS[:3])
    return encoder


def begun(parent: Encoder, *, flips: bool = False, **options: object) -> tuple[Strategy, Encoder]:
    """A strategy in its second task, and its student."""
    strategy, student = STRATEGIES.build("lwf_expert", options), copy.deepcopy(parent)
    strategy.begin_task(student, TaskContext(1, OWN, flips=flips))
    student.grow(num_classes=6, captions=WORDS)
    strategy.begin_training(student)
    return strategy, student


def batch(student: Encoder, *, text: bool) -> Batch:
    labels = OWN.repeat(4)
    pictures = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert student.vocabulary is not None
    return Batch(torch.arange(12), labels, pictures, student.vocabulary.encode([WORDS[label] for label in labels]) if text else None)


def move(module: torch.nn.Module) -> None:
    """Any other weights."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def softened(logits: Tensor, temperature: float) -> list[list[float]]:
    rows = [[math.exp(value / temperature) for value in row] for row in logits.tolist()]
    return [[value / sum(row) for value in row] for row in rows]


@pytest.mark.parametrize("text", [False, True], ids=["images", "images and text"])
def test_the_term_is_the_equation_written_as_loops(parent: Encoder, text: bool) -> None:
    strategy, student = begun(parent, expert_weight=1.7, temperature=3.0, teacher={"adapts": False, "mirrored": False})
    expert = strategy.trained()["expert"]
    assert isinstance(expert, Encoder)
    move(expert)
    student.eval()
    seen = batch(student, text=text)
    own = student(*seen.inputs)
    term = strategy.loss_terms(student, Embedded(seen.labels, *own, **strategy.observe(seen)))["expert"]
    losses = []
    for said, found in zip(expert.eval()(*seen.inputs), own, strict=True):
        if found is None:
            continue
        taught = softened(expert.classifier(said)[:, 3:], 3.0)
        learned = softened(student.classifier(found)[:, 3:], 3.0)
        losses += [-sum(p * math.log(q) for p, q in zip(*pair, strict=True)) for pair in zip(taught, learned, strict=True)]
    assert len(losses) == (24 if text else 12)
    assert term.item() == pytest.approx(1.7 * sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("flips", [False, True], ids=["", "where training mirrors"])
@pytest.mark.parametrize("adapts", [False, True])
def test_the_expert_looks_at_a_picture_as_the_parent_does(parent: Encoder, adapts: bool, flips: bool) -> None:
    strategy, student = begun(parent, flips=flips, **({} if adapts else {"teacher": {"adapts": False}}))
    expert = strategy.trained()["expert"]
    assert isinstance(expert, Encoder)
    move(expert)
    seen = batch(student, text=False)
    said = strategy.observe(seen)
    with torch.no_grad():
        for name, encoder in (("teacher_image", copy.deepcopy(parent)), ("expert_image", copy.deepcopy(expert))):
            encoder.train(adapts)
            assert seen.images is not None
            views = [seen.images, seen.images.flip(-1)] if flips else [seen.images]
            expected = torch.stack([encoder(view)[0] for view in views]).mean(0)
            torch.testing.assert_close(said[name], expected)


def test_the_expert_learns_by_the_ranking_terms_alone_and_the_student_is_not_asked(parent: Encoder) -> None:
    strategy, student = begun(parent)
    first, last = strategy.learners(student)
    assert last is student and first is strategy.trained()["expert"]
    seen = batch(student, text=True)
    first.train()
    image, words = first(*seen.inputs)
    terms = strategy.loss_terms(first, Embedded(seen.labels, image, words))
    reference = STRATEGIES.build("fine_tune", {})
    reference.begin_task(parent, TaskContext(1, OWN))
    expected = reference.loss_terms(first, Embedded(seen.labels, image, words))
    assert {f"expert_{name}": term.item() for name, term in expected.items()} == {name: term.item() for name, term in terms.items()}
    torch.stack(list(terms.values())).sum().backward()
    assert all(parameter.grad is None for parameter in student.parameters())
    assert sum(parameter.grad is not None for parameter in first.parameters()) > 10


def test_nothing_of_the_expert_outlives_its_task(parent: Encoder) -> None:
    strategy, student = begun(parent)
    strategy.observe(batch(student, text=True))
    strategy.end_task(student)
    assert strategy.state_dict() == {} and strategy.trained() == {} and list(strategy.learners(student)) == [student]


@pytest.mark.parametrize(("index", "options"), [(0, {}), (1, {"expert_weight": 0})], ids=["first task", "no weight"])
def test_there_is_no_expert_in_the_first_task_and_none_without_a_weight(parent: Encoder, index: int, options: dict[str, object]) -> None:
    strategy = STRATEGIES.build("lwf_expert", options)
    strategy.begin_task(parent, TaskContext(index, torch.arange(3)))
    strategy.begin_training(parent)
    assert list(strategy.learners(parent)) == [parent] and strategy.trained() == {}


def test_a_metric_loss_is_learned_by_the_expert_with_parameters_of_its_own(parent: Encoder) -> None:
    metric = {"name": "proxy_anchor", "weight": 1.0}
    strategy, _ = begun(parent, ranking={"metric": metric})
    assert set(strategy.trained()) == {"metric", "expert", "expert_metric"}
    assert strategy.trained()["metric"] is not strategy.trained()["expert_metric"]


def test_a_batch_without_what_the_expert_said_is_refused(parent: Encoder) -> None:
    strategy, student = begun(parent)
    seen = batch(student, text=True)
    said = strategy.observe(seen)
    image, words = student(*seen.inputs)
    for missing in ("expert_image", "expert_text"):
        with pytest.raises(ValueError, match="without what it says"):
            strategy.loss_terms(
                student, Embedded(seen.labels, image, words, **{name: rows for name, rows in said.items() if name != missing})
            )


def test_a_classifier_that_is_not_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'lwf_expert'.*\n?.*ranking\.cross_entropy=0"):
        STRATEGIES.build("lwf_expert", {"ranking": {"cross_entropy": 0}})


def test_teachers_do_not_adapt_where_the_students_batch_norm_is_frozen(parent: Encoder) -> None:
    parent.set_batch_norm_frozen(True)
    strategy, student = begun(parent)
    seen = batch(student, text=False)
    assert seen.images is not None
    with torch.no_grad():
        parent.eval()
        expected, _ = parent(seen.images)
    said = strategy.observe(seen)
    torch.testing.assert_close(said["teacher_image"], expected)
    torch.testing.assert_close(said["expert_image"], expected)
