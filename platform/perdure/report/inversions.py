"""The section of pictures that a strategy made up: a grid by class, and the loss by which they were made."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perdure.report.charts import inversion_chart
from perdure.report.markup import chart, escaped, picture
from perdure.report.pictures import Inversion
from perdure.report.reading import Report, task_name
from perdure.report.thumbnails import encoded

__all__ = ["inversions"]

_TASKS, _CLASSES, _EACH = 4, 8, 6
"""What is shown at most: tasks (the first ones and the last), classes of each, pictures of each class."""


def inversions(report: Report, shown: Sequence[Inversion]) -> str:
    """Made-up pictures of each task that was learned with some; empty without."""
    some = [inversion for inversion in shown if len(inversion.images)]
    if not some:
        return ""
    words = (
        "<p>No picture of an earlier task was kept. These were made from noise, until the encoder's BatchNorm layers met in them "
        "the statistics that they had stored, and stood in for earlier tasks while the next one was learned.</p>"
    )
    picked = some if len(some) <= _TASKS else [*some[: _TASKS - 1], some[-1]]
    left = f"<p>Of {len(some)} tasks, {len(picked)} are shown.</p>" if len(picked) < len(some) else ""
    return words + "".join(_inversion(report, inversion) for inversion in picked) + left


def _inversion(report: Report, inversion: Inversion) -> str:
    names = _class_names(report) if inversion.named else []
    word = "class" if inversion.named else "group"
    ids = np.unique(inversion.labels)
    groups = [
        (names[label] if 0 <= label < len(names) else f"{word} {label}", inversion.images[inversion.labels == label])
        for label in ids[:_CLASSES]
    ]
    grid = "".join(_row(name, images) for name, images in groups)
    start = "" if inversion.noise is None else _row("from noise like this", inversion.noise)
    many = "classes" if inversion.named else "groups"
    count = f"{len(inversion.images)} pictures of {len(ids)} {many}"
    more = f"; {_CLASSES} {many} are shown" if len(ids) > _CLASSES else ""
    drawn = ""
    if len(inversion.curve):
        first, last = float(inversion.curve[0]), float(inversion.curve[-1])
        drawn = chart(
            f"BatchNorm loss, logarithmic: {first:.3g} to {last:.3g} in {len(inversion.curve)} iterations", inversion_chart(inversion.curve)
        )
    title = f"While learning {escaped(task_name(report, inversion.task))}"
    return f'<h3>{title}</h3><p>{count}{more}.</p><div class="made"><div class="madegrid">{start}{grid}</div>{drawn}</div>'


def _row(name: str, images: NDArray[np.uint8]) -> str:
    shown = "".join(picture(encoded(image), name) for image in images[:_EACH])
    return f'<figure><figcaption title="{escaped(name)}">{escaped(name)}</figcaption><div>{shown}</div></figure>'


def _class_names(report: Report) -> list[str]:
    """Class id -> label: ids are given in the order in which tasks bring classes."""
    return [str(label) for label in dict.fromkeys(label for task in report.get("tasks", []) for label in task.get("classes", []))]
