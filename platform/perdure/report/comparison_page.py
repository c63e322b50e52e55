"""Several runs compared: `comparison.json` with every figure, and the page that shows them."""

import json
from collections.abc import Sequence
from pathlib import Path

from perdure.errors import DataError
from perdure.files import write_whole
from perdure.metrics import continual
from perdure.report import sections
from perdure.report.charts import intervals_chart, methods_chart
from perdure.report.comparison import COST, DEFINITIONS, FIGURES, RELATIVE, Row, compare, told_of
from perdure.report.markup import LOGO, chart, escaped, listed, percent, signed, table, write_page
from perdure.report.methods import INTERVAL, Method, mean_report, methods_of
from perdure.report.reading import Report, main_metric, matrix_of, metric_title, metrics_of, task_names, title_of

__all__ = ["write_comparison"]

_SMALLER_IS_BETTER = ("forgetting", "seconds", "peak_memory_mb")
_CHANGES = ("new_difference", "backward_transfer", "forward_transfer", "intransigence")


def write_comparison(reports: Sequence[Report], folder: Path, metrics: Sequence[str] = ()) -> None:
    """Write `comparison.json` and `comparison.html` of runs on one stream.

    comparison.json: {metrics, methods: rows of `compare` for each metric, runs: the figures of each run for each metric, definitions}.

    Args:
        reports: of the runs; those that differ only in their seed are one method.
        folder: is made if need be.
        metrics: to compare by; none = the first run's main metric.
    Raises:
        DataError: no reports, one of them does not hold a metric, or the first holds none that was measured.
    """
    if not reports:
        raise DataError("there is no run to compare; name at least one")
    chosen = list(dict.fromkeys(metrics)) or [main_metric(reports[0])]
    by_metric = {metric: compare(reports, metric) for metric in chosen}
    methods = [row for rows in by_metric.values() for row in rows]
    runs = [
        {**{key: row[key] for key in ("strategy", "policy", "metric")}, "method": row["run"], **one}
        for row in methods
        for one in row["per_seed"]
    ]
    definitions = {**DEFINITIONS, **{metric: text for metric in chosen if (text := _definition(metric, reports))}}
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"metrics": chosen, "methods": methods, "runs": runs, "definitions": definitions}
    write_whole(folder / "comparison.json", json.dumps(plain, indent=1))
    _write_page(folder / "comparison.html", reports, by_metric, definitions)


def _write_page(path: Path, reports: Sequence[Report], by_metric: dict[str, list[Row]], definitions: dict[str, str]) -> None:
    methods = methods_of(reports)
    first = next(iter(by_metric.values()))
    told = [key for key in (*FIGURES, *RELATIVE, *COST) if any(row.get(key) is not None for rows in by_metric.values() for row in rows)]
    words = {key: definitions[key] for key in told} | {metric: definitions[metric] for metric in by_metric if metric in definitions}
    contents: list[tuple[str, str]] = []
    for metric, rows in by_metric.items():
        contents.append((f"{metric_title(metric)} after the last task", _after_the_last_task(rows, _over_time(methods, metric))))
    contents += [
        ("What it took", _table(first, [key for key in COST if key in told])),
        ("Task by task", _task_by_task(methods, next(iter(by_metric)))),
        ("What the numbers mean", listed([(_word(key), text) for key, text in {**words, "interval": INTERVAL}.items()])),
    ]
    several = len(methods) < len(reports)
    count = f"{len(methods)} methods, {len(reports)} runs" if several else f"{len(reports)} runs" if len(reports) > 1 else "One run"
    header = (
        f'<header><p class="brand">{LOGO}Perdure<span>comparison</span></p><h1>{count}</h1>'
        f'<p class="lead">{escaped(", ".join(map(metric_title, by_metric)))}: what is left of old tasks, and how well the new one was '
        "learned.</p></header>"
    )
    body = "".join(f"<section><h2>{escaped(title)}</h2>{content}</section>" for title, content in contents if content)
    write_page(path, "Comparison · Perdure", header + body)


