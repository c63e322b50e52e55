"""What a trial is judged by: retention of old tasks and gain on new ones, from those figures of its report that the protocol lets see.

A[t, j] is the metric on task j after learning task t, F[t, j] the same of fine-tuning on the same stream; a[t] is the agreement of the
encoders before and after task t on task t's own items (`metrics.drift.neighbour_agreement`), b[t] that of fine-tuning. T tasks are learned
so far; a report of a run that is not over has fewer rows, and fine-tuning is then taken after as many tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perdure.errors import DataError
from perdure.metrics import continual
from perdure.tuning.protocols import Protocol

__all__ = ["OBJECTIVE_DEFINITIONS", "figures_of", "looked_up"]

Report = Mapping[str, Any]
_Row = Sequence[float | None]

_GAIN = "Mean over tasks t >= 1 of A[t][t]: each task right after it was learned, the first left out; of a single task, A[0][0]."
OBJECTIVE_DEFINITIONS = {
    "measured": {
        "retention": "(o - f) / (s - f): of what fine-tuning loses on old tasks, the share that is not lost. o = mean over j < T-1 of "
        "A[T-1][j]; f the same of fine-tuning; s = mean over j < T-1 of F[j][j], when fine-tuning had just learned them. 1 = nothing is "
        "lost, 0 = as much as fine-tuning loses, below 0 = more; above 1 = old tasks got better. Null where fine-tuning loses nothing.",
        "gain": _GAIN,
    },
    "estimated": {
        "retention": "(m - f) / (1 - f), m = mean over tasks t >= 1 of a[t], f = mean of b[t]: of the agreement with its parent that "
        "fine-tuning gives up, the share that is kept. a[t] = the share of an item's nearest neighbours among the task's own held-out "
        "items that the encoder before the task and the one after it agree on. An estimate of our own: it sees no item of an earlier "
        "task, and what has to change among the new items counts as lost, too. Null where fine-tuning gives up nothing.",
        "gain": _GAIN,
    },
}
"""What the objectives mean, word for word, where old tasks may be measured and where they are estimated."""


def figures_of(protocol: Protocol, report: Report, reference: Report, metric: str) -> dict[str, Any]:
    """The figures that may judge a trial: retention and gain, and, where old tasks may be measured, the summary of its report.

    Args:
        report: of the trial, whole, or as it is so far (`StreamRun.so_far`).
        reference: of fine-tuning, whole.
        metric: of the report, that retention and gain are of.
    Returns:
        retention (None where it is not defined) and gain; under a protocol that does not judge by old tasks, nothing else, and nothing that
        depends on a figure of an old task.
    Raises:
        DataError: the report has no such metric.
    """
    matrix = _matrix(report, metric)
    count = len(matrix)
    own = [matrix[t][t] for t in range(count)]
    gain = _mean(own[1:] or own)
    if not protocol.judged_on_old:
        kept, kept_there = (_mean(each["agreement"][1:count]) for each in (report, reference))
        return {"retention": _share(kept, kept_there, 1.0), "gain": gain}
    there = _matrix(reference, metric)[:count]
    when_learned = _mean([there[j][j] for j in range(count - 1)])
    retention = _share(_mean(matrix[-1][: count - 1]), _mean(there[-1][: count - 1]), when_learned)
    return {**(report["summary"] if "summary" in report else _summary(report)), "retention": retention, "gain": gain}


def looked_up(figures: Mapping[str, Any], key: str) -> float | None:
    """A figure by its dotted key; None where it could not be measured.

    Raises:
        DataError: there is none of that name.
    """
    name = next((name for name in figures.get("by_metric", {}) if key.startswith(f"by_metric.{name}.")), None)
    path = key.split(".") if name is None else ["by_metric", name, key.removeprefix(f"by_metric.{name}.")]
    place: Any = figures
    for part in path:
        if not isinstance(place, Mapping) or part not in place:
            known = ", ".join(map(str, place)) if isinstance(place, Mapping) else "a number"
            raise DataError(f"metric: there is no figure '{key}', nothing at '{part}'; there: {known}")
        place = place[part]
    return None if place is None else float(place)


def _matrix(report: Report, metric: str) -> list[list[float | None]]:
    if metric not in report["metrics"]:
        raise DataError(f"of: the report has no metric '{metric}'; it has {', '.join(report['metrics'])}")
    return report["metrics"][metric]["matrix"]


def _summary(report: Report) -> dict[str, Any]:
    """What of a whole report's summary follows from the matrices so far."""
    by_metric = {name: continual.summarise(held["matrix"]) for name, held in report["metrics"].items()}
    return {"metric": report["main"], **by_metric[report["main"]], "by_metric": by_metric}


def _share(method: float | None, finetune: float | None, whole: float | None) -> float | None:
    if method is None or finetune is None or whole is None:
        return None
    return continual.gap_closed(method, finetune, whole)


def _mean(values: _Row) -> float | None:
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None
