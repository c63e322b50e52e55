"""The composition root: a configuration becomes parts, a task becomes a release.

    Dataset -> TaskStream -> Task -> student + frozen teacher -> objective -> loop -> row t of the matrix
      -> encoder version -> segment -> release

`run.learn_stream` runs a whole stream; how one task is computed is a `Learner` handed in: `learn_here` in this process, or
`cluster.train.learn_with_ray`. Both call `learn_task`, so a run is what it is, and Ray is how it is spread.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from perdure.checks import resolved
from perdure.config import RunConfig
from perdure.data import DATASETS
from perdure.data.dataset import Dataset
from perdure.data.pixels import Pixels, open_pixels
from perdure.data.tags import known_tags, tag_matrix
from perdure.encoders import ENCODERS, WhiteningOptions, build_encoder, fit_whitening, load_encoder, save_encoder
from perdure.encoders.encoder import Encoder
from perdure.errors import ConfigError, DataError
from perdure.files import write_whole
from perdure.memory.accuracy_drift import AccuracyDrift
from perdure.progress import Progress, SilentProgress
from perdure.records import EncoderRef, Item
from perdure.registry.registry import Registry, open_registry
from perdure.retrieval.evaluation import are_words, embed_split
from perdure.settings import settings
from perdure.strategies import STRATEGIES
from perdure.strategies.strategy import Strategy, TaskContext
from perdure.stream import STREAMS
from perdure.stream.task_stream import TaskStream, searching_the_rest
from perdure.stream.validation import first_tasks, hold_out_train_items
from perdure.tracking import JsonlTracker, TensorBoardTracker, Tracker, Trackers
from perdure.training.checkpoint import Checkpoints, FolderCheckpoints
from perdure.training.gather import ALONE, Workers
from perdure.training.loop import TaskData, train_task
from perdure.training.precision import resolve_precision
from perdure.training.schedule import Schedule, random_seed

__all__ = [
    "MADE_UP",
    "OUTCOME",
    "STRATEGY_STATE",
    "Learner",
    "Prepared",
    "consolidate_first",
    "learn_here",
    "learn_task",
    "open_tracker",
    "parent_of",
    "prepare",
    "registry_url",
    "untrained",
]

log = logging.getLogger(__name__)

_WHITENING_ROWS = 20_000  # that a whitening is fitted on, at most
STRATEGY_STATE = "strategy.safetensors"  # what the method carries on, beside the weights of an encoder version
OUTCOME = "outcome.json"  # the file that makes a task's outcome folder complete
MADE_UP = "inversion.npz"  # beside it where the strategy made up pictures: some of them; see `Strategy.pictures`


Learner = Callable[[RunConfig, int, str, Path, Progress], Path]
"""(config, task index, registry URL, run folder, progress) -> folder of the outcome."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A dataset, decoded and cut into tasks."""

    dataset: Dataset
    pixels: Pixels
    stream: TaskStream
    with_text: bool


def prepare(config: RunConfig, progress: Progress | None = None) -> Prepared:
    """Open the dataset, decode it once into the cache, cut the stream.

    Raises:
        ConfigError: unknown parts or options, all at once. DataError: the data is not what the config says.
    """
    config = resolved(config)
    silent = progress or SilentProgress()
    dataset = DATASETS.build(config.stream.dataset.name, config.stream.dataset.options)
    if len(dataset.items) == 0:
        raise DataError(f"dataset '{config.stream.dataset.name}' has no items")
    options = ENCODERS.resolve(config.encoder.name, config.encoder.options)
    pixels = open_pixels(
        dataset,
        options["image_size"],
        cache=settings().cache,
        on_bad_item=config.stream.on_bad_item,
        progress=lambda done, total: silent.count("decoding", done, total),
    )
    stream = _stream(config, dataset.items, np.flatnonzero(pixels.rows_ok))
    has_captions = any(item.captions for item in dataset.items)
    text = options["text"].name
    if text not in ("auto", "none") and not has_captions:
        problem = f"encoder.text={text}: dataset '{config.stream.dataset.name}' has no captions; name their column, or encoder.text=none"
        raise ConfigError(f"run '{config.name}'", [problem])
    if text == "none" and are_words(dataset.items, np.flatnonzero(stream.labels >= 0)).any():
        problem = "encoder.text=none: some items of this stream are words alone; set encoder.text=auto, or leave out that modality"
        raise ConfigError(f"run '{config.name}'", [problem])
    with_text = text != "none" and has_captions
    if with_text:
        _check_captions(dataset.items, stream)
    return Prepared(dataset, pixels, stream, with_text)


