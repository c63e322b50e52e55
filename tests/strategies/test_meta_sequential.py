"""The bilevel step against two steps of plain gradient descent written out, and what its prototypes are."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from perdure.encoders import Encoder, build_encoder
from perdure.errors import ConfigError
from perdure.losses import batch_triplet, unit_rows
from perdure.records import Batch, Embedded
from perdure.strategies import STRATEGIES, Strategy, TaskContext

WORDS = ["red", "blue", "green"]
CLASSES = torch.arange(3)
A, L = 0.3, 2.0  # of the inner step, and the weight of KL


def new_encoder(*, joint: bool = True) -> Encoder:
    options = {"embedding_dim": 6, "width": 4, "image_size": 16, "joint": {"hidden": 10} if joint else None}
    encoder = build_encoder("small_resnet", options, with_text=True, seed=0)
    encoder.grow(num_classes=3, captions=WORDS)
    return encoder.eval()


def words(encoder: Encoder, seed: int) -> Batch:
    """Nine items that are words alone."""
    assert encoder.vocabulary is not None
    labels = torch.arange(9) % 3
    extra = torch.randint(0, 3, (9,), generator=torch.Generator().manual_seed(seed)).tolist()
    tokens = encoder.vocabulary.encode([f"{WORDS[label]} {WORDS[more]}" for label, more in zip(labels.tolist(), extra, strict=True)])
    return Batch(torch.arange(9), labels, None, tokens, is_text=torch.ones(9, dtype=torch.bool))


def pictures(seed: int) -> Batch:
    labels = torch.arange(9) % 3
    images = torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.2 + labels[:, None, None, None] * 0.3
    return Batch(torch.arange(9), labels, images, None, is_text=torch.zeros(9, dtype=torch.bool))


def embedded(encoder: Encoder, batch: Batch) -> Embedded:
    features, _ = encoder.features(*batch.inputs)
    return Embedded(batch.labels, encoder.joined(features, None)[0], features=features)


class Given:
    """Examples that are these batches."""

    def __init__(self, *batches: Batch) -> None:
        self._batches = batches

    def batches(self, *, size: int, per_class: int, count: int) -> Iterator[Batch]:
        yield from self._batches


def after_first_task(encoder: Encoder, **options: object) -> Strategy:
    """A strategy that has learned pictures, and begins a second task."""
    strategy = STRATEGIES.build("meta_sequential", {"inner_lr": A, "weight": L, **options})
    strategy.begin_task(encoder, TaskContext(0, CLASSES))
    strategy.consolidate(encoder, Given(pictures(0), pictures(1)))
    strategy.end_task(encoder)
    strategy.begin_task(encoder, TaskContext(1, CLASSES))
    return strategy


def moved_away(encoder: Encoder) -> Encoder:
    """A student that is not its parent any more."""
    student = copy.deepcopy(encoder)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return student


def ranking(embeddings: Tensor, labels: Tensor, classifier: nn.Module) -> Tensor:
    """The two terms that a task of one modality is learned with, at their default weights."""
    triplet = batch_triplet(unit_rows(embeddings), labels, margin=0.5, mining="hard")
    return triplet + functional.cross_entropy(classifier(embeddings), labels)


def test_equals_a_step_inside_and_a_gradient_there_written_out() -> None:
    parent = new_encoder()
    strategy, student, batch = after_first_task(parent), moved_away(parent), words(parent, 3)
    terms = strategy.loss_terms(student, embedded(student, batch))
    torch.stack(list(terms.values())).sum().backward()

    prototypes = torch.stack(
        [torch.cat([parent.features(*pictures(s).inputs)[0][label::3] for s in (0, 1)]).mean(dim=0) for label in range(3)]
    )
    there = copy.deepcopy(student)  # theta', a module of its own
    assert parent.joint is not None and there.joint is not None
    features = student.features(*batch.inputs)[0].detach()
    ranking(there.joint(features), batch.labels, there.classifier).backward()
    with torch.no_grad():
        for parameter in (*there.joint.parameters(), *there.classifier.parameters()):
            assert parameter.grad is not None
            parameter -= A * parameter.grad
    there.zero_grad(set_to_none=True)
    expected = ranking(there.joint(there.features(*batch.inputs)[0]), batch.labels, there.classifier)
    divergence = torch.zeros(())
    for row in prototypes:
        p_old = parent.classifier(parent.joint(row[None])).softmax(dim=1)[0]
        p_new = there.classifier(there.joint(row[None])).softmax(dim=1)[0]
        divergence = divergence + sum(p * (p.log() - q.log()) for p, q in zip(p_old, p_new, strict=True)) / len(prototypes)
    (expected + L * divergence).backward()

    assert terms["prototypes"].item() == pytest.approx(L * float(divergence.detach()), rel=1e-4)
    assert (terms["triplet"] + terms["cross_entropy"]).item() == pytest.approx(float(expected.detach()), rel=1e-5)
    gradients = {name: parameter.grad for name, parameter in there.named_parameters() if parameter.grad is not None}
    assert {name.partition(".")[0] for name in gradients} == {"text", "joint", "classifier"}
    for name, parameter in student.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=lambda said, name=name: f"{name}: {said}")
        else:
            assert parameter.grad is None, f"{name} is of no part of this batch"


def test_the_weights_are_left_where_they_were() -> None:
    parent = new_encoder()
    strategy, student = after_first_task(parent), moved_away(parent)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    strategy.loss_terms(student, embedded(student, words(parent, 3)))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_no_step_inside_and_no_prototypes_is_fine_tuning() -> None:
    parent = new_encoder()
    student, plain = moved_away(parent), STRATEGIES.build("fine_tune", {})
    plain.begin_task(parent, TaskContext(1, CLASSES))
    bare = after_first_task(parent, inner_lr=0, prototypes=False)
    batch = embedded(student, words(parent, 3))
    one, other = bare.loss_terms(student, batch), plain.loss_terms(student, batch)
    assert one.keys() == other.keys() == {"triplet", "cross_entropy"}
    for name, value in one.items():
        torch.testing.assert_close(value, other[name])
    assert set(after_first_task(parent, prototypes=False).loss_terms(student, batch)) == {"triplet", "cross_entropy"}


def test_the_divergence_is_nothing_at_the_parent_and_keeps_a_student_nearer_to_it() -> None:
    parent = new_encoder()
    strategy = after_first_task(parent, inner_lr=0)
    at_rest = strategy.loss_terms(parent, embedded(parent, words(parent, 3)))["prototypes"]
    assert abs(at_rest.item()) < 1e-5

    def far(weight: float) -> float:
        student, strategy = copy.deepcopy(parent), after_first_task(parent, inner_lr=0.01, weight=weight)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
        for step in range(40):
            terms = strategy.loss_terms(student, embedded(student, words(parent, step)))
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
        judge = after_first_task(parent, inner_lr=0, weight=1)
        return float(judge.loss_terms(student, embedded(student, words(parent, 99)))["prototypes"].detach())

    assert far(5.0) < far(1e-6)


def test_what_it_carries_on_is_a_feature_for_each_class_of_each_task() -> None:
    encoder = new_encoder()
    strategy = after_first_task(encoder)
    strategy.consolidate(encoder, Given(words(encoder, 0)))
    state = strategy.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "meta_sequential.features.000": (3, 10),
        "meta_sequential.features.001": (3, 10),
    }
    read = encoder.features(*words(encoder, 0).inputs)[0]
    torch.testing.assert_close(state["meta_sequential.features.001"], torch.stack([read[label::3].mean(dim=0) for label in range(3)]))
    again = STRATEGIES.build("meta_sequential", {})
    again.load_state_dict(state)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in state.items())


def test_an_encoder_without_shared_layers_is_refused_and_told_the_option() -> None:
    with pytest.raises(ConfigError, match=r"this encoder has none: set encoder.joint={hidden: 256}"):
        STRATEGIES.build("meta_sequential", {}).begin_task(new_encoder(joint=False), TaskContext(0, CLASSES))
    with pytest.raises(ConfigError, match=r"ranking.metric.memory would be filled twice a step"):
        STRATEGIES.build("meta_sequential", {"ranking": {"metric": {"name": "supcon", "memory": 32}}})
    encoder = new_encoder()
    batch = embedded(encoder, words(encoder, 0))
    with pytest.raises(ValueError, match="without features"):
        after_first_task(encoder).loss_terms(encoder, Embedded(batch.labels, batch.image))


def test_a_later_task_without_prototypes_learns_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    encoder = new_encoder()
    strategy = STRATEGIES.build("meta_sequential", {})
    strategy.begin_task(encoder, TaskContext(1, CLASSES))
    assert "begins without prototypes" in caplog.text
    assert set(strategy.loss_terms(encoder, embedded(encoder, words(encoder, 0)))) == {"triplet", "cross_entropy"}
