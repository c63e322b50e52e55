"""Classifying the test items of a stream: by the encoder's growing classifier, and by the mean of each class as it was learned.

Letters: n items, C classes, k classes that were learned so far, D embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch.nn import functional

from perdure.data.pixels import Pixels
from perdure.data.transforms import to_float
from perdure.encoders.encoder import Encoder
from perdure.metrics.classification import top1
from perdure.metrics.continual import averages
from perdure.records import Item, Task
from perdure.retrieval.evaluation import SplitEmbeddings, are_words

__all__ = ["CLASSIFICATION_DEFINITIONS", "CLASSIFICATION_METRICS", "ClassMeans", "class_means", "classification_metrics", "top1_over_time"]

CLASSIFICATION_METRICS = ("top1", "top1_known_task", "top1_ncm")

CLASSIFICATION_DEFINITIONS = {
    "top1": "Share of the task's test items that the growing classifier puts into their own class, out of all classes learned so far (the "
    "task is not told); a class that scores the same as the right one is preferred to it; null before any of the task's classes was "
    "learned, and where no cross-entropy trains the classifier. A task trains the rows of its own classes only, so rows of different "
    "tasks were never compared with each other while learning, unless the strategy did so (joint).",
    "top1_known_task": "As top1, out of the task's own classes only: the task is told.",
    "top1_ncm": "As top1, by the class mean whose direction is nearest (Rebuffi et al. 2017): the mean of unit embeddings of up to 50 "
    "training items of the class, made by the encoder that learned the class and kept as a vector ever since. It needs no "
    "cross-entropy, and it falls where the whole space has moved since; null where of some class learned so far no training item was read.",
    "top1_over_time": "After each task, how many classes were learned so far, and the share of all test items of the tasks so far that are "
    "put into their own class: top1, top1_known_task and top1_ncm weighted by the number of test items of each task.",
}
"""What each number means, word for word, to be stored beside it."""

_BATCH = 256
_PER_MEAN = 50  # training items of a class that its mean is taken over, at most


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """A direction for each class, by the encoder that learned it."""

    classes: NDArray[np.int64]  # (k,) ascending
    means: NDArray[np.float32]  # (k, D) unit rows

    def replaced_by(self, newer: "ClassMeans") -> "ClassMeans":
        """These and newer ones; of a class that is in both, the newer."""
        kept = ~np.isin(self.classes, newer.classes)
        classes = np.concatenate([self.classes[kept], newer.classes])
        order = np.argsort(classes)
        return ClassMeans(classes[order], np.concatenate([self.means[kept], newer.means])[order])

    def save(self, path: Path) -> None:
        """As safetensors."""
        save_file({"classes": self.classes, "means": self.means}, path)

    @classmethod
    def load(cls, path: Path) -> "ClassMeans":
        """What `save` wrote."""
        arrays = load_file(path)
        return cls(arrays["classes"], arrays["means"])


def class_means(
    encoder: Encoder, pixels: Pixels, rows: NDArray[np.int64], labels: NDArray[np.int64], items: Sequence[Item] = ()
) -> ClassMeans:
    """The means of the classes among some training rows, each over at most 50 of them, evenly spaced.

    Args:
        encoder: that has just learned them.
        rows: (n,) of the dataset; none where a task was learned in no step, and then there are no means.
        labels: (n,) class id of each.
        items: the dataset's; () where all are pictures.
    """
    if len(rows) == 0:
        return ClassMeans(np.zeros(0, dtype=np.int64), np.zeros((0, encoder.joint_dim), dtype=np.float32))
    classes = np.unique(labels)
    members = [np.sort(rows[labels == label]) for label in classes]
    chosen = [own[np.unique(np.linspace(0, len(own) - 1, min(len(own), _PER_MEAN)).astype(np.int64))] for own in members]
    vectors = functional.normalize(_joint(encoder, pixels, np.concatenate(chosen), items), dim=1)
    means = torch.stack([part.mean(dim=0) for part in vectors.split([len(own) for own in chosen])])
    return ClassMeans(classes, functional.normalize(means, dim=1).numpy())


def classification_metrics(
    encoder: Encoder,
    pixels: Pixels,
    embeddings: SplitEmbeddings,
    tasks: Sequence[Task],
    labels: NDArray[np.int64],
    *,
    learned: int,
    trained: bool,
    means: ClassMeans | None,
    items: Sequence[Item] = (),
) -> dict[str, list[float | None]]:
    """One row of each matrix of `CLASSIFICATION_METRICS`; see `CLASSIFICATION_DEFINITIONS`.

    Args:
        encoder: that made the embeddings.
        embeddings: of every query of the tasks. They are made again, as they are trained, only where a classifier is linear or the
            encoder has a whitening or hash heads.
        tasks: of the whole stream.
        labels: (N,) class id of each row of the dataset.
        learned: how many of the tasks were learned.
        trained: whether anything trains the classifier.
        means: of every class learned so far; None where they are not known.
        items: the dataset's; () where all are pictures.
    Returns:
        for each name a value for each task.
    """
    known = np.unique(np.concatenate([labels[task.train] for task in tasks[:learned]]))
    position = {int(row): at for at, row in enumerate(embeddings.rows)}
    as_it_is = encoder.stores_what_it_trains and encoder.classifier.kind == "cosine"  # cosine logits do not depend on the length
    joint = torch.from_numpy(embeddings.image) if as_it_is else _joint(encoder, pixels, embeddings.rows, items)
    with torch.no_grad():
        logits = encoder.classifier(joint.to(encoder.device)).cpu().numpy()
    vectors = functional.normalize(joint, dim=1).numpy()
    if means is not None and not np.isin(known, means.classes).all():
        means = None
    out: dict[str, list[float | None]] = {name: [] for name in CLASSIFICATION_METRICS}
    for task in tasks:
        at = np.array([position[int(row)] for row in task.query], dtype=np.int64)
        own, of_task = labels[task.query], np.unique(labels[task.train])
        told = trained and bool(np.isin(of_task, known).all())
        out["top1"].append(top1(logits[at], own, known) if trained else None)
        out["top1_known_task"].append(top1(logits[at], own, of_task) if told else None)
        out["top1_ncm"].append(None if means is None else _by_means(vectors[at], own, known, means))
    return out


def top1_over_time(
    matrices: Mapping[str, Sequence[Sequence[float | None]]], tasks: Sequence[Task], labels: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """After each task {task, classes, top1, top1_known_task, top1_ncm} over the test items of all tasks so far (thesis, Table 5.6).

    Args:
        matrices: of `CLASSIFICATION_METRICS`.
        tasks: of the whole stream.
        labels: (N,) class id of each row of the dataset.
    """
    sizes = [len(task.query) for task in tasks]
    overall = {name: averages(matrices[name], sizes) for name in CLASSIFICATION_METRICS}
    learned = [len(np.unique(np.concatenate([labels[task.train] for task in tasks[: t + 1]]))) for t in range(len(tasks))]
    return [{"task": t, "classes": learned[t], **{name: values[t] for name, values in overall.items()}} for t in range(len(tasks))]


def _by_means(vectors: NDArray[np.float32], own: NDArray[np.int64], known: NDArray[np.int64], means: ClassMeans) -> float | None:
    """Top-1 by inner products with the means, whose columns take the place of class ids."""
    column_of = {int(label): column for column, label in enumerate(means.classes)}
    columns = np.array([column_of.get(int(label), -1) for label in own], dtype=np.int64)
    return top1(vectors @ means.means.T, columns, [column_of[int(label)] for label in known])


def _joint(encoder: Encoder, pixels: Pixels, rows: NDArray[np.int64], items: Sequence[Item]) -> torch.Tensor:
    """(n, D) float32 embeddings of rows as they are trained: before normalisation and before a whitening."""
    was_training = encoder.training
    encoder.eval()
    parts: list[torch.Tensor] = []
    is_text = are_words(items, rows) if items else np.zeros(len(rows), dtype=np.bool_)
    with torch.no_grad():
        for start in range(0, len(rows), _BATCH):
            some = slice(start, start + _BATCH)
            inputs = _inputs(encoder, pixels, rows[some], is_text[some], items)
            parts.append(encoder(*inputs)[0].float().cpu())
    encoder.train(was_training)
    return torch.cat(parts)


def _inputs(
    encoder: Encoder, pixels: Pixels, rows: NDArray[np.int64], is_text: NDArray[np.bool_], items: Sequence[Item]
) -> tuple[torch.Tensor | None, ...]:
    """What the encoder is called with for some items."""
    images = None if is_text.all() else to_float(torch.from_numpy(pixels.take(rows[~is_text]))).to(encoder.device)
    if not is_text.any() or encoder.vocabulary is None:
        return (images,)
    words = encoder.vocabulary.encode([items[int(row)].captions[0] for row in rows[is_text]])
    return images, words.to(encoder.device), torch.from_numpy(is_text).to(encoder.device)
