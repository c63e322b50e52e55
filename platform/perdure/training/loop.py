"""The training of one task, top to bottom.

    for each learner (the student, and before it an expert, if the strategy has one)
        for each step: draw the global batch -> cut it -> embed the own slice, ask the teacher -> gather -> the strategy's loss terms
                       -> backward -> average gradients -> optimiser step -> log -> now and then a checkpoint

Letters: B rows of the global batch, b of this worker, B' synthetic ones, D embedding, L words, n items of the task.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perdure.data.pixels import Pixels
from perdure.data.sampler import PKSampler
from perdure.data.transforms import Augmentation, augment, draw, to_float
from perdure.encoders.encoder import Encoder
from perdure.errors import DataError
from perdure.records import Batch, Embedded
from perdure.strategies.strategy import Strategy
from perdure.tracking import NullTracker, Tracker
from perdure.training.checkpoint import Checkpoints, NoCheckpoints, load_state, save_state
from perdure.training.gather import ALONE, Workers
from perdure.training.memory import PeakMemory
from perdure.training.meter import Meter, TrainSummary
from perdure.training.precision import Precision, resolve_precision
from perdure.training.schedule import Schedule, learning_rate, make_optimizer, random_seed

__all__ = ["TaskData", "TrainSummary", "train_task"]

log = logging.getLogger(__name__)

_SYNTHETIC, _EXAMPLES, _STRATEGY = 1_000_003, 1_000_033, 1_000_037  # counters of draws, beside the workers' ranks


@dataclass(frozen=True, eq=False)
class TaskData:
    """What a task may read while it is learned: its own rows, nothing else."""

    pixels: Pixels
    rows: NDArray[np.int64]  # (n,) rows of the dataset
    labels: NDArray[np.int64]  # (n,) class ids
    captions: list[tuple[str, ...]] | None = None  # n tuples, or None for a stream without text
    tasks: NDArray[np.int64] | None = None  # (n,) the task that each row came with, where they came with several (joint)
    tags: NDArray[np.bool_] | None = None  # (n, C) every label that applies, or None where the strategy does not read them
    is_text: NDArray[np.bool_] | None = None  # (n,) which are words alone, where each item is of one modality; None: all are pictures


def train_task(
    encoder: Encoder,
    strategy: Strategy,
    data: TaskData,
    schedule: Schedule,
    *,
    task_index: int = 0,
    precision: Precision | None = None,
    workers: Workers = ALONE,
    checkpoints: Checkpoints | None = None,
    tracker: Tracker | None = None,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
) -> TrainSummary:
    """Train the encoder on one task, from its newest checkpoint if there is one. `strategy.begin_task` has been called.

    Args:
        encoder: the student, grown to the task's classes and words; changed in place, left in eval mode.
        data: the task's rows; the read log of `data.pixels` then holds what was read.
        task_index: a counter of the random draws.
        on_step: called on every worker as (step, number of steps, terms), for progress bars.
    Raises:
        DataError: the task has no rows.
        FloatingPointError: a loss term is not finite; names the term and the step, nothing is published.
    """
    if len(data.rows) == 0:
        raise DataError(f"task {task_index}: there is nothing to learn from, its train split has no rows")
    precision = precision or resolve_precision("auto")
    checkpoints = checkpoints or NoCheckpoints()
    tracker = tracker or NullTracker()
    sampler = PKSampler(
        data.labels, batch_size=schedule.batch_size, per_class=schedule.per_class, seed=random_seed(schedule.seed, task_index)
    )
    turn = schedule.epochs * sampler.steps_per_epoch  # steps of each learner
    if schedule.max_steps is not None:
        turn = min(turn, schedule.max_steps)

    memory = PeakMemory(precision.device)
    strategy.begin_training(encoder)
    learners = strategy.learners(encoder)
    num_steps = turn * len(learners)
    trained: dict[str, nn.Module] = {"encoder": encoder, **strategy.trained()}
    for module in trained.values():
        precision.place(module)
    optimizer = make_optimizer(nn.ModuleDict(trained), schedule)
    has_words = data.is_text is None or bool(data.is_text.any())
    tokens = _Tokens(encoder, data.captions, data.is_text) if has_words and encoder.text is not None and data.captions is not None else None
    meter = Meter(sampler.steps_per_epoch)
    data.pixels.forget_reads()
    first_step = 0
    state = checkpoints.latest()
    if state is not None:
        first_step, strategy_state, extra = load_state(state, modules=trained, optimizer=optimizer)
        strategy.load_state_dict(strategy_state)
        meter.restore(extra["meter"])
        data.pixels.read[extra["read"]] = True
        log.info("task %d goes on at step %d of %d", task_index, first_step, num_steps)
    else:
        with precision.autocast():
            strategy.prepare()
    workers.meet()  # one may have decoded a cold cache, or made up pictures, and be late
    if state is None:
        workers.average(value for value in strategy.state_dict().values() if value.is_floating_point())  # the same on all, to the bit

    for module in trained.values():
        module.train()
    for step in range(first_step, num_steps):
        started = time.perf_counter()
        learner, own_step = learners[step // turn], step % turn
        torch.manual_seed(random_seed(schedule.seed, task_index, own_step, workers.rank))  # dropout
        batch, size = _draw(data, tokens, sampler, own_step, task_index, schedule, workers, precision)
        made_up = strategy.synthetic(size, torch.Generator().manual_seed(random_seed(schedule.seed, task_index, own_step, _SYNTHETIC)))
        if made_up is not None:
            batch = replace(batch, synthetic=precision.images(made_up[0][workers.slice_of(len(made_up[0]))]))
        drawn = time.perf_counter()

        with precision.autocast():
            embedded = _embed(
                learner,
                batch,
                strategy.observe(batch) if learner is encoder else {},
                workers,
                size,
                None if made_up is None else made_up[1],
                random_seed(schedule.seed, task_index, own_step, _STRATEGY),
                own_step,
            )
        rate = learning_rate(schedule.schedule, schedule.lr, own_step, turn)
        terms = strategy.loss_terms(learner, embedded)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:  # not where all that it depends on is frozen
            loss.backward()
        _average(trained.values(), workers, uneven=data.is_text is not None)
        strategy.before_step(learner)
        if schedule.clip_norm is not None:
            for module in trained.values():  # each by itself: a teacher that learns beside must not shorten the student's step
                torch.nn.utils.clip_grad_norm_(module.parameters(), schedule.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule.schedule, group["peak"], own_step, turn)
        optimizer.step()
        strategy.after_step(learner)

        values = {name: float(term.detach()) for name, term in terms.items()}
        _refuse_nan(values, step, task_index)
        ended = time.perf_counter()
        meter.add(step, size, ended - started, values)
        if workers.rank == 0 and step % schedule.log_every == 0:
            tracker.log(
                "step",
                {
                    "task": task_index,
                    "step": step,
                    "num_steps": num_steps,
                    "epoch": step // sampler.steps_per_epoch,
                    "lr": rate,
                    "loss": sum(values.values()),
                    **values,
                    "data_s": round(drawn - started, 6),
                    "compute_s": round(ended - drawn, 6),
                    "images_per_s": round(size / (ended - started), 1),
                },
            )
        if on_step is not None:
            on_step(step, num_steps, values)
        if schedule.checkpoint_every and (step + 1) % schedule.checkpoint_every == 0 and step + 1 < num_steps:
            checkpoints.save(step + 1, _writer(step + 1, trained, optimizer, strategy, meter, _rows_read(data.pixels, workers)))
    for module in trained.values():
        module.eval()
    strategy.consolidate(encoder, _Examples(data, tokens, precision, random_seed(schedule.seed, task_index, _EXAMPLES)))
    workers.meet()
    workers.average(value for value in strategy.state_dict().values() if value.is_floating_point())
    return replace(meter.summary(), read=_rows_read(data.pixels, workers), peak_memory_mb=round(memory.mib(), 1))


def _draw(
    data: TaskData,
    tokens: "_Tokens | None",
    sampler: PKSampler,
    step: int,
    task_index: int,
    schedule: Schedule,
    workers: Workers,
    precision: Precision,
) -> tuple[Batch, int]:
    """This worker's slice of the global batch of a step, and B; all draws are made for the global batch."""
    generator = torch.Generator().manual_seed(random_seed(schedule.seed, task_index, step))
    positions = sampler.batch(step)
    size = len(positions)
    augmentation = draw(size, generator, crop=schedule.crop, flip=schedule.flip)
    words = None if tokens is None else tokens.draw(positions, generator)
    return _batch(data, positions, workers.slice_of(size), words, augmentation, precision), size


