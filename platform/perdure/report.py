"""A run as something to look at: one self-contained HTML page, tables for a terminal, and the comparison of several runs.

The page needs no network and no script: pictures are inside it, charts are SVG in the page's own colours, so that it is as readable in
a dark theme, on paper and in ten years. Numbers come from `report.json`; what is not a number (example queries, Gram matrices) from
`ReportPictures`.
"""

import base64
import html
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from perdure.errors import DataError
from perdure.metrics import continual

__all__ = ["Example", "ReportPictures", "comparison_table", "summary_table", "write_comparison", "write_html", "write_run_html"]

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One query and what came back, best first."""

    kind: str  # "image" or "text"
    text: str  # the words of a text query; of a picture, what it shows
    image: bytes | None  # PNG or JPEG of an image query
    label: str  # the class that would be right
    hits: list[dict[str, Any]]  # id, label, score, encoder, png (bytes, or None), right (bool)


@dataclass(frozen=True, eq=False)
class ReportPictures:
    """What a report shows beside its numbers."""

    examples: list[Example] = field(default_factory=list)
    grams: dict[str, NDArray[np.floating[Any]]] = field(default_factory=dict)  # name -> (n, n); "teacher" and "student" are subtracted too
    beside: list[Report] = field(default_factory=list)  # reports of other runs on the same stream, fine_tune first

    def save(self, folder: Path) -> None:
        """Keep examples and Gram matrices in a run's folder, so that the page can be written again."""
        folder.mkdir(parents=True, exist_ok=True)
        plain = [asdict(example) for example in self.examples]
        (folder / "examples.json").write_text(json.dumps(plain, default=lambda data: base64.b64encode(data).decode()), encoding="utf-8")
        np.savez_compressed(
            folder / "grams.npz", allow_pickle=False, **{name: np.asarray(gram, np.float32) for name, gram in self.grams.items()}
        )

    @classmethod
    def load(cls, folder: Path, beside: Sequence[Report] = ()) -> "ReportPictures":
        """What `save` left in a folder; no pictures where it left none."""
        if not (folder / "examples.json").exists():
            return cls(beside=list(beside))
        examples = [
            Example(
                **{
                    **plain,
                    "image": _unpack(plain["image"]),
                    "hits": [{**hit, "png": _unpack(hit.get("png"))} for hit in plain["hits"]],
                }
            )
            for plain in json.loads((folder / "examples.json").read_text(encoding="utf-8"))
        ]
        with np.load(folder / "grams.npz") as stored:
            return cls(examples, {name: stored[name] for name in stored.files}, list(beside))


def write_run_html(folder: Path, beside: Sequence[Report] = ()) -> Path:
    """Write `report.html` of a run's folder from its `report.json` and saved pictures; returns its path.

    Raises:
        DataError: the folder has no report.
    """
    source = folder / "report.json"
    if not source.exists():
        raise DataError(f"{folder}: no report.json in it; it is written when a run ends: python jobs/train.py CONFIG name={folder.name}")
    path = folder / "report.html"
    write_html(json.loads(source.read_text(encoding="utf-8")), ReportPictures.load(folder, beside), path)
    return path


def write_html(report: Report, pictures: ReportPictures, path: Path) -> None:
    """Write one self-contained page: matrices, forgetting, examples, training, Gram matrices, releases, definitions, configuration."""
    runs = [report, *pictures.beside]
    sections: list[tuple[str, str, str]] = [
        ("knows", "What it knows", _matrices(report, pictures.beside)),
        ("forgets", "What it forgets", _over_time(runs)),
        ("finds", "What it finds", _examples(pictures.examples)),
        ("learned", "How it learned", _training(report)),
        ("neighbours", "What distillation keeps", _grams(pictures.grams)),
        ("released", "What is released", _releases(report)),
        ("means", "What the numbers mean", _definitions(report)),
        ("config", "How to run it again", _config(report)),
    ]
    body = [_header(report, pictures.beside)]
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in shown)
    body.append(f'<nav aria-label="Sections">{links}</nav>')
    body += [
        f'<section id="{key}"><h2><span class="number">{number}</span>{title}</h2>{content}</section>'
        for number, (key, title, content) in enumerate(shown, start=1)
    ]
    _write_page(path, f"{report['name']} · Perdure", "".join(body))


def comparison_table(reports: Sequence[Report]) -> tuple[list[dict[str, Any]], str]:
    """Runs on one stream side by side, as plain data and as text.

    `gap_closed` needs a joint run among them, `kept` only a fine_tune run: the share of what fine-tuning loses on old tasks (from when
    each was learned to the end) that a method keeps. Accuracies are fractions in the rows, percent in the text.
    """
    finetune = _first_with(reports, "fine_tune")
    joint = _first_with(reports, "joint")
    rows: list[dict[str, Any]] = []
    for report in reports:
        row: dict[str, Any] = {
            "run": report["name"],
            "strategy": _strategy(report),
            "policy": _policy(report),
            "metric": _main_metric(report),
        }
        summary = _summary(report)
        row |= {key: summary.get(key) for key in ("old", "new", "last_average", "average_incremental", "forgetting")}
        row["gap_closed"] = _gap(summary, finetune, None if joint is None else _summary(joint).get("old"))
        row["kept"] = _gap(summary, finetune, None if finetune is None else _when_learned(finetune))
        rows.append(row)
    titles = {
        "run": "run",
        "strategy": "strategy",
        "old": "old",
        "new": "new",
        "last_average": "all",
        "average_incremental": "incremental",
        "forgetting": "forgetting",
        "gap_closed": "gap closed",
        "kept": "kept",
    }
    cells = [[_plain(row[key]) for key in titles] for row in rows]
    metric = _metric_title(rows[0]["metric"]) if rows else ""
    return rows, f"{metric}, percent, after the last task\n{_text_table(list(titles.values()), cells)}"


