"""The sections of a run's page, each from the report alone to HTML; empty where there is nothing to show."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from perdure.metrics import continual
from perdure.report.charts import averages_chart, page_colour, tasks_chart, term_chart
from perdure.report.figures import figures, named_figures
from perdure.report.markup import bullet, chart, escaped, listed, percent, signed, table
from perdure.report.reading import (
    MANY_TASKS,
    Report,
    first_with,
    main_metric,
    matrix_of,
    metric_title,
    metrics_of,
    release_id,
    shorten,
    strategy_of,
    task_name,
    task_names,
)

__all__ = ["configuration", "definitions", "matrices", "over_time", "releases", "training"]


def matrices(runs: Sequence[Report]) -> str:
    """The main metric of the first run, with the other runs' beside it on one scale; the first run's other metrics folded away."""
    metric = main_metric(runs[0])
    shown = [run for run in runs if metric in metrics_of(run)]
    top = max(_highest(run, metric) for run in shown)
    compact = len(shown) > 2 or len(matrix_of(runs[0], metric)) > MANY_TASKS
    maps = "".join(_heat_map(run, metric, strategy_of(run) if len(shown) > 1 else "", top, compact) for run in shown)
    words = (
        f"<p>{escaped(metric_title(metric))} in percent. Row: the encoder after a task. Column: the test split it is asked about. "
        "The frame marks the task just learned; left of it is memory, with the change since it was learned; "
        "right of it, paler, are tasks that were still to come.</p>"
    )
    others = [name for name in metrics_of(runs[0]) if name != metric]
    folded = "".join(_heat_map(runs[0], name, metric_title(name), _highest(runs[0], name), compact=True) for name in others)
    more = f'<details><summary>{len(others)} more metrics</summary><div class="maps small">{folded}</div></details>' if others else ""
    return f'{words}<div class="maps" style="--narrowest:{_map_width(runs[0], compact)}px">{maps}</div>{more}'


def over_time(runs: Sequence[Report]) -> str:
    """What became of each task, what each of them lost, the average of every run, and figures by name; nothing before the second task."""
    report, metric = runs[0], main_metric(runs[0])
    if len(matrix_of(report, metric)) < 2:
        return ""
    shown = [run for run in runs if metric in metrics_of(run)]
    finetune = first_with(shown[1:], "fine_tune")
    dashed = finetune if len(matrix_of(report, metric)) <= MANY_TASKS else None  # so many lines twice would hide each other
    charts = (
        chart(f"Each task since it was learned{'; dashed: fine-tuning' if dashed else ''}", tasks_chart(report, dashed, metric)),
        chart("Average over the tasks learned so far", averages_chart(shown, metric)),
    )
    return f'<div class="charts">{"".join(charts)}</div>{_lost(report, finetune, metric)}{figures(runs)}'


def training(report: Report) -> str:
    """How long each task took, and each loss term over time."""
    entries: list[Mapping[str, Any]] = [entry for entry in report.get("train", []) if entry]
    if not entries:
        return ""
    rows: list[list[str]] = []
    for entry in entries:
        task = int(entry["task"])
        taken = entry.get("taken_over_from")
        note = f"<br><small>taken over from {escaped(taken)}</small>" if taken else ""
        terms = "".join(
            f"<span>{escaped(name.replace('_', ' '))}<b>{value:.3g}</b></span>" for name, value in (entry.get("terms") or {}).items()
        )
        figures = (f"{entry['seconds']:,.0f} s", f"{entry['images_per_s']:,.0f}")
        rows.append([f"{bullet(page_colour(task))}{escaped(task_name(report, task))}{note}", *figures, f'<div class="terms">{terms}</div>'])
    head = ["Task", "Trained for", "Images/s", "Loss terms, last epoch"]
    names = list(dict.fromkeys(name for entry in entries for name in entry.get("curves") or {}))
    charts = "".join(chart(escaped(name.replace("_", " ")), term_chart(entries, name)) for name in names)
    drawn = f'<p>Each weighted loss term by epoch, task after task.</p><div class="charts narrow">{charts}</div>' if charts else ""
    return table(head, rows, words=(0, 3)) + drawn


def releases(report: Report) -> str:
    """The tasks of the stream, and the releases with what a search through each of them finds."""
    parts: list[str] = []
    keys = [key for key in ("classes", "train", "query", "gallery", "items_read") if any(key in task for task in report.get("tasks", []))]
    titles = {"classes": "Classes", "train": "Train", "query": "Queries", "gallery": "Gallery", "items_read": "Items read"}
    rows = [
        [f"{bullet(page_colour(number))}{escaped(name)}", *(_count(report["tasks"][number].get(key)) for key in keys)]
        for number, name in enumerate(task_names(report))
    ]
    if rows:
        parts.append(table(["Task", *(titles[key] for key in keys)], rows, words=(0,)))
    bad = report.get("bad_items") or []
    if bad:
        first = f"{bad[0].get('where', '')}: {bad[0].get('why', '')}"
        parts.append(f'<p class="warning">{len(bad)} items could not be read and were left out; the first is {escaped(first)}.</p>')
    if report.get("releases"):
        parts.append(_released(report))
    return "".join(parts)


def definitions(runs: Sequence[Report]) -> str:
    """What each number means, word for word as stored beside it; without those that stand beside their number already."""
    told = named_figures(runs)
    entries = [(word, text) for word, text in (runs[0].get("definitions") or {}).items() if word not in told]
    return listed(entries) if entries else ""


def configuration(report: Report) -> str:
    """The resolved configuration."""
    if not report.get("config"):
        return ""
    return f"<pre>{escaped(yaml.safe_dump(dict(report['config']), sort_keys=False, allow_unicode=True, width=100))}</pre>"


def _highest(report: Report, metric: str) -> float:
    return max((value for row in matrix_of(report, metric) for value in row if value is not None), default=0.0) or 1.0


def _map_width(report: Report, compact: bool) -> int:
    """Pixels below which a heat map of this many tasks is hard to read."""
    return 120 + (50 if compact else 70) * max(len(task_names(report)), 2)


def _heat_map(report: Report, metric: str, title: str, top: float, compact: bool) -> str:
    """One accuracy matrix as a table whose cells are coloured from 0 to `top`; a compact one numbers its columns."""
    matrix = matrix_of(report, metric)
    names = [*task_names(report), "unseen"]
    head: list[str] = []
    for j in range(len(matrix[0])):
        name = names[min(j, len(names) - 1)]
        shown = str(j + 1) if compact and name != "unseen" else shorten(name, 14)
        head.append(f'<th scope="col" title="{escaped(name)}">{escaped(shown)}</th>')
    body: list[str] = []
    for t, row in enumerate(matrix):
        cells = "".join(_heat_cell(t, j, value, matrix[j][j] if j < t else None, top) for j, value in enumerate(row))
        name = task_name(report, t)
        after = t + 1 if compact else "after"
        body.append(f'<tr><th scope="row" title="{escaped(name)}"><i>{after}</i> {escaped(shorten(name, 14))}</th>{cells}</tr>')
    caption = f"<figcaption>{escaped(title)}</figcaption>" if title else ""
    table_head = f"<thead><tr><td></td>{''.join(head)}</tr></thead>"
    inner = f'<table class="heat{" compact" if compact else ""}">{table_head}<tbody>{"".join(body)}</tbody></table>'
    return f'<figure class="map">{caption}<div class="scroll">{inner}</div></figure>'


def _heat_cell(t: int, j: int, value: float | None, learned: float | None, top: float) -> str:
    if value is None:
        return '<td class="none">·</td>'
    depth = 92 * (max(value, 0.0) / top) ** 1.3  # a little steeper than linear: differences among good values are what is looked for
    kind = "now" if j == t else "later" if j > t else "past"
    strong = " strong" if depth > 70 and kind != "later" else ""
    change = "" if learned is None else f"<small>{signed(value - learned)}</small>"
    return f'<td class="{kind}{strong}" style="--depth:{depth:.0f}%"><b>{percent(value)}</b>{change}</td>'


def _lost(report: Report, finetune: Report | None, metric: str) -> str:
    """Bars: the forgetting of each earlier task, fine-tuning's below it."""
    own = continual.forgetting_by_task(matrix_of(report, metric))
    other = [] if finetune is None else continual.forgetting_by_task(matrix_of(finetune, metric))
    widest = max([abs(value) for value in [*own, *other] if value is not None], default=0.0) or 1.0
    rows: list[str] = []
    for j, value in enumerate(own):
        bars = _bar(value, widest, "own") + (_bar(other[j], widest, "other") if j < len(other) else "")
        name = task_name(report, j)
        rows.append(f'<div class="lost"><span title="{escaped(name)}">{escaped(shorten(name, 28))}</span><div>{bars}</div></div>')
    key = f'<i class="own"></i>{escaped(strategy_of(report))}' + ('<i class="other"></i>fine-tuning' if finetune is not None else "")
    caption = f'<figcaption>Points that each earlier task lost since its best<span class="key">{key}</span></figcaption>'
    return f'<figure class="losts">{caption}{"".join(rows)}</figure>'


