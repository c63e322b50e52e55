"""Tasks whose items are of one modality each, through the loop: pictures, then words; and both in one batch."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from third_task import OPTIONS
from together import Together
from torch import Tensor

from perdure.encoders import Encoder
from perdure.errors import DataError
from perdure.strategies import STRATEGIES, Strategy, TaskContext
from perdure.training.checkpoint import FolderCheckpoints
from perdure.training.gather import ALONE, Workers
from perdure.training.loop import TaskData, TrainSummary, train_task
from perdure.training.precision import Precision
from perdure.training.schedule import Schedule

FP32 = Precision("fp32", torch.device("cpu"), channels_last=False)
SCHEDULE = Schedule(epochs=2, batch_size=16, per_class=4, lr=3e-3, crop=2, checkpoint_every=0)
# dual makes up pictures (checks.py), hashing learns pictures with their captions
LEARNERS = [name for name in STRATEGIES if name not in ("dual", "domain_uncertainty_hashing")]


def of_modality(data: TaskData, is_text: np.ndarray) -> TaskData:
    """The items as pictures or as words; pictures have no captions."""
    captions = [words if text else () for words, text in zip(data.captions or [], is_text, strict=True)]
    return replace(data, pixels=copy.deepcopy(data.pixels), captions=captions, is_text=is_text)


@pytest.fixture
def parts(toy_task: Callable[..., TaskData]) -> tuple[TaskData, TaskData, TaskData]:
    """Pictures, words and a mixture, of the same four classes; no item is in two of the first two."""
    data = toy_task(0, text=True)
    half = np.arange(len(data.rows)) % 8 < 4
    captions = data.captions or []

    def some(mask: np.ndarray) -> TaskData:
        return replace(data, rows=data.rows[mask], labels=data.labels[mask], captions=[c for c, m in zip(captions, mask, strict=True) if m])

    count = int(half.sum())
    seen, read = of_modality(some(half), np.zeros(count, dtype=bool)), of_modality(some(~half), np.ones(len(half) - count, dtype=bool))
    return seen, read, of_modality(data, ~half)


def begun(name: str, encoder: Encoder, task: int, state: dict[str, Tensor] | None = None) -> Strategy:
    strategy = STRATEGIES.build(name, OPTIONS.get(name, {}) if name != "correlation" else {})
    if state:
        strategy.load_state_dict(state)
    strategy.begin_task(encoder, TaskContext(task, torch.arange(4), ancestor=lambda _: copy.deepcopy(encoder)))
    return strategy


def first_task(name: str, encoder: Encoder, data: TaskData) -> dict[str, Tensor]:
    """What a strategy carries on; the encoder has learned the task."""
    strategy = begun(name, encoder, 0)
    train_task(encoder, strategy, data, SCHEDULE, precision=FP32)
    strategy.end_task(encoder)
    return {key: value.clone() for key, value in strategy.state_dict().items()}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_strategy_learns_pictures_then_words(
    name: str, parts: tuple[TaskData, TaskData, TaskData], toy_encoder: Callable[..., Encoder]
) -> None:
    seen, read, _ = parts
    encoder = toy_encoder(text=True, joint=True)
    carried = first_task(name, encoder, seen)
    before = copy.deepcopy(encoder.state_dict())
    strategy = begun(name, encoder, 1, carried)
    summary = train_task(encoder, strategy, read, SCHEDULE, task_index=1, precision=FP32)
    assert {"triplet", "cross_entropy"} <= summary.terms.keys() and "pairs" not in summary.terms
    assert sorted(summary.read) == sorted(read.rows.tolist()), "words that were read count as read"
    assert not set(summary.read) & set(seen.rows.tolist())
    after = encoder.state_dict()
    towers = [key for key in after if key.startswith("image.")]
    assert all(torch.equal(before[key], after[key]) for key in towers), "no picture was seen, so their stem stays to the bit"
    moved = any(not torch.equal(before[key], after[key]) for key in after if key.startswith(("text.", "joint.")))
    assert moved == (name != "feature_extraction")


def test_the_second_task_holds_the_prototypes_of_the_first(
    parts: tuple[TaskData, TaskData, TaskData], toy_encoder: Callable[..., Encoder]
) -> None:
    seen, read, _ = parts
    encoder = toy_encoder(text=True, joint=True)
    carried = first_task("meta_sequential", encoder, seen)
    assert {key: tuple(value.shape) for key, value in carried.items()} == {"meta_sequential.features.000": (4, 12)}
    strategy = begun("meta_sequential", encoder, 1, carried)
    summary = train_task(encoder, strategy, read, SCHEDULE, task_index=1, precision=FP32)
    assert summary.terms["prototypes"] > 0
    assert sorted(strategy.state_dict()) == ["meta_sequential.features.000", "meta_sequential.features.001"]


class Killed(Exception):
    pass


@pytest.mark.parametrize("which", [1, 2], ids=["words", "mixed"])
@pytest.mark.parametrize("name", ["meta_sequential", "l2"])
def test_killed_and_resumed_equals_never_killed_to_the_bit(
    name: str, which: int, tmp_path: Path, parts: tuple[TaskData, TaskData, TaskData], toy_encoder: Callable[..., Encoder]
) -> None:
    parent = toy_encoder(text=True, joint=True)
    carried = first_task(name, parent, parts[0])

    def second(checkpoints: FolderCheckpoints | None = None, kill_at: int | None = None) -> tuple[Encoder, Strategy, TrainSummary]:
        encoder = copy.deepcopy(parent)
        strategy = begun(name, encoder, 1, carried)

        def on_step(step: int, total: int, terms: dict[str, float]) -> None:
            if step + 1 == kill_at:
                raise Killed

        schedule = replace(SCHEDULE, checkpoint_every=2)
        summary = train_task(
            encoder, strategy, parts[which], schedule, task_index=1, precision=FP32, checkpoints=checkpoints, on_step=on_step
        )
        return encoder, strategy, summary

    whole, whole_strategy, whole_summary = second()
    with pytest.raises(Killed):
        second(FolderCheckpoints(tmp_path), kill_at=3)
    torch.manual_seed(999)
    resumed, resumed_strategy, resumed_summary = second(FolderCheckpoints(tmp_path))
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
    state = resumed_strategy.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole_strategy.state_dict().items())
    assert resumed_summary.curves == whole_summary.curves and sorted(resumed_summary.read) == sorted(whole_summary.read)


def learned_by(workers: Workers, name: str, encoder: Encoder, carried: dict[str, Tensor], data: TaskData) -> dict[str, Tensor]:
    """Two steps, BatchNorm frozen, no dropout, plain gradient descent."""
    strategy = begun(name, encoder, 1, carried)
    encoder.set_batch_norm_frozen(True)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    schedule = Schedule(epochs=1, batch_size=12, per_class=2, lr=0.01, optimizer="sgd", schedule="constant", crop=2, max_steps=2)
    train_task(encoder, strategy, data, schedule, task_index=1, precision=FP32, workers=workers)
    return {**{f"encoder.{key}": value for key, value in encoder.state_dict().items()}, **strategy.state_dict()}


@pytest.mark.parametrize("which", [1, 2, 3], ids=["words", "mixed", "each worker one kind"])
@pytest.mark.parametrize("name", ["meta_sequential", "fine_tune", "l2"])
def test_two_workers_learn_as_one_does(
    name: str,
    which: int,
    parts: tuple[TaskData, TaskData, TaskData],
    toy_encoder: Callable[..., Encoder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = toy_encoder(text=True, joint=True)
    carried = first_task(name, encoder, parts[0])
    data = parts[min(which, 2)]
    if which == 3:  # the first half of every batch is pictures, the second words
        kinds = [np.flatnonzero(~data.is_text), np.flatnonzero(data.is_text)]  # type: ignore[operator, arg-type]
        halves = np.concatenate([kinds[0][:6], kinds[1][:6]])
        monkeypatch.setattr("perdure.training.loop.PKSampler.batch", lambda *_: halves)
    barrier, table = threading.Barrier(2), [[], []]

    def work(rank: int) -> dict[str, Tensor]:
        try:
            return learned_by(Together(rank, barrier, table), name, copy.deepcopy(encoder), carried, copy.deepcopy(data))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, (0, 1))
    alone = learned_by(ALONE, name, copy.deepcopy(encoder), carried, copy.deepcopy(data))
    assert first.keys() == second.keys() == alone.keys()
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), f"{key}: the workers differ"
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=2e-5, msg=lambda said, key=key: f"{key}: {said}")


def test_words_without_a_caption_are_refused_and_pictures_need_none(
    parts: tuple[TaskData, TaskData, TaskData], toy_encoder: Callable[..., Encoder]
) -> None:
    _, read, mixed = parts
    encoder = toy_encoder(text=True, joint=True)
    lacking = [(), *(read.captions or [])[1:]]
    with pytest.raises(DataError, match="row 0 of the task has no caption"):
        train_task(encoder, begun("fine_tune", encoder, 0), replace(read, captions=lacking), SCHEDULE, precision=FP32)
    summary = train_task(encoder, begun("fine_tune", encoder, 0), mixed, replace(SCHEDULE, max_steps=1), precision=FP32)
    assert summary.steps == 1