def write_comparison(reports: Sequence[Report], folder: Path) -> None:
    """Write `comparison.json` and `comparison.html` of runs on one stream."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, _ = comparison_table(reports)
    definitions = {
        key: continual.DEFINITIONS[key] for key in ("old", "new", "last_average", "average_incremental", "forgetting", "gap_closed")
    }
    definitions["kept"] = _KEPT
    (folder / "comparison.json").write_text(json.dumps({"runs": rows, "definitions": definitions}, indent=1), encoding="utf-8")
    names = ", ".join(_e(row["run"]) for row in rows)
    header = (
        f'<header><p class="brand">{_MARK}Perdure</p><h1>{len(rows)} runs, one stream</h1>'
        f'<p class="lead">{names}: what each still knows of old tasks, and how well it learned the new one.</p></header>'
    )
    items = "".join(f"<dt>{_e(_title_of(key))}</dt><dd>{_e(text)}</dd>" for key, text in definitions.items())
    body = [
        header,
        f"<section><h2>After the last task</h2>{_comparison_rows(rows)}</section>",
        f"<section><h2>Over time</h2>{_over_time(reports)}</section>",
        f"<section><h2>Accuracy matrices</h2>{_matrices(reports[0], list(reports[1:])) if reports else ''}</section>",
        f"<section><h2>What the numbers mean</h2><dl>{items}</dl></section>",
    ]
    _write_page(folder / "comparison.html", "Comparison · Perdure", "".join(body))


def summary_table(report: Report) -> str:
    """The accuracy matrix of the main metric and the figures of a run, for a terminal."""
    metric = _main_metric(report)
    matrix = _matrix(report, metric)
    names = _task_names(report)
    head = [f"{_metric_title(metric)}, percent", *(_short(name, 14) for name in names)]
    cells = [[f"after {_short(names[t], 20)}", *(_plain(value) for value in row[: len(names)])] for t, row in enumerate(matrix)]
    summary = _summary(report)
    keys = ("old", "new", "last_average", "average_incremental", "forgetting", "unseen", "H")
    figures = [f"{_title_of(key).lower()} {_plain(summary[key])}" for key in keys if summary.get(key) is not None]
    releases = [str(_release_id(release)) for release in report.get("releases", [])]
    lines = [_text_table(head, cells), "", "   ".join(figures)]
    if releases:
        lines.append(f"released: {', '.join(releases)}")
    return "\n".join(lines)


# -- what a report says --------------------------------------------------------------------------------------------------------


_KEPT = "(A_method - A_finetune) / (A_learned - A_finetune) on old; A_learned = fine-tuning's own accuracy on each old task when it was learned."
_TITLES = {
    "old": "Old tasks",
    "new": "New task",
    "last_average": "All tasks",
    "seen": "Seen classes",
    "unseen": "Unseen classes",
    "H": "Harmonic mean",
    "forgetting": "Forgetting",
    "forgetting_first": "Forgetting since learned",
    "backward_transfer": "Backward transfer",
    "average_incremental": "Average incremental",
    "gap_closed": "Gap closed",
    "kept": "Kept",
}
_COUNTS = ("queries", "lone_queries", "median_rank")


def _title_of(key: str) -> str:
    return _TITLES.get(key, key.replace("_", " ").capitalize())


def _strategy(report: Report) -> str:
    part = report.get("config", {}).get("strategy", "?")
    return str(part["name"]) if isinstance(part, Mapping) else str(part)


def _policy(report: Report) -> str:
    return str(report.get("config", {}).get("index", {}).get("policy", ""))


def _part(report: Report, *path: str) -> str:
    """The name of a part in the config, or an empty string."""
    value: Any = report.get("config", {})
    for key in path:
        value = value.get(key, {}) if isinstance(value, Mapping) else {}
    return str(value.get("name", "")) if isinstance(value, Mapping) else str(value)


def _metrics(report: Report) -> list[str]:
    """Metrics between 0 and 1 that were measured, in the order of the report."""
    return [
        name
        for name in report.get("metrics", {})
        if not name.endswith(_COUNTS) and any(value is not None for row in _matrix(report, name) for value in row)
    ]


def _main_metric(report: Report) -> str:
    """The metric that the run itself was judged by, else Recall@1, else the first."""
    names = _metrics(report)
    for name in (report.get("summary", {}).get("metric"), "recall@1"):
        if name in names:
            return str(name)
    if not names:
        raise DataError(f"run '{report.get('name', '?')}': its report holds no metric that was measured")
    return names[0]


def _metric_title(name: str) -> str:
    for prefix, words in (("t2i_", "Text to image, "), ("i2t_", "Image to text, "), ("search_", "Whole gallery, ")):
        if name.startswith(prefix):
            return words + _metric_title(name.removeprefix(prefix))
    return {"map": "mAP", "map@r": "MAP@R"}.get(name, name.replace("recall@", "Recall@"))


def _matrix(report: Report, name: str) -> list[list[float | None]]:
    """Rows of a metric with None for what was not measured (NaN is not a measurement)."""
    rows: list[list[float | None]] = report["metrics"][name]["matrix"]
    return [[None if value is None or np.isnan(value) else float(value) for value in row] for row in rows]


def _task_names(report: Report) -> list[str]:
    return [str(task.get("name") or f"task {number}") for number, task in enumerate(report.get("tasks", []), start=1)]


def _summary(report: Report) -> dict[str, float | None]:
    stored = report.get("summary", {})
    return continual.summarise(_matrix(report, _main_metric(report)), stored.get("unseen"))


def _when_learned(report: Report) -> float | None:
    matrix = _matrix(report, _main_metric(report))
    learned = [matrix[j][j] for j in range(len(matrix) - 1)]
    measured = [value for value in learned if value is not None]
    return float(np.mean(measured)) if measured else None


def _first_with(reports: Sequence[Report], strategy: str) -> Report | None:
    return next((report for report in reports if _strategy(report) == strategy), None)


def _gap(summary: Mapping[str, float | None], finetune: Report | None, reference: float | None) -> float | None:
    old, lower = summary.get("old"), None if finetune is None else _summary(finetune).get("old")
    if old is None or lower is None or reference is None:
        return None
    return continual.gap_closed(old, lower, reference)


def _release_id(release: Any) -> Any:
    return release["id"] if isinstance(release, Mapping) else release


# -- text ----------------------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> str:
    """A cell of a text table: fractions as percent."""
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if isinstance(value, float) else str(value)


def _text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 or not _is_figure(rows, column) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _is_figure(rows: Sequence[Sequence[str]], column: int) -> bool:
    return all(row[column] == "-" or row[column].replace(".", "").removeprefix("-").isdigit() for row in rows)


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


# -- sections of the page --------------------------------------------------------------------------------------------------------


def _e(text: object) -> str:
    return html.escape(str(text))


def _percent(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{100 * value:.1f}{unit}"


def _signed(value: float) -> str:
    """Points with a typographic minus; a change that rounds to nothing has no sign."""
    rounded = round(100 * value, 1)
    return "±0.0" if rounded == 0 else f"{'+' if rounded > 0 else '−'}{abs(rounded):.1f}"


def _header(report: Report, beside: Sequence[Report]) -> str:
    summary = _summary(report)
    metric = _main_metric(report)
    facts = [
        ("Strategy", _strategy(report)),
        ("Data", _part(report, "stream", "dataset")),
        ("Stream", _part(report, "stream", "kind").replace("_", " ")),
        ("Encoder", _part(report, "encoder")),
        ("Index policy", _policy(report)),
        ("Release", str(_release_id(report["releases"][-1])) if report.get("releases") else ""),
    ]
    shown = "".join(f"<div><dt>{title}</dt><dd>{_e(value)}</dd></div>" for title, value in facts if value)
    return (
        f'<header><p class="brand">{_MARK}Perdure<span>run report</span></p><h1>{_e(report["name"])}</h1>'
        f'<p class="lead">{_verdict(report, summary, metric, beside)}</p><dl class="facts">{shown}</dl>{_tiles(report, summary, beside)}</header>'
    )


def _verdict(report: Report, summary: Mapping[str, float | None], metric: str, beside: Sequence[Report]) -> str:
    """The run in two sentences."""
    count = len(_matrix(report, metric))
    tasks = "one task" if count == 1 else f"{count} tasks"
    words = f"After {tasks}, {_e(_metric_title(metric))} is <b>{_percent(summary['last_average'], ' %')}</b> on average over everything learned."
    forgotten = summary["forgetting"]
    if forgotten is None:
        return f"{words} There is no earlier task to forget yet."
    if round(100 * forgotten, 1) > 0:
        words += f" Earlier tasks lost <b>{_percent(forgotten)} points</b> since their best"
    else:
        words += " Earlier tasks lost <b>nothing</b>"
    finetune = _first_with(beside, "fine_tune")
    lost = None if finetune is None else _summary(finetune)["forgetting"]
    return f"{words}; plain fine-tuning loses {_percent(lost)}." if lost is not None else f"{words}."


def _tiles(report: Report, summary: Mapping[str, float | None], beside: Sequence[Report]) -> str:
    finetune = _first_with([report, *beside], "fine_tune")
    other = None if finetune is None or finetune is report else _summary(finetune)
    joint = _first_with([report, *beside], "joint")
    figures: dict[str, float | None] = {
        key: summary.get(key) for key in ("last_average", "old", "new", "forgetting", "average_incremental", "unseen")
    }
    if joint is not None and joint is not report and other is not None:
        figures["gap_closed"] = _gap(summary, finetune, _summary(joint).get("old"))
    tiles: list[str] = []
    for key, value in figures.items():
        if value is None:
            continue
        note = {
            "forgetting": "points below their best",
            "gap_closed": "from fine-tuning to joint",
            "average_incremental": "over the run's life",
        }.get(key, "")
        reference = None if other is None else other.get(key)
        if reference is not None:
            note = f"{_signed(value - reference)} against fine-tuning"
        unit = "" if key == "forgetting" else "<small>%</small>"
        tiles.append(f'<div class="tile"><p>{_title_of(key)}</p><strong>{_percent(value)}{unit}</strong><span>{note}</span></div>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _matrices(report: Report, beside: Sequence[Report]) -> str:
    """The main metric large, with the same metric of the runs beside it; then the other metrics, folded."""
    main = _main_metric(report)
    same = [other for other in beside if main in _metrics(other)]
    top = max((value or 0.0 for run in [report, *same] for row in _matrix(run, main) for value in row), default=1.0)
    figures = [_heat_map(run, main, f"{_strategy(run)}" if same else "", top) for run in [report, *same]]
    words = (
        f"<p>{_e(_metric_title(main))} in percent. Row: the encoder after a task. Column: the test split it is asked about. "
        "The frame marks the task just learned; left of it is memory, with the change since it was learned; "
        "right of it, paler, are tasks still to come.</p>"
    )
    others = [name for name in _metrics(report) if name != main]
    folded = "".join(_heat_map(report, name, _metric_title(name)) for name in others)
    more = f'<details><summary>{len(others)} more metrics</summary><div class="maps small">{folded}</div></details>' if others else ""
    return f'{words}<div class="maps">{"".join(figures)}</div>{more}'


def _heat_map(report: Report, metric: str, title: str, top: float | None = None) -> str:
    matrix = _matrix(report, metric)
    names = _task_names(report)
    width = len(matrix[0])
    columns = [names[j] if j < len(names) else "unseen" for j in range(width)]
    top = top or max((value or 0.0 for row in matrix for value in row), default=1.0) or 1.0
    head = "".join(f'<th scope="col" title="{_e(name)}">{_e(_short(name, 16))}</th>' for name in columns)
    body: list[str] = []
    for t, row in enumerate(matrix):
        cells: list[str] = []
        for j, value in enumerate(row):
            if value is None:
                cells.append('<td class="none">·</td>')
                continue
            depth = 92 * (max(value, 0.0) / top) ** 1.3
            learned = matrix[j][j] if j < t else None
            change = "" if learned is None else f"<small>{_signed(value - learned)}</small>"
            kind = "now" if j == t else "later" if j > t else ""
            strong = " strong" if depth > 52 and kind != "later" else ""
            cells.append(f'<td class="{kind}{strong}" style="--depth:{depth:.0f}%"><b>{_percent(value)}</b>{change}</td>')
        name = names[t] if t < len(names) else f"task {t + 1}"
        body.append(f'<tr><th scope="row" title="{_e(name)}"><i>after</i> {_e(_short(name, 16))}</th>{"".join(cells)}</tr>')
    caption = f"<figcaption>{_e(title)}</figcaption>" if title else ""
    return f'<figure class="map">{caption}<div class="scroll"><table class="heat"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div></figure>'


def _over_time(runs: Sequence[Report]) -> str:
    """Accuracy on each task over time, fine-tuning dashed beside it, and the average of every run."""
    report = runs[0]
    metric = _main_metric(report)
    if len(_matrix(report, metric)) < 2:
        return ""
    comparable = [run for run in runs if metric in _metrics(run) and len(_matrix(run, metric)) >= 2]
    finetune = next((run for run in comparable[1:] if _strategy(run) == "fine_tune"), None)
    dashed = "" if finetune is None else f" Solid: {_e(_strategy(report))}. Dashed: fine-tuning alone."
    charts = (
        f'<figure class="chart"><figcaption>Each task, from when it was learned.{dashed}</figcaption>{_draw(lambda axes: _tasks_chart(axes, report, finetune, metric))}</figure>'
        f'<figure class="chart"><figcaption>Average over all tasks learned so far</figcaption>{_draw(lambda axes: _averages_chart(axes, comparable, metric))}</figure>'
    )
    return f'<div class="charts">{charts}</div>{_lost(report, finetune, metric)}'


def _lost(report: Report, finetune: Report | None, metric: str) -> str:
    """Forgetting of each old task, beside fine-tuning's."""
    names = _task_names(report)
    own = continual.forgetting_by_task(_matrix(report, metric))
    other = None if finetune is None else continual.forgetting_by_task(_matrix(finetune, metric))
    widest = max([abs(value) for value in [*own, *(other or [])] if value is not None], default=0.0) or 1.0
    rows: list[str] = []
    for j, value in enumerate(own):
        bars = _bar(value, widest, "own")
        if other is not None and j < len(other):
            bars += _bar(other[j], widest, "other")
        name = names[j] if j < len(names) else f"task {j + 1}"
        rows.append(f'<div class="lost"><span title="{_e(name)}">{_e(_short(name, 28))}</span><div>{bars}</div></div>')
    key = f'<i class="own"></i>{_e(_strategy(report))}' + ("" if finetune is None else '<i class="other"></i>fine-tuning alone')
    return f'<figure class="losts"><figcaption>Points each earlier task lost since its best<span class="key">{key}</span></figcaption>{"".join(rows)}</figure>'