def _check_captions(items: Sequence[Item], stream: TaskStream) -> None:
    """Every item that is learned with a text tower has a text, but those that are pictures alone by their modality."""
    learned = [items[int(row)] for task in stream.tasks for row in task.train]
    silent = [item.id for item in learned if not item.captions and item.modality in (None, "text")]
    if silent:
        raise DataError(
            f"{len(silent)} of {len(learned)} training items have no caption, such as '{silent[0]}', and others have; give each one, leave "
            "them out, or learn from pictures alone (encoder.text=none)"
        )


def _stream(config: RunConfig, items: Sequence[Item], rows: NDArray[np.int64]) -> TaskStream:
    """The usable rows cut into tasks; under `stream.validation`, what that leaves of them."""
    kind, validation = config.stream.kind, config.stream.validation
    if validation is not None:
        items, rows = hold_out_train_items(items, rows, validation.share)
    stream = STREAMS.build(kind.name, kind.options, items, rows, config.seed)
    if config.stream.gallery == "rest":
        stream = searching_the_rest(stream)
    return stream if validation is None else first_tasks(stream, validation.tasks)


def untrained(config: RunConfig, prepared: Prepared) -> Encoder:
    """The encoder that the first task starts from: random or pretrained weights, and the words of the first task."""
    encoder = build_encoder(config.encoder.name, config.encoder.options, with_text=prepared.with_text, seed=config.seed)
    first = prepared.stream.tasks[0].train
    encoder.grow(num_classes=0, captions=(text for row in first for text in prepared.dataset.items[int(row)].captions))
    return encoder.eval()


def learn_task(
    config: RunConfig,
    task_index: int,
    registry_at: str,
    *,
    out: Path,
    workers: Workers = ALONE,
    checkpoints: Checkpoints | None = None,
    tracker: Tracker | None = None,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
    prepared: Prepared | None = None,
) -> None:
    """Learn one task of a stream from the parent version in the registry, and leave the outcome in a folder.

    The outcome: `encoder/` (weights, description), `strategy.safetensors` (what the method carries on), `inversion.npz` (pictures that it
    made up, to be looked at), `outcome.json` (summary and the rows that were read), written last. Nothing is published here.
    """
    prepared = prepared or prepare(config)
    strategy: Strategy = STRATEGIES.build(config.strategy.name, config.strategy.options)
    registry = open_registry(registry_at)
    encoder = _student(config, task_index, registry, strategy, prepared)
    data = _task_data(task_index, strategy, prepared)
    first = task_index == 0
    precision = resolve_precision(config.train.precision)
    precision.place(encoder)
    encoder.set_batch_norm_frozen(config.train.freeze_batch_norm)
    class_ids = torch.from_numpy(np.unique(data.labels)).to(precision.device)
    strategy.begin_task(encoder, _context(config, task_index, class_ids, registry, prepared, data))
    captions = () if data.captions is None else (text for texts in data.captions for text in texts)
    encoder.grow(num_classes=max(int(data.labels.max()) + 1, encoder.classifier.num_classes), captions=captions)
    summary = train_task(
        encoder,
        strategy,
        data,
        _schedule(config, first or strategy.restarts),
        task_index=task_index,
        precision=precision,
        workers=workers,
        checkpoints=checkpoints,
        tracker=tracker,
        on_step=on_step,
    )
    made_up = strategy.pictures()
    strategy.end_task(encoder)
    if workers.rank == 0:
        if made_up:
            np.savez_compressed(out / MADE_UP, allow_pickle=False, **{name: value.cpu().numpy() for name, value in made_up.items()})
        _whiten(encoder, config, data, prepared)
        save_encoder(encoder, out / "encoder")
        _save_state(strategy, out)
        read = sorted({*summary.read, *np.flatnonzero(data.pixels.read).tolist()})  # by any worker while training, and here since then
        record = {"task": task_index, **asdict(summary), "read": read, "images_per_s": summary.images_per_s}
        write_whole(out / OUTCOME, json.dumps(record))


