"""The report of a run: everything measured, from the manifests of the registry."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perdure.config import RunConfig
from perdure.errors import PerdureError
from perdure.metrics import continual
from perdure.metrics.compatibility import COMPATIBILITY_DEFINITIONS
from perdure.metrics.datasets import DATASET_DEFINITIONS, by_dataset, harmonic_matrix
from perdure.metrics.drift import AGREEMENT_DEFINITION, DRIFT_DEFINITIONS
from perdure.metrics.profile import DEFINITIONS as PROFILE_DEFINITIONS
from perdure.metrics.retrieval import DEFINITIONS
from perdure.pipeline import Prepared
from perdure.records import EncoderRef
from perdure.registry.registry import Registry
from perdure.retrieval.backfill_curve import backfill_curves
from perdure.retrieval.classification import CLASSIFICATION_DEFINITIONS, CLASSIFICATION_METRICS, top1_over_time
from perdure.retrieval.codes import CODE_DEFINITIONS
from perdure.retrieval.cross_modal import CROSS_MODAL_DEFINITIONS
from perdure.retrieval.evaluation import TASK_DEFINITIONS, SplitEmbeddings
from perdure.retrieval.guard import BACKFILL_DEFINITIONS
from perdure.retrieval.modalities import MODALITY_DEFINITIONS, over_tasks
from perdure.retrieval.profiles import profiles
from perdure.stream.task_stream import TaskStream

__all__ = ["COUNTS", "Row", "compose_report", "main_metric"]

COUNTS = ("queries", "lone_queries", "t2i_queries", "t2i_median_rank")  # numbers beside the metrics, of which a summary makes no sense
Row = dict[str, list[float | None]]  # of each metric, a value for each task
_Matrices = dict[str, list[list[float | None]]]


def compose_report(
    config: RunConfig,
    registry: Registry,
    prepared: Prepared,
    *,
    last: SplitEmbeddings,
    baseline: Row,
    cross_modal: Mapping[str, Any],
    agreement: Sequence[float | None],
    compatibility: Mapping[str, Any],
) -> dict[str, Any]:
    """`report.json` of a learned stream; the shape is a contract (DESIGN 4).

    Args:
        last: what the newest encoder makes of the test rows.
        baseline: every metric of each task by the encoder that the first task started from.
        cross_modal: what every index policy finds across modalities; empty without captions.
        agreement: of each task, what its parent and the encoder that learned it agree on.
        compatibility: of every encoder with every older one's gallery; empty for one task.
    """
    stream = prepared.stream
    refs = [EncoderRef(config.name, task.index + 1) for task in stream.tasks]
    metas = [registry.manifest(ref).meta for ref in refs]
    names = list(metas[0]["metrics"]["row"])
    matrices = {name: [meta["metrics"]["row"][name] for meta in metas] for name in names}
    unseen = {name: [meta["metrics"]["unseen_row"][name] for meta in metas] for name in names} if stream.unseen_of else {}
    nothing: list[float | None] = [None] * len(stream.tasks)
    for name in CLASSIFICATION_METRICS:  # versions that were published before there was such a thing have no row
        matrices[name] = [meta["metrics"].get("classification", {}).get(name, nothing) for meta in metas]
    sizes = [len(task.query) for task in stream.tasks]
    summary = _summary(matrices, [meta["metrics"].get("unseen") for meta in metas], unseen, baseline, sizes)
    codes = [meta["metrics"]["codes"] for meta in metas if "codes" in meta["metrics"]]
    releases = registry.releases(config.name)
    backfills = backfill_curves(releases)
    across = [meta["metrics"]["modalities"] for meta in metas if "modalities" in meta["metrics"]]
    return {
        "name": config.name,
        "config": config.plain(),
        "definitions": {
            **DEFINITIONS,
            **TASK_DEFINITIONS,
            **CLASSIFICATION_DEFINITIONS,
            **PROFILE_DEFINITIONS,
            **continual.DEFINITIONS,
            "agreement": AGREEMENT_DEFINITION,
            **(DATASET_DEFINITIONS if unseen else {}),
            **(CODE_DEFINITIONS if codes else {}),
            **({**CROSS_MODAL_DEFINITIONS, **DRIFT_DEFINITIONS} if cross_modal else {}),
            **(MODALITY_DEFINITIONS if across else {}),
            **(COMPATIBILITY_DEFINITIONS if compatibility else {}),
            **(BACKFILL_DEFINITIONS if backfills else {}),
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
                **_unseen_classes(stream, task.index),
            }
            for task, meta in zip(stream.tasks, metas, strict=True)
        ],
        "metrics": {name: {"matrix": matrix, **_unseen(name, matrix, unseen)} for name, matrix in matrices.items()},
        "search": {
            release.id: {
                "policy": release.policy,
                "merge": release.merge,
                **({"compensated": True} if release.compensated else {}),
                "task": release.task,
                **release.metrics["search"],
            }
            for release in releases
            if "search" in release.metrics  # the steps of a backfill are measured by its guard
        },
        "agreement": list(agreement),
        "baseline": baseline,
        "summary": {**summary, "top1_over_time": top1_over_time(matrices, stream.tasks, stream.labels)},
        **profiles(last, stream.tasks, stream.labels, stream.classes),
        **({"codes": codes} if codes else {}),
        **_datasets([task.name for task in stream.tasks], matrices, unseen),
        **({"cross_modal": cross_modal} if cross_modal else {}),
        **({"modalities": over_tasks(across, [task.modality for task in stream.tasks])} if across else {}),
        **({"compatibility": compatibility} if compatibility else {}),
        **({"backfill": backfills} if backfills else {}),
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
        "bad_items": [{"id": bad.id, "where": bad.where, "why": bad.why} for bad in prepared.pixels.bad],
    }


def _unseen_classes(stream: TaskStream, task: int) -> dict[str, Any]:
    """The classes of a task's dataset that no task learns, where the stream is cut by dataset."""
    apart = stream.unseen_of[task] if stream.unseen_of else None
    if apart is None:
        return {}
    ids = np.unique(stream.labels[apart.query])
    return {"unseen_classes": [stream.classes[int(number)] for number in ids], "unseen_query": len(apart.query)}


def _summary(
    matrices: _Matrices,
    unseen: list[dict[str, float | None] | None],
    unseen_of: _Matrices,
    baseline: Row,
    sizes: Sequence[float],
) -> dict[str, Any]:
    """The figures that a run is compared by, on its main metric; and the same per metric under `by_metric`."""
    last_unseen = {name: continual.last_average(matrix) for name, matrix in unseen_of.items()} or unseen[-1] or {}
    by_metric = {
        name: continual.summarise(matrix, last_unseen.get(name), baseline=baseline.get(name), weights=_weights(name, matrices, sizes))
        for name, matrix in matrices.items()
        if name not in COUNTS
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
    return beside if name in COUNTS else {**beside, "H": harmonic_matrix(matrix, unseen_of[name])}


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
