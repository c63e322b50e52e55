"""What a report shows beside numbers, computed once when a run ends, and kept in its folder for the page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perdure.pictures.asking import Asking, Embeddings
from perdure.pictures.features import feature_map
from perdure.pipeline import Prepared
from perdure.records import EncoderRef, Release, Task
from perdure.registry.registry import Registry
from perdure.report import Change, Example, ReportPictures

__all__ = ["save_pictures"]

_PER_TASK = 2  # example queries of each kind
_TASKS = 4  # that examples are taken from: the first ones and the last
_CLASSES, _ITEMS = 8, 6  # of a Gram matrix


def save_pictures(folder: Path, registry: Registry, prepared: Prepared, release_id: str, embeddings: Embeddings) -> None:
    """Ask the last release, and the one before it, a few test items of several tasks; compare encoders on the first task."""
    release = registry.release(release_id)
    tasks = prepared.stream.tasks[: release.task + 1]
    examples, changes = _asked(Asking.open(registry, release, prepared, embeddings), tasks)
    grams, gram_classes = _grams(release, tasks[0], prepared, embeddings)
    features = feature_map(release, tasks, prepared, embeddings)
    ReportPictures(examples=examples, grams=grams, gram_classes=gram_classes, changes=changes, features=features).save(folder)


def _asked(asking: Asking, tasks: Sequence[Task]) -> tuple[list[Example], list[Change]]:
    """Of each kind: queries of several tasks, then those of earlier tasks whose answer the last task changed most."""
    shown = tasks if len(tasks) <= _TASKS else (*tasks[: _TASKS - 1], tasks[-1])
    examples: list[Example] = []
    changes: list[Change] = []
    for kind in ("image", "text", "words") if asking.prepared.with_text else ("image",):
        spread = [asking.spread(kind, task, _PER_TASK) for task in shown]
        picked = [
            (rows[pick], task.index) for pick in range(_PER_TASK) for task, rows in zip(shown, spread, strict=True) if pick < len(rows)
        ]
        examples += [asking.example(kind, row, task) for row, task in picked]
        change, changed = asking.change(kind, tasks[:-1], leave_out=[row for row, _ in picked])
        changes += change
        examples += changed
    return examples, changes


def _grams(release: Release, first: Task, prepared: Prepared, embeddings: Embeddings) -> tuple[dict[str, NDArray[np.floating]], list[str]]:
    """Gram matrices of the first task's test pictures by the last two encoders, and the class of each row; none after one task."""
    if release.task == 0:
        return {}, []
    of_task = prepared.stream.labels[first.query]
    picked = np.concatenate([first.query[of_task == one][:_ITEMS] for one in np.unique(of_task)[:_CLASSES]])
    teacher, student = (embeddings(EncoderRef(release.run, version)).of(picked).image for version in (release.task, release.task + 1))
    grams: dict[str, NDArray[np.floating]] = {"teacher": teacher @ teacher.T, "student": student @ student.T}
    return grams, [prepared.dataset.items[int(row)].label for row in picked]
