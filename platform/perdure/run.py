"""A whole stream: for every task learn, measure, publish, release; then the report.

What is finished is asked of the registry: version t+1 of the run's encoder is task t's, and its manifest carries the row of the
accuracy matrix. A run that starts again with the same name goes on behind the last version, in the middle of a task if need be.
"""

import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perdure import pipeline
from perdure.config import IndexConfig, RunConfig
from perdure.encoders import load_encoder
from perdure.encoders.encoder import Encoder
from perdure.errors import ConfigError, NotFound, PerdureError
from perdure.identity import claim, fingerprint, first_task_fingerprint, refuse_other
from perdure.index.segment import build_segment, load_segment
from perdure.memory.accuracy_drift import AccuracyDrift, measure_drift
from perdure.metrics import continual
from perdure.metrics.datasets import DATASET_DEFINITIONS, by_dataset, harmonic_matrix
from perdure.metrics.profile import DEFINITIONS as PROFILE_DEFINITIONS
from perdure.metrics.retrieval import DEFINITIONS
from perdure.pictures import save_pictures
from perdure.pipeline import Learner, Prepared, Progress, SilentProgress
from perdure.records import EncoderRef, Release, SegmentRef, Task
from perdure.registry.registry import Registry, open_registry
from perdure.retrieval.classification import (
    CLASSIFICATION_DEFINITIONS,
    CLASSIFICATION_METRICS,
    ClassMeans,
    class_means,
    classification_metrics,
    top1_over_time,
)
from perdure.retrieval.evaluation import TASK_DEFINITIONS, SplitEmbeddings, embed_split, search_metrics, task_metrics
from perdure.retrieval.policies import next_release
from perdure.retrieval.profiles import profiles
from perdure.settings import settings

__all__ = ["StreamRun", "learn_stream", "main_metric"]

_COUNTS = ("queries", "lone_queries", "t2i_queries", "t2i_median_rank")  # numbers beside the metrics, of which a summary makes no sense
_CLASS_MEANS = "class_means.safetensors"  # beside the weights of an encoder version
_Row = dict[str, list[float | None]]  # of each metric, a value for each task
_Matrices = dict[str, list[list[float | None]]]
_LARGEST_STORED = 64 * 1024  # bytes of an encoded picture that is stored with its segment as it is


def learn_stream(config: RunConfig, *, learner: Learner = pipeline.learn_here, progress: Progress | None = None) -> dict[str, Any]:
    """Learn every task of a config's stream, publish a release after each, and write `runs/<name>/report.json`.

    Returns:
        the report.
    Raises:
        ConfigError: unknown parts or options; or a run of this name exists with another configuration.
        DataError: the data is not what the config says.
    """
    run = StreamRun.open(config, progress)
    for task in run.prepared.stream.tasks:
        run.learn(task, learner)
    report = run.report()
    save_pictures(run.folder, run.registry, run.prepared, report["releases"][-1], run.embeddings)
    path = run.folder / "report.json"
    beside = path.with_suffix(".writing")
    beside.write_text(json.dumps(report, indent=1))
    beside.replace(path)
    return report


