"""The section of a lifelong stream: seen and unseen classes of each dataset after each task, as in Table 7.3 of the thesis."""

from collections.abc import Mapping, Sequence
from typing import Any

from perdure.report.charts import page_colour, tasks_chart
from perdure.report.markup import bullet, chart, escaped, percent
from perdure.report.reading import MANY_TASKS, Report, first_with, matrix_of, measured, metric_title, shorten, summary_of, task_name

__all__ = ["datasets"]

_KEYS = ("seen", "unseen", "H")


def datasets(runs: Sequence[Report]) -> str:
    """Seen, unseen and H of the first run, and what became of unseen and H; empty for a stream without datasets or unseen classes."""
    report, metric = runs[0], _metric(runs[0])
    if not any(measured(row.get("unseen")) is not None for row in _rows(report)):
        return ""
    words = (
        f"<p>{escaped(metric_title(metric))} in percent on each dataset that was learned by then. Seen: the classes that were learned. "
        "Unseen: classes of the same dataset that no task learns, searched among their own items. H is their harmonic mean, "
        f"2 · seen · unseen / (seen + unseen){_mean_of_h(report, metric)}.</p>"
    )
    return f"{words}{_table(report)}{_charts(runs)}"


def _rows(report: Report) -> list[Mapping[str, Any]]:
    return list(report.get("datasets") or [])


def _metric(report: Report) -> str:
    return next((str(row["metric"]) for row in _rows(report)), "")


def _mean_of_h(report: Report, metric: str) -> str:
    value = summary_of(report, metric).get("H_datasets")
    return "" if value is None else f"; after the last task it is <b>{percent(value)}</b> on average over the datasets"


def _as_report(report: Report, key: str) -> Report:
    """The report, with seen, unseen or H in place of the metric: A[t][j] of dataset j after task t, None before it was learned."""
    rows = _rows(report)
    count = 1 + max((max(row["after"], row["task"]) for row in rows), default=-1)
    matrix: list[list[float | None]] = [[None] * count for _ in range(count)]
    for row in rows:
        matrix[row["after"]][row["task"]] = measured(row.get(key))
    return {**report, "metrics": {_metric(report): {"matrix": matrix}}}


def _table(report: Report) -> str:
    """A row after each task, three columns for each dataset; nothing where a dataset was still to come."""
    columns = [matrix_of(_as_report(report, key), _metric(report)) for key in _KEYS]
    names = {int(row["task"]): str(row["name"]) for row in _rows(report)}
    above = "".join(
        f'<th colspan="3" class="over" title="{escaped(name)}">{bullet(page_colour(j))}{escaped(shorten(name, 24))}</th>'
        for j, name in sorted(names.items())
    )
    head = "".join(f"<th class=n>{key}</th>" for _ in names for key in _KEYS)
    body: list[str] = []
    for t in range(len(columns[0])):
        cells = "".join(f"<td class=n>{percent(matrix[t][j]) if j <= t else ''}</td>" for j in sorted(names) for matrix in columns)
        body.append(f"<tr><td>{escaped(shorten(task_name(report, t), 24))}</td>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="plain"><thead><tr><th></th>{above}</tr><tr><th>After</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _charts(runs: Sequence[Report]) -> str:
    """Unseen and H since a dataset was learned (seen is drawn where every task is); nothing before the second task."""
    report, finetune = runs[0], first_with(runs[1:], "fine_tune")
    count = len({row["after"] for row in _rows(report)})
    if count < 2:
        return ""
    dashed = finetune if finetune is not None and count <= MANY_TASKS and _metric(finetune) == _metric(report) else None
    drawn: list[str] = []
    for key, words in (("unseen", "Unseen classes of each dataset since it was learned"), ("H", "H of each dataset since it was learned")):
        other = None if dashed is None else _as_report(dashed, key)
        line = tasks_chart(_as_report(report, key), other, _metric(report))
        drawn.append(chart(f"{words}{'' if dashed is None else '; dashed: fine-tuning'}", line))
    return f'<div class="charts">{"".join(drawn)}</div>'
