"""What the last encoder's means hide, for a report: a curve for each task, and Recall@1 of each class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.metrics.profile import ranking_profile
from perdure.records import Task
from perdure.retrieval.evaluation import SplitEmbeddings

__all__ = ["profiles"]


def profiles(embeddings: SplitEmbeddings, tasks: Sequence[Task], labels: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """`curves` and `per_class` of a report, rounded to four digits; see `metrics.profile.DEFINITIONS`.

    Args:
        embeddings: of every query and gallery row of the tasks.
        tasks: each is searched inside its own test split, leave-one-out.
        labels: (N,) class id of each row of the dataset.
        classes: class id -> label.
    Returns:
        curves: {task, name, recall, precision} of each task; per_class: {task, class, recall@1, queries} of each class of each task.
    """
    curves: list[dict[str, Any]] = []
    per_class: list[dict[str, Any]] = []
    for task in tasks:
        query, gallery = embeddings.of(task.query), embeddings.of(task.gallery)
        found = ranking_profile(
            query.image, gallery.image, labels[task.query], labels[task.gallery], query_ids=task.query, gallery_ids=task.gallery
        )
        points = {"recall": [_round(value) for value in found.recall], "precision": [_round(value) for value in found.precision]}
        curves.append({"task": task.index, "name": task.name, **points})
        per_class += [
            {"task": task.index, "class": classes[label], "recall@1": _round(one.recall), "queries": one.queries}
            for label, one in found.by_label.items()
        ]
    return {"curves": curves, "per_class": per_class}


def _round(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
