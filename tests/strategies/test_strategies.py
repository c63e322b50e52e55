"""What every strategy promises, over the whole catalog, on a small real encoder and two toy tasks."""

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from perdure.encoders import Encoder, build_encoder
from perdure.errors import ConfigError
from perdure.losses import unit_rows
from perdure.records import Batch, Embedded
from perdure.strategies import STRATEGIES, Strategy, TaskContext

DISTILLERS = {  # and the term that is their own
    "lwf": "lwf",
    "l1": "l1",
    "l2": "l2",
    "mmd": "mmd",
    "correlation": "correlation",
    "correlation_all_teachers": "correlation",
}
BESIDE = {"mmd": {"lwf"}}  # further terms of some
PROTECTORS = {"ewc": {"ewc"}, "mas": {"mas"}, "alasso": {"alasso"}, "nce_ewc": {"nce", "ewc"}}  # they hold parameters; their own terms
UNBOUNDED: dict[str, dict[str, object]] = {name: {"max_share": None} for name in DISTILLERS}  # the distilled term by itself
TWO_TEACHERS = {
    "dual": {"kd1", "kd2", "te2_triplet", "te2_cross_entropy"},
    "lwf_expert": {"lwf", "expert"},
}  # the terms of those that are distilled from more than one
COMPATIBLE = {"compatible": {"influence", "l2"}}  # the terms of those that keep an old gallery usable
OBJECTIVES = {"adversarial_alignment": {"imbalance", "projection", "entropy"}}  # other terms, from the first task on, where there is text
OPTIONS: dict[str, dict[str, object]] = {"dual": {"inversion": {"pictures": 6, "iterations": 1}}}  # quick, where the default is long
GENERAL = [name for name in STRATEGIES if name != "domain_uncertainty_hashing"]  # which needs other encoders; it has tests of its own
SHARED_LAYERS = {"meta_sequential": {"prototypes"}}  # they need an encoder with a joint trunk; the terms of their own
WORDS = ["red", "blue", "green", "grey", "pink", "cyan"]


def new_encoder(*, text: bool, num_classes: int = 3, name: str = "") -> Encoder:
    """For a strategy of this name."""
    joint = {"hidden": 12} if name in SHARED_LAYERS else None
    encoder = build_encoder("small_resnet", {"embedding_dim": 8, "width": 4, "image_size": 16, "joint": joint}, with_text=text, seed=0)
    encoder.grow(num_classes=num_classes, captions=WORDS[:num_classes])
    return encoder


def build(name: str) -> Strategy:
    return STRATEGIES.build(name, OPTIONS.get(name, {}))


def toy_batch(encoder: Encoder, task: int, seed: int = 0) -> Batch:
    """Twelve pictures of three classes, each class a colour, and their captions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(12) % 3 + 3 * task
    colours = torch.tensor([[0.9, 0, 0], [0, 0, 0.9], [0, 0.9, 0], [0.4, 0.4, 0.4], [0.9, 0.4, 0.6], [0, 0.9, 0.9]])
    images = colours[labels][:, :, None, None] + 0.1 * torch.rand(12, 3, 16, 16, generator=generator)
    tokens = None if encoder.vocabulary is None else encoder.vocabulary.encode([WORDS[label] for label in labels.tolist()])
    return Batch(rows=torch.arange(12), labels=labels, images=images, tokens=tokens)


def embed(encoder: Encoder, strategy: Strategy, batch: Batch, *, asked: bool = True) -> Embedded:
    """The batch as `encoder` sees it, with what the strategy's other encoders say of it, unless they are not asked."""
    features = encoder.features(*batch.inputs)
    image, text = encoder.joined(*features)
    joint = {} if encoder.joint is None else {"features": features[0], "text_features": features[1]}
    return Embedded(labels=batch.labels, image=image, text=text, **joint, **(strategy.observe(batch) if asked else {}))