def _batch(
    data: TaskData,
    positions: NDArray[np.int64],
    own: slice,
    words: Tensor | None,
    augmentation: Augmentation | None,
    precision: Precision,
) -> Batch:
    """One worker's slice of a global batch; `words` are those of the whole batch, of every item or of the ones that are words alone."""
    rows = data.rows[positions[own]]
    labels = torch.from_numpy(data.labels[positions[own]]).to(precision.device)
    beside = {
        "tasks": None if data.tasks is None else torch.from_numpy(data.tasks[positions[own]]).to(precision.device),
        "tags": None if data.tags is None else torch.from_numpy(data.tags[positions[own]]).float().to(precision.device),
    }
    if data.is_text is None:
        images = _images(data, rows, None if augmentation is None else augmentation.rows(own), precision)
        return Batch(torch.from_numpy(rows), labels, images, None if words is None else words[own].to(precision.device), **beside)
    is_text = data.is_text[positions]
    first, picture = int(is_text[: own.start].sum()), ~is_text[own]
    drawn = None if augmentation is None else augmentation.rows(own).rows(torch.from_numpy(picture))
    data.pixels.note(rows[~picture])
    return Batch(
        torch.from_numpy(rows),
        labels,
        _images(data, rows[picture], drawn, precision) if picture.any() else None,
        None if words is None or picture.all() else words[first : first + int((~picture).sum())].to(precision.device),
        is_text=torch.from_numpy(~picture).to(precision.device),
        **beside,
    )


