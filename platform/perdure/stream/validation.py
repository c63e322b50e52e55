"""Validation: a stream that is measured on held-out train items, as if there were no test split, no unseen class and no later task."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from perdure.data.dataset import split_anew
from perdure.errors import ConfigError
from perdure.records import Item
from perdure.stream.task_stream import TaskStream

__all__ = ["first_tasks", "hold_out_train_items"]


def hold_out_train_items(items: Sequence[Item], rows: NDArray[np.int64], share: float) -> tuple[list[Item], NDArray[np.int64]]:
    """The items with a share of each class's train items as "test", and the rows that are left: those of the train split.

    Args:
        items: the dataset's; what is in no row keeps its split.
        rows: (n,) those that are usable.
        share: see `data.dataset.split_anew`: by a hash of the id, neither row order nor a seed plays a part.
    """
    train = [row for row in rows.tolist() if items[row].split not in ("test", "gallery")]
    out = list(items)
    for row, item in zip(train, split_anew([items[row] for row in train], share), strict=True):
        out[row] = item
    return out, np.array(train, dtype=np.int64)


def first_tasks(stream: TaskStream, count: int | None) -> TaskStream:
    """The first tasks of a stream (None: all), and nothing else: no later task, no unseen class.

    Raises:
        ConfigError: there are not so many.
    """
    count = len(stream.tasks) if count is None else count
    if count > len(stream.tasks):
        raise ConfigError("stream.validation", [f"tasks={count}: the stream has {len(stream.tasks)}; choose as many or fewer"])
    tasks = stream.tasks[:count]
    labels = np.full_like(stream.labels, -1)
    for task in tasks:
        rows = np.concatenate([task.train, task.query, task.gallery])
        labels[rows] = stream.labels[rows]
    return replace(stream, tasks=tasks, unseen=None, classes=stream.classes[: int(labels.max()) + 1], labels=labels, unseen_of=())
