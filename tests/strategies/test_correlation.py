"""Feature estimation and its reference: what earlier encoders teach, and how much each counts (thesis 6.7 to 6.11)."""

import copy

import pytest
import torch
from torch import Tensor

from perdure.encoders import Encoder, build_encoder
from perdure.losses import cross_modal_gram_kl, gram_kl, unit_rows
from perdure.memory.accuracy_drift import AccuracyDrift
from perdure.records import Batch, Embedded
from perdure.strategies import STRATEGIES, Strategy, TaskContext
from perdure.strategies.correlation import importances

DRIFTS = (AccuracyDrift(-0.3, 0.9), AccuracyDrift(-0.1, 2.0), AccuracyDrift(0.2, -0.4))
FREE: dict[str, object] = {"weight": 3.0, "max_share": None}


def encoder(*, text: bool = False, seed: int = 0) -> Encoder:
    made = build_encoder("small_resnet", {"embedding_dim": 8, "width": 4, "image_size": 16}, with_text=text, seed=seed)
    made.grow(num_classes=4, captions=["red", "blue", "green", "grey"] if text else ())
    return made.eval()


def generation(task: int, *, text: bool = False) -> Encoder:
    """The encoder after a task: each with weights of its own."""
    return encoder(text=text, seed=100 + task)


def begun(name: str, task: int, *, text: bool = False, **options: object) -> Strategy:
    strategy = STRATEGIES.build(name, FREE | options)
    context = TaskContext(task, torch.arange(4), drifts=DRIFTS[: max(task - 1, 0)], ancestor=lambda index: generation(index, text=text))
    strategy.begin_task(generation(task - 1, text=text), context)
    return strategy


def pictures(*, text: bool = False) -> Batch:
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(torch.arange(6), torch.arange(6) % 4, images, 2 + torch.arange(6)[:, None] % 4 if text else None)


def embedded(strategy: Strategy, *, text: bool = False, seed: int = 5) -> Embedded:
    batch = pictures(text=text)
    image, words = encoder(text=text)(batch.images, batch.tokens)
    return Embedded(batch.labels, image, words, **strategy.observe(batch), seed=seed)


def correlation(strategy: Strategy, batch: Embedded) -> float:
    return strategy.loss_terms(encoder(text=batch.text is not None), batch)["correlation"].item()


def said(task: int, *, text: bool = False) -> list[Tensor]:
    """What the encoder after a task says of the pictures, and of the captions."""
    batch = pictures(text=text)
    with torch.no_grad():
        image, words = generation(task, text=text)(batch.images, batch.tokens)
    return [image] if words is None else [image, words]


def divergence(taught: list[Tensor], batch: Embedded) -> float:
    students = [batch.image] if batch.text is None else [batch.image, batch.text]
    loss = gram_kl if batch.text is None else cross_modal_gram_kl
    return loss(*map(unit_rows, taught), *map(unit_rows, students), temperature=0.5).item()


@pytest.mark.parametrize(
    ("t", "expected"),
    [(1, [1]), (2, [1, 1]), (3, [1, 1 / 2, 0.1]), (4, [1, 1 / 3, 0.1 / 2, 0.01]), (5, [1, 1 / 4, 0.1 / 3, 0.01 / 2, 0.001])],
)
def test_the_importances_are_those_of_equation_6_11(t: int, expected: list[float]) -> None:
    assert importances(t) == pytest.approx(expected)


@pytest.mark.parametrize("text", [False, True], ids=["images", "images and text"])
@pytest.mark.parametrize("t", [1, 2, 3, 4])
def test_with_estimation_the_loss_is_equation_6_11_over_virtual_features(t: int, text: bool) -> None:
    strategy = begun("correlation", t, text=text, estimation=True, k=0.7)
    batch = embedded(strategy, text=text, seed=5)
    generator = torch.Generator().manual_seed(5)
    generations = [said(t - 1, text=text)]  # of the teacher, then the estimates, tower after tower
    by_tower = []
    for tower in said(t - 1, text=text):
        estimates, current = [], tower.clone()
        for drift in reversed(DRIFTS[: t - 1]):
            uniform, low, high = torch.rand(current.shape, generator=generator), min(drift.drop, drift.gain), max(drift.drop, drift.gain)
            current = current * (1 + 0.7 * (low + (high - low) * uniform))
            estimates.append(current)
        by_tower.append(estimates)
    generations += [[estimates[age] for estimates in by_tower] for age in range(t - 1)]
    factors = [1.0] + [0.1 ** (age - 1) / (t - age) for age in range(1, t)]
    expected = sum(factor * divergence(taught, batch) for factor, taught in zip(factors, generations, strict=True))
    assert correlation(strategy, batch) == pytest.approx(3 * expected, rel=1e-4)


@pytest.mark.parametrize("text", [False, True], ids=["images", "images and text"])
@pytest.mark.parametrize("t", [1, 2, 3, 4])
def test_with_all_teachers_the_loss_is_equation_6_11_over_their_actual_embeddings(t: int, text: bool) -> None:
    strategy = begun("correlation_all_teachers", t, text=text)
    batch = embedded(strategy, text=text)
    factors = [1.0] + [0.1 ** (age - 1) / (t - age) for age in range(1, t)]
    expected = sum(factor * divergence(said(task, text=text), batch) for factor, task in zip(factors, reversed(range(t)), strict=True))
    assert correlation(strategy, batch) == pytest.approx(3 * expected, rel=1e-4)


def test_estimation_is_off_unless_asked_for_and_changes_nothing_before_the_third_task() -> None:
    for task, changes in ((1, False), (2, True), (3, True)):
        plain, estimating = begun("correlation", task), begun("correlation", task, estimation=True)
        alone, together = correlation(plain, embedded(plain)), correlation(estimating, embedded(estimating))
        assert (together > alone) if changes else (together == alone)