def learn_here(config: RunConfig, task_index: int, registry_at: str, run_folder: Path, progress: Progress) -> Path:
    """A `Learner` in this process, without Ray; it resumes from its last checkpoint like any other."""
    out = run_folder / "tasks" / f"{task_index:03d}"
    if (out / OUTCOME).exists():
        return out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tracker = open_tracker(config, run_folder)
    if config.workers.threads:
        torch.set_num_threads(config.workers.threads)
    learn_task(
        config,
        task_index,
        registry_at,
        out=out,
        checkpoints=FolderCheckpoints(run_folder / "checkpoints" / f"{task_index:03d}"),
        tracker=tracker,
        on_step=lambda step, total, terms: progress.step(step, total, sum(terms.values())),
    )
    tracker.close()
    return out


def consolidate_first(config: RunConfig, encoder_folder: Path, registry_at: str, out: Path, prepared: Prepared) -> Path | None:
    """What the run's strategy carries on from a first task that another strategy has learned; a file in `out`, None where it is nothing.

    Raises:
        ValueError: the strategy has to be there while the task is learned.
    """
    strategy: Strategy = STRATEGIES.build(config.strategy.name, config.strategy.options)
    encoder = load_encoder(encoder_folder)
    data = _task_data(0, strategy, prepared)
    precision = resolve_precision(config.train.precision)
    precision.place(encoder)
    class_ids = torch.from_numpy(np.unique(data.labels)).to(precision.device)
    strategy.begin_task(encoder, _context(config, 0, class_ids, open_registry(registry_at), prepared, data))
    train_task(encoder, strategy, data, replace(_schedule(config, True), epochs=0), precision=precision)
    strategy.end_task(encoder)
    return _save_state(strategy, out)


def parent_of(config: RunConfig, task_index: int) -> EncoderRef | None:
    """The encoder version that task t starts from: version t of the run (task 0 makes version 1)."""
    return EncoderRef(config.name, task_index) if task_index else None


def registry_url(config: RunConfig) -> str:
    """The environment's registry when it names one, else the config's."""
    return settings().registry or config.registry


def open_tracker(config: RunConfig, run_folder: Path) -> Tracker:
    """The run's JSONL, and TensorBoard beside it when asked."""
    trackers: list[Tracker] = [JsonlTracker(run_folder / "log.jsonl")]
    if config.train.tensorboard:
        trackers.append(TensorBoardTracker(run_folder / "tensorboard"))
    return Trackers(*trackers)


def _student(config: RunConfig, task_index: int, registry: Registry, strategy: Strategy, prepared: Prepared) -> Encoder:
    """The encoder a task starts from: the parent version, or fresh weights for the first task and for strategies that restart."""
    parent = parent_of(config, task_index)
    if parent is None or strategy.restarts:
        return build_encoder(config.encoder.name, config.encoder.options, with_text=prepared.with_text, seed=config.seed)
    files = registry.files(parent)
    if STRATEGY_STATE in files:
        strategy.load_state_dict(load_file(files[STRATEGY_STATE]))
    encoder = load_encoder(files["weights.safetensors"].parent)
    encoder.whitening = None  # it was fitted to the parent's weights
    return encoder


def _save_state(strategy: Strategy, out: Path) -> Path | None:
    """What a strategy carries on, as a file in a folder; None where it is nothing."""
    state = strategy.state_dict()
    if not state:
        return None
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.cpu().contiguous() for name, value in state.items()}, out / STRATEGY_STATE)
    return out / STRATEGY_STATE


