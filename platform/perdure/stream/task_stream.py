"""TaskStream: a dataset cut into tasks, and what the ways of cutting share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perdure.catalog import did_you_mean
from perdure.errors import ConfigError, DataError
from perdure.records import Item, Task

__all__ = ["TaskStream", "arrange", "build_stream"]


@dataclass(frozen=True, eq=False)
class TaskStream:
    """Tasks in the order in which they are learned.

    Query and gallery of a task are both the test rows of its classes: retrieval is leave-one-out inside them.
    """

    tasks: tuple[Task, ...]
    unseen: Task | None  # test rows of classes that no task learns
    classes: tuple[str, ...]  # class id -> label, in order of introduction; the unseen ones last
    labels: NDArray[np.int64]  # (N,) class id of each row of the dataset, -1 for rows that are in no task


def arrange(names: Sequence[str], order: str | Sequence[str], seed: int, *, what: str) -> list[str]:
    """The distinct names in a fixed order that does not depend on the order of rows.

    Args:
        names: distinct names in any order.
        order: "sorted", "seeded" (a shuffle of the sorted names), or the names themselves: those not named are left out.
        seed: of the shuffle.
        what: "class" or "group", for messages.
    Raises:
        ConfigError: a named one does not exist, or is named twice.
    """
    known = sorted(names)
    if order == "sorted":
        return known
    if order == "seeded":
        return [known[place] for place in np.random.default_rng(seed).permutation(len(known))]
    chosen = list(order)
    problems = [f"order: no {what} '{name}' in the data.{did_you_mean(name, known)}" for name in chosen if name not in known]
    problems += [f"order: {what} '{name}' is named {chosen.count(name)} times" for name in dict.fromkeys(chosen) if chosen.count(name) > 1]
    if not chosen:
        problems = [f"order: names no {what}"]
    if problems:
        raise ConfigError("stream.kind", problems)
    return chosen


def build_stream(
    items: Sequence[Item],
    members: Sequence[tuple[str, NDArray[np.int64], Sequence[str] | None]],
    unseen: Sequence[str],
    unseen_rows: NDArray[np.int64],
) -> TaskStream:
    """A stream from the rows of each task.

    Args:
        items: the dataset's.
        members: name, rows (train and test) and classes of each task; None stands for the classes found in the rows, sorted.
        unseen: classes that no task learns.
        unseen_rows: their rows; only test rows are kept.
    Raises:
        DataError: a task without train rows or without test rows, or unseen classes without test rows.
    """
    tasks: list[Task] = []
    id_of: dict[str, int] = {}
    labels = np.full(len(items), -1, dtype=np.int64)
    for index, (name, rows, classes) in enumerate(members):
        found = sorted({items[row].label for row in rows}) if classes is None else classes
        for label in found:
            id_of.setdefault(label, len(id_of))
        train, test = _split(items, rows)
        if not len(train) or not len(test):
            lacking = " and ".join(split for split, part in (("train", train), ("test", test)) if not len(part))
            raise DataError(
                f"task {index} '{name}': {len(rows)} usable items, but none of the {lacking} split; it can not be learned or measured"
            )
        tasks.append(Task(index, name, tuple(sorted(found, key=id_of.__getitem__)), train, test, test))
        labels[rows] = [id_of[items[row].label] for row in rows]
    if not unseen:
        return TaskStream(tuple(tasks), None, tuple(id_of), labels)
    for label in unseen:
        id_of[label] = len(id_of)
    _, test = _split(items, unseen_rows)
    if not len(test):
        raise DataError(f"unseen classes {', '.join(unseen[:5])}: no usable items of the test split; hold out others or none")
    labels[test] = [id_of[items[row].label] for row in test]
    nothing = np.empty(0, dtype=np.int64)
    return TaskStream(tuple(tasks), Task(len(tasks), "unseen", (), nothing, test, test), tuple(id_of), labels)


def _split(items: Sequence[Item], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Train and test rows, ascending."""
    is_test = np.array([items[row].split == "test" for row in rows], dtype=np.bool_)
    return np.sort(rows[~is_test]), np.sort(rows[is_test])