@dataclass(eq=False)
class StreamRun:
    """One named run on its way through its stream."""

    config: RunConfig
    folder: Path  # runs/<name>
    registry_at: str
    registry: Registry
    prepared: Prepared
    progress: Progress

    @classmethod
    def open(cls, config: RunConfig, progress: Progress | None = None) -> "StreamRun":
        """Check the config, take the run's name, prepare the data."""
        progress = progress or SilentProgress()
        config = pipeline.resolved(config)
        folder = settings().runs / config.name
        refuse_other(folder, config)  # before the data is decoded; the name is taken only when the data is good
        registry_at = pipeline.registry_url(config)
        registry = open_registry(registry_at)
        prepared = pipeline.prepare(config, progress)
        claim(folder, config)
        bad = prepared.pixels.bad
        if bad:
            count = "1 item" if len(bad) == 1 else f"{len(bad)} items"
            progress.say(f"{count} skipped (stream.on_bad_item=skip), listed in report.json; the first: {bad[0].where}: {bad[0].why}")
        return cls(config, folder, registry_at, registry, prepared, progress)

    # -- one task ---------------------------------------------------------------------------------------------------------

    def learn(self, task: Task, learner: Learner) -> Release:
        """Task -> encoder version -> segment -> release; every step is skipped when the registry has its result."""
        ref = EncoderRef(self.config.name, task.index + 1)
        meta = self._finished(ref)
        if meta is None:
            count = len(self.prepared.stream.tasks)
            self.progress.say(
                f"task {task.index + 1}/{count} '{task.name}': {len(task.train)} items of {len(task.classes)} classes, "
                f"strategy {self.config.strategy.name}"
            )
            meta = self._take_over(task) if task.index == 0 and self.config.train.start_from else None
            if meta is None:
                outcome = learner(self.config, task.index, self.registry_at, self.folder, self.progress)
                meta = self._publish(task, ref, outcome)
        release = self._release(task, ref)
        self.progress.say(self._closing_line(task, release))
        return release

    def _finished(self, ref: EncoderRef) -> dict[str, Any] | None:
        """The manifest's meta of a version that this very configuration made, or None when there is none yet."""
        try:
            meta = self.registry.manifest(ref).meta
        except NotFound:
            return None
        if meta["fingerprint"] != fingerprint(self.config):
            raise ConfigError(
                f"run '{self.config.name}'",
                [f"{ref} was made by another configuration; choose another name, or another registry than {self.registry_at}"],
            )
        return meta

    def _publish(self, task: Task, ref: EncoderRef, outcome: Path) -> dict[str, Any]:
        """Measure the new encoder on every task, then publish it with its row of the matrix."""
        record = json.loads((outcome / pipeline.OUTCOME).read_text())
        files = {path.name: path for path in (outcome / "encoder").iterdir()}
        strategy_state = outcome / "strategy.safetensors"
        if strategy_state.exists():
            files[strategy_state.name] = strategy_state
        self._show(outcome / pipeline.MADE_UP, task)
        rows_read = np.array(record.pop("read"), dtype=np.int64)
        read = [self.prepared.dataset.items[row].id for row in rows_read]
        reads = self.folder / "reads" / f"{task.index:03d}.json"
        reads.parent.mkdir(parents=True, exist_ok=True)
        reads.write_text(json.dumps(read))
        digest = hashlib.sha256(files["weights.safetensors"].read_bytes()).digest()
        encoder = load_encoder(outcome / "encoder")
        embeddings = self._embed(encoder, ref, digest)
        means = self._class_means(task, encoder, rows_read)
        means.save(outcome / _CLASS_MEANS)
        files[_CLASS_MEANS] = outcome / _CLASS_MEANS
        metrics = self._measure(task, encoder, embeddings, means)
        meta = {
            "task": task.index,
            "fingerprint": fingerprint(self.config),
            "first_task": first_task_fingerprint(self.config),
            "train": record,
            "items_read": len(read),
            "metrics": metrics,
            "config": self.config.plain(),
        }
        if task.index:
            meta["drift"] = asdict(self._drift(task.index, metrics["row"]))
        self.registry.publish_encoder(ref.run, ref.version, files, parent=pipeline.parent_of(self.config, task.index), meta=meta)
        return meta

    def _show(self, made_up: Path, task: Task) -> None:
        """Put what is for the report's eyes where it looks, wherever the task was learned."""
        shown = self.folder / "tasks" / f"{task.index:03d}" / made_up.name
        if made_up.exists() and not shown.exists():
            shown.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made_up, shown)

    def _class_means(self, task: Task, encoder: Encoder, rows: NDArray[np.int64]) -> ClassMeans:
        """Of all classes so far: the parent's, and new ones of the classes among the rows that this task was trained on."""
        new = class_means(encoder, self.prepared.pixels, rows, self.prepared.stream.labels[rows])
        parent = pipeline.parent_of(self.config, task.index)
        stored = {} if parent is None else self.registry.files(parent)
        return ClassMeans.load(stored[_CLASS_MEANS]).replaced_by(new) if _CLASS_MEANS in stored else new

    def _classify(self, task: Task, encoder: Encoder, embeddings: SplitEmbeddings, means: ClassMeans | None) -> _Row:
        """Row t of the classification matrices."""
        ranking = self.config.strategy.options.get("ranking") or {}
        return classification_metrics(
            encoder,
            self.prepared.pixels,
            embeddings,
            self.prepared.stream.tasks,
            self.prepared.stream.labels,
            learned=task.index + 1,
            trained=ranking.get("cross_entropy", 0) > 0,
            means=means,
        )

    def _drift(self, task: int, row: dict[str, list[float | None]]) -> AccuracyDrift:
        """What learning a task changed, by mAP where there is one, as in the thesis, else by the run's main metric."""
        metric = "map" if any(value is not None for value in row.get("map", [])) else main_metric(row)
        before = self.registry.manifest(EncoderRef(self.config.name, task)).meta["metrics"]["row"][metric]
        return measure_drift(before, row[metric], task)

    def _take_over(self, task: Task) -> dict[str, Any]:
        """Publish the first encoder of another run as ours, when both would have learned exactly the same first task."""
        other = EncoderRef(str(self.config.train.start_from), 1)
        try:
            meta = self.registry.manifest(other).meta
        except NotFound:
            raise ConfigError(
                f"run '{self.config.name}'",
                [f"train.start_from={other.run}: no {other} in the registry {self.registry_at}; learn that run first"],
            ) from None
        if meta["first_task"] != first_task_fingerprint(self.config):
            raise ConfigError(
                f"run '{self.config.name}'",
                [f"train.start_from={other.run}: its first task differs (data, classes, encoder, ranking terms, training or seed)"],
            )
        self.progress.say(f"task 1: taken over from {other}, whose first task is the same")
        files = self.registry.files(other)
        encoder = load_encoder(files["weights.safetensors"].parent)
        embeddings = self._embed(encoder, EncoderRef(self.config.name, 1), self._digest_of(other))
        means = ClassMeans.load(files[_CLASS_MEANS]) if _CLASS_MEANS in files else None
        meta = {
            **meta,
            "fingerprint": fingerprint(self.config),
            "metrics": self._measure(task, encoder, embeddings, means),  # its later tasks may be cut in another way
            "config": self.config.plain(),
            "taken_over_from": str(other),
        }
        self.registry.publish_encoder(self.config.name, 1, files, parent=None, meta=meta)
        reads = self.folder / "reads" / f"{task.index:03d}.json"
        reads.parent.mkdir(parents=True, exist_ok=True)
        source = settings().runs / other.run / "reads" / reads.name
        if source.exists():
            shutil.copy(source, reads)
        return meta

    # -- embeddings and metrics -------------------------------------------------------------------------------------------

    def embeddings(self, ref: EncoderRef) -> SplitEmbeddings:
        """A version's embeddings of every test row of the stream, from the run's folder or computed again."""
        cached = self.folder / "embeddings" / f"{ref.run}-v{ref.version}.npz"
        if cached.exists():
            with np.load(cached) as arrays:
                if arrays["digest"].tobytes() == self._digest_of(ref):
                    text = arrays["text"] if arrays["text"].size else None
                    return SplitEmbeddings(arrays["rows"], arrays["image"], text, arrays["text_of"])
        return self._embed(load_encoder(self.registry.folder(ref)), ref, self._digest_of(ref))

    def _embed(self, encoder: Encoder, ref: EncoderRef, digest: bytes) -> SplitEmbeddings:
        embeddings = embed_split(encoder, self.prepared.pixels, self.prepared.dataset.items, self.test_rows())
        cached = self.folder / "embeddings" / f"{ref.run}-v{ref.version}.npz"
        cached.parent.mkdir(parents=True, exist_ok=True)
        text = embeddings.text if embeddings.text is not None else np.zeros((0, 0), dtype=np.float32)
        stamp = np.frombuffer(digest, dtype=np.uint8)
        np.savez(cached, digest=stamp, rows=embeddings.rows, image=embeddings.image, text=text, text_of=embeddings.text_of)
        return embeddings

    def _digest_of(self, ref: EncoderRef) -> bytes:
        return bytes.fromhex(self.registry.manifest(ref).files["weights.safetensors"].sha256)

    def test_rows(self) -> NDArray[np.int64]:
        """Every query and gallery row of the stream, the unseen classes' included."""
        return np.unique(np.concatenate([rows for task in self.prepared.stream.measured() for rows in (task.query, task.gallery)]))

    def _measure(self, learned: Task, encoder: Encoder, embeddings: SplitEmbeddings, means: ClassMeans | None) -> dict[str, Any]:
        """Row t of every matrix: each task's test split, also of tasks not learned yet; the unseen classes apart, by dataset if cut so."""
        stream = self.prepared.stream
        rows = [task_metrics(embeddings, task, stream.labels) for task in stream.tasks]
        out: dict[str, Any] = {"row": {name: [row.get(name) for row in rows] for name in rows[0]}}
        if stream.unseen is not None:
            out["unseen"] = task_metrics(embeddings, stream.unseen, stream.labels)
        if stream.unseen_of:
            apart = [{} if task is None else task_metrics(embeddings, task, stream.labels) for task in stream.unseen_of]
            out["unseen_row"] = {name: [row.get(name) for row in apart] for name in rows[0]}
        out["classification"] = self._classify(learned, encoder, embeddings, means)
        return out

    def baseline(self) -> _Row:
        """Every retrieval metric of each task by the encoder that the first task starts from; measured once, kept in the run's folder."""
        path = self.folder / "baseline.json"
        if not path.exists():
            stream, items = self.prepared.stream, self.prepared.dataset.items
            encoder = pipeline.untrained(self.config, self.prepared)
            embeddings = embed_split(encoder, self.prepared.pixels, items, self.test_rows())
            rows = [task_metrics(embeddings, task, stream.labels) for task in stream.tasks]
            beside = path.with_suffix(".writing")
            beside.write_text(json.dumps({name: [row.get(name) for row in rows] for name in rows[0] if name not in _COUNTS}))
            beside.replace(path)
        return json.loads(path.read_text())

    # -- segments and releases --------------------------------------------------------------------------------------------

    def _release(self, task: Task, ref: EncoderRef) -> Release:
        """The release of a finished task under the config's index policy, published once."""
        found = [release for release in self.registry.releases(self.config.name) if release.task == task.index]
        if found:
            return found[0]
        earlier = [release for release in self.registry.releases(self.config.name) if release.task == task.index - 1]
        return self.publish_release(task, ref, self.config.index, earlier[0] if earlier else None)

    def publish_release(self, task: Task, ref: EncoderRef, index: IndexConfig, previous: Release | None) -> Release:
        """Index what the policy asks to embed, compose the release, measure the search through it, publish it.

        Also what `jobs/index.py` calls to lay a learned run under another policy.
        """
        tasks = self.prepared.stream.tasks[: task.index + 1] if index.policy == "reindex" else (task,)
        segment = self._segment(ref, tasks, index)
        release = next_release(
            index.policy,
            previous,
            encoder=ref,
            segment=segment,
            id=f"{self.config.name}@v{self.registry.next_version('release', self.config.name)}",
            run=self.config.name,
            task=task.index,
            merge=index.merge,
        )
        release = replace(release, metrics={"search": self._measure_search(release, task)})
        return self.registry.publish_release(release)

    def _segment(self, ref: EncoderRef, tasks: Sequence[Task], index: IndexConfig) -> SegmentRef:
        """The segment of some tasks' galleries by one encoder; the one of the registry when it has been built before."""
        rows = np.concatenate([task.gallery for task in tasks])
        of_task = np.concatenate([np.full(len(task.gallery), task.index) for task in tasks])
        plain = index.model_dump(exclude={"policy", "merge"})
        key = hashlib.sha256(json.dumps([str(ref), rows.tolist(), plain]).encode()).hexdigest()
        for candidate in self.registry.segments(self.config.name):
            if self.registry.manifest(candidate).meta.get("key") == key:
                return candidate
        items = [self.prepared.dataset.items[int(row)] for row in rows]
        with tempfile.TemporaryDirectory() as folder:
            files = build_segment(
                self.embeddings(ref).of(rows).image,
                items,
                task=of_task.tolist(),
                folder=Path(folder),
                thumbnails=lambda at: _thumbnail(self.prepared.dataset.image_bytes(int(rows[at]))),
                **plain,
            )
            meta = {"key": key, "items": len(items), "tasks": [task.index for task in tasks]}
            return self.registry.publish_segment(self.config.name, None, files, made_by=ref, meta=meta)

    def _measure_search(self, release: Release, task: Task) -> dict[str, list[float | None]]:
        """Search everything indexed so far, under the release's policy and merge: one value for each task learned so far."""
        segments = [load_segment(self.registry.files(use.segment), ref=use.segment, made_by=use.made_by) for use in release.segments]
        vectors = {ref: self.embeddings(ref) for ref in release.encoders()}
        rows = [
            search_metrics(release, segments, vectors, learned, self.prepared.dataset.items)
            for learned in self.prepared.stream.tasks[: task.index + 1]
        ]
        return {name: [row.get(name) for row in rows] for name in rows[0]}

    # -- the report -------------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Everything measured, from the manifests of the registry; the shape is a contract (DESIGN 4)."""
        stream = self.prepared.stream
        refs = [EncoderRef(self.config.name, task.index + 1) for task in stream.tasks]
        metas = [self.registry.manifest(ref).meta for ref in refs]
        names = list(metas[0]["metrics"]["row"])
        matrices = {name: [meta["metrics"]["row"][name] for meta in metas] for name in names}
        unseen = {name: [meta["metrics"]["unseen_row"][name] for meta in metas] for name in names} if stream.unseen_of else {}
        nothing: list[float | None] = [None] * len(stream.tasks)
        for name in CLASSIFICATION_METRICS:  # versions that were published before there was such a thing have no row
            matrices[name] = [meta["metrics"].get("classification", {}).get(name, nothing) for meta in metas]
        baseline = self.baseline()
        sizes = [len(task.query) for task in stream.tasks]
        summary = _summary(matrices, [meta["metrics"].get("unseen") for meta in metas], unseen, baseline, sizes)
        releases = self.registry.releases(self.config.name)
        return {
            "name": self.config.name,
            "config": self.config.plain(),
            "definitions": {
                **DEFINITIONS,
                **TASK_DEFINITIONS,
                **CLASSIFICATION_DEFINITIONS,
                **PROFILE_DEFINITIONS,
                **continual.DEFINITIONS,
                **(DATASET_DEFINITIONS if unseen else {}),
            },
            "tasks": [
                {
                    "index": task.index,
                    "name": task.name,
                    "classes": list(task.classes),
                    "train": len(task.train),
                    "query": len(task.query),
                    "gallery": len(task.gallery),
                    "items_read": meta["items_read"],
                    **self._unseen_classes(task.index),
                }
                for task, meta in zip(stream.tasks, metas, strict=True)
            ],
            "metrics": {name: {"matrix": matrix, **_unseen(name, matrix, unseen)} for name, matrix in matrices.items()},
            "search": {
                release.id: {"policy": release.policy, "merge": release.merge, "task": release.task, **release.metrics["search"]}
                for release in releases
            },
            "baseline": baseline,
            "summary": {**summary, "top1_over_time": top1_over_time(matrices, stream.tasks, stream.labels)},
            **profiles(self.embeddings(refs[-1]), stream.tasks, stream.labels, stream.classes),
            **_datasets([task.name for task in stream.tasks], matrices, unseen),
            "releases": [release.id for release in releases],
            "encoders": [str(ref) for ref in refs],
            "train": [
                {
                    "task": task.index,
                    "seconds": meta["train"]["seconds"],
                    "images_per_s": meta["train"]["images_per_s"],
                    "steps": meta["train"]["steps"],
                    "peak_memory_mb": meta["train"].get("peak_memory_mb"),
                    "terms": meta["train"]["terms"],
                    "curves": meta["train"]["curves"],
                    "taken_over_from": meta.get("taken_over_from"),
                }
                for task, meta in zip(stream.tasks, metas, strict=True)
            ],
            "bad_items": [{"id": bad.id, "where": bad.where, "why": bad.why} for bad in self.prepared.pixels.bad],
        }

    def _unseen_classes(self, task: int) -> dict[str, Any]:
        """The classes of a task's dataset that no task learns, where the stream is cut by dataset."""
        stream = self.prepared.stream
        apart = stream.unseen_of[task] if stream.unseen_of else None
        if apart is None:
            return {}
        ids = np.unique(stream.labels[apart.query])
        return {"unseen_classes": [stream.classes[int(number)] for number in ids], "unseen_query": len(apart.query)}

    def _closing_line(self, task: Task, release: Release) -> str:
        meta = self.registry.manifest(EncoderRef(self.config.name, task.index + 1)).meta
        main = main_metric(meta["metrics"]["row"])
        row = meta["metrics"]["row"][main]
        line = f"task {task.index + 1} learned: {main} {_percent(row[task.index])} on its own classes"
        if "unseen_row" in meta["metrics"]:
            line += f", {_percent(meta['metrics']['unseen_row'][main][task.index])} on the unseen ones of its dataset"
        if task.index:
            before = self.registry.manifest(EncoderRef(self.config.name, task.index)).meta["metrics"]["row"][main]
            moves = ", ".join(f"task {j + 1} {_percent(before[j])} -> {_percent(row[j])}" for j in range(task.index))
            line += f"; before it and now: {moves}"
        return f"{line}; release {release.id} ({release.policy})"