def _bar(value: float | None, widest: float, kind: str) -> str:
    if value is None:
        return ""
    length = 100 * max(value, 0.0) / widest
    return f'<div class="bar"><i class="{kind}" style="width:{length * 0.86:.1f}%"></i><b>{_signed(-value)}</b></div>'


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    right = sum(bool(example.hits and example.hits[0].get("right")) for example in examples)
    words = f"<p>{right} of these {len(examples)} queries have the right answer first. A green frame is right, a red one is not; the figure is the score.</p>"
    return words + "".join(_example(example) for example in examples)


def _example(example: Example) -> str:
    hits: list[str] = []
    for place, hit in enumerate(example.hits, start=1):
        right = bool(hit.get("right"))
        picture = _picture(hit.get("png"), str(hit.get("label", "")))
        mark = '<i class="mark" title="right">✓</i>' if right else '<i class="mark" title="wrong">✕</i>'
        made = _e(str(hit.get("encoder", "")).removeprefix("encoder/"))
        about = f"{place}. {hit.get('id', '')}: {hit.get('label', '')}, made by {hit.get('encoder', '?')}"
        hits.append(
            f'<li class="{"right" if right else "wrong"}" title="{_e(about)}">{picture}{mark}<b>{float(hit["score"]):.2f}</b>'
            f"<span>{_e(hit.get('label', ''))}</span><small>{made}</small></li>"
        )
    if example.kind == "text":
        query = f"<blockquote>{_e(example.text)}</blockquote><span>{_e(example.label)}</span>"
    else:
        query = f"{_picture(example.image, example.label)}<span>{_e(example.text or example.label)}</span>"
    return f'<div class="example {_e(example.kind)}"><div class="query"><small>{_e(example.kind)} query</small>{query}</div><ol>{"".join(hits)}</ol></div>'


