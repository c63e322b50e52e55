"""Tables: a run for a terminal, and several runs beside each other."""

from collections.abc import Sequence
from typing import Any

from perdure.report.comparison import COST, FIGURES, RELATIVE, Row, compare, told_of
from perdure.report.reading import (
    COMPARED,
    Report,
    main_metric,
    matrix_of,
    metric_title,
    release_id,
    shorten,
    summary_of,
    task_name,
    task_names,
    title_of,
)

__all__ = ["comparison_table", "cost_table", "relative_table", "summary_table"]


def comparison_table(reports: Sequence[Report], metric: str | None = None) -> tuple[list[Row], str]:
    """Methods on one stream side by side, as plain data and as text, by a metric (None: the first run's main metric).

    Runs that differ only in seed and name are one row. `gap_closed` needs a fine_tune and a joint run among them, `kept` only fine_tune:
    the share of what fine-tuning loses on old tasks (from when each was learned to the end) that a method keeps. Fractions in the data,
    percent in the text.

    Raises:
        DataError: no reports, or one of them does not hold the metric.
    """
    rows = compare(reports, metric)
    several = "; means over seeds, ± half the 95 % interval" if _has_seeds(rows) else ""
    return rows, f"{metric_title(rows[0]['metric'])} after the last task, percent{several}\n{_methods_table(rows, FIGURES)}"


def relative_table(rows: Sequence[Row]) -> str:
    """What rows of `comparison_table` say beside fine-tuning and joint training, as text; empty where nothing of it is known."""
    keys = [key for key in RELATIVE if any(row.get(key) is not None for row in rows)]
    title = f"{metric_title(rows[0]['metric'])}, beside the references; percent, changes in points"
    return f"{title}\n{_methods_table(rows, keys)}" if keys else ""


def cost_table(rows: Sequence[Row]) -> str:
    """What training took, as text; empty where nothing of it is known."""
    keys = [key for key in COST if any(row.get(key) is not None for row in rows)]
    return f"Cost of training\n{_methods_table(rows, keys)}" if keys else ""


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
    lines = [_text_table(head, cells, words=1), "", "   ".join(figures), *_datasets(report), *_modalities(report)]
    if report.get("releases"):
        lines.append(f"released: {', '.join(map(release_id, report['releases']))}")
    return "\n".join(lines)


def _datasets(report: Report) -> list[str]:
    """Seen and unseen classes of each dataset after the last task, where the run's tasks are datasets."""
    rows: list[dict[str, Any]] = report.get("datasets") or []
    last = [row for row in rows if row["after"] == rows[-1]["after"]]
    keys = ("seen", "unseen", "H")
    cells = [[shorten(row["name"], 24), *(_cell(row[key]) for key in keys)] for row in last]
    return ["", _text_table([f"{metric_title(last[0]['metric'])} after the last task", *keys], cells, words=1)] if last else []


def _modalities(report: Report) -> list[str]:
    """From one modality into another after the last task, where the run's tasks are modalities."""
    told: dict[str, Any] = report.get("modalities") or {}
    cells = [
        [f"{pair['query']} to {pair['gallery']}", _cell(pair["recall@1"][-1]), _cell(pair["map"][-1])] for pair in told.get("pairs", [])
    ]
    return ["", _text_table(["across modalities after the last task", "Recall@1", "mAP"], cells, words=1)] if cells else []


def _has_seeds(rows: Sequence[Row]) -> bool:
    return any(len(row["seeds"]) > 1 for row in rows)


def _methods_table(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """A line for each method; how many seeds it has, where any has several."""
    words = ("run", "strategy", "policy")
    count = ("seeds",) if _has_seeds(rows) else ()
    cells: list[list[str]] = []
    for row in rows:
        named = [str(row[word]) for word in words]
        cells.append([*named, *(str(len(row[word])) for word in count), *(_estimate(row, key) for key in keys)])
    return _text_table([*words, *count, *(title_of(key).lower() for key in keys)], cells, words=3)


def _estimate(row: Row, key: str) -> str:
    """A figure with its interval, in the unit of its kind; with the number of seeds that have it, where some do not."""
    value, half, count = row.get(key), row["interval"].get(key), len(told_of(row, key))
    if value is None:
        return "-"
    scale, digits = (1, 1 if key == "steps_per_s" else 0) if key in COST else (100, 1)
    words = f"{scale * value:z,.{digits}f}" + (f" ± {scale * half:,.{digits}f}" if half is not None else "")
    return words if count == len(row["seeds"]) else f"{words} (n={count})"


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
