"""EWC, MAS, ALASSO, NCE_EWC: what is pulled where, how tasks add up, and what stays free."""

import copy
import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from perdure.encoders import Encoder, build_encoder
from perdure.errors import ConfigError
from perdure.losses import info_nce, unit_rows
from perdure.memory.importance import fisher, per_mean, sensitivity
from perdure.records import Batch, Embedded
from perdure.strategies import STRATEGIES, Ranking, TaskContext
from perdure.strategies.protector import Protector, padded

PROTECTORS = ["ewc", "mas", "alasso", "nce_ewc"]
MEASURING = ["ewc", "mas", "nce_ewc"]
WORDS = ["red", "blue", "green", "grey", "pink", "cyan"]


def new_encoder(*, text: bool = False, **options: Any) -> Encoder:
    return build_encoder("small_resnet", {"embedding_dim": 8, "width": 4, "image_size": 16, **options}, with_text=text, seed=0)


def toy_batch(encoder: Encoder, task: int, seed: int) -> Batch:
    """Twelve pictures of three classes, and their captions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(12) % 3 + 3 * task
    images = torch.rand(6, 3, 1, 1, generator=torch.Generator().manual_seed(7))[labels] + 0.2 * torch.rand(
        12, 3, 16, 16, generator=generator
    )
    tokens = None if encoder.vocabulary is None else encoder.vocabulary.encode([WORDS[label] for label in labels.tolist()])
    return Batch(rows=torch.arange(12), labels=labels, images=images, tokens=tokens)


class ToyExamples:
    """One group of twelve, however many are asked for."""

    def __init__(self, encoder: Encoder, task: int) -> None:
        self.group = toy_batch(encoder, task, seed=99)
        self.asked: tuple[int, int, int] | None = None

    def batches(self, *, size: int, per_class: int, count: int) -> Iterator[Batch]:
        self.asked = (size, per_class, count)
        yield self.group


def build(name: str, **options: Any) -> Protector:
    strategy = STRATEGIES.build(name, options)
    assert isinstance(strategy, Protector)
    return strategy


def begin(strategy: Protector, encoder: Encoder, task: int) -> None:
    strategy.begin_task(encoder, TaskContext(task, torch.arange(3) + 3 * task))
    encoder.grow(num_classes=3 * (task + 1), captions=WORDS[: 3 * (task + 1)])
    strategy.begin_training(encoder)


def gradients_of(strategy: Protector, encoder: Encoder, task: int, seed: int) -> dict[str, float]:
    """Put the gradients of one step's loss into the parameters, without what `before_step` adds; the terms."""
    batch = toy_batch(encoder, task, seed)
    terms = strategy.loss_terms(encoder, Embedded(batch.labels, *encoder(batch.images, batch.tokens)))
    encoder.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    return {name: term.item() for name, term in terms.items()}


def learn(strategy: Protector, encoder: Encoder, task: int, steps: int = 2, lr: float = 0.02) -> None:
    begin(strategy, encoder, task)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=lr)
    encoder.train()
    for step in range(steps):
        gradients_of(strategy, encoder, task, seed=step)
        strategy.before_step(encoder)
        optimizer.step()
        strategy.after_step(encoder)
    strategy.consolidate(encoder.eval(), ToyExamples(encoder, task))
    strategy.end_task(encoder)


@cache
def first_task(name: str, text: bool) -> tuple[Encoder, dict[str, Tensor]]:
    """An encoder after its first task, and what the strategy carries on."""
    strategy, encoder = build(name), new_encoder(text=text)
    learn(strategy, encoder, 0)
    return encoder, strategy.state_dict()


