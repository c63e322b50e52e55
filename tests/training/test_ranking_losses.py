"""Metric losses by name in the training of a task: they are learned with, their parameters too, and a resumed task ends the same."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from perdure.encoders import Encoder
from perdure.losses.metric import METRIC_LOSSES, PER_CLASS
from perdure.strategies import STRATEGIES, Strategy, TaskContext
from perdure.training.checkpoint import FolderCheckpoints
from perdure.training.loop import TaskData, TrainSummary, train_task
from perdure.training.precision import Precision
from perdure.training.schedule import Schedule

NewEncoder = Callable[..., Encoder]
NewTask = Callable[..., TaskData]
FP32 = Precision("fp32", torch.device("cpu"), channels_last=False)


def strategy_with(metric: Any, name: str = "fine_tune") -> Strategy:
    """Learns by the metric alone."""
    return STRATEGIES.build(name, {"ranking": {"triplet": 0, "cross_entropy": 0, "pairs": 0, "metric": metric}})


def learn(strategy: Strategy, encoder: Encoder, task: TaskData, index: int = 0, epochs: int = 1, **given: Any) -> TrainSummary:
    strategy.begin_task(encoder, TaskContext(index, torch.from_numpy(np.unique(task.labels)), seed=11 + index))
    encoder.grow(num_classes=max(int(task.labels.max()) + 1, encoder.classifier.num_classes))
    every = 2 if "checkpoints" in given else 0
    schedule = Schedule(epochs=epochs, batch_size=16, per_class=4, lr=3e-3, schedule="constant", crop=0, checkpoint_every=every)
    summary = train_task(encoder, strategy, task, schedule, task_index=index, precision=FP32, **given)
    strategy.end_task(encoder)
    return summary


def parameters(strategy: Strategy) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in strategy.trained()["metric"].parameters()]


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_every_loss_falls_while_a_task_is_learned(name: str, toy_encoder: NewEncoder, toy_task: NewTask) -> None:
    strategy, encoder = strategy_with(name), toy_encoder()
    curve = learn(strategy, encoder, toy_task(0), epochs=3).curves[name]
    assert curve[-1] < curve[0]


@pytest.mark.parametrize("name", sorted(PER_CLASS))
def test_parameters_of_a_loss_are_trained(name: str, toy_encoder: NewEncoder, toy_task: NewTask) -> None:
    strategy, encoder = strategy_with(name), toy_encoder()
    strategy.begin_task(encoder, TaskContext(0, torch.arange(4), seed=11))
    before = parameters(strategy)
    learn(strategy, encoder, toy_task(0))
    after = parameters(strategy)
    assert len(before) == 1
    assert all(((old - new).abs() > 1e-4).any() for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("name", sorted(PER_CLASS))
def test_each_task_has_parameters_for_its_own_classes(name: str, toy_encoder: NewEncoder, toy_task: NewTask) -> None:
    strategy, encoder = strategy_with(name, "l2"), toy_encoder()
    learn(strategy, encoder, toy_task(0))
    first = strategy.trained()["metric"]
    assert strategy.state_dict() == {}, "nothing of it goes from task to task"
    learn(strategy, encoder, toy_task(1), 1)
    second = strategy.trained()["metric"]
    assert first.class_ids.tolist() == [0, 1, 2, 3] and second.class_ids.tolist() == [4, 5, 6, 7]  # type: ignore[union-attr]
    assert [each.shape for each in first.parameters()] == [each.shape for each in second.parameters()]


@pytest.mark.parametrize("name", sorted(PER_CLASS))
def test_joint_has_parameters_for_all_classes_so_far(name: str, toy_encoder: NewEncoder, toy_task: NewTask) -> None:
    old, new = toy_task(0), toy_task(1)
    both = TaskData(old.pixels, np.concatenate([old.rows, new.rows]), np.concatenate([old.labels, new.labels]))
    strategy = strategy_with(name, "joint")
    assert np.isfinite(learn(strategy, toy_encoder(), both, 1).terms[name])
    assert strategy.trained()["metric"].class_ids.tolist() == list(range(8))  # type: ignore[union-attr]


class Killed(Exception):
    pass


def kill_at_three(step: int, total: int, terms: dict[str, float]) -> None:
    if step == 2:
        raise Killed


@pytest.mark.parametrize(
    "metric",
    [
        "proxy_anchor",
        {"name": "contrastive", "memory": 40},
        {"name": "multi_similarity", "memory": 24, "miner": "distance_weighted"},
        {"name": "margin", "miner": "distance_weighted"},
    ],
    ids=["proxies", "memory", "memory and random triplets", "boundaries and random triplets"],
)
def test_killed_and_resumed_equals_never_killed_bit_for_bit(
    metric: Any, tmp_path: Path, toy_encoder: NewEncoder, toy_task: NewTask
) -> None:
    parent, task = toy_encoder(), toy_task(1)
    whole, broken, resumed = (copy.deepcopy(parent) for _ in range(3))
    never_killed, killed, again = (strategy_with(metric) for _ in range(3))
    expected = learn(never_killed, whole, task, 1, epochs=2)
    checkpoints = FolderCheckpoints(tmp_path)
    with pytest.raises(Killed):
        learn(killed, broken, task, 1, epochs=2, checkpoints=checkpoints, on_step=kill_at_three)
    torch.manual_seed(999)
    summary = learn(again, resumed, task, 1, epochs=2, checkpoints=checkpoints)
    assert summary.curves == expected.curves and summary.steps == 6
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
    state, state_again = (each.trained()["metric"].state_dict() for each in (never_killed, again))
    assert all(torch.equal(value, state_again[key]) for key, value in state.items())


def test_a_memory_is_empty_when_a_task_begins(toy_encoder: NewEncoder, toy_task: NewTask) -> None:
    strategy, encoder = strategy_with({"name": "supcon", "memory": 32}), toy_encoder()
    learn(strategy, encoder, toy_task(0))
    assert strategy.trained()["metric"].get_extra_state().tolist() == [16, 1], "three batches of 16 rows went into 32 places"
    strategy.begin_task(encoder, TaskContext(1, torch.arange(4, 8)))
    assert strategy.trained()["metric"].get_extra_state().tolist() == [0, 0]