def _after_the_last_task(rows: Sequence[Row], over_time: str) -> str:
    """The figures, how the two that pull against each other scatter, what led there, and what all is beside the references."""
    seeds = any(len(row["seeds"]) > 1 for row in rows)
    note = "Percent; forgetting and changes in points; the best of each column stands out."
    spread = " Behind ±: half the 95 % interval of the mean over seeds." if seeds else ""
    figures, relative = ([key for key in keys if any(row.get(key) is not None for row in rows)] for keys in (FIGURES, RELATIVE))
    drawn = intervals_chart([(row["run"], told_of(row, "old"), told_of(row, "new")) for row in rows])
    caption = "● old tasks, ◆ new task; line: 95 % interval; small marks: seeds" if seeds else "● old tasks, ◆ new task"
    beside = f"<h3>Beside the references</h3>{_table(rows, relative)}" if relative else ""
    return f'<p>{note}{spread}</p>{_table(rows, figures)}<div class="charts">{chart(caption, drawn)}{over_time}</div>{beside}'


def _over_time(methods: Sequence[Method], metric: str) -> str:
    """The average over the tasks learned so far; nothing before the second task."""
    lines: list[tuple[str, list[list[float | None]]]] = []
    for method in methods:
        lines.append((method.name, [continual.averages(matrix_of(run, metric)) for run in method.runs if metric in metrics_of(run)]))
    if max((len(values) for _, seeds in lines for values in seeds), default=0) < 2:
        return ""
    words = "Average over the tasks learned so far"
    several = any(len(seeds) > 1 for _, seeds in lines)
    caption = f"{words}; thin: each seed; bars: 95 % interval of the mean, cut where the lines end" if several else words
    return chart(caption, methods_chart(lines))


def _task_by_task(methods: Sequence[Method], metric: str) -> str:
    """The matrices, means over the seeds of each method."""
    shown = [mean_report(method, metric) for method in methods if any(metric in metrics_of(run) for run in method.runs)]
    if not shown or not task_names(shown[0]) or main_metric(shown[0]) != metric:
        return ""
    return sections.matrices(shown)


def _table(rows: Sequence[Row], keys: Sequence[str]) -> str:
    if not keys:
        return ""
    several = any(len(row["seeds"]) > 1 for row in rows)
    head = ["Method" if several else "Run", "Strategy", "Index policy", *(["Seeds"] if several else []), *map(title_of, keys)]
    best = {key: _best(rows, key) for key in keys if key in (*FIGURES, *COST)}
    cells: list[list[str]] = []
    for row in rows:
        words = [f"<b>{escaped(row['run'])}</b>", escaped(row["strategy"]), escaped(row["policy"])]
        seeds = [str(len(row["seeds"]))] if several else []
        cells.append([*words, *seeds, *(_cell(row, key, row.get(key) is not None and row[key] == best.get(key)) for key in keys)])
    return table(head, cells, words=(0, 1, 2))


def _best(rows: Sequence[Row], key: str) -> float | None:
    """The best of a column, where there is something to choose from."""
    measured = [row[key] for row in rows if row.get(key) is not None]
    if len(rows) < 2 or not measured:
        return None
    return min(measured) if key in _SMALLER_IS_BETTER else max(measured)


def _cell(row: Row, key: str, best: bool) -> str:
    value, half, count = row.get(key), row["interval"].get(key), len(told_of(row, key))
    if value is None:
        return percent(None)
    if key in COST:
        digits = 1 if key == "steps_per_s" else 0
        shown, spread = f"{value:,.{digits}f}", None if half is None else f"{half:,.{digits}f}"
    else:
        shown, spread = signed(value) if key in _CHANGES else percent(value), None if half is None else percent(half)
    note = "" if count == len(row["seeds"]) else f" of {count}"
    return (f"<b class=best>{shown}</b>" if best else shown) + (f"<small> ± {spread}</small>" if spread else "") + note


def _word(key: str) -> str:
    words = title_of(key)
    return metric_title(key) if words == key.replace("_", " ") else words


def _definition(metric: str, reports: Sequence[Report]) -> str | None:
    """What a metric means, as it stands in the first report that tells it."""
    base, _, k = metric.partition("@")
    names = [metric, f"{base}@k of a task", f"{base}@k"] if k.isdigit() else [metric, metric.removeprefix("t2i_").removeprefix("i2t_")]
    for report in reports:
        stored = report.get("definitions") or {}
        for name in names:
            if name in stored:
                return str(stored[name])
    return None