def after_one_task(name: str, *, text: bool = False, **options: Any) -> tuple[Protector, Encoder]:
    """A strategy with something to protect, and the encoder a little away from it, in the second task."""
    learned, state = first_task(name, text)
    strategy, encoder = build(name, **options), copy.deepcopy(learned)
    strategy.load_state_dict(state)
    begin(strategy, encoder, 1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return strategy, encoder


def penalty_as_loops(strategy: Protector, encoder: Encoder, **shape: float) -> tuple[float, dict[str, Tensor]]:
    """The penalty's value and gradient from the memory, entry by entry; `shape`: a and eps of ALASSO."""
    total, pulls = 0.0, {}
    parameters = dict(encoder.named_parameters())
    for name, importance in strategy.memory["importance"].items():
        rows = len(importance)
        moved = parameters[name].detach()[:rows] - strategy.memory["anchor"][name][:rows]
        stiffness = 0.5 * importance
        if shape:
            unseen = moved * strategy.memory["side"][name] <= 0
            stiffness = importance + unseen * ((shape["a"] - 1) * importance + shape["eps"])
        total += float((stiffness * moved**2).double().sum())
        pulls[name] = 2 * stiffness * moved
    return total, pulls


SHAPES: dict[str, dict[str, float]] = {"alasso": {"a": 1.8, "eps": 1e-6}}


@pytest.mark.parametrize("name", PROTECTORS)
@pytest.mark.parametrize("text", [False, True], ids=["images", "images and text"])
def test_the_term_is_the_penalty_and_the_step_gets_its_gradient(name: str, text: bool) -> None:
    strategy, encoder = after_one_task(name, text=text, weight=3.0, max_share=None)
    value, pulls = penalty_as_loops(strategy, encoder, **SHAPES.get(name, {}))
    terms = gradients_of(strategy, encoder, 1, seed=50)
    assert terms[strategy.term] == pytest.approx(3 * value, rel=1e-4) and value > 0
    before = {name: parameter.grad.clone() for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    strategy.before_step(encoder)
    for key, parameter in encoder.named_parameters():
        if key in before:
            assert parameter.grad is not None
            added = parameter.grad - before[key]
            torch.testing.assert_close(
                added, 3 * padded(pulls.get(key), parameter), rtol=1e-3, atol=1e-5, msg=lambda t, key=key: f"{key} {t}"
            )


@pytest.mark.parametrize("name", PROTECTORS)
def test_the_gradient_of_the_loss_itself_has_nothing_of_the_penalty(name: str) -> None:
    strategy, encoder = after_one_task(name, weight=1e6)
    gradients_of(strategy, encoder, 1, seed=50)
    twin = copy.deepcopy(encoder)
    plain = build(name)
    begin(plain, twin, 1)
    gradients_of(plain, twin, 1, seed=50)
    for one, other in zip(encoder.parameters(), twin.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("name", PROTECTORS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_no_entry_is_pulled_harder_than_its_share_of_a_typical_pull_of_the_ranking_terms(name: str, share: float) -> None:
    strategy, encoder = after_one_task(name, weight=1e7, max_share=share)
    gradients_of(strategy, encoder, 1, seed=50)
    before = {key: parameter.grad.clone() for key, parameter in encoder.named_parameters() if parameter.grad is not None}
    strategy.before_step(encoder)
    parameters, reached = dict(encoder.named_parameters()), 0
    for key, importance in strategy.memory["importance"].items():
        rows, gradient = len(importance), parameters[key].grad
        assert gradient is not None
        typical = float(before[key][:rows].square().mean().sqrt())
        hardest = float((gradient - before[key]).abs().max())
        assert hardest <= share * typical * (1 + 1e-3) + 1e-6, key
        reached += typical > 0 and hardest >= share * typical * (1 - 1e-3) - 1e-6
    assert reached > 5, "a weight this large reaches the bound nearly everywhere"


@pytest.mark.parametrize("name", PROTECTORS)
def test_a_penalty_below_its_bound_is_left_as_it_is(name: str) -> None:
    """But for rows that the ranking terms do not pull on: there the bound is 0."""
    steps = []
    for max_share in (None, 1e5):
        strategy, encoder = after_one_task(name, weight=1.0, max_share=max_share)
        gradients_of(strategy, encoder, 1, seed=50)
        before = {key: parameter.grad.clone() for key, parameter in encoder.named_parameters() if parameter.grad is not None}
        pulled = {key for key, value in strategy.memory["importance"].items() if before[key][: len(value)].any()}
        strategy.before_step(encoder)
        steps.append({key: parameter.grad for key, parameter in encoder.named_parameters() if key in pulled})
        assert all(not torch.equal(steps[-1][key], before[key]) for key in ("image.projection.weight", "image.projection.bias"))
    free, bounded = steps
    assert free.keys() == bounded.keys() and len(free) > 5
    for key, gradient in free.items():
        assert gradient is not None and torch.equal(gradient, bounded[key]), key  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PROTECTORS)
def test_a_parameter_without_a_gradient_is_left_alone(name: str) -> None:
    strategy, encoder = after_one_task(name, text=True)
    batch = toy_batch(encoder, 1, seed=50)
    terms = strategy.loss_terms(encoder, Embedded(batch.labels, *encoder(batch.images)))  # no captions in this batch
    encoder.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    strategy.before_step(encoder)
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert all((gradient is None) == name.startswith("text.") for name, gradient in gradients.items())


@pytest.mark.parametrize("name", PROTECTORS)
def test_rows_of_new_classes_and_words_are_free_and_old_ones_are_held(name: str) -> None:
    strategy, encoder = after_one_task(name, text=True, weight=1.0, max_share=None)
    assert len(encoder.classifier.weight) == 6 and encoder.text is not None
    old_words = len(strategy.memory["importance"]["text.words"])
    assert old_words < encoder.text.num_words
    gradients_of(strategy, encoder, 1, seed=50)
    before = {name: parameter.grad.clone() for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    strategy.before_step(encoder)
    assert encoder.classifier.weight.grad is not None and encoder.text.words.grad is not None
    classes = (encoder.classifier.weight.grad - before["classifier.weight"]).abs().sum(dim=1)
    words = (encoder.text.words.grad - before["text.words"]).abs().sum(dim=1)
    assert not classes[3:].any() and not words[old_words:].any()
    assert bool(words[2:old_words].any())
    assert bool(classes[:3].all()) == (name != "mas"), "a classifier has no part in an embedding, so MAS does not weigh it"


@pytest.mark.parametrize("name", PROTECTORS)
def test_after_the_second_task_its_own_rows_are_protected_too(name: str) -> None:
    strategy, encoder = build(name), new_encoder(text=True)
    learn(strategy, encoder, 0)
    first = {key: value.clone() for key, value in strategy.memory["importance"].items()}
    learn(strategy, encoder, 1)
    for key, parameter in encoder.named_parameters():
        for part in strategy.parts:
            assert strategy.memory[part][key].shape == parameter.shape
    words = strategy.memory["importance"]["text.words"]
    assert bool(words[len(first["text.words"]) :].any())


@pytest.mark.parametrize("name", PROTECTORS)
def test_running_statistics_of_batch_norm_are_not_protected(name: str) -> None:
    strategy, encoder = after_one_task(name)
    parameters = {key for key, _ in encoder.named_parameters()}
    assert set(strategy.memory["importance"]) == parameters < set(encoder.state_dict())


@pytest.mark.parametrize("name", PROTECTORS)
def test_what_matters_moves_less_than_it_would_unprotected(name: str) -> None:
    strategy, encoder = build(name, weight=1e4), new_encoder()
    learn(strategy, encoder, 0, steps=4)
    moved = []
    for weight in (0.0, 1e4):
        again, student = build(name, weight=weight, max_share=1.0), copy.deepcopy(encoder)
        again.load_state_dict(strategy.state_dict())
        learn(again, student, 1, steps=6)
        parameters = dict(student.named_parameters())
        moved.append(
            sum(
                float((importance * (parameters[key].detach()[: len(importance)] - strategy.memory["anchor"][key]).square()).sum())
                for key, importance in strategy.memory["importance"].items()
            )
        )
    assert moved[1] < 0.7 * moved[0]


# -- what is measured, and how tasks add up ----------------------------------------------------------------------------------------------


def test_ewc_and_mas_measure_on_the_groups_that_their_options_ask_for() -> None:
    for name, options, asked in (
        ("ewc", {"items": 70, "group": 16, "per_class": 2}, (16, 2, 5)),
        ("nce_ewc", {}, (32, 4, 8)),
        ("mas", {"items": 33}, (32, 4, 2)),
        ("mas", {"items": 3}, (3, 4, 1)),
    ):
        strategy, encoder = build(name, **options), new_encoder()
        begin(strategy, encoder, 0)
        examples = ToyExamples(encoder, 0)
        strategy.consolidate(encoder.eval(), examples)
        assert examples.asked == asked


@pytest.mark.parametrize("name", MEASURING)
def test_the_first_importance_is_the_measure_in_units_of_its_mean_and_the_anchor_is_where_the_encoder_is(name: str) -> None:
    strategy, encoder = build(name), new_encoder(text=True)
    learn(strategy, encoder, 0)
    group = ToyExamples(encoder, 0).group

    def objective(batch: Embedded) -> Tensor:
        terms = list(Ranking().terms(encoder, batch, torch.arange(3)).values())
        nce = [0.1 * info_nce(unit_rows(batch.image), batch.labels)] if name == "nce_ewc" else []
        return torch.stack(terms + nce).sum()

    measured = sensitivity(encoder, [group]) if name == "mas" else fisher(encoder, [group], objective, heads=[encoder.classifier])
    for key, expected in per_mean(measured).items():
        torch.testing.assert_close(strategy.memory["importance"][key], expected)
    for key, parameter in encoder.named_parameters():
        assert torch.equal(strategy.memory["anchor"][key], parameter) and strategy.memory["anchor"][key] is not parameter


def two_tasks(name: str, **options: Any) -> tuple[Protector, list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """The strategy after two tasks; the importance that each of them alone would have; the parameters after each."""
    strategy, encoder = build(name, **options), new_encoder()
    own, after = [], []
    for task in (0, 1):
        learn(strategy, encoder, task)
        alone = build(name, **options)
        alone.begin_task(encoder, TaskContext(task, torch.arange(3) + 3 * task))
        alone.consolidate(encoder, ToyExamples(encoder, task))
        own.append(alone.memory["importance"])
        after.append({key: parameter.detach().clone() for key, parameter in encoder.named_parameters()})
    return strategy, own, after


@pytest.mark.parametrize(
    ("name", "options", "kept", "added"),
    [
        ("ewc", {}, 1.0, 1.0),
        ("ewc", {"accumulate": "mean"}, 0.5, 0.5),
        ("ewc", {"accumulate": "online", "gamma": 0.7}, 0.7, 1.0),
        ("mas", {"alpha": 0.3}, 0.3, 0.7),
    ],
)
def test_importance_of_two_tasks_adds_up_as_its_option_says(name: str, options: dict[str, Any], kept: float, added: float) -> None:
    strategy, own, _ = two_tasks(name, **options)
    for key, value in strategy.memory["importance"].items():
        torch.testing.assert_close(value, kept * padded(own[0][key], value) + added * own[1][key])


@pytest.mark.parametrize(("name", "options"), [("ewc", {"accumulate": "online"}), ("mas", {})])
def test_one_anchor_is_where_the_latest_task_left_the_parameters(name: str, options: dict[str, Any]) -> None:
    strategy, _, after = two_tasks(name, **options)
    assert all(torch.equal(anchor, after[1][key]) for key, anchor in strategy.memory["anchor"].items())


@pytest.mark.parametrize(("accumulate", "factor"), [("sum", 1.0), ("mean", 0.5)])
def test_one_penalty_is_as_good_as_one_for_each_task(accumulate: str, factor: float) -> None:
    strategy, own, after = two_tasks("ewc", accumulate=accumulate)

    def together(at: dict[str, Tensor]) -> float:
        return float(strategy.penalty(at))

    def apart(at: dict[str, Tensor]) -> float:
        total = 0.0
        for importance, anchor in zip(own, after, strict=True):
            for key, value in importance.items():
                total += factor * float((0.5 * value * (at[key][: len(value)] - anchor[key]).square()).sum())
        return total

    here = after[1]
    there = {key: value + 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3)) for key, value in here.items()}
    assert together(there) - together(here) == pytest.approx(apart(there) - apart(here), rel=1e-3)
    assert together(there) != pytest.approx(apart(there), rel=1e-3), "they differ by a constant"


def test_nce_joins_in_the_second_task() -> None:
    strategy, encoder = build("nce_ewc", nce=0.25, negatives=4, temperature=0.5), new_encoder()
    begin(strategy, encoder, 0)
    assert set(gradients_of(strategy, encoder, 0, seed=0)) == {"triplet", "cross_entropy"}
    strategy, encoder = after_one_task("nce_ewc", nce=0.25, negatives=4, temperature=0.5)
    terms = gradients_of(strategy, encoder.eval(), 1, seed=50)
    assert set(terms) == {"triplet", "cross_entropy", "nce", "ewc"}
    batch = toy_batch(encoder, 1, seed=50)
    image = unit_rows(encoder(batch.images)[0])
    assert terms["nce"] == pytest.approx(0.25 * info_nce(image, batch.labels, negatives=4, temperature=0.5).item(), rel=1e-5)


# -- ALASSO --------------------------------------------------------------------------------------------------------------------------


def test_alasso_sums_minus_the_plain_gradient_times_the_real_move() -> None:
    """The optimiser moves by the regularised, clipped gradient; the path is weighed by the plain one."""
    strategy, encoder = after_one_task("alasso", weight=5.0, max_share=None)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.05, momentum=0.9)
    expected = {key: torch.zeros_like(parameter) for key, parameter in encoder.named_parameters()}
    for step in range(3):
        gradients_of(strategy, encoder, 1, seed=step)
        plain = {key: parameter.grad.clone() for key, parameter in encoder.named_parameters() if parameter.grad is not None}
        start = {key: parameter.detach().clone() for key, parameter in encoder.named_parameters()}
        strategy.before_step(encoder)
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 0.5)
        optimizer.step()
        strategy.after_step(encoder)
        for key, parameter in encoder.named_parameters():
            expected[key] -= plain[key] * (parameter.detach() - start[key])
    assert float(expected["image.projection.weight"].abs().sum()) > 0
    for key, value in expected.items():
        torch.testing.assert_close(strategy.memory["path"][key], value, msg=lambda said, key=key: f"{key}: {said}")


@pytest.mark.parametrize("smoothing", [1.0, 0.6])
def test_alasso_consolidates_by_its_formula_written_as_loops(smoothing: float) -> None:
    options = {"smoothing": smoothing, "path_weight": 0.3, "path_overestimation": 1.5, "path_floor": 0.01, "damping": 1e-3}
    strategy, encoder = after_one_task("alasso", **options)
    generator = torch.Generator().manual_seed(8)
    for value in strategy.memory["path"].values():
        value.copy_(0.01 * torch.randn(value.shape, generator=generator))
    old = {part: {key: value.clone() for key, value in values.items()} for part, values in strategy.memory.items()}
    strategy.consolidate(encoder.eval(), ToyExamples(encoder, 1))
    rose = 0
    for key in ("classifier.weight", "image.projection.bias", "image.trunk.1.p"):
        parameter = dict(encoder.named_parameters())[key].detach()
        for at in range(parameter.numel()):
            theta, anchor, path = (float(each.flatten()[at]) for each in (parameter, old["anchor"][key], old["path"][key]))
            known = at < old["importance"][key].numel()
            weight = float(old["importance"][key].flatten()[at]) if known else 0.0
            seen = known and (theta - anchor) * float(old["side"][key].flatten()[at]) > 0
            surrogate = 0.0 if not known else (weight if seen else 1.5 * weight + 0.01) * (theta - anchor) ** 2
            gained = (path - 0.3 * surrogate) / ((theta - anchor) ** 2 + 1e-3)
            expected = max(smoothing * gained + (1 - smoothing) * weight, weight)
            rose += expected > weight
            assert float(strategy.memory["importance"][key].flatten()[at]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
            assert float(strategy.memory["side"][key].flatten()[at]) == (anchor > theta) - (anchor < theta)
            assert float(strategy.memory["anchor"][key].flatten()[at]) == theta
    assert rose > 10
    assert strategy.memory["path"] == {}


def test_alasso_refuses_a_task_of_which_it_saw_no_step() -> None:
    strategy, encoder = build("alasso"), new_encoder()
    begin(strategy, encoder, 0)
    with pytest.raises(ValueError, match="saw no step of this task: let it learn the first task itself"):
        strategy.consolidate(encoder.eval(), ToyExamples(encoder, 0))


# -- state ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTECTORS)
@pytest.mark.parametrize("other", ["ewc", "mas", "alasso", "nce_ewc"])
def test_the_state_of_another_strategy_is_refused_and_its_own_is_taken(name: str, other: str) -> None:
    state = after_one_task(other)[0].state_dict()
    assert all(key.startswith(f"{other}.") for key in state)
    strategy = build(name)
    if name == other:
        strategy.load_state_dict(state)
        assert all(torch.equal(value, state[key]) for key, value in strategy.state_dict().items())
        return
    with pytest.raises(ValueError, match=rf"{name} keeps {name}.PART.PARAMETER .*got '{other}\..*another strategy"):
        strategy.load_state_dict(state)
    assert strategy.state_dict() == {}


def test_an_incomplete_state_and_one_of_another_encoder_are_refused() -> None:
    state = after_one_task("ewc")[0].state_dict()
    with pytest.raises(ValueError, match=r"importance of 'image\.projection\.bias', but not its anchor"):
        build("ewc").load_state_dict({key: value for key, value in state.items() if key != "ewc.anchor.image.projection.bias"})
    wider = build_encoder("small_resnet", {"embedding_dim": 9, "width": 4, "image_size": 16}, with_text=False, seed=0)
    wider.grow(num_classes=3)
    strategy = build("ewc")
    strategy.load_state_dict(state)
    with pytest.raises(ValueError, match=r"the state protects 'classifier.weight' \(3, 8\), but the encoder has \(3, 9\)"):
        strategy.begin_task(wider, TaskContext(1, torch.arange(3)))
    strategy.load_state_dict({"ewc.importance.gone": torch.ones(2), "ewc.anchor.gone": torch.ones(2)})
    with pytest.raises(ValueError, match=r"'gone' \(2,\), but the encoder has no such parameter"):
        strategy.begin_task(new_encoder(), TaskContext(1, torch.arange(3)))


def test_what_was_taken_over_is_a_copy() -> None:
    state = after_one_task("alasso")[0].state_dict()
    before = {key: value.clone() for key, value in state.items()}
    strategy, encoder = build("alasso"), new_encoder()
    encoder.grow(num_classes=6)
    strategy.load_state_dict(state)
    gradients_of(strategy, encoder, 1, seed=0)
    strategy.before_step(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1
    strategy.after_step(encoder)
    assert not torch.equal(strategy.state_dict()["alasso.path.image.projection.bias"], before["alasso.path.image.projection.bias"])
    assert all(torch.equal(value, before[key]) for key, value in state.items())


@pytest.mark.parametrize("name", PROTECTORS)
def test_a_later_task_with_nothing_to_protect_is_told(name: str, caplog: pytest.LogCaptureFixture) -> None:
    strategy, encoder = build(name), new_encoder()
    with caplog.at_level(logging.WARNING):
        begin(strategy, encoder, 0)
        assert not caplog.records
        begin(build(name), encoder, 1)
    assert f"{name}: task 1 begins with nothing to protect" in caplog.text


@pytest.mark.parametrize("name", ["ewc", "mas"])
@pytest.mark.parametrize("projection", ["separate", "shared"])
def test_both_towers_matter_and_so_does_the_layer_that_they_share(name: str, projection: str, caplog: pytest.LogCaptureFixture) -> None:
    encoder = new_encoder(text=True, projection=projection)
    with caplog.at_level(logging.INFO):
        learn(strategy := build(name), encoder, 0)
    importance = strategy.memory["importance"]
    assert set(importance) == {key for key, _ in encoder.named_parameters()}
    of_one_word = "weight_hh"  # of an LSTM: captions of one word use no recurrence
    for part in ("image.trunk.", "image.projection.", "text.words", "text.lstm.", "text.projection.", "joint."):
        members = [value for key, value in importance.items() if key.startswith(part) and of_one_word not in key]
        assert bool(members) == (part != "joint." or projection == "shared")
        assert all(float(value.sum()) > 0 for value in members if value.ndim > 1), part
    told = caplog.text.partition(f"{name}: mean importance after task 0: ")[2].splitlines()[0]
    by_tower = dict(part.rsplit(" ", 1) for part in told.split(", "))
    assert list(by_tower) == ["image", "text", *(["joint"] if projection == "shared" else []), "classifier"]
    assert all((float(value) > 0) == (tower != "classifier" or name == "ewc") for tower, value in by_tower.items())


def test_the_log_says_how_much_each_tower_matters(caplog: pytest.LogCaptureFixture) -> None:
    encoder = new_encoder(text=True)
    with caplog.at_level(logging.INFO):
        learn(build("ewc"), encoder, 0)
    assert all(f"{tower} " in caplog.text for tower in ("ewc: mean importance after task 0: image", "text", "classifier"))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("ewc", {"accumulate": "max"}),
        ("ewc", {"gamma": 1.5}),
        ("ewc", {"group": 1}),
        ("ewc", {"items": 0}),
        ("mas", {"alpha": -0.1}),
        ("alasso", {"overestimation": 0.5}),
        ("alasso", {"damping": 0}),
        ("alasso", {"smoothing": 0}),
        ("nce_ewc", {"temperature": 0}),
        ("nce_ewc", {"max_share": -1}),
    ],
)
def test_options_out_of_range_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        STRATEGIES.build(name, wrong)
