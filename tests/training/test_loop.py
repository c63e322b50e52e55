"""What the loop promises: a run that was killed ends like one that was not, it reads its own task only, and it says where time goes."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from third_task import OPTIONS, SHARED_LAYERS, equip, third_task

from perdure.encoders import Encoder
from perdure.errors import DataError
from perdure.records import Embedded
from perdure.strategies import STRATEGIES, Strategy, TaskContext
from perdure.tracking import JsonlTracker
from perdure.training.checkpoint import FolderCheckpoints
from perdure.training.loop import TaskData, TrainSummary, train_task
from perdure.training.precision import Precision
from perdure.training.schedule import Schedule, learning_rate, random_seed

SCHEDULE = Schedule(epochs=3, batch_size=16, per_class=4, lr=3e-3, crop=2, checkpoint_every=0)
TWO_TURNS = {"lwf_expert"}  # an expert learns the task before the student


class Killed(Exception):
    pass


def learn_third_task(
    name: str,
    encoder: Encoder,
    task: TaskData,
    precision: Precision,
    *,
    checkpoints: FolderCheckpoints | None = None,
    kill_at: int | None = None,
    every: int = 0,
) -> TrainSummary:
    """The third task, from a parent that is `encoder`; `kill_at`: die after that many steps."""
    strategy = STRATEGIES.build(name, OPTIONS.get(name, {}))
    equip(name, encoder)
    strategy.begin_task(encoder, third_task(encoder, task.labels))
    encoder.grow(num_classes=8)

    def on_step(step: int, total: int, terms: dict[str, float]) -> None:
        if kill_at is not None and step + 1 == kill_at:
            raise Killed

    schedule = Schedule(**{**SCHEDULE.__dict__, "checkpoint_every": every})
    return train_task(encoder, strategy, task, schedule, task_index=2, precision=precision, checkpoints=checkpoints, on_step=on_step)


def weights(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "text", "kill_at"),
    [
        *((name, text, 6) for name in STRATEGIES for text in (False, True) if text or name != "domain_uncertainty_hashing"),
        *((name, text, 15) for name in TWO_TURNS for text in (False, True)),  # in the student's own turn
    ],
)
def test_killed_and_resumed_equals_never_killed_bit_for_bit(
    name: str,
    text: bool,
    kill_at: int,
    tmp_path: Path,
    toy_encoder: Callable[..., Encoder],
    toy_task: Callable[..., TaskData],
    fp32: Precision,
) -> None:
    task = toy_task(1, text=text)
    parent = toy_encoder(text=text, joint=name in SHARED_LAYERS)
    whole, broken, resumed = copy.deepcopy(parent), copy.deepcopy(parent), copy.deepcopy(parent)
    whole_summary = learn_third_task(name, whole, task, fp32)
    checkpoints = FolderCheckpoints(tmp_path)
    with pytest.raises(Killed):
        learn_third_task(name, broken, task, fp32, checkpoints=checkpoints, kill_at=kill_at, every=4)
    torch.manual_seed(999)  # whatever a new process starts with
    resumed_summary = learn_third_task(name, resumed, task, fp32, checkpoints=checkpoints, every=4)
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[key]), key
    assert resumed_summary.steps == whole_summary.steps == (18 if name in TWO_TURNS else 9)
    assert resumed_summary.curves == whole_summary.curves


class Listening(Strategy):
    """Writes down what each step would draw from."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds: list[int] = []

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, torch.Tensor]:
        self.seeds.append(batch.seed)
        return super().loss_terms(encoder, batch)


def test_a_strategys_draws_are_new_at_every_step_and_task_and_the_same_when_it_is_done_again(
    toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision
) -> None:
    def seeds(task_index: int) -> list[int]:
        encoder, strategy = toy_encoder(), Listening()
        strategy.begin_task(encoder, TaskContext(task_index, torch.arange(4)))
        train_task(encoder, strategy, toy_task(0), SCHEDULE, task_index=task_index, precision=fp32)
        return strategy.seeds

    assert seeds(1) == seeds(1)
    assert len(set(seeds(1) + seeds(2))) == 18


def test_a_teacher_that_learns_beside_does_not_shorten_the_students_clipped_step(
    toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision
) -> None:
    task, parent = toy_task(1), toy_encoder()
    schedule = Schedule(**{**SCHEDULE.__dict__, "clip_norm": 0.1, "max_steps": 2})
    learned: list[dict[str, torch.Tensor]] = []
    for te2_weight in (1.0, 50.0):
        encoder = copy.deepcopy(parent)
        strategy = STRATEGIES.build("dual", {"inversion": None, "kd2_weight": 1e-9, "te2_weight": te2_weight})
        strategy.begin_task(encoder, third_task(encoder, task.labels))
        encoder.grow(num_classes=8)
        train_task(encoder, strategy, task, schedule, task_index=2, precision=fp32)
        learned.append(weights(encoder))
    assert all(torch.allclose(value, learned[1][key], atol=1e-6) for key, value in learned[0].items())


class Preparing(Strategy):
    """Counts how often it gets ready, which may take minutes."""

    times = 0

    def prepare(self) -> None:
        type(self).times += 1