def _picture(data: bytes | None, words: str) -> str:
    if not data:
        return '<div class="nopicture"></div>'
    kind = "jpeg" if data[:3] == b"\xff\xd8\xff" else "png"
    return f'<img alt="{_e(words)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _training(report: Report) -> str:
    entries = [entry for entry in report.get("train", []) if entry]
    if not entries:
        return ""
    names = _task_names(report)
    rows: list[str] = []
    for entry in entries:
        terms = " ".join(f"<span>{_e(name)}<b>{value:.3g}</b></span>" for name, value in entry.get("terms", {}).items())
        taken = entry.get("taken_over_from")
        note = f"<br><small>taken over from {_e(taken)}</small>" if taken else ""
        name = names[entry["task"]] if entry["task"] < len(names) else f"task {entry['task'] + 1}"
        items = report["tasks"][entry["task"]].get("train", "") if entry["task"] < len(report.get("tasks", [])) else ""
        rows.append(
            f'<tr><td><i class="dot" style="background:{_task_colour(entry["task"])}"></i>{_e(name)}{note}</td><td class="n">{_count(items)}</td>'
            f'<td class="n">{entry["seconds"]:,.0f} s</td><td class="n">{entry["images_per_s"]:,.0f}</td><td class="terms">{terms}</td></tr>'
        )
    table = (
        '<div class="scroll"><table class="plain"><thead><tr><th>Task</th><th class="n">Items</th><th class="n">Trained for</th><th class="n">Images/s</th>'
        f"<th>Loss terms, last epoch</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    terms = list(dict.fromkeys(term for entry in entries for term in entry.get("curves", {})))
    charts = "".join(
        f'<figure class="chart"><figcaption>{_e(term.replace("_", " "))}</figcaption>{_draw(lambda axes, term=term: _term_chart(axes, entries, term), (3.3, 1.9))}</figure>'
        for term in terms
    )
    words = (
        "<p>Each weighted term of the loss, averaged over an epoch; one task after the other, in the task's colour.</p>" if charts else ""
    )
    return f'{table}{words}<div class="charts three">{charts}</div>'


def _grams(grams: Mapping[str, NDArray[np.floating[Any]]]) -> str:
    if not grams:
        return ""
    arrays = {name: np.asarray(gram, dtype=np.float64) for name, gram in grams.items()}
    low = min(float(gram.min()) for gram in arrays.values())
    high = max(float(gram.max()) for gram in arrays.values())
    figures = [_gram_figure(name.replace("_", " "), gram, low, high) for name, gram in arrays.items()]
    words = ""
    teacher, student = arrays.get("teacher"), arrays.get("student")
    if teacher is not None and student is not None and teacher.shape == student.shape:
        difference = np.abs(student - teacher)
        figures.append(_gram_figure("absolute difference", difference, 0.0, high - min(low, 0.0)))
        words = f" On average a similarity moved by <b>{difference.mean():.3f}</b>."
    ramp = f'<div class="ramp"><span>{low:.2f}</span><img alt="colour scale" src="{_png(np.linspace(0, 1, 128)[None, :], 0.0, 1.0)}"><span>{high:.2f}</span></div>'
    return (
        "<p>Inner products of the same pictures, sorted by class, under the encoder before (teacher) and after (student) the last task. "
        f"Correlation distillation asks that this picture stays, not the coordinates.{words}</p>"
        f'<div class="grams">{"".join(figures)}</div>{ramp}'
    )


def _gram_figure(title: str, gram: NDArray[np.float64], low: float, high: float) -> str:
    size = f"{gram.shape[0]} × {gram.shape[1]}"
    return f'<figure><img class="gram" alt="Gram matrix, {_e(title)}" src="{_png(gram, low, high)}"><figcaption>{_e(title)}<small>{size}</small></figcaption></figure>'


def _releases(report: Report) -> str:
    names = _task_names(report)
    tasks = "".join(
        f'<tr><td><i class="dot" style="background:{_task_colour(number)}"></i>{_e(names[number])}</td><td class="n">{_count(task.get("classes", ""))}</td>'
        f'<td class="n">{_count(task.get("train", ""))}</td><td class="n">{_count(task.get("query", ""))}</td><td class="n">{_count(task.get("gallery", ""))}</td></tr>'
        for number, task in enumerate(report.get("tasks", []))
    )
    stream = (
        '<div class="scroll"><table class="plain"><thead><tr><th>Task</th><th class="n">Classes</th><th class="n">Train</th><th class="n">Queries</th>'
        f'<th class="n">Gallery</th></tr></thead><tbody>{tasks}</tbody></table></div>'
    )
    search: Mapping[str, Mapping[str, Any]] = report.get("search", {})
    figures = [
        key
        for key in ("recall@1", "t2i_recall@1", "t2i_recall@10")
        if any(key in found for found in search.values() if isinstance(found, Mapping))
    ]
    rows: list[str] = []
    for release in report.get("releases", []):
        found: Any = search.get(str(_release_id(release)), {})
        known = {**release, **found} if isinstance(release, Mapping) else dict(found)
        task = known.get("task")
        after = names[task] if isinstance(task, int) and task < len(names) else ""
        measured = "".join(f'<td class="n">{_mean_percent(known.get(key))}</td>' for key in figures)
        rows.append(
            f"<tr><td><code>{_e(_release_id(release))}</code></td><td>{_e(after)}</td><td>{_e(known.get('policy', ''))}</td><td>{_e(known.get('merge', ''))}</td>{measured}</tr>"
        )
    heads = "".join(f'<th class="n">{_e(_metric_title(key))}</th>' for key in figures)
    releases = (
        '<div class="scroll"><table class="plain"><thead><tr><th>Release</th><th>After</th><th>Index policy</th><th>Merge</th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    note = "<p>Search over everything a release has indexed, average over the tasks learned so far, in percent.</p>" if figures else ""
    bad = report.get("bad_items", [])
    skipped = (
        f'<p class="warning">{len(bad)} items could not be read and were left out, the first: {_e(bad[0].get("where", ""))}: {_e(bad[0].get("why", ""))}</p>'
        if bad
        else ""
    )
    return f"{stream}{skipped}{note}{releases if rows else ''}"


def _mean_percent(values: Any) -> str:
    measured = [value for value in (values if isinstance(values, list) else [values]) if isinstance(value, int | float)]
    return _percent(float(np.mean(measured))) if measured else "–"


def _count(value: Any) -> str:
    number = len(cast("list[Any]", value)) if isinstance(value, list | tuple) else value
    return f"{number:,}" if isinstance(number, int) else _e(number)


def _definitions(report: Report) -> str:
    items = "".join(f"<dt>{_e(key)}</dt><dd>{_e(text)}</dd>" for key, text in report.get("definitions", {}).items())
    return f"<dl>{items}</dl>" if items else ""


def _config(report: Report) -> str:
    config = report.get("config")
    return f"<pre>{_e(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100))}</pre>" if config else ""


def _comparison_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    keys = [
        key
        for key in ("old", "new", "last_average", "average_incremental", "forgetting", "gap_closed", "kept")
        if any(row[key] is not None for row in rows)
    ]
    best = {key: (min if key == "forgetting" else max)(row[key] for row in rows if row[key] is not None) for key in keys}
    head = "".join(f'<th class="n">{_title_of(key)}</th>' for key in keys)
    body = "".join(
        f"<tr><td><b>{_e(row['run'])}</b></td><td>{_e(row['strategy'])}</td><td>{_e(row['policy'])}</td>"
        + "".join(
            f'<td class="n{" best" if row[key] is not None and row[key] == best[key] else ""}">{_percent(row[key])}</td>' for key in keys
        )
        + "</tr>"
        for row in rows
    )
    metric = _metric_title(rows[0]["metric"]) if rows else ""
    return (
        f"<p>{_e(metric)} in percent; the best of each column is set in bold.</p>"
        f'<div class="scroll"><table class="plain"><thead><tr><th>Run</th><th>Strategy</th><th>Policy</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


# -- charts -----------------------------------------------------------------------------------------------------------------------

# matplotlib draws in stand-in colours, which become the page's own: one chart is right in the light and in the dark theme.
_PAGE_COLOURS = ("var(--ink)", "var(--soft)", "var(--line)", "var(--accent)", *(f"var(--c{number})" for number in range(1, 9)))
_STAND_INS = {css: f"#00fe{number:02x}" for number, css in enumerate(_PAGE_COLOURS)}
_INK, _SOFT, _LINE = (_STAND_INS[f"var(--{name})"] for name in ("ink", "soft", "line"))
_NUM_COLOURS = 8
_GRAM_COLOURS = LinearSegmentedColormap.from_list("gram", ["#f6f6fb", "#d5d6f7", "#9d9df0", "#5f58e2", "#34279d", "#17104f"])


def _task_colour(task: int) -> str:
    return f"var(--c{task % _NUM_COLOURS + 1})"


def _draw(paint: Callable[[Axes], None], size: tuple[float, float] = (5.0, 2.9)) -> str:
    """An SVG element of one chart, in the page's colours and fonts."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "perdure", "font.size": 8.5, "axes.unicode_minus": True}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_LINE)
        axes.tick_params(colors=_SOFT, length=0, pad=5)
        axes.grid(axis="y", color=_LINE, linewidth=0.7)
        axes.set_axisbelow(True)
        paint(axes)
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1)
    for css, stand_in in _STAND_INS.items():
        svg = svg.replace(stand_in, css)
    return svg


def _tasks_chart(axes: Axes, report: Report, finetune: Report | None, metric: str) -> None:
    names = _task_names(report)
    matrix = _matrix(report, metric)
    ends: list[tuple[float, str, str]] = []
    for j in range(len(matrix)):
        colour = _STAND_INS[_task_colour(j)]
        if finetune is not None:
            _line(axes, _column(finetune, metric, j), j, colour, linestyle=(0, (3, 2.2)), linewidth=1.2, alpha=0.65)
        values = _column(report, metric, j)
        _line(axes, values, j, colour, linewidth=2.0, marker="o", markersize=4.5)
        if values and values[-1] is not None:
            ends.append((100 * values[-1], _short(names[j] if j < len(names) else f"task {j + 1}", 16), colour))
    _finish_time(axes, len(matrix), ends)


def _averages_chart(axes: Axes, runs: Sequence[Report], metric: str) -> None:
    ends: list[tuple[float, str, str]] = []
    longest = 0
    for number, run in enumerate(runs):
        matrix = _matrix(run, metric)
        longest = max(longest, len(matrix))
        values = [continual.last_average([row[: t + 1] for row in matrix[: t + 1]]) for t in range(len(matrix))]
        colour = _STAND_INS["var(--accent)" if number == 0 else _task_colour(number)]
        _line(axes, values, 0, colour, linewidth=2.6 if number == 0 else 1.6, marker="o", markersize=5 if number == 0 else 3.5)
        if values and values[-1] is not None:
            ends.append((100 * values[-1], _short(_strategy(run), 16), colour))
    _finish_time(axes, longest, ends)


def _column(report: Report, metric: str, task: int) -> list[float | None]:
    """A task's accuracy from when it was learned."""
    return [row[task] for row in _matrix(report, metric)[task:]]


def _line(axes: Axes, values: Sequence[float | None], start: int, colour: str, **style: Any) -> None:
    points = [(start + 1 + step, 100 * value) for step, value in enumerate(values) if value is not None]
    axes.plot([x for x, _ in points], [y for _, y in points], color=colour, solid_capstyle="round", **style)


def _finish_time(axes: Axes, count: int, ends: Sequence[tuple[float, str, str]]) -> None:
    """Axes of charts over tasks: percent upwards, tasks to the right, each line named at its end without overlap."""
    axes.set_xlim(0.85, count + 0.08 * count)
    axes.set_xticks(range(1, count + 1), [f"task {t}" if count <= 6 else str(t) for t in range(1, count + 1)])
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low - 2), min(100.5, high + 2))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}%")
    low, high = axes.get_ylim()
    step = (high - low) * 0.075
    places: list[float] = []
    for value, _, _ in sorted(ends):
        places.append(max(value, places[-1] + step) if places else value)
    overflow = max(0.0, (places[-1] if places else 0.0) - high)
    for place, (value, name, colour) in zip(places, sorted(ends), strict=True):
        axes.annotate(
            f"{name}  {value:.1f}",
            xy=(count, value),
            xytext=(1.0, (place - overflow - low) / (high - low)),
            textcoords="axes fraction",
            color=colour,
            va="center",
            annotation_clip=False,
        )


