"""What a report shows beside numbers: example queries with their hits through the real search path, and Gram matrices.

Files of a run's folder, read by the report: `examples.json` and `grams.npz`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perdure.pipeline import Prepared
from perdure.records import EncoderRef, Task
from perdure.registry.registry import Registry
from perdure.report import Example, ReportPictures
from perdure.retrieval.evaluation import SplitEmbeddings
from perdure.retrieval.retriever import Query, Retriever

__all__ = ["save_pictures"]

_PER_TASK = 2  # example queries of each kind
_TASKS = 4  # that examples are taken from: the first ones and the last
_HITS = 6
_CLASSES, _ITEMS = 8, 6  # of a Gram matrix


def save_pictures(
    folder: Path, registry: Registry, prepared: Prepared, release_id: str, embeddings: Callable[[EncoderRef], SplitEmbeddings]
) -> None:
    """Search the last release by a few test items of several tasks, and compare the last two encoders on the first task."""
    release = registry.release(release_id)
    retriever = Retriever.load(registry, release)
    tasks = prepared.stream.tasks[: release.task + 1]
    shown = tasks if len(tasks) <= _TASKS else (*tasks[: _TASKS - 1], tasks[-1])
    rows = [row for task in shown for row in _rows(task, prepared.stream.labels)]
    kinds = ("image", "text") if prepared.with_text else ("image",)
    examples = [_example(kind, row, retriever, prepared) for kind in kinds for row in rows]
    grams: dict[str, NDArray[np.floating]] = {}
    if release.task > 0:
        picked = _gram_rows(tasks[0], prepared.stream.labels)
        teacher, student = (embeddings(EncoderRef(release.run, version)).of(picked).image for version in (release.task, release.task + 1))
        grams = {"teacher": teacher @ teacher.T, "student": student @ student.T}
    ReportPictures(examples=examples, grams=grams).save(folder)


def _rows(task: Task, labels: NDArray[np.int64]) -> list[int]:
    """The first query item of a few classes of a task, spread over its classes."""
    _, first = np.unique(labels[task.query], return_index=True)
    return [int(task.query[at]) for at in first[:: max(1, len(first) // _PER_TASK)][:_PER_TASK]]


def _gram_rows(task: Task, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Test rows of a task, a few of each of a few classes, sorted by class."""
    of_task = labels[task.query]
    classes = np.unique(of_task)[:_CLASSES]
    return np.concatenate([task.query[of_task == one][:_ITEMS] for one in classes])


def _example(kind: str, row: int, retriever: Retriever, prepared: Prepared) -> Example:
    item = prepared.dataset.items[row]
    image = prepared.dataset.image_bytes(row)
    query = Query(text=item.captions[0]) if kind == "text" else Query(image=image)
    found = [hit for hit in retriever.search(query, _HITS + 1).hits if kind == "text" or hit.id != item.id][:_HITS]
    hits = [
        {
            "id": hit.id,
            "label": hit.label,
            "score": hit.score,
            "encoder": hit.encoder,
            "png": retriever.picture(hit.id),
            "right": hit.id == item.id if kind == "text" else hit.label == item.label,
        }
        for hit in found
    ]
    text = item.captions[0] if item.captions else item.label
    return Example(kind=kind, text=text, image=image if kind == "image" else None, label=item.label, hits=hits)