def _bar(value: float | None, widest: float, kind: str) -> str:
    if value is None:
        return ""
    return f'<div class="bar"><i class="{kind}" style="width:{86 * max(value, 0.0) / widest:.1f}%"></i><b>{signed(-value)}</b></div>'


def _released(report: Report) -> str:
    search: Mapping[str, Mapping[str, Any]] = report.get("search") or {}
    keys = [
        key
        for key in ("search_recall@1", "search_t2i_recall@1", "search_t2i_recall@10")
        if any(_measured(found.get(key)) for found in search.values())
    ]
    rows: list[list[str]] = []
    for release in report["releases"]:
        name = release_id(release)
        known: dict[str, Any] = {**(release if isinstance(release, dict) else {}), **search.get(name, {})}
        after = task_name(report, known["task"]) if isinstance(known.get("task"), int) else ""
        values = [_measured(known.get(key)) for key in keys]
        means = [percent(float(np.mean(value)) if value else None) for value in values]
        policy = f"{known.get('policy', '')}{', compensated' if known.get('compensated') else ''}"
        words = (escaped(text) for text in (after, policy, known.get("merge", "")))
        rows.append([f"<code>{escaped(name)}</code>", *words, *means])
    note = "<p>Search over everything a release has indexed: mean over the tasks learned by then, in percent.</p>" if keys else ""
    return note + table(
        ["Release", "After", "Index policy", "Merge", *(metric_title(key.removeprefix("search_")) for key in keys)],
        rows,
        words=(0, 1, 2, 3),
    )


def _measured(values: Any) -> list[float]:
    """The numbers of a list that may hold None and NaN, or of a single number."""
    every: list[Any] = values if isinstance(values, list) else [values]
    return [float(value) for value in every if isinstance(value, int | float) and np.isfinite(value)]


def _count(value: Any) -> str:
    number: Any = len(value) if isinstance(value, list) else value
    return f"{number:,}" if isinstance(number, int) else "–"