def test_estimates_from_unit_rows_teach_the_same_as_estimates_from_rows_before_normalisation() -> None:
    strategy = begun("correlation", 3, estimation=True)
    batch = embedded(strategy)
    assert batch.teacher_image is not None
    unit = Embedded(batch.labels, batch.image, teacher_image=unit_rows(batch.teacher_image), seed=batch.seed)
    assert correlation(strategy, unit) == pytest.approx(correlation(strategy, batch), rel=1e-4)


def test_the_draws_are_those_of_the_step() -> None:
    strategy = begun("correlation", 3, estimation=True)
    torch.manual_seed(1)
    first = correlation(strategy, embedded(strategy, seed=7))
    torch.manual_seed(2)
    assert correlation(strategy, embedded(strategy, seed=7)) == first
    assert correlation(strategy, embedded(strategy, seed=8)) != first


def test_estimation_asks_for_no_earlier_encoder() -> None:
    strategy = STRATEGIES.build("correlation", {"estimation": True})
    strategy.begin_task(encoder(), TaskContext(3, torch.arange(4), drifts=DRIFTS[:2]))  # its `ancestor` would raise
    assert set(strategy.observe(pictures())) == {"teacher_image"}
    assert strategy.state_dict() == {}


def test_estimation_without_the_drift_of_a_task_is_refused() -> None:
    strategy = STRATEGIES.build("correlation", {"estimation": True})
    with pytest.raises(ValueError, match=r"every task from 1 to 2, and 1 of them were not recorded.*estimation=false"):
        strategy.begin_task(encoder(), TaskContext(3, torch.arange(4), drifts=DRIFTS[:1]))
    STRATEGIES.build("correlation", {}).begin_task(encoder(), TaskContext(3, torch.arange(4), drifts=DRIFTS[:1]))


@pytest.mark.parametrize("t", [0, 1, 2, 4])
def test_all_teachers_are_the_encoders_of_all_earlier_tasks_the_youngest_first(t: int) -> None:
    asked: list[int] = []

    def ancestor(index: int) -> Encoder:
        asked.append(index)
        return generation(index)

    strategy = STRATEGIES.build("correlation_all_teachers", {})
    strategy.begin_task(generation(t - 1), TaskContext(t, torch.arange(4), ancestor=ancestor))
    assert asked == list(reversed(range(t - 1)))
    seen = strategy.observe(pictures())
    teachers = [seen["teacher_image"]] if t else []
    if t > 1:
        assert seen["elder_image"].shape == (6, t - 1, 8)
        teachers += seen["elder_image"].unbind(dim=1)
    assert len(teachers) == t
    for task, embeddings in zip(reversed(range(t)), teachers, strict=True):
        torch.testing.assert_close(embeddings, said(task)[0])
    assert not any(each.requires_grad for each in teachers)
    strategy.end_task(encoder())
    assert strategy.observe(pictures()) == {}


def test_teachers_that_say_the_same_count_as_often_as_equation_6_11_says() -> None:
    one = begun("correlation", 3)
    strategy = STRATEGIES.build("correlation_all_teachers", FREE)
    strategy.begin_task(generation(2), TaskContext(3, torch.arange(4), ancestor=lambda _: generation(2)))
    assert correlation(strategy, embedded(strategy)) == pytest.approx((1 + 1 / 2 + 0.1) * correlation(one, embedded(one)), rel=1e-5)


def test_an_elder_is_a_copy_in_evaluation_mode() -> None:
    elder = generation(0).train()
    before = copy.deepcopy(elder.state_dict())
    strategy = STRATEGIES.build("correlation_all_teachers", {})
    strategy.begin_task(generation(1), TaskContext(2, torch.arange(4), ancestor=lambda _: elder))
    expected = strategy.observe(pictures())["elder_image"]
    torch.testing.assert_close(expected[:, 0], said(0)[0])
    assert all(torch.equal(value, before[key]) for key, value in elder.state_dict().items()), "asking moved its statistics"
    with torch.no_grad():
        for parameter in elder.parameters():
            parameter.add_(1)
    assert torch.equal(strategy.observe(pictures())["elder_image"], expected)


def test_a_batch_without_what_the_elders_said_is_refused() -> None:
    strategy = begun("correlation_all_teachers", 3, text=True)
    batch = embedded(strategy, text=True)
    fields = {"teacher_image": batch.teacher_image, "teacher_text": batch.teacher_text}
    assert batch.elder_image is not None
    for elders in ({}, {"elder_image": batch.elder_image}, {"elder_image": batch.elder_image[:, :1], "elder_text": batch.elder_text}):
        with pytest.raises(ValueError, match="2 teachers beside the parent, but the batch came without"):
            correlation(strategy, Embedded(batch.labels, batch.image, batch.text, **fields, **elders))


@pytest.mark.parametrize(("name", "options"), [("correlation", {"estimation": True}), ("correlation_all_teachers", {})])
def test_all_lessons_together_keep_to_their_share_of_the_pull(name: str, options: dict[str, object]) -> None:
    strategy = begun(name, 3, **options, weight=1e4, max_share=0.5)
    batch = embedded(strategy)
    terms = strategy.loss_terms(encoder(), batch)

    def pull(loss: Tensor) -> float:
        return float(torch.autograd.grad(loss, batch.image, retain_graph=True)[0].norm())

    distilled = terms.pop("correlation")
    assert pull(distilled) == pytest.approx(0.5 * pull(torch.stack(list(terms.values())).sum()), rel=1e-4)
