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
from matplotlib.ticker import LogLocator, MultipleLocator
from numpy.typing import NDArray

from perdure.metrics import continual
from perdure.report.methods import half_width
from perdure.report.reading import Report, matrix_of, shorten, strategy_of, task_name

__all__ = [
    "averages_chart",
    "drift_chart",
    "fraction_chart",
    "front_chart",
    "intervals_chart",
    "inversion_chart",
    "methods_chart",
    "page_colour",
    "plane_chart",
    "png_uri",
    "precision_recall_chart",
    "tasks_chart",
    "term_chart",
]

# matplotlib draws in stand-in colours, which become the page's own: one chart is right in the light and in the dark theme.
_NUM_COLOURS = 8
_PAGE_COLOURS = ("var(--soft)", "var(--line)", "var(--accent)", *(f"var(--c{number + 1})" for number in range(_NUM_COLOURS)))
_STAND_INS = {css: f"#00fe{number:02x}" for number, css in enumerate(_PAGE_COLOURS)}
_SOFT, _LINE, _ACCENT = (_STAND_INS[f"var(--{name})"] for name in ("soft", "line", "accent"))
_GRAM_COLOURS = LinearSegmentedColormap.from_list("gram", ["#f6f6fb", "#d5d6f7", "#9d9df0", "#5f58e2", "#34279d", "#17104f"])
_CHANGE_COLOURS = LinearSegmentedColormap.from_list("change", ["#7a2f04", "#d97706", "#f6c982", "#f6f6fb", "#9d9df0", "#4f46e5", "#1f1670"])
_WIDE, _SMALL = (5.0, 2.9), (2.8, 1.8)  # inches; the page scales them


def page_colour(number: int) -> str:
    """One of the page's eight colours: of a task, wherever the task appears; on a map of features, of a class."""
    return f"var(--c{number % _NUM_COLOURS + 1})"


def tasks_chart(report: Report, finetune: Report | None, metric: str) -> str:
    """Accuracy on each task from when it was learned; fine-tuning's, where given, as dashed lines of the same colours."""
    count = len(matrix_of(report, metric))
    ends: list[tuple[float, str, str]] = []

    def paint(axes: Axes) -> None:
        for task in range(count):
            colour = _STAND_INS[page_colour(task)]
            if finetune is not None:
                _line(axes, _since_learned(finetune, metric, task), task, colour, linestyle=(0, (3, 2.2)), linewidth=1.2, alpha=0.7)
            values = _since_learned(report, metric, task)
            _line(axes, values, task, colour, linewidth=2.0, marker="o", markersize=4.5)
            ends.extend(
                (100 * value, f"{shorten(task_name(report, task), 16)}  {100 * value:.1f}", colour)
                for value in values[-1:]
                if value is not None
            )
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
            colour = _ACCENT if number == 0 else _STAND_INS[page_colour(number)]
            _line(axes, values, 0, colour, linewidth=1.6 if number else 2.6, marker="o", markersize=3.5 if number else 5.0)
            ends.extend(
                (100 * value, f"{shorten(strategy_of(run), 16)}  {100 * value:.1f}", colour) for value in values[-1:] if value is not None
            )
        _finish_time(axes, max(counts), ends)

    return _svg(paint, _WIDE)


