"""Class-incremental: each task brings classes that were never seen before."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perdure.errors import ConfigError
from perdure.records import Item
from perdure.stream.task_stream import TaskStream, arrange, build_stream

__all__ = ["class_incremental"]


def class_incremental(
    items: Sequence[Item],
    rows: NDArray[np.int64],
    seed: int,
    *,
    first: int,
    step: int,
    tasks: int | None = None,
    order: Literal["seeded", "sorted"] | list[str] = "seeded",
    unseen: int = 0,
) -> TaskStream:
    """`first` classes, then `step` more with each task, until none are left; the last task takes what is left, if only one class.

    Args:
        items: the dataset's.
        rows: those that are usable.
        seed: of the order of classes; row order plays no part.
        first: classes of task 0.
        step: classes of each later task.
        tasks: stop after so many; the classes beyond are in no task.
        order: "seeded", "sorted", or a list of labels in their order; labels not listed are left out.
        unseen: how many classes, from the end of the order, no task learns; their test rows are one more column of the matrix.
    Raises:
        ConfigError: more classes asked for than there are, a number out of range, a label that does not exist.
        DataError: a task without train or test rows.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row in rows.tolist():
        rows_of[items[row].label].append(row)
    classes = arrange(list(rows_of), order, seed, what="class")
    _check(len(classes), first, step, tasks, unseen)
    seen, held_out = classes[: len(classes) - unseen], classes[len(classes) - unseen :]
    bounds = [0, *range(first, len(seen), step), len(seen)][: None if tasks is None else tasks + 1]
    members = [
        (f"classes {low}-{high - 1}" if high - low > 1 else f"class {low}", _rows(rows_of, seen[low:high]), seen[low:high])
        for low, high in itertools.pairwise(bounds)
    ]
    return build_stream(items, members, held_out, _rows(rows_of, held_out))


def _check(found: int, first: int, step: int, tasks: int | None, unseen: int) -> None:
    """All numbers that do not fit, at once."""
    problems = [
        f"{name}={value}: must be {low} or more"
        for name, value, low in (("first", first, 1), ("step", step, 1), ("unseen", unseen, 0))
        if value < low
    ]
    if tasks is not None and tasks < 1:
        problems.append(f"tasks={tasks}: must be 1 or more, or null for as many as there are classes for")
    if not problems:
        seen = found - unseen
        have = f"the data has {found} classes" + (f", {unseen} of them held out as unseen" if unseen else "")
        possible = 1 + -(-max(seen - first, 0) // step)
        if tasks == 1:
            if first > seen:
                problems.append(f"first={first}: more than there are; {have}")
        elif first + step > seen:
            problems.append(f"first={first} + step={step} is {first + step} classes, but {have}")
        elif tasks is not None and tasks > possible:
            problems.append(f"tasks={tasks}: first={first} and step={step} make {possible} tasks at most; {have}")
    if problems:
        raise ConfigError("stream.kind 'class_incremental'", problems)


def _rows(rows_of: dict[str, list[int]], classes: Sequence[str]) -> NDArray[np.int64]:
    return np.array(sorted(row for label in classes for row in rows_of[label]), dtype=np.int64)
