"""Class-incremental: each task brings classes that were never seen before."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perdure.errors import ConfigError
from perdure.records import Item
from perdure.stream.task_stream import TaskStream, arrange, build_stream, rows_of_classes

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
    task_order: list[int] | None = None,
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
        order: of the classes: "seeded", "sorted", or a list of labels in their order; labels not listed are left out.
        task_order: the tasks that this makes, numbered from 0, in the order in which they are learned; None = as they come.
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
        (f"classes {low}-{high - 1}" if high - low > 1 else f"class {low}", rows_of_classes(rows_of, seen[low:high]), seen[low:high])
        for low, high in itertools.pairwise(bounds)
    ]
    if task_order is not None:
        members = [members[place] for place in _permutation(task_order, len(members))]
    return build_stream(items, members, held_out, rows_of_classes(rows_of, held_out))


def _permutation(task_order: Sequence[int], num_tasks: int) -> Sequence[int]:
    """The order of the tasks, once it is certain that each comes exactly once."""
    if sorted(task_order) != list(range(num_tasks)):
        missing = sorted(set(range(num_tasks)) - set(task_order))
        lacking = f"; {', '.join(map(str, missing))} {'is' if len(missing) == 1 else 'are'} missing" if missing else ""
        problem = f"task_order={list(task_order)}: there are {num_tasks} tasks; name each of 0 to {num_tasks - 1} once{lacking}"
        raise ConfigError("stream.kind 'class_incremental'", [problem])
    return task_order


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
            problems.append(
                f"first={first} + step={step} is {first + step} classes, but {have}; choose fewer (stream.kind.first, stream.kind.step)"
            )
        elif tasks is not None and tasks > possible:
            problems.append(f"tasks={tasks}: first={first} and step={step} make {possible} tasks at most; {have}")
    if problems:
        raise ConfigError("stream.kind 'class_incremental'", problems)
