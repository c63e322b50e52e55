"""The section of classification: top-1 over all classes so far after each task, as in Table 5.6 of the thesis."""

from collections.abc import Mapping, Sequence
from typing import Any

from perdure.report.charts import methods_chart
from perdure.report.markup import chart, escaped, percent, table
from perdure.report.reading import Report, measured, metric_title, shorten, strategy_of, task_name

__all__ = ["classification"]


def classification(runs: Sequence[Report]) -> str:
    """Every top-1 of the first run after each task; the first of them beside the other runs'. Empty where none was measured."""
    report, rows = runs[0], _rows(runs[0])
    names = [name for name in _names(rows) if any(measured(row.get(name)) is not None for row in rows)]
    if not names:
        return ""
    words = "<p>Test items of all tasks so far that are put into their own class, in percent; every item counts the same.</p>"
    shown = table(
        ["After", "Classes so far", *(escaped(metric_title(name).removeprefix("Top-1, ")) for name in names)],
        [
            [
                escaped(shorten(task_name(report, int(row["task"])), 24)),
                str(row.get("classes", "–")),
                *(percent(measured(row.get(name))) for name in names),
            ]
            for row in rows
        ],
        words=(0,),
    )
    return words + (f'<div class="charts">{shown}{_chart(runs, names[0])}</div>' if len(rows) > 1 else shown)


def _rows(report: Report) -> list[Mapping[str, Any]]:
    summary: Mapping[str, Any] = report.get("summary") or {}
    return list(summary.get("top1_over_time") or [])


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in dict.fromkeys(key for row in rows for key in row) if name not in ("task", "classes")]


def _chart(runs: Sequence[Report], name: str) -> str:
    """One top-1 after each task, a line for each run that has it."""
    lines = [(strategy_of(run), [measured(row.get(name)) for row in _rows(run)]) for run in runs]
    told = [(strategy, [values]) for strategy, values in lines if any(value is not None for value in values)]
    return chart(f"{escaped(metric_title(name))}, over all classes learned so far", methods_chart(told))
