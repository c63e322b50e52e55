"""What a run measures: each encoder version's embeddings of the test rows, and everything computed from them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure import pipeline
from perdure.config import RunConfig
from perdure.data.tags import known_tags, tag_matrix
from perdure.encoders import load_encoder
from perdure.encoders.encoder import Encoder
from perdure.files import write_whole
from perdure.index.segment import Segment, load_segment
from perdure.memory.accuracy_drift import AccuracyDrift, measure_drift
from perdure.metrics.compatibility import average_compatibility, backward_compatibility, compatible
from perdure.metrics.drift import neighbour_agreement
from perdure.metrics.retrieval import retrieval_metrics
from perdure.pipeline import Prepared
from perdure.records import EncoderRef, QueryModality, Release, Task
from perdure.registry.registry import Registry
from perdure.retrieval.bridge import QueryBridge, orthogonal_map
from perdure.retrieval.calibration import FOLDS, Calibration, Known, fit_calibration, fold_of, spaced
from perdure.retrieval.classification import ClassMeans, class_means, classification_metrics
from perdure.retrieval.codes import code_metrics
from perdure.retrieval.compensation import QUERY_DRIFT, QueryDrift, load_drifts, mean_drift
from perdure.retrieval.cross_modal import cross_modal_drift, cross_modal_recalls
from perdure.retrieval.embedding import Embed, embed_here
from perdure.retrieval.evaluation import SplitEmbeddings, embed_split, merge_metrics, search_metrics, task_metrics
from perdure.retrieval.modalities import across_modalities
from perdure.retrieval.routes import Routes
from perdure.run.gates import Answers, approximate_recall, gates_of
from perdure.run.report import COUNTS, Row, main_metric
from perdure.strategies import STRATEGIES, Strategy

__all__ = ["CLASS_MEANS", "StreamMeasures"]

CLASS_MEANS = "class_means.safetensors"  # beside the weights of an encoder version
_DRIFT_ROWS = 2_000  # that a query drift is a mean over, at most
_ROUTER_ROWS = 200  # of a task, that tell it from earlier ones: of its gallery, and training rows where that has fewer


@dataclass(eq=False)
class StreamMeasures:
    """The measuring side of one named run."""

    config: RunConfig
    folder: Path  # runs/<name>
    registry: Registry
    prepared: Prepared
    embed_by: Embed = embed_here  # where test rows are embedded
    _fits: dict[str, list[Calibration]] = field(default_factory=dict)  # by release

    def embeddings(self, ref: EncoderRef, brought_by: Task | None = None) -> SplitEmbeddings:
        """A version's embeddings of every test row of the stream, from the run's folder or computed again.

        Args:
            ref: the version.
            brought_by: a task; then of some rows that it trained on, as many as its gallery lacks of what a router wants.
        """
        cached = self._kept(ref, brought_by)
        if cached.exists():
            with np.load(cached) as arrays:
                if arrays["digest"].tobytes() == self.digest_of(ref):
                    text = arrays["text"] if arrays["text"].size else None
                    return SplitEmbeddings(arrays["rows"], arrays["image"], text, arrays["text_of"])
        return self.embed(load_encoder(self.registry.folder(ref)), ref, self.digest_of(ref), brought_by)

    def embed(self, encoder: Encoder, ref: EncoderRef, digest: bytes, brought_by: Task | None = None) -> SplitEmbeddings:
        """Embed the rows of `embeddings` and keep the result in the run's folder under the digest of the weights."""
        rows = self.test_rows() if brought_by is None else spaced(np.setdiff1d(brought_by.train, brought_by.gallery), _lacking(brought_by))
        embeddings = embed_split(encoder, self.prepared.pixels, self.prepared.dataset.items, rows, self.embed_by)
        cached = self._kept(ref, brought_by)
        cached.parent.mkdir(parents=True, exist_ok=True)
        text = embeddings.text if embeddings.text is not None else np.zeros((0, 0), dtype=np.float32)
        stamp = np.frombuffer(digest, dtype=np.uint8)
        np.savez(cached, digest=stamp, rows=embeddings.rows, image=embeddings.image, text=text, text_of=embeddings.text_of)
        return embeddings

    def _kept(self, ref: EncoderRef, brought_by: Task | None) -> Path:
        of = "" if brought_by is None else f"-task{brought_by.index + 1}"
        return self.folder / "embeddings" / f"{ref.run}-v{ref.version}{of}.npz"

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
        out: dict[str, Any] = {"row": _by_name(rows)}
        if stream.unseen is not None:
            out["unseen"] = task_metrics(embeddings, stream.unseen, stream.labels)
        if stream.unseen_of:
            apart = [{} if task is None else task_metrics(embeddings, task, stream.labels) for task in stream.unseen_of]
            out["unseen_row"] = _by_name(apart, names=rows)
        if any(task.modality is not None for task in stream.tasks):
            out["modalities"] = across_modalities(embeddings, stream.tasks, stream.labels, learned=learned.index + 1)
        out["classification"] = self._classify(learned, encoder, embeddings, means)
        if encoder.hashing is not None:
            out["codes"] = self._codes(learned, embeddings)
        return out

    def _codes(self, learned: Task, embeddings: SplitEmbeddings) -> dict[str, Any]:
        """How well codes find, over queries and galleries of all tasks so far; alike is what the strategy was told is alike."""
        stream, items = self.prepared.stream, self.prepared.dataset.items
        query, gallery = (
            np.unique(np.concatenate([getattr(task, side) for task in stream.tasks[: learned.index + 1]])) for side in ("query", "gallery")
        )
        known = known_tags(items, np.union1d(query, gallery).tolist())

        def labels(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
            if self.config.strategy.options.get("labels") == "class":
                return stream.labels[rows][:, None] == np.arange(len(stream.classes))
            return tag_matrix(items, rows, known)

        found = code_metrics(embeddings.of(query), labels(query), embeddings.of(gallery), labels(gallery))
        return {"task": learned.index, **found}

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

    def hop(self, task: Task, encoder: Encoder, rows: NDArray[np.int64]) -> tuple[QueryDrift, QueryBridge] | None:
        """How this task moved queries, pictures and captions, over rows that it was trained on; None for the first task.

        Args:
            task: that was learned.
            encoder: that has just learned it.
            rows: that it was trained on; those of earlier tasks (joint) are left out, and of many, evenly spaced ones are taken.
        """
        parent = pipeline.parent_of(self.config, task.index)
        if parent is None:
            return None
        own = spaced(np.intersect1d(rows, task.train), _DRIFT_ROWS)
        if len(own) == 0:  # nothing was learned, so nothing moved
            zero = np.zeros(encoder.embedding_dim, np.float32)
            same = np.eye(encoder.embedding_dim, dtype=np.float32)
            return QueryDrift(zero, None if encoder.text is None else zero), QueryBridge(same, None if encoder.text is None else same)
        before, after = (
            embed_split(each, self.prepared.pixels, self.prepared.dataset.items, own)
            for each in (load_encoder(self.registry.folder(parent)), encoder)
        )
        drift, turn = mean_drift(before.image, after.image), orthogonal_map(before.image, after.image)
        if before.text is None or after.text is None:
            return QueryDrift(drift, None), QueryBridge(turn, None)
        return QueryDrift(drift, mean_drift(before.text, after.text)), QueryBridge(turn, orthogonal_map(before.text, after.text))

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
        policies = cross_modal_recalls(versions, tasks, hops, self._routes(refs))
        return {"policies": policies, "drift": cross_modal_drift(versions, tasks)}

    def _routes(self, encoders: Sequence[EncoderRef]) -> Routes | None:
        """What the releases of the run estimate of a query's task; None where some task has none that estimates it by all versions."""
        tasks = self.prepared.stream.tasks
        asking_all = {
            release.task: release
            for release in reversed(self.registry.releases(self.config.name))
            if release.calibration is not None
            and [(use.made_by, use.queried_by) for use in release.segments] == [(ref, ref) for ref in encoders[: release.task + 1]]
        }
        if len(asking_all) < len(tasks):
            return None
        items = self.prepared.dataset.items
        fold = {int(row): fold_of(items[int(row)].id) for task in tasks for row in task.query}
        routers = [[fit.router for fit in self.calibrations(asking_all[task.index])] for task in tasks]
        return Routes(encoders, routers, fold)

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

    def compatibility(self) -> dict[str, Any]:
        """The matrix of every encoder with every older one's gallery, AC, BC, and which pairs policy keep may use; {} for one task."""
        tasks, labels = self.prepared.stream.tasks, self.prepared.stream.labels
        if len(tasks) < 2:
            return {}
        versions = [self.embeddings(EncoderRef(self.config.name, task.index + 1)) for task in tasks]
        matrix: list[list[float | None]] = [[None] * len(tasks) for _ in tasks]
        for j in range(len(tasks)):
            query, gallery = (np.unique(np.concatenate([getattr(task, side) for task in tasks[: j + 1]])) for side in ("query", "gallery"))
            made = versions[j].of(gallery).image
            for i in range(j, len(tasks)):
                asked = versions[i].of(query).image
                found = retrieval_metrics(asked, made, labels[query], labels[gallery], query_ids=query, gallery_ids=gallery, ks=(1,))
                matrix[i][j] = found["recall@1"] if np.isfinite(found["recall@1"]) else None
        figures = {"AC": average_compatibility(matrix), "BC": backward_compatibility(matrix)}
        return {"matrix": matrix, **figures, "keep": compatible(matrix)}

    def search(self, release: Release, task: Task, fits: Sequence[Calibration] = ()) -> Row:
        """Search everything indexed so far, under the release's policy and merge: one value for each task learned so far.

        Args:
            fits: for a learned merge, one for each fold; see `search_metrics`.
        """
        segments = self._segments(release)
        vectors = {ref: self.embeddings(ref) for ref in release.encoders()}
        drifts = load_drifts(self.registry, release)
        rows = [
            search_metrics(release, segments, vectors, learned, self.prepared.dataset.items, drifts=drifts, calibrations=fits)
            for learned in self.prepared.stream.tasks[: task.index + 1]
        ]
        return {name: [row.get(name) for row in rows] for name in rows[0]}

    def merges(self, release: Release, task: Task) -> dict[str, Row]:
        """As `search`, under every merge, by its name; of a release in which every vector is queried by its maker."""
        segments = self._segments(release)
        vectors = {ref: self.embeddings(ref) for ref in release.encoders()}
        fits = self.calibrations(release)
        rows = [
            merge_metrics(release, segments, vectors, learned, self.prepared.dataset.items, fits)
            for learned in self.prepared.stream.tasks[: task.index + 1]
        ]
        return {merge: {name: [row[merge].get(name) for row in rows] for name in rows[0][merge]} for merge in rows[0]}

    def calibrations(self, release: Release) -> list[Calibration]:
        """What the release's merge is fitted to, for each fold on the items of the others; the first is the one that is published.

        Of earlier tasks nothing is looked at but what the gallery of the release stores: vectors, captions, classes; of its own task, the
        gallery's pictures as every encoder of the release sees them, and where those are few, some that were trained on, as older ones do.
        What only earlier releases could be fitted to is carried on from them, by fold, so that no fit has seen the queries that it is
        measured by.
        """
        if release.id not in self._fits:
            segments = self._segments(release)
            known = self._known(release, segments)
            parent = self.registry.release(release.parent) if release.parent else None
            fitted = parent is not None and all(use.queried_by == use.made_by for use in parent.segments)  # not one of policy keep
            earlier: Sequence[Calibration | None] = self.calibrations(parent) if parent is not None and fitted else [None] * FOLDS
            self._fits[release.id] = [
                fit_calibration(release, segments, known, before, use=lambda item_id, fold=fold: fold_of(item_id) != fold)
                for fold, before in enumerate(earlier)
            ]
        return self._fits[release.id]

    def _known(self, release: Release, segments: Sequence[Segment]) -> dict[EncoderRef, list[Known]]:
        """What each encoder of a release makes of the pictures that its task brought, and of captions, also of what it made itself."""
        tasks = self.prepared.stream.tasks
        out: dict[EncoderRef, list[Known]] = {}
        for ref in release.encoders():
            stored = {task for segment in segments if segment.made_by == ref for task in segment.table.distinct_tasks()}
            new, tests = tasks[release.task], self.embeddings(ref)
            brought = [tests.of(new.gallery)]
            if ref != release.encoder and _lacking(new):  # who has not trained on them sees them as it does its test rows
                brought.append(self.embeddings(ref, new))
            known = [self._known_of(each, release.task, "image") for each in brought]
            known += [self._known_of(each, release.task, "text") for each in brought]
            known += [self._known_of(tests.of(tasks[number].gallery), number, "text") for number in sorted(stored - {release.task})]
            out[ref] = [each for each in known if each is not None]
        return out

    def _known_of(self, embeddings: SplitEmbeddings, task: int, modality: QueryModality) -> Known | None:
        """What an encoder makes of the pictures of some items of a task, or of their captions; None where there are none."""
        vectors = embeddings.image if modality == "image" else embeddings.text
        if vectors is None or len(vectors) == 0:
            return None
        items = [self.prepared.dataset.items[int(row)] for row in embeddings.rows]
        of = items if modality == "image" else [items[at] for at in embeddings.text_of.tolist()]
        return Known([item.id for item in of], [item.label for item in of], np.full(len(of), task), vectors, modality)

    def gates(self, release: Release) -> list[dict[str, Any]]:
        """What the release loses beside the one before, with the limits of the config; see `run.gates`."""
        tasks, segments = self.prepared.stream.tasks, self._segments(release)
        now = self._answers(release, segments)
        parent = self.registry.release(release.parent) if release.parent else None
        before = None if parent is None else self._answers(parent, self._segments(parent))
        approximate = None
        if self.config.index.kind in ("hnsw", "ivfpq"):
            of_makers = {use.made_by: self.embeddings(use.made_by).of(tasks[release.task].query).image for use in release.segments}
            approximate = approximate_recall(segments, [use.made_by for use in release.segments], of_makers)
        old = tasks[: release.task] if parent is not None else ()
        return gates_of(self.config.gates, old, self.prepared.stream.labels, before, now, approximate)

    def _answers(self, release: Release, segments: Sequence[Segment]) -> Answers:
        vectors = {ref: self.embeddings(ref) for ref in (*release.encoders(), *(use.made_by for use in release.segments))}
        return Answers(release, segments, vectors, load_drifts(self.registry, release))

    def _segments(self, release: Release) -> list[Segment]:
        return [load_segment(self.registry.files(use.segment), ref=use.segment, made_by=use.made_by) for use in release.segments]

    def baseline(self) -> Row:
        """Every retrieval metric of each task by the encoder that the first task starts from; measured once, kept in the run's folder."""
        path = self.folder / "baseline.json"
        if not path.exists():
            stream, items = self.prepared.stream, self.prepared.dataset.items
            encoder = pipeline.untrained(self.config, self.prepared)
            embeddings = embed_split(encoder, self.prepared.pixels, items, self.test_rows(), self.embed_by)
            rows = [task_metrics(embeddings, task, stream.labels) for task in stream.tasks]
            write_whole(path, json.dumps({name: row for name, row in _by_name(rows).items() if name not in COUNTS}))
        return json.loads(path.read_text())


def _lacking(task: Task) -> int:
    """How many training rows it takes beside a task's gallery."""
    return max(0, _ROUTER_ROWS - len(task.gallery))


def _by_name(rows: Sequence[dict[str, float | None]], names: Sequence[dict[str, float | None]] = ()) -> Row:
    """Of each metric that any task has (or those of `names`), what every task has; None where it has none."""
    known = dict.fromkeys(name for row in names or rows for name in row)
    return {name: [row.get(name) for row in rows] for name in known}
