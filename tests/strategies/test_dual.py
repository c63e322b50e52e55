"""Dual knowledge distillation: which terms, over which pictures, with whose gradient; and what it refuses before any work is done."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from perdure.encoders import Encoder, build_encoder
from perdure.errors import ConfigError
from perdure.losses import batch_triplet, gram_kl, l1_distance, l2_distance, mmd, share_factor, unit_rows
from perdure.records import Batch, Embedded
from perdure.strategies import STRATEGIES, Strategy, TaskContext

SIDE, WORDS = 16, ["red", "blue", "green", "grey", "pink", "cyan"]
QUICK: dict[str, Any] = {"inversion": {"pictures": 12, "iterations": 2}}
L_S, L_TE2 = {"triplet", "cross_entropy"}, {"te2_triplet", "te2_cross_entropy"}


def new_encoder(*, text: bool = False, num_classes: int = 3, seed: int = 0) -> Encoder:
    encoder = build_encoder("small_resnet", {"embedding_dim": 8, "width": 4, "image_size": SIDE}, with_text=text, seed=seed)
    encoder.grow(num_classes=num_classes, captions=WORDS[:num_classes])
    return encoder


def seen(encoder: Encoder) -> Encoder:
    """The encoder with BatchNorm layers that have met some pictures."""
    encoder.train()
    with torch.no_grad():
        encoder.image(toy_batch(encoder, 0, seed=77).images)
    return encoder.eval()


def toy_batch(encoder: Encoder, task: int = 1, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(12) % 3 + 3 * task
    images = 0.15 * labels[:, None, None, None] * torch.rand(12, 3, SIDE, SIDE, generator=generator)
    tokens = None if encoder.vocabulary is None else encoder.vocabulary.encode([WORDS[label] for label in labels.tolist()])
    return Batch(rows=torch.arange(12), labels=labels, images=images.clamp(0, 1), tokens=tokens)


def begun(parent: Encoder, index: int = 1, **options: Any) -> tuple[Strategy, Encoder]:
    """A second task of classes 3 to 5 up to its first step: the strategy, and the student in training mode."""
    strategy = STRATEGIES.build("dual", QUICK | options)
    student = copy.deepcopy(parent)
    context = TaskContext(
        index, torch.arange(3) + 3 * index, fresh=lambda: new_encoder(num_classes=0, text=parent.text is not None), seed=4
    )
    strategy.begin_task(student, context)
    student.grow(num_classes=3 * (index + 1), captions=WORDS)
    strategy.begin_training(student)
    strategy.prepare()
    for module in (student, *strategy.trained().values()):
        module.train()
    return strategy, student


def embed(strategy: Strategy, student: Encoder, batch: Batch) -> Embedded:
    """As the loop does it, on one worker."""
    drawn = strategy.synthetic(len(batch.rows), torch.Generator().manual_seed(0))
    if drawn is not None:
        batch = Batch(batch.rows, batch.labels, batch.images, batch.tokens, drawn[0])
    mixed = batch.images if batch.synthetic is None else torch.cat([batch.images, batch.synthetic])
    image, text = student(mixed, batch.tokens)
    made_up = {} if drawn is None else {"synthetic": image[len(batch.rows) :], "synthetic_labels": drawn[1]}
    return Embedded(batch.labels, image[: len(batch.rows)], text, **made_up, **strategy.observe(batch))


def terms_of(strategy: Strategy, student: Encoder) -> dict[str, Tensor]:
    return strategy.loss_terms(student, embed(strategy, student, toy_batch(student)))


@pytest.mark.parametrize(
    ("case", "options", "names", "mixed"),
    [
        ("ours", {}, L_S | {"kd1", "kd2"} | L_TE2, True),
        ("case 1, KD", {"inversion": None, "kd2_weight": 0}, L_S | {"kd1"}, False),
        ("case 2, KD + BN statistics", {"kd2_weight": 0}, L_S | {"kd1"}, True),
        ("case 3", {"inversion": None, "kd1_weight": 0}, L_S | {"kd2"} | L_TE2, False),
        ("case 4", {"s_weight": 0, "max_share": None}, {"kd1", "kd2"} | L_TE2, True),
        ("case 5", {"inversion": None}, L_S | {"kd1", "kd2"} | L_TE2, False),
    ],
)
def test_options_make_the_cases_of_table_7_6(case: str, options: dict[str, Any], names: set[str], mixed: bool) -> None:
    strategy, student = begun(seen(new_encoder()), **options)
    batch = embed(strategy, student, toy_batch(student))
    terms = strategy.loss_terms(student, batch)
    assert set(terms) == names, case
    assert (batch.synthetic is not None) == mixed
    torch.stack(list(terms.values())).sum().backward()


def test_only_the_frozen_teacher_holds_harder_where_old_classes_are_many() -> None:
    parent = seen(new_encoder(num_classes=6))
    plain, held = (
        terms_of(*begun(parent, max_share=None, class_ratio=class_ratio, inversion=None, distance="l2")) for class_ratio in (False, True)
    )
    assert plain["kd1"] > 0
    torch.testing.assert_close(held["kd1"], 2**0.5 * plain["kd1"])
    for name in plain.keys() - {"kd1"}:
        torch.testing.assert_close(held[name], plain[name])


def test_terms_equal_their_equations_on_the_mixed_batch() -> None:
    options = {"s_weight": 2.0, "te2_weight": 3.0, "kd1_weight": 5.0, "kd2_weight": 7.0, "max_share": None, "temperature": 0.3}
    strategy, student = begun(seen(new_encoder()), **options)
    batch = embed(strategy, student, toy_batch(student))
    terms = strategy.loss_terms(student, batch)
    assert batch.synthetic is not None and batch.synthetic_labels is not None and batch.guide_image is not None
    assert batch.teacher_image is not None and batch.teacher_synthetic is not None
    assert len(batch.synthetic) == 12 and int(batch.synthetic_labels.max()) < 3
    mixed, labels = torch.cat([batch.image, batch.synthetic]), torch.cat([batch.labels, batch.synthetic_labels])
    taught = torch.cat([batch.teacher_image, batch.teacher_synthetic])
    expected = {
        "triplet": 2 * batch_triplet(unit_rows(mixed), labels, mining="hard"),
        "kd1": 5 * gram_kl(unit_rows(taught), unit_rows(mixed), temperature=0.3),
        "kd2": 7 * gram_kl(unit_rows(batch.guide_image), unit_rows(batch.image), temperature=0.3),
        "te2_triplet": 3 * batch_triplet(unit_rows(batch.guide_image), batch.labels, mining="hard"),
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("distance", "function"), [("l1", l1_distance), ("l2", l2_distance), ("mmd", mmd)])
def test_the_other_distances_compare_unit_rows(distance: str, function: Any) -> None:
    strategy, student = begun(seen(new_encoder()), distance=distance, max_share=None, kd1_weight=1, kd2_weight=1)
    batch = embed(strategy, student, toy_batch(student))
    terms = strategy.loss_terms(student, batch)
    assert batch.synthetic is not None and batch.guide_image is not None
    assert batch.teacher_image is not None and batch.teacher_synthetic is not None
    mixed, taught = torch.cat([batch.image, batch.synthetic]), torch.cat([batch.teacher_image, batch.teacher_synthetic])
    torch.testing.assert_close(terms["kd1"], function(unit_rows(taught), unit_rows(mixed)))
    torch.testing.assert_close(terms["kd2"], function(unit_rows(batch.guide_image), unit_rows(batch.image)))


@pytest.mark.parametrize("distance", ["kl", "l1", "l2", "mmd"])
def test_with_captions_every_distance_is_finite_and_pulls_on_pictures_made_up_pictures_and_captions(distance: str) -> None:
    strategy, student = begun(seen(new_encoder(text=True)), distance=distance, max_share=None)
    batch = embed(strategy, student, toy_batch(student))
    terms = strategy.loss_terms(student, batch)
    assert set(terms) == L_S | {"pairs", "kd1", "kd2"} | L_TE2
    assert batch.synthetic is not None and batch.text is not None
    pulls = torch.autograd.grad(terms["kd1"], [batch.image, batch.synthetic, batch.text])
    assert all(pull.isfinite().all() and pull.any() for pull in pulls)


def test_kd2_moves_the_student_and_not_the_on_the_fly_teacher_and_te2_the_other_way_round() -> None:
    strategy, student = begun(seen(new_encoder()))
    guide = strategy.trained()["guide"]
    terms = terms_of(strategy, student)
    terms["kd2"].backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in guide.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())
    student.zero_grad()
    (terms["te2_triplet"] + terms["te2_cross_entropy"]).backward()
    assert all(parameter.grad is None for parameter in student.parameters())
    assert all(parameter.grad is not None for parameter in guide.parameters())


def test_kd1_and_kd2_together_take_no_more_than_their_share_of_the_pull() -> None:
    strategy, student = begun(seen(new_encoder()), kd1_weight=1e4, kd2_weight=1e4, max_share=0.25)
    batch = embed(strategy, student, toy_batch(student))
    terms = strategy.loss_terms(student, batch)
    assert batch.synthetic is not None
    learned = terms["triplet"] + terms["cross_entropy"]
    held = terms["kd1"] + terms["kd2"]
    assert float(share_factor(held, learned, [batch.image, batch.synthetic], share=0.2501)) == 1
    assert float(share_factor(held, learned, [batch.image, batch.synthetic], share=0.2499)) < 1


def test_the_on_the_fly_teacher_starts_each_task_as_before_the_first_or_as_the_parent() -> None:
    parent = seen(new_encoder(seed=9))
    for start, expected in (("fresh", new_encoder(num_classes=0)), ("parent", parent)):
        strategy, student = begun(parent, guide_from=start)
        for _ in range(2):
            guide = strategy.trained()["guide"]
            assert all(torch.equal(guide.state_dict()[name], value) for name, value in expected.image.state_dict(prefix="image.").items())
            with torch.no_grad():
                for parameter in guide.parameters():
                    parameter.add_(1.0)  # as if it had learned
            strategy.end_task(student)
            strategy.begin_task(parent, TaskContext(2, torch.arange(6, 9), fresh=lambda: new_encoder(num_classes=0)))
    assert not any(
        torch.equal(value, parent.image.state_dict()[name])
        for name, value in new_encoder().image.projection.state_dict(prefix="projection.").items()
    )


def test_it_has_no_text_tower_and_the_students_keeps_its_own() -> None:
    parent = seen(new_encoder(text=True))
    strategy, student = begun(parent, guide_from="parent")
    guide = strategy.trained()["guide"]
    assert not any(name.startswith("text.") for name in guide.state_dict())
    assert student.text is not None and parent.text is not None


def test_the_pictures_are_of_old_classes_and_there_are_as_many_as_asked_for_each_real_one() -> None:
    for mixed, count in ((1.0, 8), (0.5, 4), (0.01, 1)):
        strategy, _ = begun(seen(new_encoder()), mixed=mixed)
        drawn = strategy.synthetic(8, torch.Generator().manual_seed(0))
        assert drawn is not None
        pictures, labels = drawn
        assert pictures.shape == (count, 3, SIDE, SIDE) and pictures.dtype == torch.float32
        assert set(labels.tolist()) <= {0, 1, 2}


def test_the_first_task_has_neither_teacher_nor_pictures() -> None:
    strategy, student = begun(new_encoder(num_classes=0), index=0)
    assert strategy.synthetic(8, torch.Generator()) is None and strategy.trained() == {} and strategy.pictures() == {}
    assert set(strategy.loss_terms(student, embed(strategy, student, toy_batch(student, task=0)))) == L_S


def test_state_holds_the_pictures_within_a_task_only() -> None:
    parent = seen(new_encoder())
    strategy, student = begun(parent)
    state = {name: value.clone() for name, value in strategy.state_dict().items()}
    other = STRATEGIES.build("dual", QUICK)
    other.begin_task(parent, TaskContext(1, torch.arange(3, 6), fresh=lambda: new_encoder(num_classes=0)))
    other.load_state_dict(state)
    for one, two in zip(*(each.synthetic(8, torch.Generator().manual_seed(1)) or () for each in (strategy, other)), strict=True):
        assert torch.equal(one, two)
    strategy.end_task(student)
    assert strategy.state_dict() == {}


def test_what_a_person_may_look_at() -> None:
    strategy, _ = begun(seen(new_encoder()))
    shown = strategy.pictures()
    assert shown["images"].shape == shown["noise"].shape == (12, SIDE, SIDE, 3)
    assert shown["images"].dtype == shown["noise"].dtype == torch.uint8
    assert shown["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert shown["curve"].shape == (2,) and shown["curve"].dtype == torch.float32
    state = strategy.state_dict()
    assert torch.equal(shown["images"], (state["pictures"].float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("options", "index", "by_class"),
    [
        ({}, 1, True),
        ({"inversion": {"pictures": 12, "iterations": 2, "targets": "cluster"}}, 1, False),
        ({"ranking": {"cross_entropy": 0.0}}, 1, False),
        ({"s_weight": 0.0}, 1, True),  # the first task has trained all rows of its teacher's classifier
        ({"s_weight": 0.0}, 2, False),  # nothing has trained those of the second task's classes
    ],
)
def test_a_classifier_makes_classes_of_the_pictures_only_where_all_of_it_was_trained(
    options: dict[str, Any], index: int, by_class: bool
) -> None:
    parent = seen(new_encoder(num_classes=3 * index))
    asked: list[Tensor] = []
    parent.classifier.register_forward_hook(lambda module, inputs, outputs: asked.append(outputs))  # the teacher is a copy, hook and all
    strategy, _ = begun(parent, index, **options)
    assert bool(asked) == bool(strategy.pictures()["named"]) == by_class


def frozen(encoder: Encoder) -> Encoder:
    encoder.set_batch_norm_frozen(True)
    return encoder


@pytest.mark.parametrize("index", [0, 1], ids=["first task", "second task, the first taken over"])
def test_statistics_that_were_frozen_before_the_first_task_are_refused_before_any_training(index: int) -> None:
    parent = frozen(new_encoder(num_classes=0 if index == 0 else 3))
    with pytest.raises(ConfigError, match=r"train.freeze_batch_norm=true .*set it to false, or strategy.inversion=null"):
        begun(parent, index)
    begun(parent, index, inversion=None)


def test_statistics_that_were_frozen_after_they_had_seen_the_stream_are_good() -> None:
    strategy, _ = begun(frozen(seen(new_encoder())))
    assert strategy.synthetic(4, torch.Generator()) is not None
    assert all(not layer.training for layer in strategy.trained()["guide"].modules() if isinstance(layer, torch.nn.BatchNorm2d))


def test_a_backbone_without_batch_norm_is_refused_in_the_first_task() -> None:
    encoder = new_encoder(num_classes=0)
    encoder.image.trunk = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LayerNorm(3 * SIDE * SIDE))  # for a transformer, slow to build
    with pytest.raises(ConfigError, match=r"this encoder has none \(networks with LayerNorm, such as vit .*strategy.inversion=null"):
        begun(encoder, 0)
    begun(encoder, 0, inversion=None)


def test_options_that_leave_nothing_to_learn_are_refused() -> None:
    with pytest.raises(ConfigError, match="s_weight, kd1_weight and kd2_weight are all 0"):
        STRATEGIES.build("dual", {"s_weight": 0, "kd1_weight": 0, "kd2_weight": 0})
    pairs_only = {"triplet": 0.0, "cross_entropy": 0.0}
    with pytest.raises(ConfigError, match=r"on-the-fly teacher sees pictures only.*or set kd2_weight=0"):
        STRATEGIES.build("dual", {"ranking": pairs_only})
    STRATEGIES.build("dual", {"ranking": pairs_only, "kd2_weight": 0})
    with pytest.raises(ConfigError, match=r"inversion.iteratons: no such option"):
        STRATEGIES.build("dual", {"inversion": {"iteratons": 5}})
    for targets in ("classifier", "both"):
        with pytest.raises(ConfigError, match=rf"targets={targets} asks the classifier, but with ranking.cross_entropy=0 nothing"):
            STRATEGIES.build("dual", {"inversion": {"targets": targets}, "ranking": {"cross_entropy": 0.0}})
    with pytest.raises(ConfigError, match="distance"):
        STRATEGIES.build("dual", {"distance": "cosine"})


def test_a_batch_without_what_its_teachers_said_is_refused() -> None:
    strategy, student = begun(seen(new_encoder()))
    whole = embed(strategy, student, toy_batch(student))
    parts = {name: getattr(whole, name) for name in ("synthetic", "synthetic_labels", "teacher_image", "teacher_synthetic", "guide_image")}
    for missing in ("teacher_image", "teacher_synthetic", "guide_image"):
        with pytest.raises(ValueError, match=f"without {missing}"):
            strategy.loss_terms(student, Embedded(whole.labels, whole.image, **{k: v for k, v in parts.items() if k != missing}))