def _images(data: TaskData, rows: NDArray[np.int64], augmentation: Augmentation | None, precision: Precision) -> Tensor:
    """The pictures of some rows, as an encoder wants them."""
    pixels = torch.from_numpy(data.pixels.take(rows))
    return precision.images(to_float(pixels if augmentation is None else augment(pixels, augmentation)))


def _embed(
    encoder: Encoder,
    batch: Batch,
    observed: dict[str, Tensor],
    workers: Workers,
    size: int,
    synthetic_labels: Tensor | None,
    seed: int,
    step: int,
) -> Embedded:
    """The global batch's embeddings in float32: losses are computed in full precision whatever the forward pass used.

    Synthetic pictures go through the encoder in one pass with the others, so that BatchNorm sees the mixed batch.
    """
    made_up = batch.synthetic
    if made_up is None:
        features, text_features = encoder.features(*batch.inputs)
    else:
        assert batch.images is not None, "no strategy makes up pictures for items that are words: checks.py"
        features, text_features = encoder.features(torch.cat([batch.images, made_up]), batch.tokens)
    image, text = encoder.joined(features, text_features)
    count = len(batch.labels)
    image, synthetic = image[:count], image[count:]
    fields = {"image": image, "text": text, "tags": batch.tags, **observed}
    if encoder.joint is not None:
        fields |= {"features": features[:count], "text_features": text_features}
    sizes = {name: size for name in fields}
    if synthetic_labels is not None:
        fields["synthetic"] = synthetic
        sizes |= {"synthetic": len(synthetic_labels), "teacher_synthetic": len(synthetic_labels)}
    return Embedded(
        labels=workers.gather(batch.labels, size),
        tasks=None if batch.tasks is None else workers.gather(batch.tasks, size),
        synthetic_labels=None if synthetic_labels is None else synthetic_labels.to(batch.labels.device),
        seed=seed,
        step=step,
        **{name: workers.gather(value.float(), sizes[name]) for name, value in fields.items() if value is not None},
    )