def methods_chart(methods: Sequence[tuple[str, Sequence[Sequence[float | None]]]]) -> str:
    """The average over the tasks learned so far of several methods: the mean over the seeds, its 95 % interval, each seed a thin line.

    Args:
        methods: name, and for each seed the average after each task. The intervals are cut where the lines end: of two seeds they may be
            wider than any chart.
    """
    ends: list[tuple[float, str, str]] = []
    tasks = range(max((len(values) for _, seeds in methods for values in seeds), default=0))

    def paint(axes: Axes) -> None:
        bars: list[tuple[float, float, float, str]] = []
        for number, (name, seeds) in enumerate(methods):
            colour = _STAND_INS[page_colour(number)]
            for values in seeds if len(seeds) > 1 else ():
                _line(axes, values, 0, colour, linewidth=0.8, alpha=0.45)
            after = [[values[t] for values in seeds if t < len(values)] for t in tasks]
            measured = [[value for value in values if value is not None] for values in after]
            means = [float(np.mean(values)) if values else None for values in measured]
            _line(axes, means, 0, colour, linewidth=2.2, marker="o", markersize=4)
            beside = 0.03 * (number - (len(methods) - 1) / 2)
            for t, (values, mean) in enumerate(zip(measured, means, strict=True)):
                half = half_width(values)
                if mean is not None and half is not None:
                    bars.append((t + 1 + beside, 100 * mean, 100 * half, colour))
            ends.extend((100 * mean, f"{shorten(name, 18)}  {100 * mean:.1f}", colour) for mean in means[-1:] if mean is not None)
        low, high = axes.get_ylim()
        for x, y, half, colour in bars:
            axes.errorbar([x], [y], yerr=[half], color=colour, elinewidth=1.1, capsize=2.5, capthick=1.1)
        axes.set_ylim(low, high)
        _finish_time(axes, len(tasks), ends)

    return _svg(paint, _WIDE)


def intervals_chart(methods: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> str:
    """A line for each method (name, a figure of each seed, another one): a dot and a diamond for the means, with their 95 % intervals.

    Small marks are the seeds. The intervals are cut where the marks end.
    """

    def paint(axes: Axes) -> None:
        bars: list[tuple[float, float, float, str]] = []
        for line, (_, *figures) in enumerate(methods):
            for values, colour, marker, beside in zip(figures, (_ACCENT, _SOFT), ("o", "D"), (-0.14, 0.14), strict=True):
                percents = [100 * value for value in values]
                if not percents:
                    continue
                mean, half = float(np.mean(percents)), half_width(percents)
                if len(percents) > 1:
                    axes.plot(percents, [line + beside] * len(percents), "|", color=colour, markersize=5, alpha=0.6)
                axes.plot([mean], [line + beside], marker, color=colour, markersize=5.5)
                if half is not None:
                    bars.append((mean, line + beside, half, colour))
        left, right = axes.get_xlim()
        for x, y, half, colour in bars:
            axes.errorbar([x], [y], xerr=[half], color=colour, elinewidth=1.2, capsize=2.5, capthick=1.2)
        axes.set_xlim(max(left - 2, 0.0), min(right + 2, 102.0))
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.set_yticks(range(len(methods)), [shorten(name, 24) for name, *_ in methods])
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=_LINE, linewidth=0.7)
        axes.xaxis.set_major_formatter(_percent)

    return _svg(paint, (_WIDE[0], max(1.2, 0.7 + 0.36 * len(methods))))


def front_chart(
    points: Sequence[tuple[float, float]], front: Sequence[int], knee: int | None, reference: tuple[float, float], numbers: Sequence[str]
) -> str:
    """Trials by what they retain (to the right) and gain (upwards): the front joined by a line, its knee ringed, fine-tuning as a cross.

    Args:
        points: (retention, gain) of each trial.
        front: which of them lie on the front, from left to right.
        knee: which one is proposed.
        reference: of fine-tuning.
        numbers: what each trial is called.
    """

    def paint(axes: Axes) -> None:
        on_front = [points[number] for number in front]
        axes.plot([100 * x for x, _ in on_front], [100 * y for _, y in on_front], color=_ACCENT, linewidth=1.4, alpha=0.6)
        for number, (x, y) in enumerate(points):
            colour = _ACCENT if number in front else _SOFT
            axes.plot([100 * x], [100 * y], "o", color=colour, markersize=5.5, alpha=1.0 if number in front else 0.6)
            axes.annotate(numbers[number], (100 * x, 100 * y), (5, 4), textcoords="offset points", color=colour, fontsize=7.5)
        if knee is not None:
            x, y = points[knee]
            axes.plot([100 * x], [100 * y], "o", markersize=12, markerfacecolor="none", markeredgecolor=_ACCENT, markeredgewidth=1.6)
        axes.plot([100 * reference[0]], [100 * reference[1]], "x", color=_SOFT, markersize=6, markeredgewidth=1.6)
        axes.annotate("fine-tuning", (100 * reference[0], 100 * reference[1]), (6, -9), textcoords="offset points", color=_SOFT)
        axes.margins(0.08)
        axes.grid(axis="x", color=_LINE, linewidth=0.7)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_percent)
        axes.set_xlabel("retention", color=_SOFT)
        axes.set_ylabel("gain", color=_SOFT)

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
            colour = _STAND_INS[page_colour(int(entry["task"]))]
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


