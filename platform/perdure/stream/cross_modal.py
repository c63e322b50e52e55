"""Cross-modal: pictures with their captions arrive task by task, and every one of them has words.

Wang, Herranz and van de Weijer, "Continual learning in cross-modal retrieval", CVPR workshops 2021: tasks bring image-text pairs of
natural images (sequential Visual Genome, sequential MS-COCO). How these were cut could not be verified; that tasks are disjoint groups or
disjoint classes of the pairs is our reading.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perdure.errors import ConfigError, DataError
from perdure.records import Item
from perdure.stream.by_group import by_group
from perdure.stream.class_incremental import class_incremental
from perdure.stream.task_stream import TaskStream

__all__ = ["cross_modal"]

_KIND = "stream.kind 'cross_modal'"


def cross_modal(
    items: Sequence[Item],
    rows: NDArray[np.int64],
    seed: int,
    *,
    by: Literal["group", "class"] = "group",
    first: int | None = None,
    step: int | None = None,
    order: Literal["sorted", "seeded"] | list[str] = "sorted",
) -> TaskStream:
    """Tasks of `by_group` or of `class_incremental`, of items that all have captions.

    Args:
        items: the dataset's.
        rows: those that are usable.
        seed: of a seeded order.
        by: "group": a task for each group of the data; "class": by classes, `first` of them and then `step` more with each task.
        first: classes of the first task, for "class".
        step: classes of each later task, for "class".
        order: of groups or of classes: "sorted", "seeded", or a list of their names in their order; those not listed are left out.
    Raises:
        ConfigError: `first` and `step` are missing for "class" or given for "group"; as for the two kinds.
        DataError: an item of a task has no caption; as for the two kinds.
    """
    if by == "group":
        given = [f"{name}={value}" for name, value in (("first", first), ("step", step)) if value is not None]
        if given:
            raise ConfigError(_KIND, [f"by=group: a task is a whole group, so {' and '.join(given)} means nothing; or choose by=class"])
        return _with_words(items, by_group(items, rows, seed, order=order))
    if first is None or step is None:
        missing = " and ".join(name for name, value in (("first", first), ("step", step)) if value is None)
        raise ConfigError(_KIND, [f"by=class: {missing} missing; say how many classes come with a task"])
    return _with_words(items, class_incremental(items, rows, seed, first=first, step=step, order=order))


def _with_words(items: Sequence[Item], stream: TaskStream) -> TaskStream:
    """The stream itself, once it is certain that all of its items have captions."""
    used = np.unique(np.concatenate([part for task in stream.tasks for part in (task.train, task.query, task.gallery)])).tolist()
    silent = [items[row].id for row in used if not items[row].captions]
    if silent:
        raise DataError(
            f"cross_modal: {len(silent)} of {len(used)} items have no caption, such as '{silent[0]}'; give each one, name the column "
            "(stream.dataset.text for parquet), or use class_incremental or by_group, which learn pictures alone, too"
        )
    return stream
