"""EWC, MAS, ALASSO and NCE_EWC through the loop: what is measured depends on neither the batches nor the workers nor a stop."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from together import Together
from torch import Tensor

from perdure.encoders import Encoder
from perdure.strategies import STRATEGIES, Strategy, TaskContext
from perdure.training.checkpoint import FolderCheckpoints
from perdure.training.gather import ALONE, Workers
from perdure.training.loop import TaskData, train_task
from perdure.training.precision import Precision
from perdure.training.schedule import Schedule

OPTIONS: dict[str, dict[str, object]] = {
    "ewc": {"items": 16, "group": 8, "weight": 100.0},
    "mas": {"items": 16, "weight": 100.0},
    "alasso": {"weight": 100.0},
    "nce_ewc": {"items": 16, "group": 8, "weight": 100.0},
}
FP32 = Precision("fp32", torch.device("cpu"), channels_last=False)
SCHEDULE = Schedule(epochs=3, batch_size=16, per_class=4, lr=3e-3, crop=2, checkpoint_every=0)


def begun(name: str, encoder: Encoder, data: TaskData, task: int, state: dict[str, Tensor] | None = None) -> Strategy:
    strategy = STRATEGIES.build(name, OPTIONS[name])
    if state is not None:
        strategy.load_state_dict(state)
    strategy.begin_task(encoder, TaskContext(task, torch.from_numpy(np.unique(data.labels))))
    encoder.grow(num_classes=4 * (task + 1))
    return strategy


def first_task(name: str, encoder: Encoder, data: TaskData) -> dict[str, Tensor]:
    """What a strategy carries on from a short first task; the encoder has learned it."""
    strategy = begun(name, encoder, data, 0)
    train_task(encoder, strategy, data, Schedule(**{**SCHEDULE.__dict__, "max_steps": 2}), precision=FP32)
    strategy.end_task(encoder)
    return {key: value.clone() for key, value in strategy.state_dict().items()}


@pytest.mark.parametrize("name", ["ewc", "mas", "nce_ewc"])
def test_importance_does_not_depend_on_the_training_batch(
    name: str, toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData]
) -> None:
    data, parent, states = toy_task(0), toy_encoder(), []
    for batch_size in (8, 32, 64):
        encoder = copy.deepcopy(parent)
        strategy = begun(name, encoder, data, 0)
        train_task(encoder, strategy, data, Schedule(epochs=0, batch_size=batch_size, per_class=4), precision=FP32)
        states.append(strategy.state_dict())
    assert states[0] and all(torch.equal(value, other[key]) for other in states[1:] for key, value in states[0].items())
    assert sum(float(value.sum()) for key, value in states[0].items() if ".importance." in key) > 0


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", OPTIONS)
def test_stopped_inside_a_protected_task_and_resumed_equals_never_stopped_to_the_bit(
    name: str, tmp_path: Path, toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData]
) -> None:
    parent = toy_encoder(text=True)
    carried = first_task(name, parent, toy_task(0, text=True))
    data = toy_task(1, text=True)

    def second_task(checkpoints: FolderCheckpoints | None = None, kill_at: int | None = None) -> tuple[Encoder, dict[str, Tensor]]:
        encoder = copy.deepcopy(parent)
        strategy = begun(name, encoder, data, 1, carried)

        def on_step(step: int, total: int, terms: dict[str, float]) -> None:
            assert terms[getattr(strategy, "term", "")] >= 0, "the penalty is there in every step"
            if step + 1 == kill_at:
                raise Killed

        schedule = Schedule(**{**SCHEDULE.__dict__, "checkpoint_every": 4})
        train_task(encoder, strategy, data, schedule, task_index=1, precision=FP32, checkpoints=checkpoints, on_step=on_step)
        return encoder, strategy.state_dict()

    whole, whole_state = second_task()
    with pytest.raises(Killed):
        second_task(FolderCheckpoints(tmp_path), kill_at=6)
    resumed, resumed_state = second_task(FolderCheckpoints(tmp_path))
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
    assert whole_state.keys() == resumed_state.keys()
    for key, value in whole_state.items():
        assert torch.equal(value, resumed_state[key]), key


def test_the_checkpoint_of_alasso_holds_its_path(
    tmp_path: Path, toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData]
) -> None:
    encoder, data = toy_encoder(), toy_task(0)
    strategy = begun("alasso", encoder, data, 0)
    schedule = Schedule(**{**SCHEDULE.__dict__, "checkpoint_every": 4})
    checkpoints = FolderCheckpoints(tmp_path)
    train_task(encoder, strategy, data, schedule, precision=FP32, checkpoints=checkpoints)
    newest = checkpoints.latest()
    assert newest is not None
    kept = load_file(newest / "state.safetensors")
    assert bool(kept["strategy.alasso.path.image.projection.weight"].any())
    assert not any(".path." in key for key in strategy.state_dict()), "a path ends with its task"


def learned_by(workers: Workers, name: str, encoder: Encoder, carried: dict[str, Tensor], data: TaskData) -> dict[str, Tensor]:
    """Two protected steps and what is measured after them, BatchNorm frozen, plain gradient descent."""
    strategy = begun(name, encoder, data, 1, carried)
    encoder.set_batch_norm_frozen(True)
    schedule = Schedule(epochs=1, batch_size=18, per_class=3, lr=0.01, optimizer="sgd", schedule="constant", crop=2, max_steps=2)
    train_task(encoder, strategy, data, schedule, task_index=1, precision=FP32, workers=workers)
    return {**{f"encoder.{key}": value for key, value in encoder.state_dict().items()}, **strategy.state_dict()}


@pytest.mark.parametrize("name", OPTIONS)
def test_two_workers_protect_and_measure_as_one_does(
    name: str, toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData]
) -> None:
    encoder = toy_encoder()
    carried = first_task(name, encoder, toy_task(0))
    barrier, table = threading.Barrier(2), [[], []]

    def work(rank: int) -> dict[str, Tensor]:
        try:
            data = copy.deepcopy(toy_task(1))  # with a read log of its own
            return learned_by(Together(rank, barrier, table), name, copy.deepcopy(encoder), carried, data)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, (0, 1))
    alone = learned_by(ALONE, name, copy.deepcopy(encoder), carried, toy_task(1))
    assert first.keys() == second.keys() == alone.keys()
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), f"{key}: the workers differ"
        if ".side." in key:
            continue  # the sign of a move of nearly nothing is decided by the last bit
        scale = float(value.abs().max()) if value.is_floating_point() else 1.0
        torch.testing.assert_close(first[key], value, rtol=2e-3, atol=1e-4 * scale, msg=lambda said, key=key: f"{key}: {said}")
    moved = alone[f"{name}.anchor.image.projection.weight"] - carried[f"{name}.anchor.image.projection.weight"]
    assert float(moved.abs().max()) > 1e-3