def drift_chart(lines: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """A figure of each modality (name, its value after each task) from the second task on, with 0 in view; None is left out."""
    ends: list[tuple[float, str, str]] = []
    count = max((len(values) for _, values in lines), default=0)

    def paint(axes: Axes) -> None:
        low = top = 0.0
        for number, (name, values) in enumerate(lines):
            points = [(t, value) for t, value in enumerate(values, start=1) if value is not None]
            colour = _STAND_INS[page_colour(number)]
            axes.plot([x for x, _ in points], [y for _, y in points], color=colour, linewidth=2.0, marker="o", markersize=4)
            low, top = min([low, *(value for _, value in points)]), max([top, *(value for _, value in points)])
            ends.extend((value, f"{name}  {value:.2f}", colour) for _, value in points[-1:])
        axes.set_xlim(1.7, max(count, 2) + 0.3)
        axes.set_ylim(1.08 * low, 1.08 * top or 1.0)
        axes.set_xticks(range(2, count + 1), [f"task {t}" if count <= 5 else str(t) for t in range(2, count + 1)])
        axes.locator_params(axis="y", nbins=5)
        _name_ends(axes, ends)

    return _svg(paint, _WIDE)


def fraction_chart(lines: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """Percent over a fraction from 0 to 1, a line for each (name, points)."""

    def paint(axes: Axes) -> None:
        ends: list[tuple[float, str, str]] = []
        for number, (name, points) in enumerate(lines):
            colour = _STAND_INS[page_colour(number)]
            x, y = [100 * fraction for fraction, _ in points], [100 * value for _, value in points]
            axes.plot(x, y, color=colour, linewidth=2.0, marker="o", markersize=3.5)
            ends.append((y[-1], f"{shorten(name, 24)}  {y[-1]:.1f}", colour))
        axes.set_xlim(-1, 101)
        axes.xaxis.set_major_formatter(_percent)
        axes.yaxis.set_major_formatter(_percent)
        _name_ends(axes, ends)

    return _svg(paint, _WIDE)


def precision_recall_chart(curves: Sequence[tuple[int, str, Sequence[float | None], Sequence[float | None]]]) -> str:
    """Precision over recall, a line for each (task, name, recall, precision); points that hold None or NaN are left out."""
    ends: list[tuple[float, str, str]] = []

    def paint(axes: Axes) -> None:
        for task, name, recalls, precisions in curves:
            pairs = [(r, p) for r, p in zip(recalls, precisions, strict=True) if r is not None and p is not None]
            points = 100 * np.array([pair for pair in pairs if np.isfinite(pair).all()], dtype=float).reshape(-1, 2)
            colour = _STAND_INS[page_colour(task)]
            marker = "o" if len(points) < 3 else None
            axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=1.8, marker=marker, markersize=3, solid_capstyle="round")
            ends.extend((float(last[1]), shorten(name, 18), colour) for last in points[-1:])
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MultipleLocator(20))
            axis.set_major_formatter(_percent)
        axes.set_xlabel("recall", color=_SOFT)
        axes.set_ylabel("precision", color=_SOFT)
        _name_ends(axes, ends)

    return _svg(paint, _WIDE)


