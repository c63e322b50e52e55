"""What a step of each strategy costs beside a step of fine-tuning: same encoder, same pictures, same run, as a ratio.

    python benchmarks/strategy_cost.py [--steps 20] [--rounds 5] [--threads N] [--strategies l2 correlation ...]

The floor is what the passes through encoders cost by themselves, measured in the same round: a training pass (forward and backward) and
a forward pass in evaluation mode, each of one batch, in the number that the strategy needs. What a strategy does once before its first
step or after its last (inversion, importances) is told apart, in seconds, for the items of this benchmark.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perdure.data import DATASETS
from perdure.data.pixels import Pixels, open_pixels
from perdure.encoders import Encoder, build_encoder
from perdure.memory.accuracy_drift import AccuracyDrift
from perdure.strategies import STRATEGIES, Strategy, TaskContext
from perdure.strategies.protector import Protector
from perdure.training.loop import TaskData, train_task
from perdure.training.precision import Precision, resolve_precision
from perdure.training.schedule import Schedule

SIZE, CLASSES, BATCH = 32, 24, 128
TASK = 2  # the third task, so that what is done for every earlier task shows
DRIFTS = (AccuracyDrift(-0.1, 0.2),) * TASK


@dataclass(frozen=True)
class Passes:
    """Through encoders, in one step, in units of a batch."""

    training: float = 1
    forward: float = 0


PASSES = {  # one frozen teacher: one forward pass more
    "fine_tune": Passes(),
    "joint": Passes(),
    "feature_extraction": Passes(training=0, forward=1),
    "ewc": Passes(),
    "mas": Passes(),
    "alasso": Passes(),
    "nce_ewc": Passes(),
    "correlation_all_teachers": Passes(forward=TASK),
    "lwf_expert": Passes(training=2, forward=4),  # the expert's own step; parent and expert on a picture and its mirror image
    "dual": Passes(training=3, forward=2),  # student on 2 B, the teacher beside it on B; the frozen teacher on 2 B
}
ONE_TEACHER = Passes(forward=1)
# Left out: one that needs another encoder than the others are measured with, and those with an objective of their own for captions.
NAMES = sorted(
    name
    for name, strategy in STRATEGIES.items()
    if name != "meta_sequential" and not strategy.own_objective  # pyright: ignore[reportFunctionMemberAccess] all are classes
)


def encoder(num_classes: int = CLASSES) -> Encoder:
    made = build_encoder("small_resnet", {"image_size": SIZE, "text": "none"}, with_text=False, seed=0)
    made.grow(num_classes=num_classes)
    return made


def warmed(images: torch.Tensor) -> Encoder:
    """An encoder whose BatchNorm has seen the data, as a parent's has."""
    parent = encoder(CLASSES // 2).train()
    with torch.no_grad():
        for part in images.split(BATCH):
            parent(part)
    return parent.eval()


def measure(name: str, options: dict[str, Any], data: TaskData, parent: Encoder, steps: int, precision: Precision) -> tuple[float, float]:
    """Seconds of a step of the student in the loop, that of who learns before it included, and seconds of what is done once."""
    student = encoder(CLASSES // 2)
    student.load_state_dict(parent.state_dict())
    strategy: Strategy = STRATEGIES.build(name, options)
    own = torch.from_numpy(np.unique(data.labels))
    if isinstance(strategy, Protector):  # something to protect, from a task that it has learned
        student.grow(num_classes=CLASSES)
        strategy.begin_task(student, TaskContext(0, own))
        earlier = Schedule(epochs=1, batch_size=BATCH, per_class=4, max_steps=2, checkpoint_every=0)
        train_task(copy.deepcopy(student), strategy, data, earlier, precision=precision)
        strategy.end_task(student)
    schedule = Schedule(epochs=100, batch_size=BATCH, per_class=4, max_steps=steps + 3, checkpoint_every=0)
    context = TaskContext(TASK, own, DRIFTS, lambda task: parent, lambda: encoder(CLASSES // 2), flips=schedule.flip)
    strategy.begin_task(student, context)
    student.grow(num_classes=CLASSES)
    times: list[float] = []
    started = time.perf_counter()

    def note(*_: object) -> None:
        times.append(time.perf_counter())

    train_task(student, strategy, data, schedule, task_index=TASK, precision=precision, on_step=note)
    once = times[0] - started + time.perf_counter() - times[-1]
    turns = len(times) / (steps + 3)
    return turns * (times[-1] - times[2]) / (len(times) - 3), once


def passes(images: torch.Tensor, parent: Encoder, steps: int, precision: Precision) -> tuple[float, float]:
    """Seconds of a training pass with the optimiser, and of a forward pass without gradient, of one batch."""
    student = encoder()
    precision.place(student)
    precision.place(parent)
    batch = precision.images(images[:BATCH])
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, fused=True)
    out: list[float] = []
    for training in (True, False):
        times = [time.perf_counter()]
        for _ in range(steps + 3):
            if training:
                student.train()
                with precision.autocast():
                    embedding, _ = student(batch)
                optimizer.zero_grad(set_to_none=True)
                embedding.float().square().mean().backward()
                optimizer.step()
            else:
                with torch.no_grad(), precision.autocast():
                    parent(batch)
            times.append(time.perf_counter())
        out.append((times[-1] - times[3]) / steps)
    return out[0], out[1]


def task_of(pixels: Pixels, labels: NDArray[np.int64]) -> TaskData:
    """The rows of the second half of the classes."""
    rows = np.flatnonzero(labels >= CLASSES // 2)
    return TaskData(pixels, rows, labels[rows])


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of a step of each strategy, relative to fine-tuning.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--strategies", nargs="*", default=NAMES, choices=NAMES)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names = ["fine_tune", *(name for name in given.strategies if name != "fine_tune")]
    dataset = DATASETS.build("scenes", {"items": 1536, "classes": CLASSES, "size": SIZE})
    known = sorted({item.label for item in dataset.items})
    labels = np.array([known.index(item.label) for item in dataset.items])
    seconds: dict[str, list[float]] = {name: [] for name in names}
    floors: dict[str, list[float]] = {name: [] for name in names}
    once: dict[str, list[float]] = {name: [] for name in names}
    precision = resolve_precision("auto")
    with tempfile.TemporaryDirectory() as cache:
        pixels = open_pixels(dataset, SIZE, cache=Path(cache), on_bad_item="stop")
        images = torch.from_numpy(pixels.take(np.arange(len(labels)))).permute(0, 3, 1, 2).float().div(255)
        parent, data = warmed(images), task_of(pixels, labels)
        for _ in range(given.rounds):
            training, forward = passes(images, parent, given.steps, precision)
            for name in names:
                step, single = measure(name, {}, data, parent, given.steps, precision)
                seconds[name].append(step)
                once[name].append(single)
                needed = PASSES.get(name, ONE_TEACHER)
                floors[name].append((needed.training * training + needed.forward * forward) / training)
    print(f"{given.threads} threads, {precision.name}, batch {BATCH}, {SIZE} x {SIZE}, {given.rounds} rounds of {given.steps} steps")
    print(f"{'strategy':26s} {'ms a step':>10s} {'x fine_tune':>12s} {'(range)':>14s} {'floor':>7s} {'once, s':>9s}")
    for name in names:
        ratios = [own / base for own, base in zip(seconds[name], seconds["fine_tune"], strict=True)]
        spread = f"({min(ratios):.2f}-{max(ratios):.2f})"
        print(
            f"{name:26s} {1000 * statistics.median(seconds[name]):10.1f} {statistics.median(ratios):10.2f} x {spread:>14s}"
            f" {statistics.median(floors[name]):6.2f} {statistics.median(once[name]):9.1f}"
        )


if __name__ == "__main__":
    main()