def _term_chart(axes: Axes, entries: Sequence[Mapping[str, Any]], term: str) -> None:
    """One loss term through all tasks, task after task."""
    offset = 0
    for entry in entries:
        epochs = max((len(curve) for curve in entry.get("curves", {}).values()), default=0)
        values = entry.get("curves", {}).get(term, [])
        x = range(offset + 1, offset + 1 + len(values))
        marker = "o" if len(values) == 1 else None
        axes.plot(
            x, values, color=_STAND_INS[_task_colour(entry["task"])], linewidth=1.8, marker=marker, markersize=4, solid_capstyle="round"
        )
        offset += epochs
        if entry is not entries[-1]:
            axes.axvline(offset + 0.5, color=_LINE, linewidth=0.8)
    axes.set_xlim(0.5, offset + 0.5)
    axes.set_ylim(0, max(axes.get_ylim()[1], 1e-9))
    axes.locator_params(axis="both", nbins=5)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("epoch", color=_SOFT)


def _png(values: NDArray[np.floating[Any]], low: float, high: float) -> str:
    """A data URI of a matrix in the page's colour scale."""
    scaled = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    out = io.BytesIO()
    imsave(out, scaled, cmap=_GRAM_COLOURS, vmin=0.0, vmax=1.0, format="png")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _unpack(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


# -- the page ---------------------------------------------------------------------------------------------------------------------


def _write_page(path: Path, title: str, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{_e(title)}</title><style>{_STYLE}</style></head>'
        f"<body><main>{body}<footer>Written by Perdure. This page is complete: it loads nothing and runs no script.</footer></main></body></html>"
    )
    beside = path.with_name(path.name + ".writing")
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)


