"""Retrieval from one modality into another by class, where a stream learns one modality after another."""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.metrics.retrieval import retrieval_metrics
from perdure.records import Task
from perdure.retrieval.evaluation import SplitEmbeddings

__all__ = ["MODALITY_DEFINITIONS", "MODALITY_METRICS", "across_modalities", "over_tasks"]

MODALITY_METRICS = ("recall@1", "map")

MODALITY_DEFINITIONS = {
    "modalities": "For each ordered pair of modalities a -> b, after each task: the test items of a ask for the test items of b, and those "
    "of their class are right (recall@1 and map as defined for retrieval by label). No item has a partner in another modality. null "
    "until both were learned.",
    "modalities mean": "After each task, the mean over the pairs whose modalities were both learned; null while there is none.",
}
"""What each number means, word for word, to be stored beside it."""


def across_modalities(
    embeddings: SplitEmbeddings, tasks: Sequence[Task], labels: NDArray[np.int64], *, learned: int
) -> dict[str, dict[str, float | None]]:
    """MODALITY_METRICS of every ordered pair of modalities, as "image -> text"; None where one of them was not learned yet.

    Args:
        embeddings: of every query and gallery row of the tasks.
        tasks: of the whole stream, each of one modality.
        labels: (N,) class id of each row of the dataset.
        learned: how many of the tasks were learned.
    """
    out: dict[str, dict[str, float | None]] = {}
    for asking, asked in permutations(tasks, 2):
        found: dict[str, float] = {}
        if max(asking.index, asked.index) < learned:
            query, gallery = embeddings.of(asking.query).image, embeddings.of(asked.gallery).image
            found = retrieval_metrics(query, gallery, labels[asking.query], labels[asked.gallery], ks=(1,))
        out[f"{asking.modality} -> {asked.modality}"] = {name: _measured(found.get(name)) for name in MODALITY_METRICS}
    return out


def over_tasks(rows: Sequence[dict[str, dict[str, float | None]]], order: Sequence[str | None]) -> dict[str, Any]:
    """`modalities` of a report: what `across_modalities` gave after each task, pair by pair, and its means.

    Args:
        rows: after each task.
        order: of the modalities.
    Returns:
        {order, pairs: [{query, gallery, recall@1: [after each task], map: [...]}], mean: {recall@1: [...], map: [...]}}.
    """
    pairs: list[dict[str, Any]] = []
    for name in rows[-1]:
        query, _, gallery = name.partition(" -> ")
        pairs.append({"query": query, "gallery": gallery, **{key: [row[name][key] for row in rows] for key in MODALITY_METRICS}})
    mean = {key: [_mean([pair[key][after] for pair in pairs]) for after in range(len(rows))] for key in MODALITY_METRICS}
    return {"order": list(order), "pairs": pairs, "mean": mean}


def _measured(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
