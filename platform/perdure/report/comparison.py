"""The figures that methods are compared by: of each run, and of a method over its seeds, as plain data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perdure.errors import DataError
from perdure.metrics import continual
from perdure.report.methods import INTERVAL, Method, half_width, methods_of, seed_of, setting_of
from perdure.report.reading import (
    COMPARED,
    KEPT,
    Report,
    gap,
    intransigence_of,
    main_metric,
    matrix_of,
    metrics_of,
    policy_of,
    strategy_of,
    summary_of,
    when_learned,
)

__all__ = ["COST", "DEFINITIONS", "FIGURES", "RELATIVE", "Row", "compare", "told_of"]

Row = dict[str, Any]

FIGURES = (*COMPARED, "gap_closed", "kept")
"""What is left of old tasks and how well the new one was learned."""

RELATIVE = ("forgetting_share", "new_difference", "intransigence", "backward_transfer", "forward_transfer", "unseen", "H")
"""What is told where the runs that it needs are there."""

COST = ("seconds", "steps_per_s", "peak_memory_mb")
"""What it took; the same for every metric."""

_OWN = {
    "gap_closed": continual.DEFINITIONS["gap_closed"],
    "kept": KEPT,
    "forgetting_share": "Forgetting divided by that of fine-tuning; null where fine-tuning forgets nothing.",
    "new_difference": "The new task's metric minus that of fine-tuning.",
    "seconds": "Seconds of training, summed over the tasks; a first task that was taken over counts as long as it took where it was "
    "learned. Measuring, indexing and waiting are not in it.",
    "steps_per_s": "Optimiser steps a second over the tasks after the first, which is where methods differ, or over the only one.",
    "peak_memory_mb": "The most memory that the training of a task took, in MiB: what torch allocated on the GPU, or without one what the "
    "process of the first worker held at once.",
    "interval": INTERVAL,
    "over_time": "After each task t, the mean over j <= t of A[t][j]; every task counts the same, whatever its size.",
}

DEFINITIONS: dict[str, str] = {
    **{key: text for key, text in continual.DEFINITIONS.items() if key != "matrix"},
    **_OWN,
}
"""What each figure of a comparison means, word for word."""


def compare(reports: Sequence[Report], metric: str | None = None) -> list[Row]:
    """A row for each method among the runs, by one metric (None: the first run's main metric).

    Figures that compare with fine-tuning (`kept`, `forgetting_share`, `new_difference`), with joint training (`intransigence`) or with
    both (`gap_closed`) are there where such runs are among the reports.

    Returns:
        rows {run, strategy, policy, metric, seeds, runs, each figure: its mean over seeds or None, interval: {figure: half width or
        None}, over_time: after each task {mean, interval} of the average so far, per_seed: [the figures of each run]}; fractions,
        seconds and MiB.
    Raises:
        DataError: no reports, or one of them does not hold the metric.
    """
    if not reports:
        raise DataError("there is no run to compare; name at least one")
    metric = metric or main_metric(reports[0])
    for report in reports:
        if metric not in report["metrics"]:
            raise DataError(f"run '{report['name']}' has no metric '{metric}'; it has {', '.join(report['metrics'])}")
    return [_row(method, metric, reports) for method in methods_of(reports)]


def told_of(row: Row, key: str) -> list[float]:
    """A figure of each seed that has it."""
    return [one[key] for one in row["per_seed"] if one.get(key) is not None]


def _row(method: Method, metric: str, reports: Sequence[Report]) -> Row:
    per_seed = [_figures(run, metric, reports) for run in method.runs]
    figures = list(dict.fromkeys(key for one in per_seed for key in one))
    values = {key: [value for one in per_seed if (value := one.get(key)) is not None] for key in figures}
    return {
        "run": method.name,
        "strategy": strategy_of(method.runs[0]),
        "policy": policy_of(method.runs[0]),
        "metric": metric,
        "seeds": [seed_of(run) for run in method.runs],
        "runs": [str(run["name"]) for run in method.runs],
        **{key: float(np.mean(found)) if found else None for key, found in values.items()},
        "interval": {key: half_width(found) for key, found in values.items()},
        "over_time": _over_time(method, metric),
        "per_seed": [{"run": str(run["name"]), "seed": seed_of(run), **one} for run, one in zip(method.runs, per_seed, strict=True)],
    }


def _over_time(method: Method, metric: str) -> list[dict[str, float | None]]:
    averages = [continual.averages(matrix_of(run, metric)) for run in method.runs if metric in metrics_of(run)]
    out: list[dict[str, float | None]] = []
    for t in range(max(map(len, averages), default=0)):
        measured = [value for values in averages if t < len(values) and (value := values[t]) is not None]
        out.append({"mean": float(np.mean(measured)) if measured else None, "interval": half_width(measured)})
    return out


def _figures(report: Report, metric: str, reports: Sequence[Report]) -> dict[str, float | None]:
    """Of one run; every key is there, with None for what cannot be told."""
    summary = summary_of(report, metric)
    finetune, joint = (_reference(report, strategy, metric, reports) for strategy in ("fine_tune", "joint"))
    lower = {} if finetune is None else summary_of(finetune, metric)
    upper = {} if joint is None else summary_of(joint, metric)
    old = summary.get("old")
    forgotten, forgotten_there = summary.get("forgetting"), lower.get("forgetting")
    new, new_there = summary.get("new"), lower.get("new")
    return {
        **dict.fromkeys((*FIGURES, *RELATIVE)),
        **summary,
        "gap_closed": gap(old, lower.get("old"), upper.get("old")),
        "kept": None if finetune is None else gap(old, lower.get("old"), when_learned(finetune, metric)),
        "forgetting_share": forgotten / forgotten_there if forgotten is not None and forgotten_there and forgotten_there > 0 else None,
        "new_difference": None if new is None or new_there is None else new - new_there,
        "intransigence": intransigence_of(report, joint, metric),
        **_cost(report),
    }


def _reference(report: Report, strategy: str, metric: str, reports: Sequence[Report]) -> Report | None:
    """The run of a strategy with the report's seed and tasks; of several, one that is the same but for the strategy, if there is one."""
    found = [
        other
        for other in reports
        if strategy_of(other) == strategy and seed_of(other) == seed_of(report) and _tasks(other, metric) == _tasks(report, metric)
    ]
    free = ("strategy", "index")
    alike = [other for other in found if setting_of(other, leave_out=free) == setting_of(report, leave_out=free)]
    return next(iter([*alike, *found]), None)


def _tasks(report: Report, metric: str) -> Any:
    """The classes of each task; of a report that does not tell them, how many tasks there are."""
    told = [task.get("classes") for task in report.get("tasks", [])]
    return told or len(matrix_of(report, metric))


def _cost(report: Report) -> dict[str, float | None]:
    """Of the `train` entries; a report that lacks one of the numbers for a task has no figure of it."""
    entries: list[Mapping[str, Any]] = [entry for entry in report.get("train", []) if entry]
    later = entries[1:] or entries
    seconds, memory = _all(entries, "seconds"), _all(entries, "peak_memory_mb")
    steps, time = _all(later, "steps"), _all(later, "seconds")
    return {
        "seconds": sum(seconds) if seconds else None,
        "steps_per_s": sum(steps) / sum(time) if steps and time and sum(time) > 0 else None,
        "peak_memory_mb": max(memory) if memory else None,
    }


def _all(entries: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """A number of every entry, or nothing at all where one lacks it."""
    values = [entry.get(key) for entry in entries]
    return [float(value) for value in values if value is not None] if None not in values else []