_MARK = (
    '<svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="9" fill="var(--accent)"/>'
    '<circle cx="14" cy="14" r="6.5" fill="none" stroke="#fff" stroke-width="2.6"/>'
    '<path d="M19 19l5.5 5.5" stroke="#fff" stroke-width="2.8" stroke-linecap="round"/></svg>'
)

_STYLE = """
:root { color-scheme: light; --ground: #f7f7fb; --surface: #fff; --ink: #17171f; --soft: #62626f; --line: #e4e4ec; --accent: #4f46e5;
  --heat: #4036c8; --heat-ink: #fff; --good: #0f9d63; --bad: #c62f3b; --warn: #b45309;
  --c1: #4f46e5; --c2: #d97706; --c3: #0d9488; --c4: #db2777; --c5: #0284c7; --c6: #65a30d; --c7: #9333ea; --c8: #64748b;
  --sans: Inter, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", "Liberation Mono", "DejaVu Sans Mono", monospace; }
@media (prefers-color-scheme: dark) { :root { color-scheme: dark; --ground: #0f1016; --surface: #181a22; --ink: #f0f0f5; --soft: #9a9cab;
  --line: #2c2f3b; --accent: #8b8cff; --heat: #8f90ff; --heat-ink: #10111a; --good: #3ecf8e; --bad: #ff7b82; --warn: #fbbf24;
  --c1: #8b8cff; --c2: #fbbf24; --c3: #2dd4bf; --c4: #f472b6; --c5: #38bdf8; --c6: #a3e635; --c7: #c084fc; --c8: #94a3b8; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.55 var(--sans); font-variant-numeric: tabular-nums;
  -webkit-font-smoothing: antialiased; }
main { max-width: 1080px; margin: 0 auto; padding: 44px clamp(16px, 4vw, 40px) 56px; }
h1 { font-size: clamp(2rem, 5vw, 2.9rem); line-height: 1.1; letter-spacing: -.03em; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 1.32rem; letter-spacing: -.015em; margin: 0 0 10px; display: flex; gap: 12px; align-items: baseline; }
h2 .number { color: var(--accent); font-size: .95rem; font-weight: 600; }
p { margin: 0 0 16px; max-width: 72ch; color: var(--soft); }
p b { color: var(--ink); font-weight: 600; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--soft); font-size: .82rem; margin-bottom: 8px; }
.brand { display: flex; align-items: center; gap: 9px; font-weight: 650; color: var(--ink); margin-bottom: 26px; }
.brand svg { width: 24px; height: 24px; }
.brand span { color: var(--soft); font-weight: 400; padding-left: 10px; border-left: 1px solid var(--line); }
.lead { font-size: 1.14rem; line-height: 1.5; max-width: 62ch; margin-bottom: 22px; }
.facts { display: flex; flex-wrap: wrap; gap: 10px 34px; margin: 0 0 28px; padding: 14px 0; border-block: 1px solid var(--line); }
.facts dt { font-size: .74rem; color: var(--soft); margin: 0; font-weight: 400; font-family: inherit; }
.facts dd { margin: 0; font-weight: 550; font-size: .95rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-bottom: 8px; }
.tile { background: var(--surface); border: 1px solid var(--line); border-radius: 14px; padding: 14px 16px 13px; }
.tile p { margin: 0; font-size: .8rem; color: var(--soft); }
.tile strong { display: block; font-size: 1.85rem; line-height: 1.25; letter-spacing: -.03em; font-weight: 640; }
.tile strong small { font-size: .95rem; font-weight: 500; color: var(--soft); margin-left: 3px; letter-spacing: 0; }
.tile span { font-size: .76rem; color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 18px 0 0; font-size: .85rem; }
nav a { color: var(--soft); text-decoration: none; } nav a:hover { color: var(--accent); }
section { background: var(--surface); border: 1px solid var(--line); border-radius: 18px; padding: 26px clamp(16px, 3vw, 30px) 28px; margin-top: 20px;
  scroll-margin-top: 12px; }
.scroll { overflow-x: auto; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 24px 32px; }
.maps.small { grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); margin-top: 18px; }
.map figcaption { color: var(--ink); font-weight: 600; font-size: .9rem; }
.heat { border-collapse: separate; border-spacing: 3px; width: 100%; font-size: .92rem; }
.heat th { font-weight: 500; font-size: .78rem; color: var(--soft); padding: 2px 6px; white-space: nowrap; }
.heat th[scope=row] { text-align: left; padding-left: 0; width: 1%; } .heat th i { font-style: normal; opacity: .7; }
.heat tbody td { text-align: center; border-radius: 7px; height: 46px; padding: 3px 6px; min-width: 54px; line-height: 1.2;
  background: color-mix(in oklab, var(--heat) var(--depth, 0%), var(--surface)); }
.heat td b { font-weight: 580; display: block; } .heat td small { font-size: .72rem; opacity: .82; }
.heat .strong { color: var(--heat-ink); }
.heat .now { outline: 2px solid var(--ink); outline-offset: -2px; }
.heat tbody .later { background: color-mix(in oklab, var(--heat) calc(var(--depth) * .22), var(--surface)); color: var(--soft); }
.heat tbody .none { background: none; color: var(--line); }
.small .heat tbody td { height: 34px; min-width: 44px; padding: 2px 4px; } .small .heat { font-size: .82rem; }
details { margin-top: 18px; } summary { cursor: pointer; color: var(--accent); font-size: .88rem; font-weight: 550; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 20px 36px; }
.charts.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.losts { margin-top: 26px; } .key { float: right; } .key i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin: 0 6px 0 14px; }
.lost { display: grid; grid-template-columns: minmax(90px, 200px) 1fr; gap: 16px; align-items: center; padding: 7px 0; border-top: 1px solid var(--line); font-size: .88rem; }
.bar { display: flex; align-items: center; gap: 8px; height: 17px; } .bar i { height: 9px; border-radius: 5px; min-width: 3px; } .bar b { font-size: .78rem; font-weight: 550; }
i.own { background: var(--accent); } i.other { background: color-mix(in oklab, var(--soft) 42%, var(--surface)); }
.example { display: grid; grid-template-columns: 168px 1fr; gap: 22px; padding: 18px 0; border-top: 1px solid var(--line); }
.example:last-child { padding-bottom: 0; }
.query small { display: block; color: var(--soft); font-size: .74rem; margin-bottom: 7px; } .query span { display: block; font-size: .82rem; color: var(--soft); margin-top: 6px; }
.query img { width: 112px; height: 112px; border-radius: 12px; object-fit: cover; display: block; border: 1px solid var(--line); }
blockquote { margin: 0; font-size: 1rem; line-height: 1.4; font-weight: 550; letter-spacing: -.01em; } blockquote::before { content: "“"; } blockquote::after { content: "”"; }
.example ol { list-style: none; display: grid; grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)); gap: 12px; margin: 0; padding: 0; align-content: start; }
.example li { position: relative; min-width: 0; font-size: .78rem; line-height: 1.35; }
.example li img, .nopicture { width: 100%; aspect-ratio: 1; border-radius: 11px; object-fit: cover; display: block; margin-bottom: 6px;
  outline: 3px solid var(--bad); outline-offset: -3px; background: var(--line); }
.example .right img, .right .nopicture { outline-color: var(--good); }
.mark { position: absolute; top: 7px; right: 7px; width: 18px; height: 18px; border-radius: 50%; background: var(--bad); color: #fff; font-size: 11px;
  font-style: normal; font-weight: 700; display: grid; place-items: center; line-height: 1; } .right .mark { background: var(--good); }
.example li b { float: right; font-weight: 600; } .example li span { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.example li small { color: var(--soft); font-size: .7rem; display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.plain { width: 100%; border-collapse: collapse; font-size: .88rem; margin-bottom: 22px; }
.plain th { text-align: left; font-weight: 500; font-size: .78rem; color: var(--soft); padding: 0 14px 8px 0; white-space: nowrap; }
.plain td { padding: 9px 14px 9px 0; border-top: 1px solid var(--line); vertical-align: top; } .plain td small { color: var(--soft); }
.plain .n { text-align: right; white-space: nowrap; } .plain .best { font-weight: 680; color: var(--accent); } .plain b { font-weight: 600; }
.plain tr > :last-child { padding-right: 0; } section > :last-child .plain:last-child, section > :last-child { margin-bottom: 0; }
.terms span { color: var(--soft); margin-right: 16px; white-space: nowrap; } .terms b { color: var(--ink); margin-left: 6px; font-weight: 550; }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 9px; }
.grams { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 220px), 1fr)); gap: 22px; }
.gram { width: 100%; aspect-ratio: 1; image-rendering: pixelated; border-radius: 10px; display: block; margin-bottom: 8px; border: 1px solid var(--line); }
.grams figcaption { color: var(--ink); font-weight: 550; display: flex; justify-content: space-between; } .grams small { color: var(--soft); font-weight: 400; }
.ramp { display: flex; align-items: center; gap: 10px; color: var(--soft); font-size: .78rem; margin-top: 14px; } .ramp img { width: 180px; height: 10px; border-radius: 5px; }
@media (prefers-color-scheme: dark) { .gram, .ramp img { filter: invert(.92) hue-rotate(180deg); } }
.warning { color: var(--warn); }
dl { margin: 0; } section dt { font-family: var(--mono); font-size: .8rem; font-weight: 600; margin-top: 14px; } section dt:first-child { margin-top: 0; }
section dd { margin: 2px 0 0; color: var(--soft); font-size: .88rem; max-width: 84ch; }
pre { margin: 0; font: .8rem/1.6 var(--mono); overflow-x: auto; color: var(--ink); } code { font-family: var(--mono); font-size: .85em; }
footer { color: var(--soft); font-size: .78rem; padding: 26px 4px 0; }
@media (max-width: 640px) { .example { grid-template-columns: 1fr; } .key { float: none; display: block; } .key i:first-child { margin-left: 0; } }
@media print { body { background: #fff; } section, .tile { break-inside: avoid; } nav { display: none; } }
"""
