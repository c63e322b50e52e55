"""Charts as SVG elements in the page's own colours and fonts, and matrices as small pictures."""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from perdure.metrics import continual
from perdure.report.reading import Report, matrix_of, shorten, strategy_of, task_name

__all__ = ["averages_chart", "png_uri", "task_colour", "tasks_chart", "term_chart"]

# matplotlib draws in stand-in colours, which become the page's own: one chart is right in the light and in the dark theme.
_NUM_COLOURS = 8
_PAGE_COLOURS = ("var(--soft)", "var(--line)", "var(--accent)", *(f"var(--c{number + 1})" for number in range(_NUM_COLOURS)))
_STAND_INS = {css: f"#00fe{number:02x}" for number, css in enumerate(_PAGE_COLOURS)}
_SOFT, _LINE, _ACCENT = (_STAND_INS[f"var(--{name})"] for name in ("soft", "line", "accent"))
_GRAM_COLOURS = LinearSegmentedColormap.from_list("gram", ["#f6f6fb", "#d5d6f7", "#9d9df0", "#5f58e2", "#34279d", "#17104f"])
_WIDE, _SMALL = (5.0, 2.9), (2.8, 1.8)  # inches; the page scales them


def task_colour(task: int) -> str:
    """The page's colour of a task, wherever the task appears."""
    return f"var(--c{task % _NUM_COLOURS + 1})"


def tasks_chart(report: Report, finetune: Report | None, metric: str) -> str:
    """Accuracy on each task from when it was learned; fine-tuning's, where given, as dashed lines of the same colours."""
    count = len(matrix_of(report, metric))
    ends: list[tuple[float, str, str]] = []

    def paint(axes: Axes) -> None:
        for task in range(count):
            colour = _STAND_INS[task_colour(task)]
            if finetune is not None:
                _line(axes, _since_learned(finetune, metric, task), task, colour, linestyle=(0, (3, 2.2)), linewidth=1.2, alpha=0.7)
            values = _since_learned(report, metric, task)
            _line(axes, values, task, colour, linewidth=2.0, marker="o", markersize=4.5)
            ends.extend((100 * value, shorten(task_name(report, task), 16), colour) for value in values[-1:] if value is not None)
        _finish_time(axes, count, ends)

    return _svg(paint, _WIDE)


def averages_chart(runs: Sequence[Report], metric: str) -> str:
    """The average over the tasks learned so far, a line for each run; the first is drawn strongest."""
    counts = [len(matrix_of(run, metric)) for run in runs]
    ends: list[tuple[float, str, str]] = []

    def paint(axes: Axes) -> None:
        for number, run in reversed(list(enumerate(runs))):
            matrix = matrix_of(run, metric)
            values = [continual.last_average([row[: t + 1] for row in matrix[: t + 1]]) for t in range(len(matrix))]
            colour = _ACCENT if number == 0 else _STAND_INS[task_colour(number)]
            _line(axes, values, 0, colour, linewidth=1.6 if number else 2.6, marker="o", markersize=3.5 if number else 5.0)
            ends.extend((100 * value, shorten(strategy_of(run), 16), colour) for value in values[-1:] if value is not None)
        _finish_time(axes, max(counts), ends)

    return _svg(paint, _WIDE)


def term_chart(entries: Sequence[Mapping[str, Any]], term: str) -> str:
    """One loss term, epoch after epoch and task after task, from the `train` entries of a report."""

    def paint(axes: Axes) -> None:
        start, top = 0, 0.0
        for entry in entries:
            curves: Mapping[str, Sequence[float]] = entry.get("curves") or {}
            values = curves.get(term, [])
            epochs = range(start + 1, start + 1 + len(values))
            marker = "o" if len(values) == 1 else None
            colour = _STAND_INS[task_colour(int(entry["task"]))]
            axes.plot(epochs, values, color=colour, linewidth=1.8, marker=marker, markersize=4, solid_capstyle="round")
            start += max((len(curve) for curve in curves.values()), default=0)
            top = max([top, *values])
            if entry is not entries[-1]:
                axes.axvline(start + 0.5, color=_LINE, linewidth=0.8)
        axes.set_xlim(0.5, max(start, 1) + 0.5)
        axes.set_ylim(0, 1.08 * top or 1.0)
        axes.locator_params(axis="y", nbins=4)
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.set_xlabel("epoch", color=_SOFT)

    return _svg(paint, _SMALL)


def png_uri(values: NDArray[Any], low: float, high: float) -> str:
    """A data URI of a matrix, one pixel for each entry, from `low` (light) to `high` (dark)."""
    out = io.BytesIO()
    imsave(out, np.clip((values - low) / ((high - low) or 1.0), 0, 1), cmap=_GRAM_COLOURS, vmin=0.0, vmax=1.0, format="png")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _svg(paint: Callable[[Axes], None], size: tuple[float, float]) -> str:
    """The SVG element of one chart: text stays text, colours and fonts are the page's, width is the page's to choose."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "perdure", "font.size": 8.5}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_LINE)
        axes.tick_params(colors=_SOFT, length=0, pad=5)
        axes.grid(axis="y", color=_LINE, linewidth=0.7)
        axes.set_axisbelow(True)
        paint(axes)
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", svg)
    svg = re.sub(r"font-family: [^;\"]+", "font-family: var(--sans)", svg)
    svg = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 role="img" xmlns:xlink="http://www.w3.org/1999/xlink">', svg, count=1)
    for css, stand_in in _STAND_INS.items():
        svg = svg.replace(stand_in, css)
    return svg


def _since_learned(report: Report, metric: str, task: int) -> list[float | None]:
    return [row[task] for row in matrix_of(report, metric)[task:]]


def _line(axes: Axes, values: Sequence[float | None], start: int, colour: str, **style: Any) -> None:
    """Percent over the number of tasks learned, `start` tasks in."""
    points = [(start + 1 + step, 100 * value) for step, value in enumerate(values) if value is not None]
    axes.plot([x for x, _ in points], [y for _, y in points], color=colour, solid_capstyle="round", **style)


def _finish_time(axes: Axes, count: int, ends: Sequence[tuple[float, str, str]]) -> None:
    """Percent upwards, tasks to the right, and each line named at its end, names moved apart where they would overlap."""
    axes.set_xlim(0.85, 1.05 * count)
    axes.set_xticks(range(1, count + 1), [f"task {t}" if count <= 5 else str(t) for t in range(1, count + 1)])
    low, high = axes.get_ylim()
    low, high = max(0.0, low - 2), min(102.0, high + 2)
    axes.set_ylim(low, high)
    axes.locator_params(axis="y", nbins=8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}%")
    step = 0.075 * (high - low)
    named = sorted(ends)
    places: list[float] = []
    for value, _, _ in named:
        places.append(max(value, places[-1] + step) if places else value)
    lower = max(0.0, places[-1] - high) if places else 0.0
    for place, (value, name, colour) in zip(places, named, strict=True):
        axes.annotate(
            f"{name}  {value:.1f}",
            xy=(count, value),
            xytext=(1.01, (place - lower - low) / (high - low)),
            textcoords="axes fraction",
            color=colour,
            va="center",
            annotation_clip=False,
        )