def _whiten(encoder: Encoder, config: RunConfig, data: TaskData, prepared: Prepared) -> None:
    """Fit the whitening that the config asks for on the task's own rows, all of them or so many that more would change little."""
    options: WhiteningOptions | None = ENCODERS.resolve(config.encoder.name, config.encoder.options)["whitening"]
    if options is not None:
        count = min(len(data.rows), _WHITENING_ROWS)
        rows = data.rows[np.linspace(0, len(data.rows) - 1, count).astype(np.int64)]
        seen = embed_split(encoder, data.pixels, prepared.dataset.items, rows)
        parts = [seen.image] if seen.text is None else [seen.image, seen.text]
        encoder.whitening = fit_whitening([torch.from_numpy(part) for part in parts], dim=options.dim, eps=options.eps).to(encoder.device)


def _context(config: RunConfig, task_index: int, class_ids: Tensor, registry: Registry, prepared: Prepared, data: TaskData) -> TaskContext:
    """What the strategy may know of the task: its classes, the drifts recorded after earlier tasks, and, on request, other encoders."""
    recorded = [registry.manifest(EncoderRef(config.name, version)).meta.get("drift") for version in range(2, task_index + 1)]
    return TaskContext(
        index=task_index,
        class_ids=class_ids,
        drifts=tuple(AccuracyDrift(**drift) for drift in recorded if drift is not None),
        ancestor=lambda task: load_encoder(registry.folder(EncoderRef(config.name, task + 1))),
        fresh=lambda: build_encoder(config.encoder.name, config.encoder.options, with_text=prepared.with_text, seed=config.seed),
        seed=random_seed(config.seed, task_index),
        flips=config.train.flip,
        num_tags=0 if data.tags is None else data.tags.shape[1],
    )


def _task_data(task_index: int, strategy: Strategy, prepared: Prepared) -> TaskData:
    """The rows a task may read: its own; all so far only for a strategy that declares it (`joint`)."""
    tasks = prepared.stream.tasks[: task_index + 1] if strategy.reads_earlier_tasks else prepared.stream.tasks[task_index : task_index + 1]
    rows: NDArray[np.int64] = np.concatenate([task.train for task in tasks])
    items = prepared.dataset.items
    captions = [items[int(row)].captions for row in rows] if prepared.with_text else None
    is_text = are_words(items, rows) if any(items[int(row)].modality is not None for row in rows) else None
    came_with = np.concatenate([np.full(len(task.train), task.index, dtype=np.int64) for task in tasks]) if len(tasks) > 1 else None
    tags = None
    if strategy.reads_tags:  # annotations of earlier tasks are known from when they were learned; their pictures are not read
        so_far = np.concatenate([task.train for task in prepared.stream.tasks[: task_index + 1]])
        tags = tag_matrix(items, rows, known_tags(items, so_far.tolist()))
    labels = prepared.stream.labels[rows]
    return TaskData(prepared.pixels, rows, labels, captions, is_text=is_text, tasks=came_with, tags=tags)


def _schedule(config: RunConfig, first: bool) -> Schedule:
    """The first task's numbers hold wherever an encoder is trained from fresh weights."""
    train = config.train
    return Schedule(
        epochs=train.first_epochs if first and train.first_epochs is not None else train.epochs,
        batch_size=train.batch_size,
        per_class=train.per_class,
        lr=train.first_lr if first and train.first_lr is not None else train.lr,
        backbone_lr=train.first_backbone_lr if first and train.first_backbone_lr is not None else train.backbone_lr,
        optimizer=train.optimizer,
        weight_decay=train.weight_decay,
        schedule=train.schedule,
        clip_norm=train.clip_norm,
        crop=train.crop,
        flip=train.flip,
        max_steps=train.max_steps,
        checkpoint_every=train.checkpoint_every,
        log_every=train.log_every,
        seed=config.seed,
    )
