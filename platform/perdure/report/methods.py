"""Runs that differ only in their seed are one method: which runs those are, and what is told of them together."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perdure.report.reading import Report, matrix_of, metrics_of, strategy_of

__all__ = ["INTERVAL", "Method", "half_width", "mean_report", "methods_of", "seed_of", "setting_of"]

INTERVAL = (
    "A figure of several seeds is their mean; interval is half the width of its 95 % confidence interval, t s / sqrt(n), t the 97.5 % "
    "quantile of Student's distribution with n - 1 degrees of freedom, s the standard deviation over the n seeds (divisor n - 1); with one "
    "seed there is none. Runs that differ only in seed and name are one method. What compares with fine-tuning or joint training is taken "
    "within each seed first, against the run of the same seed and tasks, and averaged then."
)
"""How seeds become one figure, to be stored beside it."""

_BOOKKEEPING = ("log_every", "tensorboard", "checkpoint_every", "start_from")
_SEED = re.compile(r"(?:[-_. ]+(?:seed|s)?[-_. ]*|seed)?\d+$")


@dataclass(frozen=True)
class Method:
    """Runs of one configuration under different seeds."""

    name: str
    runs: tuple[Report, ...]


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % confidence interval of a mean.

        t_{0.975, n-1}  s / sqrt(n)            s^2 = 1/(n-1) sum_i (x_i - mean)^2

    Returns:
        None for fewer than two values: nothing is known of how they scatter.
    """
    count = len(values)
    if count < 2:
        return None
    from scipy.special import stdtrit  # takes a second to import, and most pages hold a single seed

    return float(stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(count))


def methods_of(reports: Sequence[Report]) -> list[Method]:
    """The methods among some runs, in the order in which they come.

    A seed that comes twice under one configuration opens another method: a run is no evidence for itself.
    """
    groups: list[tuple[str, list[Report]]] = []
    for report in reports:
        setting = setting_of(report)
        seed = seed_of(report)
        group = next((runs for key, runs in groups if key == setting and seed not in map(seed_of, runs)), None)
        if group is None:
            groups.append((setting, [report]))
        else:
            group.append(report)
    names = [_name(runs) for _, runs in groups]
    unique = [name if names.count(name) == 1 else str(runs[0]["name"]) for name, (_, runs) in zip(names, groups, strict=True)]
    return [Method(name, tuple(runs)) for name, (_, runs) in zip(unique, groups, strict=True)]


def setting_of(report: Report, *, leave_out: Sequence[str] = ()) -> str:
    """What a run is but for its seed, as text to be compared: not its name, where it is stored, nor how it is spread and logged.

    Args:
        report: of the run; one without a configuration is like no other.
        leave_out: sections that may differ, too.
    """
    config: Mapping[str, Any] = report.get("config") or {"only": report["name"]}
    kept = {key: value for key, value in config.items() if key not in ("name", "seed", "registry", "workers", *leave_out)}
    if isinstance(kept.get("train"), Mapping):
        kept["train"] = {key: value for key, value in kept["train"].items() if key not in _BOOKKEEPING}
    return json.dumps(_without_null(kept), sort_keys=True)


def seed_of(report: Report) -> Any:
    """The run's seed, None where it is not known."""
    return (report.get("config") or {}).get("seed")


def mean_report(method: Method, metric: str) -> Report:
    """A method as one report: the first run's, with the mean over the seeds of the metric's matrix; entries not measured are left out."""
    first = method.runs[0]
    matrices = [matrix_of(run, metric) for run in method.runs if metric in metrics_of(run)]
    shapes = [[len(row) for row in matrix] for matrix in matrices]
    alike = [matrix for matrix, shape in zip(matrices, shapes, strict=True) if shape == shapes[0]]
    mean = [[_mean(values) for values in zip(*rows, strict=True)] for rows in zip(*alike, strict=True)]
    return {
        "name": method.name,
        "config": first.get("config", {}),
        "tasks": first.get("tasks", []),
        "metrics": {metric: {"matrix": mean}},
        "summary": {"metric": metric},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None


def _name(runs: Sequence[Report]) -> str:
    """The name of a single run; what is left of several once the seed is taken off (lwf-s0 and lwf-s1 are lwf), or else their strategy."""
    names = [str(run["name"]) for run in runs]
    if len(names) == 1:
        return names[0]
    bare = {_SEED.sub("", name) for name in names}
    return (bare.pop() if len(bare) == 1 else "") or strategy_of(runs[0])


def _without_null(value: Any) -> Any:
    """Options that are null left out, as in reports that were written before there were such options."""
    if isinstance(value, Mapping):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return value
