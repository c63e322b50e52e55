"""A whole stream: for every task learn, measure, publish, release; then the report.

What is finished is asked of the registry: version t+1 of the run's encoder is task t's, and its manifest carries the row of the
accuracy matrix. A run that starts again with the same name goes on behind the last version, in the middle of a task if need be.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from perdure import pipeline
from perdure.checks import resolved
from perdure.config import IndexConfig, RunConfig
from perdure.data.pixels import picture_to_store
from perdure.encoders import load_encoder
from perdure.errors import ConfigError, NotFound
from perdure.files import write_whole
from perdure.identity import claim, fingerprint, first_task_fingerprint, refuse_other
from perdure.index.segment import build_segment
from perdure.pictures import save_pictures
from perdure.pipeline import Learner, Prepared
from perdure.progress import Progress, SilentProgress
from perdure.records import EncoderRef, Release, SegmentRef, Task
from perdure.registry.lease import Lease, hold
from perdure.registry.registry import Registry, open_registry
from perdure.retrieval.bridge import QUERY_BRIDGE
from perdure.retrieval.classification import ClassMeans
from perdure.retrieval.compensation import QUERY_DRIFT
from perdure.retrieval.merging import LEARNED
from perdure.retrieval.policies import next_release
from perdure.run.measures import CLASS_MEANS, StreamMeasures
from perdure.run.report import COUNTS, compose_report, main_metric
from perdure.settings import settings
from perdure.strategies import STRATEGIES

__all__ = ["StreamRun", "learn_stream"]


def learn_stream(
    config: RunConfig,
    *,
    learner: Learner = pipeline.learn_here,
    progress: Progress | None = None,
    on_task: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Learn every task of a config's stream, publish a release after each, and write `runs/<name>/report.json`.

    Args:
        on_task: is called after each task with the report so far (`StreamRun.so_far`).
    Returns:
        the report.
    Raises:
        ConfigError: unknown parts or options; or a run of this name exists with another configuration.
        DataError: the data is not what the config says.
        Held: another driver is learning a run of this name.
    """
    run = StreamRun.open(config, progress)
    with hold(run.registry.store, config.name, progress=run.progress) as run.lease:
        for task in run.prepared.stream.tasks:
            run.learn(task, learner)
            if on_task is not None:
                on_task(run.so_far(task))
        report = run.report()
        save_pictures(run.folder, run.registry, run.prepared, report["releases"][-1], run.measures.embeddings)
        write_whole(run.folder / "report.json", json.dumps(report, indent=1))
    return report