def inversion_chart(losses: NDArray[np.floating]) -> str:
    """A loss over iterations on a logarithmic scale; values that have no logarithm are left out."""
    shown = np.isfinite(losses) & (losses > 0)

    def paint(axes: Axes) -> None:
        values = losses[shown]
        marker = "o" if len(values) < 2 else None
        axes.plot(np.flatnonzero(shown) + 1, values, color=_ACCENT, linewidth=1.8, marker=marker, markersize=4, solid_capstyle="round")
        axes.set_yscale("log")
        axes.set_xlim(0.5, max(len(losses), 1) + 0.5)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if len(values) and values.max() < 30 * values.min() else (1.0,)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.set_xlabel("iteration", color=_SOFT)

    return _svg(paint, _SMALL)


def plane_chart(points: NDArray[np.floating], class_of: NDArray[np.integer[Any]], is_new: Sequence[bool]) -> str:
    """Points in the plane, coloured by class: dots, and triangles for classes that are new.

    A class is one path whose steps are its points, so that hundreds of them are a few kilobytes.

    Args:
        points: (n, 2), upwards and to the right.
        class_of: (n,) number of the class.
        is_new: (C,) by class.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    room, margin = 300.0, 10.0
    scale = (room - 2 * margin) / (float((high - low).max()) or 1.0)
    places = room / 2 + (points - (low + high) / 2) * scale * (1, -1)
    paths: list[str] = []
    for label, new in enumerate(is_new):
        each = places[class_of == label]
        mark, style = ("l4.4 7.6h-8.8z", "fill") if new else ("h0", "stroke")
        steps = "".join(f"M{x:.1f} {y - (5.1 if new else 0):.1f}{mark}" for x, y in each)
        paths.append(f'<path class="{"new" if new else "old"}" style="{style}:{page_colour(label)}" d="{steps}"/>')
    return f'<svg class="plane" viewBox="0 0 {room:.0f} {room:.0f}" role="img">{"".join(paths)}</svg>'


def png_uri(values: NDArray[Any], low: float, high: float, *, change: bool = False) -> str:
    """A data URI of a matrix, one pixel for each entry, from `low` (light) to `high` (dark).

    With `change`, from less (orange) over nothing (light) to more (blue).
    """
    out = io.BytesIO()
    colours = _CHANGE_COLOURS if change else _GRAM_COLOURS
    imsave(out, np.clip((values - low) / ((high - low) or 1.0), 0, 1), cmap=colours, vmin=0.0, vmax=1.0, format="png")
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
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)  # several charts on one page would repeat them, and nothing refers to them
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
    """Percent upwards, tasks to the right, and each line named at its end."""
    axes.set_xlim(0.85, 1.05 * count)
    axes.set_xticks(range(1, count + 1), [f"task {t}" if count <= 5 else str(t) for t in range(1, count + 1)])
    low, high = axes.get_ylim()
    low, high = max(0.0, low - 2), min(102.0, high + 2)
    axes.set_ylim(low, high)
    axes.locator_params(axis="y", nbins=8)
    axes.yaxis.set_major_formatter(_percent)
    _name_ends(axes, ends)


def _percent(value: float, _: object) -> str:
    return f"{value:.0f}%"


def _name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name each line (last value, words, colour) right of its end, names moved apart where they would overlap."""
    low, high = axes.get_ylim()
    step = 0.075 * (high - low)
    named = sorted(ends)
    places: list[float] = []
    for value, _, _ in named:
        places.append(max(value, places[-1] + step) if places else value)
    lower = max(0.0, places[-1] - high) if places else 0.0
    for place, (_, words, colour) in zip(places, named, strict=True):
        at = (1.01, (place - lower - low) / (high - low))
        axes.annotate(words, xy=at, xycoords="axes fraction", color=colour, va="center", annotation_clip=False)
