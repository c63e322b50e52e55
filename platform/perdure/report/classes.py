"""The section of easy and hard classes: precision over recall of each task, and the best and the worst classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perdure.report.charts import page_colour, precision_recall_chart
from perdure.report.markup import bullet, chart, escaped, percent
from perdure.report.reading import Report, shorten, task_name

__all__ = ["classes"]

_EACH = 8
"""Best and worst classes that are listed."""


def classes(report: Report) -> str:
    """Curves and bars, of what the report has; empty for a report that has neither."""
    curves = [curve for curve in report.get("curves") or [] if any(value is not None for value in curve.get("precision") or [])]
    rows = [row for row in report.get("per_class") or [] if _measured(row)]
    parts: list[str] = []
    if curves:
        named = [
            (int(one["task"]), str(one.get("name") or task_name(report, one["task"])), one["recall"], one["precision"]) for one in curves
        ]
        parts.append(
            chart("Precision at each recall, by the last encoder, inside the test split of each task", precision_recall_chart(named))
        )
    if rows:
        parts.append(_bars(rows, report))
    missing = len(report.get("per_class") or []) - len(rows)
    note = f"<p>{missing} classes have no query that could be answered and are left out.</p>" if rows and missing else ""
    return f'<div class="charts">{"".join(parts)}</div>{note}' if parts else ""


def _measured(row: Mapping[str, Any]) -> bool:
    value = row.get("recall@1")
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _bars(rows: Sequence[Mapping[str, Any]], report: Report) -> str:
    """Recall@1 of classes, worst first; with many classes the two ends of the list and the mean of all."""
    ordered = sorted(rows, key=lambda row: (float(row["recall@1"]), str(row["class"])))
    mean = float(np.mean([float(row["recall@1"]) for row in ordered]))
    caption = f"Recall@1 of each class by the last encoder, hardest first; {len(ordered)} classes, {percent(mean, ' %')} on average"
    if len(ordered) <= 2 * _EACH:
        body = "".join(_bar(row, report) for row in ordered)
    else:
        between = f'<p class="between">{len(ordered) - 2 * _EACH} classes between</p>'
        body = "".join(_bar(row, report) for row in ordered[:_EACH]) + between + "".join(_bar(row, report) for row in ordered[-_EACH:])
    return f'<figure class="classbars"><figcaption>{caption}</figcaption>{body}</figure>'


def _bar(row: Mapping[str, Any], report: Report) -> str:
    name, value, task = str(row["class"]), float(row["recall@1"]), int(row["task"])
    queries = row.get("queries")
    about = f"{name}, {task_name(report, task)}" + (f", {queries} queries" if isinstance(queries, int) else "")
    bar = f'<i style="width:{82 * min(max(value, 0.0), 1.0):.1f}%;background:{page_colour(task)}"></i><b>{percent(value)}</b>'
    shown = f"<span>{bullet(page_colour(task))}{escaped(shorten(name, 24))}</span>"
    return f'<div class="classbar" title="{escaped(about)}">{shown}<div class="bar">{bar}</div></div>'