def _average(modules: Iterable[nn.Module], workers: Workers, *, uneven: bool) -> None:
    """Gradients and BatchNorm's running statistics, meaned over the workers in one message.

    Uneven: the slice of one worker may have pictures or words where another's has none, so a gradient may be missing here alone.
    """
    if workers.num > 1:
        listed = list(modules)
        if uneven:
            parameters = [parameter for module in listed for parameter in module.parameters()]
            somewhere = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=parameters[0].device)
            workers.average([somewhere])
            for parameter, there in zip(parameters, somewhere.tolist(), strict=True):
                if there > 0 and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for module in listed for parameter in module.parameters() if parameter.grad is not None]
        learning = [part for module in listed for part in module.modules() if part.training]  # what is frozen stays to the bit
        statistics = [buffer for part in learning for buffer in part.buffers(recurse=False) if buffer.is_floating_point()]
        workers.average([*gradients, *statistics])


def _refuse_nan(values: dict[str, float], step: int, task_index: int) -> None:
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        raise FloatingPointError(
            f"task {task_index}, step {step}: loss term {', '.join(broken)} is not finite. Lower train.lr, set train.clip_norm, or "
            "train.precision=fp32; the run continues from its last checkpoint."
        )


def _rows_read(pixels: Pixels, workers: Workers) -> list[int]:
    """The rows that any worker has read: the union, by a mean of the masks."""
    mask = torch.from_numpy(pixels.read.astype(np.float32))
    workers.average([mask])
    return mask.nonzero().flatten().tolist()


def _writer(
    step: int, trained: dict[str, nn.Module], optimizer: torch.optim.Optimizer, strategy: Strategy, meter: "Meter", read: list[int]
) -> Callable[[Path], None]:
    extra = {"meter": meter.state(), "read": read}

    def write(folder: Path) -> None:
        save_state(folder, step=step, modules=trained, optimizer=optimizer, strategy=strategy.state_dict(), extra=extra)

    return write


class _Examples:
    """The task's own items as `strategies.strategy.Examples`."""

    def __init__(self, data: TaskData, tokens: "_Tokens | None", precision: Precision, seed: int) -> None:
        self._data = data
        self._tokens = tokens
        self._precision = precision
        self._seed = seed

    def batches(self, *, size: int, per_class: int, count: int) -> Iterator[Batch]:
        """See `Examples`; a task that is smaller than `size` gives batches of all that it has."""
        sampler = PKSampler(self._data.labels, batch_size=size, per_class=per_class, seed=self._seed)
        for step in range(count):
            positions = sampler.batch(step)
            words = None if self._tokens is None else self._tokens.draw(positions, torch.Generator().manual_seed(self._seed + step))
            yield _batch(self._data, positions, slice(0, len(positions)), words, None, self._precision)


class _Tokens:
    """All captions of a task as word ids, encoded once: (n, captions, L)."""

    def __init__(self, encoder: Encoder, captions: list[tuple[str, ...]], is_text: NDArray[np.bool_] | None) -> None:
        assert encoder.vocabulary is not None
        self._is_text = is_text
        self._counts = torch.tensor([len(texts) for texts in captions])
        needed = self._counts if is_text is None else self._counts.masked_fill(torch.from_numpy(~is_text), 1)
        if int(needed.min()) == 0:
            raise DataError(
                f"row {int(needed.argmin())} of the task has no caption, but the encoder has a text tower; set encoder.text=none, "
                "or give every item a text"
            )
        self._starts = torch.cumsum(self._counts, 0) - self._counts
        self._ids = encoder.vocabulary.encode([text for texts in captions for text in texts])

    def draw(self, positions: NDArray[np.int64], generator: torch.Generator) -> Tensor | None:
        """One caption of each item that has words, (B, L); None where none has."""
        at = torch.from_numpy(positions if self._is_text is None else positions[self._is_text[positions]])
        if len(at) == 0:
            return None
        choice = (torch.rand(len(at), generator=generator) * self._counts[at]).long()
        words = self._ids[self._starts[at] + choice]
        longest = int((words != 0).any(dim=0).nonzero().max()) + 1
        return words[:, :longest]
