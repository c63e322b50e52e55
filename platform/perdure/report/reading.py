"""What a report.json says: names, matrices, and the figures that are told of a run. Keys that a report lacks are left out, not invented."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perdure.errors import DataError
from perdure.metrics import continual

__all__ = [
    "COMPARED",
    "KEPT",
    "MANY_TASKS",
    "Report",
    "first_with",
    "gap",
    "intransigence_of",
    "main_metric",
    "matrix_of",
    "measured",
    "metric_title",
    "metrics_of",
    "part_name",
    "policy_of",
    "release_id",
    "shorten",
    "strategy_of",
    "strategy_words",
    "summary_of",
    "task_name",
    "task_names",
    "title_of",
    "when_learned",
]

Report = Mapping[str, Any]

COMPARED = ("old", "new", "last_average", "average_incremental", "forgetting")
"""Figures of a summary by which runs are compared."""

KEPT = "(A_method - A_finetune) / (A_learned - A_finetune) on old; A_learned: fine-tuning's accuracy on each old task when it was learned."

MANY_TASKS = 6
"""With more tasks than this, heat maps are compact and lines are not doubled."""

_TITLES = {
    "old": "Old tasks",
    "new": "New task",
    "last_average": "All tasks",
    "unseen": "Unseen classes",
    "H": "Harmonic mean",
    "forgetting": "Forgetting",
    "average_incremental": "Average incremental",
    "gap_closed": "Gap closed",
    "kept": "Kept",
    "forgetting_share": "Forgetting / fine-tuning's",
    "new_difference": "New task vs fine-tuning",
    "intransigence": "Intransigence",
    "backward_transfer": "Backward transfer",
    "forward_transfer": "Forward transfer",
    "seconds": "Training, s",
    "steps_per_s": "Steps/s",
    "peak_memory_mb": "Peak memory, MiB",
}
_METRICS = {
    "map": "mAP",
    "map@r": "MAP@R",
    "top1": "Top-1",
    "top1_known_task": "Top-1, task known",
    "top1_ncm": "Top-1, nearest class mean",
}
_NOT_FRACTIONS = ("queries", "median_rank")


def title_of(key: str) -> str:
    """A figure's name in words."""
    return _TITLES.get(key, key.replace("_", " "))


def metric_title(name: str) -> str:
    """A metric's name in words: `t2i_recall@1` is `Text to image, Recall@1`."""
    for prefix, words in (("t2i_", "Text to image, "), ("i2t_", "Image to text, ")):
        if name.startswith(prefix):
            return words + metric_title(name.removeprefix(prefix))
    return _METRICS.get(name, name.replace("recall@", "Recall@"))


def part_name(report: Report, *path: str) -> str:
    """The name of a part in the run's config (`stream`, `dataset`), or an empty string."""
    value: Any = report.get("config", {})
    for key in path:
        value = value.get(key, {}) if isinstance(value, dict) else {}
    return str(value.get("name", "")) if isinstance(value, dict) else str(value)


def strategy_of(report: Report) -> str:
    """The strategy's name."""
    return part_name(report, "strategy") or str(report.get("name", "?"))


def strategy_words(report: Report) -> str:
    """The strategy's name as a sentence says it."""
    return {"fine_tune": "fine-tuning", "joint": "joint training"}.get(strategy_of(report), strategy_of(report).replace("_", " "))


def policy_of(report: Report) -> str:
    """The index policy's name, or an empty string."""
    return str(report.get("config", {}).get("index", {}).get("policy", ""))


def task_names(report: Report) -> list[str]:
    """Names of the tasks, in order."""
    return [str(task.get("name") or f"task {number}") for number, task in enumerate(report.get("tasks", []), start=1)]


def task_name(report: Report, task: int) -> str:
    """The name of one task; `task 3` where the report has none."""
    names = task_names(report)
    return names[task] if task < len(names) else f"task {task + 1}"


def metrics_of(report: Report) -> list[str]:
    """Metrics between 0 and 1 of which something was measured, in the order of the report."""
    return [
        name
        for name in report.get("metrics", {})
        if not name.endswith(_NOT_FRACTIONS) and any(value is not None for row in matrix_of(report, name) for value in row)
    ]


def main_metric(report: Report) -> str:
    """The metric by which the run judged itself, else Recall@1, else the first.

    Raises:
        DataError: the report holds no metric that was measured.
    """
    names = metrics_of(report)
    for name in (report.get("summary", {}).get("metric"), "recall@1", *names):
        if name in names:
            return str(name)
    raise DataError(f"run '{report.get('name', '?')}': its report holds no metric that was measured")


def matrix_of(report: Report, metric: str) -> list[list[float | None]]:
    """The rows of a metric's matrix, with None for what was not measured; NaN is no measurement."""
    rows: list[list[float | None]] = report["metrics"][metric]["matrix"]
    return [[measured(value) for value in row] for row in rows]


def measured(value: float | None) -> float | None:
    """The value, or None where nothing was measured; NaN is no measurement."""
    return None if value is None or np.isnan(value) else float(value)


def summary_of(report: Report, metric: str) -> dict[str, float | None]:
    """The continual figures of one metric, from its matrix; those that need more than it (transfer from nothing, weights) as stored.

    Empty when the report lacks the metric.
    """
    if metric not in metrics_of(report):
        return {}
    stored = report.get("summary", {})
    unseen = stored.get("unseen") if stored.get("metric", metric) == metric else None
    more: Mapping[str, float | None] = stored.get("by_metric", {}).get(metric, {})
    return {**more, **continual.summarise(matrix_of(report, metric), unseen)}


def when_learned(report: Report, metric: str) -> float | None:
    """The mean over old tasks of their accuracy right after they were learned."""
    matrix = matrix_of(report, metric)
    values = [matrix[j][j] for j in range(len(matrix) - 1)]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def first_with(reports: Sequence[Report], strategy: str) -> Report | None:
    """The first run of a strategy."""
    return next((report for report in reports if strategy_of(report) == strategy), None)


def gap(method: float | None, finetune: float | None, reference: float | None) -> float | None:
    """`gap_closed` where all three were measured."""
    if method is None or finetune is None or reference is None:
        return None
    return continual.gap_closed(method, finetune, reference)


def intransigence_of(report: Report, joint: Report | None, metric: str) -> float | None:
    """`intransigence` where joint training was run on as many tasks and both have the metric."""
    if joint is None or metric not in metrics_of(report) or metric not in metrics_of(joint):
        return None
    matrix, reference = matrix_of(report, metric), matrix_of(joint, metric)
    return continual.intransigence(matrix, reference) if len(matrix) == len(reference) else None


def release_id(release: Any) -> str:
    """A release is told by its id, or by a record that has one."""
    return str(release["id"] if isinstance(release, dict) else release)


def shorten(text: str, longest: int) -> str:
    """The text, cut with an ellipsis where it is too long."""
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"