def _summary(
    matrices: _Matrices,
    unseen: list[dict[str, float | None] | None],
    unseen_of: _Matrices,
    baseline: _Row,
    sizes: Sequence[float],
) -> dict[str, Any]:
    """The figures that a run is compared by, on its main metric; and the same per metric under `by_metric`."""
    last_unseen = {name: continual.last_average(matrix) for name, matrix in unseen_of.items()} or unseen[-1] or {}
    by_metric = {
        name: continual.summarise(matrix, last_unseen.get(name), baseline=baseline.get(name), weights=_weights(name, matrices, sizes))
        for name, matrix in matrices.items()
        if name not in _COUNTS
    }
    for name in by_metric.keys() & unseen_of.keys():
        by_metric[name]["H_datasets"] = continual.last_average(harmonic_matrix(matrices[name], unseen_of[name]))
    main = main_metric({name: matrix[-1] for name, matrix in matrices.items()})
    return {"metric": main, **by_metric[main], "by_metric": by_metric}


def _weights(name: str, matrices: _Matrices, sizes: Sequence[float]) -> Sequence[float]:
    """How many queries each task's value of a metric is a mean over."""
    counted = "t2i_queries" if name.startswith("t2i_") else None if name in CLASSIFICATION_METRICS or name.startswith("i2t_") else "queries"
    return sizes if counted is None else [value or 0.0 for value in matrices[counted][-1]]


