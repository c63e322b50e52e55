"""The optimiser: which rate and which decay each parameter gets, and what the three optimisers do with them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from perdure import pipeline
from perdure.config import parse
from perdure.encoders import Encoder
from perdure.identity import fingerprint, first_task_fingerprint
from perdure.strategies import STRATEGIES, TaskContext
from perdure.training.loop import TaskData, train_task
from perdure.training.precision import Precision
from perdure.training.schedule import Schedule, make_optimizer


def peaks(trained: nn.Module, schedule: Schedule) -> dict[str, tuple[float, float]]:
    """Rate and decay by name of parameter; every parameter is in exactly one group."""
    name_of = {id(parameter): name for name, parameter in trained.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in make_optimizer(trained, schedule).param_groups:
        assert group["lr"] == group["peak"]
        for parameter in group["params"]:
            assert name_of[id(parameter)] not in found
            found[name_of[id(parameter)]] = (group["peak"], group["weight_decay"])
    return found


def test_the_trunk_alone_gets_the_backbone_rate(toy_encoder: Callable[..., Encoder]) -> None:
    """Whether it is the encoder that is trained, or the encoder and a second one beside it."""
    trained = nn.ModuleDict({"encoder": toy_encoder(text=True), "guide": toy_encoder()})
    found = peaks(trained, Schedule(epochs=1, lr=1e-5, backbone_lr=1e-6))
    assert set(found) == {name for name, _ in trained.named_parameters()}
    slow = {name for name, (peak, _) in found.items() if peak == 1e-6}
    assert slow == {name for name in found if name.split(".")[1:3] == ["image", "trunk"]} and {name.split(".")[0] for name in slow} == {
        "encoder",
        "guide",
    }
    assert {peak for name, (peak, _) in found.items() if name not in slow} == {1e-5}
    alone = peaks(toy_encoder(), Schedule(epochs=1, lr=1e-5, backbone_lr=1e-6))
    assert {name.startswith("image.trunk.") for name, (peak, _) in alone.items() if peak == 1e-6} == {True}


def test_without_a_backbone_rate_there_is_one_rate_and_decay_is_on_matrices_only(toy_encoder: Callable[..., Encoder]) -> None:
    encoder = toy_encoder()
    found = peaks(encoder, Schedule(epochs=1, lr=1e-3, weight_decay=0.1))
    shapes = {name: parameter.ndim for name, parameter in encoder.named_parameters()}
    assert found == {name: (1e-3, 0.1 if ndim > 1 else 0.0) for name, ndim in shapes.items()}


def test_what_has_no_gradient_is_left_out(toy_encoder: Callable[..., Encoder]) -> None:
    encoder = toy_encoder()
    encoder.image.trunk.requires_grad_(False)
    assert not [name for name in peaks(encoder, Schedule(epochs=1, backbone_lr=1e-6)) if "trunk" in name]


def test_adams_decay_is_a_term_of_the_gradient_and_adamws_is_not() -> None:
    """One step on a weight w with gradient g: Adam divides g + wd w by its own size, AdamW shrinks w beside the step."""
    w, g, lr, decay = 2.0, -0.1, 0.01, 0.5
    after: dict[str, float] = {}
    for name in ("adam", "adamw", "sgd"):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, w)
        optimizer = make_optimizer(layer, Schedule(epochs=1, lr=lr, optimizer=name, weight_decay=decay))
        layer.weight.grad = torch.full_like(layer.weight, g)
        optimizer.step()
        after[name] = layer.weight.item()
    assert after["adam"] == pytest.approx(w - lr)  # the sign of g + wd w = 0.9
    assert after["adamw"] == pytest.approx(w * (1 - lr * decay) + lr)  # the sign of g, and the decay beside it
    assert after["sgd"] == pytest.approx(w - lr * 1.9 * (g + decay * w))  # Nesterov's first step: 1 + 0.9 times the gradient


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer 'lion'; known: adamw, adam, sgd"):
        make_optimizer(nn.Linear(1, 1), Schedule(epochs=1, optimizer="lion"))


@pytest.mark.parametrize(
    ("overrides", "first", "later"),
    [
        ([], None, None),
        (["train.backbone_lr=1e-6"], 1e-6, 1e-6),
        (["train.first_backbone_lr=1e-5"], 1e-5, None),
        (["train.backbone_lr=1e-6", "train.first_backbone_lr=1e-5"], 1e-5, 1e-6),
    ],
)
def test_the_first_task_can_have_a_backbone_rate_of_its_own(overrides: list[str], first: float | None, later: float | None) -> None:
    config = parse({}, overrides)
    assert pipeline._schedule(config, first=True).backbone_lr == first  # pyright: ignore[reportPrivateUsage]
    assert pipeline._schedule(config, first=False).backbone_lr == later  # pyright: ignore[reportPrivateUsage]


def test_rates_of_the_backbone_are_part_of_what_a_run_is_and_null_ones_are_not() -> None:
    same = first_task_fingerprint(parse({}))
    assert first_task_fingerprint(parse({}, ["strategy.weight=7"])) == same
    assert first_task_fingerprint(parse({}, ["strategy.weight=7"]), own_objective=True) != first_task_fingerprint(
        parse({}, ["strategy.weight=8"]), own_objective=True
    )
    assert first_task_fingerprint(parse({}, ["train.first_backbone_lr=1e-5"])) != same
    assert first_task_fingerprint(parse({}, ["train.backbone_lr=1e-5"])) != same
    assert first_task_fingerprint(parse({}, ["train.backbone_lr=1e-4", "train.first_backbone_lr=1e-5"])) == first_task_fingerprint(
        parse({}, ["train.backbone_lr=1e-3", "train.first_backbone_lr=1e-5"])
    )
    assert len({fingerprint(parse({}, [text])) for text in ("seed=0", "train.backbone_lr=1e-5", "train.first_backbone_lr=1e-5")}) == 3


def test_a_run_from_before_an_option_existed_is_the_run_that_leaves_it_alone() -> None:
    now = pipeline.resolved(parse({"stream": {"dataset": {"name": "parquet", "train": "a.parquet", "image": "picture", "label": "kind"}}}))
    before = now.plain()
    for section, option in (
        (before["encoder"], "hash_bits"),
        (before["encoder"], "projection"),
        (before["stream"]["dataset"], "payload"),
        (before["stream"]["dataset"], "tags"),
        (before["stream"]["kind"], "task_order"),
        (before["stream"], "validation"),
        (before["stream"], "gallery"),
        (before["train"], "backbone_lr"),
        (before["strategy"]["ranking"], "metric"),
    ):
        del section[option]
    assert fingerprint(parse(before)) == fingerprint(now)
    known = {  # as earlier versions computed them
        "l2": "09609511a9a8c6f9b4fa7d60119d1b536be2c0be35bbbeef7a9508d23113d845",
        "lwf": "15e951a9cb9242b63d186610c872ad6ae86de0acc64b8460cd1204cbf15b310f",
    }
    assert {name: fingerprint(pipeline.resolved(parse({}, [f"strategy={name}"]))) for name in known} == known
    assert fingerprint(pipeline.resolved(parse({}, ["strategy=lwf", "strategy.teacher.adapts=true"]))) != known["lwf"]
    assert first_task_fingerprint(parse(before)) == first_task_fingerprint(now)
    assert fingerprint(parse(now.plain(), ["stream.dataset.payload=[price]"])) != fingerprint(now)


def test_a_task_order_is_part_of_the_first_task_and_so_is_then_the_step() -> None:
    def first(**kind: object) -> str:
        return first_task_fingerprint(parse({"stream": {"kind": {"name": "class_incremental", "first": 2, **kind}}}))

    assert first(step=2) == first(step=3) == first(step=3, task_order=None)
    assert len({first(step=2), first(step=2, task_order=[1, 0]), first(step=3, task_order=[1, 0])}) == 3


@pytest.mark.parametrize("kind", ["one_cycle", "constant"])
def test_the_schedule_moves_each_rate_from_its_own_peak(
    kind: str, toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision
) -> None:
    """A step of SGD moves in proportion to the rate: a hundredth of it in the trunk, and the rest as before."""
    moved: dict[float | None, dict[str, torch.Tensor]] = {}
    for backbone_lr in (None, 1e-4):
        encoder = toy_encoder()
        before = {name: value.detach().clone() for name, value in encoder.named_parameters()}
        numbers = {"batch_size": 16, "optimizer": "sgd", "weight_decay": 0.0, "schedule": kind, "max_steps": 1, "checkpoint_every": 0}
        strategy = STRATEGIES.build("fine_tune", {})
        task = toy_task(0)
        strategy.begin_task(encoder, TaskContext(0, torch.from_numpy(np.unique(task.labels))))
        train_task(encoder, strategy, task, Schedule(epochs=1, lr=1e-2, backbone_lr=backbone_lr, **numbers), precision=fp32)
        moved[backbone_lr] = {name: value.detach() - before[name] for name, value in encoder.named_parameters()}
    for name, whole in moved[None].items():
        expected = whole * 1e-2 if "image.trunk." in name else whole
        assert torch.allclose(moved[1e-4][name], expected, rtol=1e-2, atol=1e-7), name
    assert any(float(value.abs().max()) > 1e-5 for name, value in moved[None].items() if "image.trunk." in name)