@dataclass(eq=False)
class StreamRun:
    """One named run on its way through its stream."""

    config: RunConfig
    folder: Path  # runs/<name>
    registry_at: str
    registry: Registry
    prepared: Prepared
    measures: StreamMeasures
    progress: Progress
    lease: Lease | None = None  # held while a stream is learned; laying it under another policy needs none

    @classmethod
    def open(cls, config: RunConfig, progress: Progress | None = None) -> "StreamRun":
        """Check the config, take the run's name, prepare the data."""
        progress = progress or SilentProgress()
        config = resolved(config)
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
        return cls(config, folder, registry_at, registry, prepared, StreamMeasures(config, folder, registry, prepared), progress)

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
        strategy_state = outcome / pipeline.STRATEGY_STATE
        if strategy_state.exists():
            files[strategy_state.name] = strategy_state
        self._show(outcome / pipeline.MADE_UP, task)
        rows_read = np.array(record.pop("read"), dtype=np.int64)
        read = [self.prepared.dataset.items[row].id for row in rows_read]
        self._record_reads(task, read)
        digest = hashlib.sha256(files["weights.safetensors"].read_bytes()).digest()
        encoder = load_encoder(outcome / "encoder")
        embeddings = self.measures.embed(encoder, ref, digest)
        means = self.measures.class_means(task, encoder, rows_read)
        means.save(outcome / CLASS_MEANS)
        files[CLASS_MEANS] = outcome / CLASS_MEANS
        hop = self.measures.hop(task, encoder, rows_read)
        for name, each in zip((QUERY_DRIFT, QUERY_BRIDGE), hop or (), strict=hop is not None):
            each.save(outcome / name)
            files[name] = outcome / name
        metrics = self.measures.rows(task, encoder, embeddings, means)
        meta = {
            "task": task.index,
            "fingerprint": fingerprint(self.config),
            "first_task": self._first_task(),
            "train": record,
            "items_read": len(read),
            "metrics": metrics,
            "config": self.config.plain(),
        }
        if task.index:
            meta["drift"] = asdict(self.measures.drift(task.index, metrics["row"]))
        self._still_ours()
        self.registry.publish_encoder(ref.run, ref.version, files, parent=pipeline.parent_of(self.config, task.index), meta=meta)
        return meta

    def _record_reads(self, task: Task, ids: list[str]) -> None:
        """Which items a task read, for whoever wants proof that no earlier one was among them."""
        reads = self.folder / "reads" / f"{task.index:03d}.json"
        reads.parent.mkdir(parents=True, exist_ok=True)
        write_whole(reads, json.dumps(ids))

    def _show(self, made_up: Path, task: Task) -> None:
        """Put what is for the report's eyes where it looks, wherever the task was learned."""
        shown = self.folder / "tasks" / f"{task.index:03d}" / made_up.name
        if made_up.exists() and not shown.exists():
            shown.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made_up, shown)

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
        if meta["first_task"] != self._first_task():
            raise ConfigError(
                f"run '{self.config.name}'",
                [f"train.start_from={other.run}: its first task differs (data, classes, encoder, ranking terms, training or seed)"],
            )
        self.progress.say(f"task 1: taken over from {other}, whose first task is the same")
        self.prepared.pixels.forget_reads()
        files = self._with_own_state(self.registry.files(other), meta["config"]["strategy"]["name"])
        measured = [self.prepared.dataset.items[int(row)].id for row in np.flatnonzero(self.prepared.pixels.read)]
        encoder = load_encoder(files["weights.safetensors"].parent)
        embeddings = self.measures.embed(encoder, EncoderRef(self.config.name, 1), self.measures.digest_of(other))
        means = ClassMeans.load(files[CLASS_MEANS]) if CLASS_MEANS in files else None
        source = settings().runs / other.run / "reads" / f"{task.index:03d}.json"
        read = list(dict.fromkeys([*json.loads(source.read_text()), *measured])) if source.exists() else None
        meta = {
            **meta,
            "items_read": meta["items_read"] if read is None else len(read),
            "fingerprint": fingerprint(self.config),
            "metrics": self.measures.rows(task, encoder, embeddings, means),  # its later tasks may be cut in another way
            "config": self.config.plain(),
            "taken_over_from": str(other),
        }
        if read is not None:
            self._record_reads(task, read)
        self._still_ours()
        self.registry.publish_encoder(self.config.name, 1, files, parent=None, meta=meta)
        return meta

    def _first_task(self) -> str:
        strategy = STRATEGIES.build(self.config.strategy.name, self.config.strategy.options)
        return first_task_fingerprint(self.config, own_objective=strategy.own_objective)

    def _with_own_state(self, files: dict[str, Path], learned_by: str) -> dict[str, Path]:
        """The files of an encoder version, with what our strategy carries on in place of what the one that learned it does.

        The state of the same strategy is taken as it is, whatever its options were.
        """
        if learned_by == self.config.strategy.name:
            return files
        out = self.folder / "tasks" / "000"
        try:
            state = pipeline.consolidate_first(self.config, files["weights.safetensors"].parent, self.registry_at, out, self.prepared)
        except ValueError as problem:
            raise ConfigError(f"run '{self.config.name}'", [f"train.start_from={self.config.train.start_from}: {problem}"]) from None
        others = {name: path for name, path in files.items() if name != pipeline.STRATEGY_STATE}
        return others if state is None else others | {pipeline.STRATEGY_STATE: state}

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
        older = [] if previous is None or not index.both else list(dict.fromkeys(use.made_by for use in previous.segments))
        release = next_release(
            index.policy,
            previous,
            encoder=ref,
            segment=segment,
            id=f"{self.config.name}@v{self.registry.next_version('release', self.config.name)}",
            run=self.config.name,
            task=task.index,
            merge=index.merge_of_release(),
            compensate=index.compensate,
            both=[(self._segment(maker, (task,), index), maker) for maker in older],
        )
        fits = self.measures.calibrations(release) if release.merge in LEARNED else []
        search = self.measures.search(release, task, fits)
        release = replace(release, metrics={"search": search, "gates": self.measures.gates(release)})
        self._still_ours()
        if fits:
            release = replace(release, calibration=self.registry.publish_calibration(fits[0].to_bytes()))
        return self.registry.publish_release(release)

    def _segment(self, ref: EncoderRef, tasks: Sequence[Task], index: IndexConfig) -> SegmentRef:
        """The segment of some tasks' galleries by one encoder; the one of the registry when it has been built before."""
        rows = np.concatenate([task.gallery for task in tasks])
        of_task = np.concatenate([np.full(len(task.gallery), task.index) for task in tasks])
        plain = index.of_segment()
        key = hashlib.sha256(json.dumps([str(ref), rows.tolist(), plain]).encode()).hexdigest()
        for candidate in self.registry.segments(self.config.name):
            if self.registry.manifest(candidate).meta.get("key") == key:
                return candidate
        items = [self.prepared.dataset.items[int(row)] for row in rows]
        with tempfile.TemporaryDirectory() as folder:
            files = build_segment(
                self.measures.embeddings(ref).of(rows).image,
                items,
                task=of_task.tolist(),
                folder=Path(folder),
                thumbnails=lambda at: picture_to_store(self.prepared.dataset.image_bytes(int(rows[at]))),
                **plain,
            )
            meta = {"key": key, "items": len(items), "tasks": [task.index for task in tasks]}
            return self.registry.publish_segment(self.config.name, None, files, made_by=ref, meta=meta)

    def _still_ours(self) -> None:
        """Before anything is published: a driver that was taken for dead must not publish beside the one that took over."""
        if self.lease is not None:
            self.lease.check()

    def so_far(self, task: Task) -> dict[str, Any]:
        """What a report will say that is known once a task is learned: `num_tasks`, `metrics`, `agreement`, and the `main` metric."""
        rows = [
            self.registry.manifest(EncoderRef(self.config.name, version)).meta["metrics"]["row"] for version in range(1, task.index + 2)
        ]
        return {
            "num_tasks": len(self.prepared.stream.tasks),
            "main": main_metric(rows[-1]),
            "metrics": {name: {"matrix": [row[name] for row in rows]} for name in rows[-1] if name not in COUNTS},
            "agreement": self.measures.agreement(task.index + 1),
        }

    def report(self) -> dict[str, Any]:
        """See `compose_report`."""
        newest = EncoderRef(self.config.name, len(self.prepared.stream.tasks))
        last, baseline = self.measures.embeddings(newest), self.measures.baseline()
        cross_modal = self.measures.cross_modal()
        return compose_report(
            self.config,
            self.registry,
            self.prepared,
            last=last,
            baseline=baseline,
            cross_modal=cross_modal,
            agreement=self.measures.agreement(len(self.prepared.stream.tasks)),
            compatibility=self.measures.compatibility(),
        )

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


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