def _unseen(name: str, matrix: list[list[float | None]], unseen_of: _Matrices) -> _Matrices:
    """What stands beside a metric's matrix where each task is a dataset with unseen classes."""
    if name not in unseen_of:
        return {}
    beside: _Matrices = {"unseen": unseen_of[name]}
    return beside if name in _COUNTS else {**beside, "H": harmonic_matrix(matrix, unseen_of[name])}


def _datasets(names: Sequence[str], matrices: _Matrices, unseen_of: _Matrices) -> dict[str, Any]:
    """Seen, unseen and H of each dataset after each task, on the main metric."""
    if not unseen_of:
        return {}
    main = main_metric({name: matrix[-1] for name, matrix in matrices.items()})
    return {"datasets": by_dataset(names, main, matrices[main], unseen_of[main])}


def main_metric(row: dict[str, list[float | None]]) -> str:
    """Class retrieval where classes have several items, else text to image."""
    for name in ("recall@1", "t2i_recall@10"):
        if name in row and all(value is not None for value in row[name]):
            return name
    raise PerdureError("no task has a query with a relevant item: every class has a single test item and there are no captions")


def _thumbnail(data: bytes) -> bytes:
    """The stored picture itself when it is small, else a JPEG of at most 256 pixels."""
    if len(data) <= _LARGEST_STORED:
        return data
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((256, 256))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