class FewExamples:
    """A task so small that a single batch is all of it."""

    def __init__(self, encoder: Encoder, task: int) -> None:
        self._batch = toy_batch(encoder, task, seed=99)

    def batches(self, *, size: int, per_class: int, count: int) -> Iterator[Batch]:
        yield self._batch


def learn(strategy: Strategy, encoder: Encoder, task: int, steps: int) -> list[dict[str, float]]:
    """begin_task, grow, begin_training, prepare, steps of each learner, consolidate, end_task, as the training loop does it.

    Returns:
        the terms of the encoder's own steps.
    """
    class_ids = torch.arange(3) + 3 * task
    text = encoder.text is not None
    strategy.begin_task(encoder, TaskContext(task, class_ids, fresh=lambda: new_encoder(text=text, num_classes=0)))
    encoder.grow(num_classes=max(3 * (task + 1), encoder.classifier.num_classes), captions=WORDS[: 3 * (task + 1)])
    strategy.begin_training(encoder)
    trained = torch.nn.ModuleList([encoder, *strategy.trained().values()])
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
    strategy.prepare()
    trained.train()
    history = []
    for learner, step in itertools.product(strategy.learners(encoder), range(steps)):
        own = learner is encoder
        batch = toy_batch(encoder, task, seed=step)
        terms = strategy.loss_terms(learner, embed(learner, strategy, batch, asked=own))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        strategy.before_step(learner)
        optimizer.step()
        strategy.after_step(learner)
        history += [{name: term.item() for name, term in terms.items()}] if own else []
    strategy.consolidate(encoder.eval(), FewExamples(encoder, task))
    strategy.end_task(encoder)
    return history


def test_the_catalog_holds_every_distiller_and_protector_and_the_references() -> None:
    assert {"fine_tune", "joint", "feature_extraction", *DISTILLERS, *PROTECTORS, *TWO_TEACHERS, *SHARED_LAYERS, *COMPATIBLE} <= set(
        STRATEGIES
    )


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("text", [False, True], ids=["images", "images and text"])
def test_the_first_task_has_only_the_ranking_terms_and_is_learned(name: str, text: bool) -> None:
    history = learn(build(name), new_encoder(text=text, name=name), 0, steps=60 if name in OBJECTIVES else 12)
    assert set(history[0]) == {"triplet", "cross_entropy"} | ({"pairs"} | OBJECTIVES.get(name, set()) if text else set())
    assert history[-1]["cross_entropy"] < 0.5 * history[0]["cross_entropy"]


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("text", [False, True], ids=["images", "images and text"])
def test_the_second_task_adds_the_strategys_own_term(name: str, text: bool) -> None:
    encoder = new_encoder(text=text, name=name)
    strategy = build(name)
    learn(strategy, encoder, 0, steps=2)
    history = learn(strategy, encoder, 1, steps=3)
    others = PROTECTORS | TWO_TEACHERS | SHARED_LAYERS | COMPATIBLE
    own = {DISTILLERS[name]} | BESIDE.get(name, set()) if name in DISTILLERS else others.get(name, set())
    assert set(history[0]) == {"triplet", "cross_entropy"} | ({"pairs"} | OBJECTIVES.get(name, set()) if text else set()) | own
    assert all(torch.isfinite(torch.tensor(list(terms.values()))).all() for terms in history)


@pytest.mark.parametrize("name", GENERAL)
def test_the_same_task_twice_gives_the_same_weights_to_the_bit(name: str) -> None:
    def run() -> dict[str, Tensor]:
        encoder = new_encoder(text=True, name=name)
        strategy = build(name)
        learn(strategy, encoder, 0, steps=2)
        learn(strategy, encoder, 1, steps=2)
        return encoder.state_dict()

    first, second = run(), run()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", GENERAL)
def test_a_strategy_made_anew_between_tasks_goes_on_to_the_same_weights(name: str) -> None:
    def run(*, restart: bool) -> dict[str, Tensor]:
        encoder = new_encoder(text=True, name=name)
        strategy = build(name)
        learn(strategy, encoder, 0, steps=2)
        if restart:
            state = strategy.state_dict()
            strategy = build(name)
            strategy.load_state_dict(state)
        learn(strategy, encoder, 1, steps=2)
        return encoder.state_dict()

    whole, parts = run(restart=False), run(restart=True)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize("name", GENERAL)
