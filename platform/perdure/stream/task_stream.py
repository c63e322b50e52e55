"""TaskStream: a dataset cut into tasks, and what the ways of cutting share."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perdure.catalog import did_you_mean
from perdure.errors import ConfigError, DataError
from perdure.records import Item, Task

__all__ = ["TaskStream", "Unseen", "arrange", "build_stream", "group_names", "rows_of_classes", "searching_the_rest"]

log = logging.getLogger(__name__)

Unseen = tuple[Sequence[str], NDArray[np.int64]]
"""Classes that no task learns, and the rows that measure them."""


@dataclass(frozen=True, eq=False)
class TaskStream:
    """Tasks in the order in which they are learned.

    Query and gallery of a task are both the test rows of its classes: retrieval is leave-one-out inside them. Where these are so few that
    no query has anything to find, neither another item of its class nor a caption, its training rows are in the gallery, too. Under
    `searching_the_rest` the gallery is all rows of the task that are not tested on. Classes that no task learns are measured apart: those
    of the stream as a whole, or, where each task is a dataset, those of each dataset.
    """

    tasks: tuple[Task, ...]
    unseen: Task | None  # rows of classes that no task learns
    classes: tuple[str, ...]  # class id -> label, in order of introduction; the unseen ones last
    labels: NDArray[np.int64]  # (N,) class id of each row of the dataset, -1 for rows that are in no task
    unseen_of: tuple[Task | None, ...] = ()  # of each task, the classes of its dataset that no task learns; () = not cut by dataset
    spare: tuple[NDArray[np.int64], ...] = ()  # of each task, rows that are neither learned nor tested on: there to be found

    def measured(self) -> tuple[Task, ...]:
        """All that is measured: every task, and what is unseen."""
        apart = (self.unseen, *self.unseen_of)
        return (*self.tasks, *(task for task in apart if task is not None))


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


def group_names(items: Sequence[Item], rows: Sequence[int], *, kind: str, instead: str) -> list[str]:
    """The groups of the rows, in the order in which they first come.

    Args:
        items: the dataset's.
        rows: those that are usable.
        kind: of the stream, for messages.
        instead: what else a user whose data has no groups can do.
    Raises:
        ConfigError: no item has a group. DataError: some have none.
    """
    without = [row for row in rows if not items[row].group]
    if len(without) == len(rows):
        raise ConfigError(f"stream.kind '{kind}'", [f"no item of this dataset has a group; {instead}"])
    if without:
        raise DataError(f"{kind}: {len(without)} of {len(rows)} items have no group, such as '{items[without[0]].id}'; give each one")
    return list(dict.fromkeys(items[row].group for row in rows))


def rows_of_classes(rows_of: Mapping[str, Sequence[int]], classes: Sequence[str]) -> NDArray[np.int64]:
    """The rows (n,) of some classes, ascending."""
    return np.array(sorted(row for label in classes for row in rows_of[label]), dtype=np.int64)


def build_stream(
    items: Sequence[Item],
    members: Sequence[tuple[str, NDArray[np.int64], Sequence[str] | None]],
    unseen: Sequence[str],
    unseen_rows: NDArray[np.int64],
    unseen_of: Sequence[Unseen | None] = (),
) -> TaskStream:
    """A stream from the rows of each task.

    Args:
        items: the dataset's.
        members: name, rows (train and test) and classes of each task; None stands for the classes found in the rows, sorted.
        unseen: classes that no task learns.
        unseen_rows: their rows; only test rows are kept.
        unseen_of: of each task, classes of its dataset that no task learns, with the rows that measure them, all of which are kept.
    Raises:
        DataError: a task without train rows or without test rows, or unseen classes without test rows.
    """
    cut = _Cut(items)
    tasks = tuple(cut.learned(index, *member) for index, member in enumerate(members))
    apart = tuple(
        None if one is None else cut.aside(task.index, f"{task.name}, unseen", *one) for task, one in zip(tasks, unseen_of, strict=False)
    )
    whole = cut.aside(len(tasks), "unseen", unseen, _split(items, unseen_rows)[1]) if unseen else None
    spare = tuple(_of_gallery(items, rows) for _, rows, _ in members)
    return TaskStream(tasks, whole, tuple(cut.id_of), cut.labels, apart, spare)


class _Cut:
    """Numbers the classes as tasks are cut off a dataset."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items
        self.id_of: dict[str, int] = {}
        self.labels: NDArray[np.int64] = np.full(len(items), -1, dtype=np.int64)

    def learned(self, index: int, name: str, rows: NDArray[np.int64], classes: Sequence[str] | None) -> Task:
        """A task of these rows."""
        found = sorted({self._items[row].label for row in rows}) if classes is None else classes
        train, test = _split(self._items, rows)
        if not len(train) or not len(test):
            lacking = " and ".join(split for split, part in (("train", train), ("test", test)) if not len(part))
            raise DataError(
                f"task {index} '{name}': {len(rows)} usable items, but none of the {lacking} split; it can not be learned or measured"
            )
        self._number(found, rows)
        return Task(index, name, tuple(sorted(found, key=self.id_of.__getitem__)), train, test, self._gallery(index, name, train, test))

    def _gallery(self, index: int, name: str, train: NDArray[np.int64], test: NDArray[np.int64]) -> NDArray[np.int64]:
        """The test rows, and the training rows where nothing can be found without them."""
        asked, times = np.unique(self.labels[test], return_counts=True)
        if (times > 1).any() or any(self._items[row].captions for row in test.tolist()) or not np.isin(self.labels[train], asked).any():
            return test
        log.warning("task %d '%s': no class has two test items; they are searched for among its training items, too", index, name)
        return np.union1d(train, test)

    def aside(self, index: int, name: str, classes: Sequence[str], rows: NDArray[np.int64]) -> Task:
        """What measures classes that no task learns."""
        asked = np.setdiff1d(rows, _of_gallery(self._items, rows))
        if not len(asked):
            raise DataError(f"unseen classes {', '.join(classes[:5])}: no usable items of the test split; hold out others or none")
        self._number(classes, rows)
        return Task(index, name, (), np.empty(0, dtype=np.int64), asked, asked)

    def _number(self, classes: Sequence[str], rows: NDArray[np.int64]) -> None:
        for label in classes:
            self.id_of.setdefault(label, len(self.id_of))
        self.labels[rows] = [self.id_of[self._items[row].label] for row in rows]


def searching_the_rest(stream: TaskStream) -> TaskStream:
    """The same tasks, whose queries search all of their usable items that are not tested on: what is learned, and what is spare.

    What is unseen has nothing else, and stays as it is: each test item asks for the others.
    """
    tasks = zip(stream.tasks, stream.spare, strict=True)
    return replace(stream, tasks=tuple(replace(task, gallery=np.union1d(task.train, spare)) for task, spare in tasks))


def _of_gallery(items: Sequence[Item], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of some rows that are there to be found, no more."""
    return np.sort(rows[np.array([items[row].split == "gallery" for row in rows], dtype=np.bool_)])


def _split(items: Sequence[Item], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Train and test rows, ascending."""
    splits = np.array([items[row].split for row in rows], dtype=object)
    return np.sort(rows[(splits != "test") & (splits != "gallery")]), np.sort(rows[splits == "test"])
