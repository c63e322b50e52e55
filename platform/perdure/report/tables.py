"""Tables: a run for a terminal, and several runs beside each other."""

from collections.abc import Sequence
from typing import Any

from perdure.errors import DataError
from perdure.report.reading import (
    COMPARED,
    Report,
    first_with,
    gap,
    main_metric,
    matrix_of,
    metric_title,
    policy_of,
    release_id,
    shorten,
    strategy_of,
    summary_of,
    task_name,
    task_names,
    title_of,
    when_learned,
)

__all__ = ["comparison_table", "summary_table"]


def comparison_table(reports: Sequence[Report], metric: str | None = None) -> tuple[list[dict[str, Any]], str]:
    """Runs on one stream side by side, as plain data and as text, by a metric (None: the first run's main metric).

    `gap_closed` needs a fine_tune and a joint run among them, `kept` only fine_tune: the share of what fine-tuning loses on old tasks
    (from when each was learned to the end) that a method keeps. Fractions in the data, percent in the text.

    Raises:
        DataError: no reports, or one of them does not hold the metric.
    """
    if not reports:
        raise DataError("there is no run to compare; name at least one")
    metric = metric or main_metric(reports[0])
    for report in reports:
        if metric not in report["metrics"]:
            raise DataError(f"run '{report['name']}' has no metric '{metric}'; it has {', '.join(report['metrics'])}")
    finetune, joint = first_with(reports, "fine_tune"), first_with(reports, "joint")
    lower = None if finetune is None else summary_of(finetune, metric).get("old")
    upper = None if joint is None else summary_of(joint, metric).get("old")
    learned = None if finetune is None or lower is None else when_learned(finetune, metric)
    rows: list[dict[str, Any]] = []
    for report in reports:
        summary = summary_of(report, metric)
        rows.append(
            {
                "run": str(report["name"]),
                "strategy": strategy_of(report),
                "policy": policy_of(report),
                "metric": metric,
                **{key: summary.get(key) for key in COMPARED},
                "gap_closed": gap(summary.get("old"), lower, upper),
                "kept": gap(summary.get("old"), lower, learned),
            }
        )
    keys = ("run", "strategy", "policy", *COMPARED, "gap_closed", "kept")
    table = _text_table([title_of(key).lower() for key in keys], [[_cell(row[key]) for key in keys] for row in rows], words=3)
    return rows, f"{metric_title(metric)} after the last task, percent\n{table}"


def summary_table(report: Report) -> str:
    """The accuracy matrix of the main metric and the figures of a run, for a terminal.

    Raises:
        DataError: the report holds no metric.
    """
    metric = main_metric(report)
    matrix = matrix_of(report, metric)
    names = task_names(report)
    head = [f"{metric_title(metric)}, percent", *(shorten(name, 14) for name in names)]
    cells = [[f"after {shorten(task_name(report, t), 24)}", *map(_cell, row[: len(names)])] for t, row in enumerate(matrix)]
    summary = summary_of(report, metric)
    figures = [f"{title_of(key).lower()} {_cell(summary[key])}" for key in (*COMPARED, "unseen", "H") if summary.get(key) is not None]
    lines = [_text_table(head, cells, words=1), "", "   ".join(figures)]
    if report.get("releases"):
        lines.append(f"released: {', '.join(map(release_id, report['releases']))}")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """Fractions as percent, `-` for what was not measured."""
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if isinstance(value, float) else str(value)


def _text_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """Columns in line: the first `words` of them to the left, figures to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(widths[column]) if column < words else cell.rjust(widths[column]) for column, cell in enumerate(row)).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
