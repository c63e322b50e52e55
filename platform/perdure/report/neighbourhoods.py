"""The section of neighbourhoods: test pictures in the plane before and after, and Gram matrices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.report.charts import page_colour, plane_chart, png_uri
from perdure.report.markup import escaped, percent
from perdure.report.pictures import FeatureMap, ReportPictures
from perdure.report.reading import strategy_words

__all__ = ["neighbourhoods"]


def neighbourhoods(pictures: ReportPictures) -> str:
    """What the encoders hold to be near each other; empty where nothing of it was kept."""
    return _features(pictures) + _grams(pictures.grams, pictures.gram_classes)


def _features(pictures: ReportPictures) -> str:
    """Maps of the same pictures by the run's encoders, and by the last encoders of other runs where they kept the same pictures."""
    own = pictures.features
    if own is None:
        return ""
    views = [(_when(encoder), own, at) for at, encoder in enumerate(own.encoders)]
    for other in pictures.beside:
        kept = pictures.of_beside.get(str(other.get("name", "")))
        found = kept.features if kept else None
        if found is not None and found.classes == own.classes and np.array_equal(found.rows, own.rows):
            last = found.encoders[-1]
            views.append((f"{strategy_words(other)}, {_when(last)}", found, len(found.encoders) - 1))
    is_new = [task > min(own.task_of) for task in own.task_of]
    figures = "".join(_plane(title, shown, at, is_new) for title, shown, at in views)
    words = (
        f"<p>{len(own.rows)} test pictures of {len(own.classes)} classes as the encoders see them, by t-SNE: who is near whom means "
        "something, sizes and distances do not. "
        + (
            "Dots are classes of the first task, triangles are classes of the last, which the first encoder had never seen. "
            if any(is_new)
            else ""
        )
        + ("Each map starts from the one before and is turned to lie like it. " if len(own.encoders) > 1 else "")
        + "Percent: how many of a picture's nearest ten among these, by the embedding itself, are of its class.</p>"
    )
    marks = "".join(
        f'<span><i class="{"tri" if new else "dot"}" style="background:{page_colour(number)}"></i>{escaped(name)}</span>'
        for number, (name, new) in enumerate(zip(own.classes, is_new, strict=True))
    )
    return f'<h3>Features before and after</h3>{words}<div class="planes">{figures}</div><div class="marks">{marks}</div>'


def _when(encoder: str) -> str:
    """Version t of a run's encoder is the one after its task t, counted from 1."""
    version = encoder.rpartition("@v")[2]
    return f"after task {version}" if version.isdigit() else encoder


def _plane(title: str, shown: FeatureMap, at: int, is_new: Sequence[bool]) -> str:
    drawn = plane_chart(shown.points[at], shown.class_of, is_new)
    marks = {"dot": [not new for new in is_new], "tri": list(is_new)}
    shares = "".join(
        f'<b><i class="{mark}"></i>{percent(float(np.mean(np.asarray(shown.agreement[at])[picked])), " %")}</b>'
        for mark, picked in marks.items()
        if any(picked)
    )
    return f'<figure title="{escaped(shown.encoders[at])}">{drawn}<figcaption><span>{escaped(title)}</span>{shares}</figcaption></figure>'


def _grams(shown: Mapping[str, NDArray[Any]], labels: Sequence[str]) -> str:
    """Gram matrices on one scale; how far the student's moved from the teacher's, on a scale of its own."""
    if not shown:
        return ""
    low = min(float(gram.min()) for gram in shown.values())
    high = max(float(gram.max()) for gram in shown.values())
    figures = [_gram(name, gram, low, high, labels) for name, gram in shown.items()]
    words = (
        "Inner products of the same test pictures of the first task, in the same order, under the encoder before the last task (teacher) "
        "and after it (student)."
    )
    teacher, student = shown.get("teacher"), shown.get("student")
    if teacher is not None and student is not None and teacher.shape == student.shape:
        change = student - teacher
        most = float(np.abs(change).max())
        figures.append(_gram("student less teacher", change, -most, most, labels, change=True))
        words += f" A similarity moved by <b>{np.abs(change).mean():.3f}</b> on average" + _sides(teacher, student, labels) + "."
    return (
        f'<h3>Gram matrices</h3><p>{words}</p><div class="grams">{"".join(figures)}</div>{_order(labels, len(next(iter(shown.values()))))}'
    )


def _sides(teacher: NDArray[Any], student: NDArray[Any], labels: Sequence[str]) -> str:
    """How the mean similarity moved inside classes and between them, where the classes are known."""
    if len(labels) != len(teacher):
        return ""
    same = np.asarray(labels)[:, None] == np.asarray(labels)
    other = ~same
    np.fill_diagonal(same, False)
    parts = [
        f"{where} from <b>{teacher[pairs].mean():.2f}</b> to <b>{student[pairs].mean():.2f}</b>"
        for where, pairs in (("inside a class", same), ("between classes", other))
        if pairs.any()
    ]
    return f": {', '.join(parts)}" if parts else ""


def _gram(name: str, gram: NDArray[Any], low: float, high: float, labels: Sequence[str], *, change: bool = False) -> str:
    """A matrix with lines between its classes, and its own colour scale."""
    size = len(gram)
    edges = [at for at in range(1, size) if labels[at] != labels[at - 1]] if len(labels) == size else []
    lines = "".join(f"M{at} 0V{size}M0 {at}H{size}" for at in edges)
    grid = f'<svg viewBox="0 0 {size} {size}" aria-hidden="true"><path d="{lines}"/></svg>' if lines else ""
    image = f'<div class="gram"><img alt="Gram matrix, {escaped(name)}" src="{png_uri(gram, low, high, change=change)}">{grid}</div>'
    ramp = f'<img alt="colour scale" src="{png_uri(np.linspace(0, 1, 64)[None, :], 0.0, 1.0, change=change)}">'
    ends = [f"{value:{'+' if change else ''}.2f}".replace("-", "−") for value in (low, high)]
    scale = f'<div class="ramp"><span>{ends[0]}</span>{ramp}<span>{ends[1]}</span></div>'
    return f"<figure>{image}<figcaption>{escaped(name)}<small>{gram.shape[0]} × {gram.shape[1]}</small></figcaption>{scale}</figure>"


def _order(labels: Sequence[str], size: int) -> str:
    if len(labels) != size:
        return ""
    named = list(dict.fromkeys(labels))
    return f'<p class="order">Rows and columns are sorted by class: {escaped(", ".join(named))}.</p>'