def test_a_strategy_refuses_the_state_of_another(name: str) -> None:
    strategy = build(name)
    with pytest.raises(ValueError, match=f"^{name} keeps .*, but got '?fisher.*: was this saved by another strategy"):
        strategy.load_state_dict({"fisher": torch.zeros(1)})
    assert not strategy.state_dict()


@pytest.mark.parametrize("name", GENERAL)
def test_only_joint_starts_over_and_reads_earlier_tasks(name: str) -> None:
    strategy = build(name)
    assert strategy.reads_earlier_tasks == strategy.restarts == (name == "joint")


def test_joint_classifies_over_all_classes_whatever_the_task_brings() -> None:
    encoder = new_encoder(text=False, num_classes=6)
    strategy = STRATEGIES.build("joint", {})
    strategy.begin_task(encoder, TaskContext(1, torch.tensor([3, 4, 5])))
    old, new = toy_batch(encoder, 0), toy_batch(encoder, 1)
    both = Batch(torch.arange(24), torch.cat([old.labels, new.labels]), torch.cat([old.images, new.images]))
    strategy.loss_terms(encoder, embed(encoder, strategy, both))["cross_entropy"].backward()
    assert encoder.classifier.weight.grad is not None
    assert (encoder.classifier.weight.grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("name", ["fine_tune", *DISTILLERS, *PROTECTORS])
def test_the_softmax_of_a_new_task_leaves_the_rows_of_old_classes_alone(name: str) -> None:
    encoder = new_encoder(text=False, num_classes=6)
    strategy = build(name)
    strategy.begin_task(encoder, TaskContext(1, torch.tensor([3, 4, 5])))
    strategy.loss_terms(encoder, embed(encoder, strategy, toy_batch(encoder, 1)))["cross_entropy"].backward()
    gradient = encoder.classifier.weight.grad
    assert gradient is not None
    assert not gradient[:3].any() and gradient[3:].any()


@pytest.mark.parametrize("name", DISTILLERS)
def test_the_teacher_stays_as_it_was_in_eval_mode_whatever_happens_to_the_student(name: str) -> None:
    encoder = new_encoder(text=True)
    strategy = build(name)
    strategy.begin_task(encoder, TaskContext(1, torch.tensor([3, 4, 5])))
    batch = toy_batch(encoder, 0)
    encoder.eval()
    with torch.no_grad():
        expected, expected_text = encoder(batch.images, batch.tokens)
    encoder.train()
    with torch.no_grad():
        encoder(batch.images)  # moves the student's running statistics
        for parameter in encoder.parameters():
            parameter.add_(0.1)
    seen = strategy.observe(batch)
    torch.testing.assert_close(seen["teacher_image"], expected)
    torch.testing.assert_close(seen["teacher_text"], expected_text)
    assert not any(value.requires_grad for value in seen.values())


@pytest.mark.parametrize("name", DISTILLERS)
def test_the_teacher_is_no_part_of_the_student(name: str) -> None:
    encoder = new_encoder(text=True)
    before = [key for key, _ in encoder.named_modules()], list(encoder.state_dict())
    strategy = build(name)
    strategy.begin_task(encoder, TaskContext(1, torch.tensor([3])))
    assert ([key for key, _ in encoder.named_modules()], list(encoder.state_dict())) == before
    assert not isinstance(strategy, torch.nn.Module)
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("name", DISTILLERS)
def test_the_teacher_reads_captions_with_words_that_came_after_it(name: str) -> None:
    encoder = new_encoder(text=True)
    strategy = build(name)
    strategy.begin_task(encoder, TaskContext(1, torch.tensor([3, 4, 5])))
    encoder.grow(num_classes=6, captions=WORDS)
    batch = toy_batch(encoder, 1)
    assert batch.tokens is not None and int(batch.tokens.max()) >= 5
    unknown = Batch(batch.rows, batch.labels, batch.images, torch.ones_like(batch.tokens))
    torch.testing.assert_close(strategy.observe(batch)["teacher_text"], strategy.observe(unknown)["teacher_text"])


@pytest.mark.parametrize("name", GENERAL)
def test_nothing_is_observed_without_a_teacher(name: str) -> None:
    encoder = new_encoder(text=True, name=name)
    strategy = build(name)
    strategy.begin_task(encoder, TaskContext(0, torch.arange(3)))
    assert strategy.observe(toy_batch(encoder, 0)) == {}


@pytest.mark.parametrize("name", DISTILLERS)
def test_a_batch_without_what_the_teacher_said_is_refused(name: str) -> None:
    encoder = new_encoder(text=True)
    strategy = build(name)
    strategy.begin_task(encoder, TaskContext(1, torch.arange(3)))
    batch = toy_batch(encoder, 0)
    image, text = encoder(batch.images, batch.tokens)
    with pytest.raises(ValueError, match="without teacher_image"):
        strategy.loss_terms(encoder, Embedded(batch.labels, image, text))
    with pytest.raises(ValueError, match="without teacher_text"):
        strategy.loss_terms(encoder, Embedded(batch.labels, image, text, teacher_image=image.detach()))


@pytest.mark.parametrize("name", DISTILLERS)
@pytest.mark.parametrize("text", [False, True], ids=["images", "images and text"])
def test_the_distilled_term_pulls_the_student_back_to_its_teacher(name: str, text: bool) -> None:
    encoder = new_encoder(text=text)
    learn(STRATEGIES.build("fine_tune", {}), encoder, 0, steps=6)
    strategy = STRATEGIES.build(name, UNBOUNDED.get(name, {}))
    strategy.begin_task(encoder, TaskContext(1, torch.arange(3)))
    batch = toy_batch(encoder, 0)
    raw_image = encoder(batch.images, batch.tokens)[0].detach()
    start = unit_rows(raw_image)
    moved = (start + 0.3 * torch.randn(start.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
    taught = strategy.observe(batch)

    def term(image: Tensor) -> Tensor:
        embedded = Embedded(batch.labels, image, taught.get("teacher_text"), **taught)
        return strategy.loss_terms(encoder, embedded)[DISTILLERS[name]]

    far = term(moved)
    far.backward()
    assert moved.grad is not None and moved.grad.isfinite().all()
    nearer = term((moved - 1e-2 * moved.grad / moved.grad.norm()).detach())
    assert term(raw_image).item() < far.item()
    assert nearer.item() < far.item()


@pytest.mark.parametrize("name", DISTILLERS)
def test_the_gradient_is_finite_where_student_and_teacher_are_the_same(name: str) -> None:
    encoder = new_encoder(text=True)
    strategy = build(name)
    strategy.begin_task(encoder, TaskContext(1, torch.arange(3)))
    encoder.eval()
    batch = toy_batch(encoder, 0)
    strategy.loss_terms(encoder, embed(encoder, strategy, batch))[DISTILLERS[name]].backward()
    gradients = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    # lwf compares classifier logits of the same embeddings too, so all of them start from rest
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-3


@pytest.mark.parametrize("name", GENERAL)
def test_terms_do_not_depend_on_batch_order(name: str) -> None:
    encoder = new_encoder(text=True, num_classes=6, name=name)
    strategy = build(name)
    strategy.begin_task(encoder, TaskContext(1, torch.tensor([3, 4, 5]), fresh=lambda: new_encoder(text=True, num_classes=0)))
    encoder.eval()
    batch = toy_batch(encoder, 1)
    assert batch.tokens is not None
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = Batch(batch.rows[order], batch.labels[order], batch.images[order], batch.tokens[order])
    one, other = (strategy.loss_terms(encoder, embed(encoder, strategy, each)) for each in (batch, shuffled))
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DISTILLERS)
def test_after_a_task_the_student_agrees_with_its_teacher_more_than_a_fine_tuned_one_does(name: str) -> None:
    """In the strategy's own terms, on pictures of the new task that were not trained on."""
    parent = new_encoder(text=False)
    learn(STRATEGIES.build("fine_tune", {}), parent, 0, steps=10)

    def disagreement(learned_by: str) -> float:
        student = copy.deepcopy(parent)
        learn(STRATEGIES.build(learned_by, UNBOUNDED.get(learned_by, {})), student, 1, steps=15)
        judge = STRATEGIES.build(name, UNBOUNDED.get(name, {}))
        judge.begin_task(parent, TaskContext(1, torch.arange(3, 6)))
        return judge.loss_terms(student, embed(student, judge, toy_batch(student, 1, seed=99)))[DISTILLERS[name]].item()

    assert disagreement(name) < disagreement("fine_tune")


def test_a_misspelt_or_impossible_option_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'correlation'"):
        STRATEGIES.build("corelation", {})
    with pytest.raises(ConfigError, match=r"wieght: no such option. Did you mean 'weight'"):
        STRATEGIES.build("l2", {"wieght": 1})
    with pytest.raises(ConfigError, match="temperature"):
        STRATEGIES.build("correlation", {"temperature": 0})
    with pytest.raises(ConfigError, match="weight"):
        STRATEGIES.build("l2", {"weight": -1})
    with pytest.raises(ConfigError, match=r"ranking.margn: no such option"):
        STRATEGIES.build("lwf", {"ranking": {"margn": 0.1}})


@pytest.mark.parametrize("name", DISTILLERS)
@pytest.mark.parametrize("num_old", [3, 6], ids=["as many", "more"])
def test_a_teacher_holds_by_the_root_of_old_classes_over_new_ones(name: str, num_old: int) -> None:
    """Beside three new classes: by the root of 2 where six are old, and not otherwise than without the ratio where three are."""
    encoder = new_encoder(text=False, num_classes=num_old)
    learn(STRATEGIES.build("fine_tune", {}), encoder, 0, steps=3)

    def term(class_ratio: bool) -> Tensor:
        strategy = STRATEGIES.build(name, {"max_share": None, "class_ratio": class_ratio})
        strategy.begin_task(encoder, TaskContext(1, torch.arange(3, 6)))
        student = copy.deepcopy(encoder)
        learn(STRATEGIES.build("fine_tune", {}), student, 1, steps=3)
        return strategy.loss_terms(student, embed(student, strategy, toy_batch(student, 1)))[DISTILLERS[name]]

    held, plain = term(class_ratio=True), term(class_ratio=False)
    assert plain > 0
    torch.testing.assert_close(held, (num_old / 3) ** 0.5 * plain)


@pytest.mark.parametrize("num_old", [3, 6], ids=["as many old classes", "more"])
@pytest.mark.parametrize("text", [False, True], ids=["images", "images and text"])
def test_a_huge_weight_takes_no_more_than_its_share_of_the_pull(text: bool, num_old: int) -> None:
    encoder = new_encoder(text=text, num_classes=num_old)
    learn(STRATEGIES.build("fine_tune", {}), encoder, 0, steps=3)
    strategy = STRATEGIES.build("correlation", {"weight": 1e4, "max_share": 0.5})
    strategy.begin_task(encoder, TaskContext(1, torch.arange(3, 6)))
    learn(STRATEGIES.build("fine_tune", {}), encoder, 1, steps=3)
    batch = embed(encoder, strategy, toy_batch(encoder, 1))
    terms = strategy.loss_terms(encoder, batch)
    embeddings = [batch.image] if batch.text is None else [batch.image, batch.text]

    def pull(loss: Tensor) -> float:
        gradients = torch.autograd.grad(loss, embeddings, retain_graph=True)
        return float(sum(gradient.square().sum() for gradient in gradients) ** 0.5)

    distilled = terms.pop("correlation")
    assert pull(distilled) == pytest.approx(0.5 * pull(torch.stack(list(terms.values())).sum()), rel=1e-4)
