"""What a run measures: each encoder version's embeddings of the test rows, and everything computed from them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure import pipeline
from perdure.config import RunConfig
from perdure.data.tags import known_tags, tag_matrix
from perdure.encoders import load_encoder
from perdure.encoders.encoder import Encoder
from perdure.index.segment import load_segment
from perdure.memory.accuracy_drift import AccuracyDrift, measure_drift
from perdure.metrics.drift import neighbour_agreement
from perdure.pipeline import Prepared
from perdure.records import EncoderRef, Release, Task
from perdure.registry.registry import Registry
from perdure.retrieval.classification import ClassMeans, class_means, classification_metrics
from perdure.retrieval.codes import code_metrics
from perdure.retrieval.compensation import QUERY_DRIFT, QueryDrift, load_drifts, mean_drift
from perdure.retrieval.cross_modal import cross_modal_drift, cross_modal_recalls
from perdure.retrieval.evaluation import SplitEmbeddings, embed_split, search_metrics, task_metrics
from perdure.retrieval.modalities import across_modalities
from perdure.run.report import COUNTS, Row, main_metric
from perdure.strategies import STRATEGIES, Strategy

__all__ = ["CLASS_MEANS", "StreamMeasures"]

CLASS_MEANS = "class_means.safetensors"  # beside the weights of an encoder version
_DRIFT_ROWS = 2_000  # that a query drift is a mean over, at most


@dataclass(eq=False)
class StreamMeasures:
    """The measuring side of one named run."""

    config: RunConfig
    folder: Path  # runs/<name>
    registry: Registry
    prepared: Prepared

    def embeddings(self, ref: EncoderRef) -> SplitEmbeddings:
        """A version's embeddings of every test row of the stream, from the run's folder or computed again."""
        cached = self.folder / "embeddings" / f"{ref.run}-v{ref.version}.npz"
        if cached.exists():
            with np.load(cached) as arrays:
                if arrays["digest"].tobytes() == self.digest_of(ref):
                    text = arrays["text"] if arrays["text"].size else None
                    return SplitEmbeddings(arrays["rows"], arrays["image"], text, arrays["text_of"])
        return self.embed(load_encoder(self.registry.folder(ref)), ref, self.digest_of(ref))

    def embed(self, encoder: Encoder, ref: EncoderRef, digest: bytes) -> SplitEmbeddings:
        """Embed every test row and keep the result in the run's folder under the digest of the weights."""
        embeddings = embed_split(encoder, self.prepared.pixels, self.prepared.dataset.items, self.test_rows())
        cached = self.folder / "embeddings" / f"{ref.run}-v{ref.version}.npz"
        cached.parent.mkdir(parents=True, exist_ok=True)
        text = embeddings.text if embeddings.text is not None else np.zeros((0, 0), dtype=np.float32)
        stamp = np.frombuffer(digest, dtype=np.uint8)
        np.savez(cached, digest=stamp, rows=embeddings.rows, image=embeddings.image, text=text, text_of=embeddings.text_of)
        return embeddings

    def digest_of(self, ref: EncoderRef) -> bytes:
        """SHA-256 of a version's weights."""
        return bytes.fromhex(self.registry.manifest(ref).files["weights.safetensors"].sha256)

    def test_rows(self) -> NDArray[np.int64]:
        """Every query and gallery row of the stream, the unseen classes' included."""
        return np.unique(np.concatenate([rows for task in self.prepared.stream.measured() for rows in (task.query, task.gallery)]))

    def rows(self, learned: Task, encoder: Encoder, embeddings: SplitEmbeddings, means: ClassMeans | None) -> dict[str, Any]:
        """Row t of every matrix: each task's test split, also of tasks not learned yet; the unseen classes apart, by dataset if cut so."""
        stream = self.prepared.stream
        rows = [task_metrics(embeddings, task, stream.labels) for task in stream.tasks]
        out: dict[str, Any] = {"row": {name: [row.get(name) for row in rows] for name in rows[0]}}
        if stream.unseen is not None:
            out["unseen"] = task_metrics(embeddings, stream.unseen, stream.labels)
        if stream.unseen_of:
            apart = [{} if task is None else task_metrics(embeddings, task, stream.labels) for task in stream.unseen_of]
            out["unseen_row"] = {name: [row.get(name) for row in apart] for name in rows[0]}
        if any(task.modality is not None for task in stream.tasks):
            out["modalities"] = across_modalities(embeddings, stream.tasks, stream.labels, learned=learned.index + 1)
        out["classification"] = self._classify(learned, encoder, embeddings, means)
        if encoder.hashing is not None:
            out["codes"] = self._codes(learned, embeddings)
        return out

    def _codes(self, learned: Task, embeddings: SplitEmbeddings) -> dict[str, Any]:
        """How well codes find, over the test items of all tasks so far; alike is what the strategy was told is alike."""
        stream, items = self.prepared.stream, self.prepared.dataset.items
        rows = np.unique(np.concatenate([task.query for task in stream.tasks[: learned.index + 1]]))
        if self.config.strategy.options.get("labels") == "class":
            labels = stream.labels[rows][:, None] == np.arange(len(stream.classes))
        else:
            labels = tag_matrix(items, rows, known_tags(items, rows.tolist()))
        return {"task": learned.index, **code_metrics(embeddings.of(rows), labels)}

    def _classify(self, task: Task, encoder: Encoder, embeddings: SplitEmbeddings, means: ClassMeans | None) -> Row:
        """Row t of the classification matrices."""
        strategy: Strategy = STRATEGIES.build(self.config.strategy.name, self.config.strategy.options)
        return classification_metrics(
            encoder,
            self.prepared.pixels,
            embeddings,
            self.prepared.stream.tasks,
            self.prepared.stream.labels,
            learned=task.index + 1,
            trained=strategy.classifies(task.index + 1),
            means=means,
            items=self.prepared.dataset.items,
        )

    def class_means(self, task: Task, encoder: Encoder, rows: NDArray[np.int64]) -> ClassMeans:
        """Of all classes so far: the parent's, and new ones of the classes among the rows that this task was trained on."""
        new = class_means(encoder, self.prepared.pixels, rows, self.prepared.stream.labels[rows], self.prepared.dataset.items)
        parent = pipeline.parent_of(self.config, task.index)
        stored = {} if parent is None else self.registry.files(parent)
        return ClassMeans.load(stored[CLASS_MEANS]).replaced_by(new) if CLASS_MEANS in stored else new

    def drift(self, task: int, row: dict[str, list[float | None]]) -> AccuracyDrift:
        """What learning a task changed, by mAP where there is one, as in the thesis, else by the run's main metric."""
        metric = "map" if any(value is not None for value in row.get("map", [])) else main_metric(row)
        before = self.registry.manifest(EncoderRef(self.config.name, task)).meta["metrics"]["row"][metric]
        return measure_drift(before, row[metric], task)

    def query_drift(self, task: Task, encoder: Encoder, rows: NDArray[np.int64]) -> QueryDrift | None:
        """How far this task moved queries, pictures and captions, over rows that it was trained on; None for the first task.

        Args:
            task: that was learned.
            encoder: that has just learned it.
            rows: that it was trained on; those of earlier tasks (joint) are left out, and of many, evenly spaced ones are taken.
        """
        parent = pipeline.parent_of(self.config, task.index)
        if parent is None:
            return None
        own = np.intersect1d(rows, task.train)
        own = own[np.unique(np.linspace(0, max(len(own) - 1, 0), min(len(own), _DRIFT_ROWS)).astype(np.int64))]
        if len(own) == 0:  # nothing was learned, so nothing moved
            zero = np.zeros(encoder.embedding_dim, np.float32)
            return QueryDrift(zero, None if encoder.text is None else zero)
        before, after = (
            embed_split(each, self.prepared.pixels, self.prepared.dataset.items, own)
            for each in (load_encoder(self.registry.folder(parent)), encoder)
        )
        text = None if before.text is None or after.text is None else mean_drift(before.text, after.text)
        return QueryDrift(mean_drift(before.image, after.image), text)

    def cross_modal(self) -> dict[str, Any]:
        """What every index policy finds across modalities after each task, and how far both modalities moved; {} without captions."""
        if not self.prepared.with_text:
            return {}
        tasks = self.prepared.stream.tasks
        refs = [EncoderRef(self.config.name, task.index + 1) for task in tasks]
        versions = [self.embeddings(ref) for ref in refs]
        if any(version.text is None for version in versions):
            return {}
        stored = [self.registry.manifest(ref).files for ref in refs[1:]]
        hops = None
        if all(QUERY_DRIFT in files for files in stored):  # versions that were published before there was such a thing have none
            hops = [QueryDrift.load(self.registry.file(ref, QUERY_DRIFT)) for ref in refs[1:]]
        return {"policies": cross_modal_recalls(versions, tasks, hops), "drift": cross_modal_drift(versions, tasks)}

    def agreement(self, learned: int) -> list[float | None]:
        """Of each of the first so many tasks, what its parent and the encoder that learned it agree on among its test items."""
        out: list[float | None] = [None]
        for task in self.prepared.stream.tasks[1:learned]:
            before, after = (
                self.embeddings(EncoderRef(self.config.name, version)).of(task.query) for version in (task.index, task.index + 1)
            )
            shares = [neighbour_agreement(before.image, after.image)]
            if before.text is not None and after.text is not None:
                shares.append(neighbour_agreement(before.text, after.text))
            mean = float(np.mean(shares))
            out.append(mean if np.isfinite(mean) else None)
        return out

    def search(self, release: Release, task: Task) -> dict[str, list[float | None]]:
        """Search everything indexed so far, under the release's policy and merge: one value for each task learned so far."""
        segments = [load_segment(self.registry.files(use.segment), ref=use.segment, made_by=use.made_by) for use in release.segments]
        vectors = {ref: self.embeddings(ref) for ref in release.encoders()}
        drifts = load_drifts(self.registry, release)
        rows = [
            search_metrics(release, segments, vectors, learned, self.prepared.dataset.items, drifts=drifts)
            for learned in self.prepared.stream.tasks[: task.index + 1]
        ]
        return {name: [row.get(name) for row in rows] for name in rows[0]}

    def baseline(self) -> Row:
        """Every retrieval metric of each task by the encoder that the first task starts from; measured once, kept in the run's folder."""
        path = self.folder / "baseline.json"
        if not path.exists():
            stream, items = self.prepared.stream, self.prepared.dataset.items
            encoder = pipeline.untrained(self.config, self.prepared)
            embeddings = embed_split(encoder, self.prepared.pixels, items, self.test_rows())
            rows = [task_metrics(embeddings, task, stream.labels) for task in stream.tasks]
            beside = path.with_suffix(".writing")
            beside.write_text(json.dumps({name: [row.get(name) for row in rows] for name in rows[0] if name not in COUNTS}))
            beside.replace(path)
        return json.loads(path.read_text())