def test_a_resumed_task_is_not_prepared_again(
    tmp_path: Path, toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Preparing, "times", 0)
    schedule = Schedule(**{**SCHEDULE.__dict__, "checkpoint_every": 4})
    for _ in range(2):
        encoder, strategy = toy_encoder(), Preparing()
        strategy.begin_task(encoder, TaskContext(1, torch.arange(4)))
        train_task(encoder, strategy, toy_task(0), schedule, precision=fp32, checkpoints=FolderCheckpoints(tmp_path))
    assert Preparing.times == 1


def test_the_text_tower_learns_from_the_captions(
    toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision
) -> None:
    encoder = toy_encoder(text=True)
    before = weights(encoder)
    strategy = STRATEGIES.build("fine_tune", {})
    strategy.begin_task(encoder, TaskContext(0, torch.arange(4)))
    summary = train_task(encoder, strategy, toy_task(0, text=True), SCHEDULE, precision=fp32)
    assert {"triplet", "cross_entropy", "pairs"} <= summary.terms.keys()
    assert any(not torch.equal(before[name], value) for name, value in weights(encoder).items() if name.startswith("text."))


def test_reads_exactly_the_rows_of_its_task(
    toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision
) -> None:
    task = toy_task(1)
    task.pixels.take(np.array([0]))  # an earlier read by somebody else is not this task's
    summary = learn_third_task("correlation", toy_encoder(), task, fp32)
    assert sorted(summary.read) == sorted(task.rows.tolist())


def test_what_was_read_before_a_stop_is_not_forgotten(
    tmp_path: Path, toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision
) -> None:
    task, checkpoints = toy_task(1), FolderCheckpoints(tmp_path)
    with pytest.raises(Killed):
        learn_third_task("fine_tune", toy_encoder(), task, fp32, checkpoints=checkpoints, kill_at=9, every=8)
    resumed = learn_third_task("fine_tune", toy_encoder(), task, fp32, checkpoints=checkpoints, every=8)  # one step, of a third of the rows
    assert sorted(resumed.read) == sorted(task.rows.tolist())


def test_logs_every_term_and_where_the_time_went(
    tmp_path: Path, toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision
) -> None:
    encoder = toy_encoder()
    strategy = STRATEGIES.build("fine_tune", {})
    strategy.begin_task(encoder, TaskContext(0, torch.arange(4)))
    tracker = JsonlTracker(tmp_path / "log.jsonl")
    summary = train_task(encoder, strategy, toy_task(0), SCHEDULE, precision=fp32, tracker=tracker)
    tracker.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == summary.steps == 9
    assert {"task", "step", "loss", "lr", "triplet", "cross_entropy", "data_s", "compute_s", "images_per_s"} <= lines[0].keys()
    assert lines[0]["loss"] == pytest.approx(lines[0]["triplet"] + lines[0]["cross_entropy"])
    assert summary.images == sum(16 for _ in lines)


def test_a_term_that_is_not_finite_stops_the_run_and_is_named(
    toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision
) -> None:
    encoder = toy_encoder()
    with torch.no_grad():
        next(encoder.image.parameters()).fill_(float("nan"))
    strategy = STRATEGIES.build("fine_tune", {})
    strategy.begin_task(encoder, TaskContext(0, torch.arange(4)))
    with pytest.raises(FloatingPointError, match=r"task 0, step 0: loss term .*train\.lr"):
        train_task(encoder, strategy, toy_task(0), SCHEDULE, precision=fp32)


def test_a_task_without_rows_is_refused(toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision) -> None:
    task = toy_task(0)
    empty = TaskData(task.pixels, task.rows[:0], task.labels[:0])
    with pytest.raises(DataError, match="nothing to learn"):
        train_task(toy_encoder(), STRATEGIES.build("fine_tune", {}), empty, SCHEDULE, precision=fp32)


def test_the_learning_rate_climbs_and_falls_to_zero() -> None:
    rates = [learning_rate("one_cycle", 1.0, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.1) and rates[-1] < 0.01
    assert rates.index(max(rates)) == 15
    assert [learning_rate("constant", 0.5, step, 10) for step in (0, 9)] == [0.5, 0.5]


def test_random_seeds_differ_between_neighbouring_counters() -> None:
    seeds = {random_seed(seed, task, step) for seed in range(3) for task in range(5) for step in range(200)}
    assert len(seeds) == 3 * 5 * 200
    assert random_seed(1, 2, 3) == random_seed(1, 2, 3) != random_seed(3, 2, 1)


def test_the_task_that_each_row_came_with_reaches_the_strategy_in_the_order_of_the_batch(
    toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision
) -> None:
    seen: list[Embedded] = []

    class Noting(Strategy):
        def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, torch.Tensor]:
            seen.append(batch)
            return super().loss_terms(encoder, batch)

    first, second = toy_task(0), toy_task(1)
    rows, labels = (np.concatenate([getattr(each, name) for each in (first, second)]) for name in ("rows", "labels"))
    both = TaskData(first.pixels, rows, labels, tasks=labels // 4)
    for data in (both, first):
        strategy, encoder = Noting(), toy_encoder(classes=8)
        strategy.begin_task(encoder, TaskContext(0, torch.arange(8)))
        train_task(encoder, strategy, data, Schedule(epochs=1, batch_size=16, per_class=2, max_steps=2), precision=fp32)
    assert len(seen) == 4
    for batch in seen[:2]:
        assert batch.tasks is not None and batch.tasks.dtype == torch.int64
        assert torch.equal(batch.tasks, batch.labels // 4) and set(batch.tasks.tolist()) == {0, 1}
    assert all(batch.tasks is None for batch in seen[2:])
