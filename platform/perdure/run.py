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
from perdure.metrics.retrieval import DEFINITIONS
from perdure.pictures import save_pictures
from perdure.pipeline import Learner, Prepared, Progress, SilentProgress
from perdure.records import EncoderRef, Release, SegmentRef, Task
from perdure.registry.registry import Registry, open_registry
from perdure.retrieval.evaluation import TASK_DEFINITIONS, SplitEmbeddings, embed_split, search_metrics, task_metrics
from perdure.retrieval.policies import next_release
from perdure.settings import settings

__all__ = ["StreamRun", "learn_stream", "main_metric"]

_COUNTS = ("queries", "lone_queries", "t2i_queries", "t2i_median_rank")  # numbers beside the metrics, of which a summary makes no sense
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
        read = [self.prepared.dataset.items[row].id for row in record.pop("read")]
        reads = self.folder / "reads" / f"{task.index:03d}.json"
        reads.parent.mkdir(parents=True, exist_ok=True)
        reads.write_text(json.dumps(read))
        digest = hashlib.sha256(files["weights.safetensors"].read_bytes()).digest()
        embeddings = self._embed(load_encoder(outcome / "encoder"), ref, digest)
        metrics = self._measure(embeddings)
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
        meta = {**meta, "fingerprint": fingerprint(self.config), "config": self.config.plain(), "taken_over_from": str(other)}
        files = {name: path for name, path in self.registry.files(other).items()}
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
        stream = self.prepared.stream
        tasks = [*stream.tasks, *([stream.unseen] if stream.unseen else [])]
        return np.unique(np.concatenate([rows for task in tasks for rows in (task.query, task.gallery)]))

    def _measure(self, embeddings: SplitEmbeddings) -> dict[str, Any]:
        """Row t of every matrix: each task's test split, also of tasks not learned yet; the unseen classes apart."""
        stream = self.prepared.stream
        rows = [task_metrics(embeddings, task, stream.labels) for task in stream.tasks]
        out: dict[str, Any] = {"row": {name: [row.get(name) for row in rows] for name in rows[0]}}
        if stream.unseen is not None:
            out["unseen"] = task_metrics(embeddings, stream.unseen, stream.labels)
        return out

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
        releases = self.registry.releases(self.config.name)
        return {
            "name": self.config.name,
            "config": self.config.plain(),
            "definitions": {**DEFINITIONS, **TASK_DEFINITIONS, **continual.DEFINITIONS},
            "tasks": [
                {
                    "index": task.index,
                    "name": task.name,
                    "classes": list(task.classes),
                    "train": len(task.train),
                    "query": len(task.query),
                    "gallery": len(task.gallery),
                    "items_read": meta["items_read"],
                }
                for task, meta in zip(stream.tasks, metas, strict=True)
            ],
            "metrics": {name: {"matrix": matrix} for name, matrix in matrices.items()},
            "search": {
                release.id: {"policy": release.policy, "merge": release.merge, "task": release.task, **release.metrics["search"]}
                for release in releases
            },
            "summary": _summary(matrices, [meta["metrics"].get("unseen") for meta in metas]),
            "releases": [release.id for release in releases],
            "encoders": [str(ref) for ref in refs],
            "train": [
                {
                    "task": task.index,
                    "seconds": meta["train"]["seconds"],
                    "images_per_s": meta["train"]["images_per_s"],
                    "steps": meta["train"]["steps"],
                    "terms": meta["train"]["terms"],
                    "curves": meta["train"]["curves"],
                    "taken_over_from": meta.get("taken_over_from"),
                }
                for task, meta in zip(stream.tasks, metas, strict=True)
            ],
            "bad_items": [{"id": bad.id, "where": bad.where, "why": bad.why} for bad in self.prepared.pixels.bad],
        }

    def _closing_line(self, task: Task, release: Release) -> str:
        meta = self.registry.manifest(EncoderRef(self.config.name, task.index + 1)).meta
        main = main_metric(meta["metrics"]["row"])
        row = meta["metrics"]["row"][main]
        line = f"task {task.index + 1} learned: {main} {_percent(row[task.index])} on its own classes"
        if task.index:
            before = self.registry.manifest(EncoderRef(self.config.name, task.index)).meta["metrics"]["row"][main]
            moves = ", ".join(f"task {j + 1} {_percent(before[j])} -> {_percent(row[j])}" for j in range(task.index))
            line += f"; before it and now: {moves}"
        return f"{line}; release {release.id} ({release.policy})"


def _summary(matrices: dict[str, list[list[float | None]]], unseen: list[dict[str, float | None] | None]) -> dict[str, Any]:
    """The figures that a run is compared by, on its main metric; and the same per metric under `by_metric`."""
    last_unseen = unseen[-1] or {}
    by_metric = {name: continual.summarise(matrix, last_unseen.get(name)) for name, matrix in matrices.items() if name not in _COUNTS}
    main = main_metric({name: matrix[-1] for name, matrix in matrices.items()})
    return {"metric": main, **by_metric[main], "by_metric": by_metric}


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
