"""Whole datasets, one after another: each task learns some classes of a dataset and is measured on these and on its other classes.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 7, section 7.5.1: lifelong retrieval.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perdure.catalog import did_you_mean
from perdure.errors import ConfigError, DataError
from perdure.records import Item
from perdure.stream.task_stream import TaskStream, Unseen, arrange, build_stream, group_names, rows_of_classes

__all__ = ["dataset_sequence"]

_KIND = "dataset_sequence"
_INSTEAD = "use the dataset 'sequence', whose parts are groups, or name the column (stream.dataset.group for parquet)"


def dataset_sequence(
    items: Sequence[Item],
    rows: NDArray[np.int64],
    seed: int,
    *,
    order: Literal["given", "sorted", "seeded"] | list[str] = "given",
    unseen: int | float | dict[str, int | float] = 0,
    class_order: Literal["sorted", "seeded"] = "sorted",
    unseen_rows: Literal["all", "test"] = "all",
) -> TaskStream:
    """One task a dataset (a group of the items), named after it; `unseen_of` has the classes of each that no task learns.

    The classes of a dataset are put into an order; the first are learned, the last are unseen. With `unseen=0.5` and sorted classes
    that is the rule of metric learning: the first half of the classes is learned, retrieval is measured on the other half, too.

    Args:
        items: the dataset's, with a `group`.
        rows: those that are usable.
        seed: of a seeded order of datasets or of classes.
        order: of the datasets: as the data gives them, "sorted", "seeded", or a list of groups; groups not listed are left out.
        unseen: how many classes of each dataset no task learns: a number, a share below 1 (rounded to whole classes), or one of these
            for each dataset by its name (a dataset that is not named has none).
        class_order: "sorted", or "seeded" for a draw.
        unseen_rows: what measures the unseen classes: "all" their items, of both splits, as in the thesis, or only those of "test".
    Raises:
        ConfigError: no item has a group, a dataset that does not exist, more unseen classes than can be held out.
        DataError: some items have no group, a class that is in two datasets, a dataset without train or test rows.
    """
    found = group_names(items, rows.tolist(), kind=_KIND, instead=_INSTEAD)
    names = found if order == "given" else arrange(found, order, seed, what="dataset")
    rows_of: dict[str, dict[str, list[int]]] = {name: defaultdict(list) for name in names}
    for row in rows.tolist():
        if items[row].group in rows_of:
            rows_of[items[row].group][items[row].label].append(row)
    _check_apart(rows_of)
    counts = _counts(unseen, {name: len(classes) for name, classes in rows_of.items()}, found)
    members: list[tuple[str, NDArray[np.int64], Sequence[str]]] = []
    apart: list[Unseen | None] = []
    for name in names:
        classes = arrange(list(rows_of[name]), class_order, seed, what="class")
        learned, held_out = classes[: len(classes) - counts[name]], classes[len(classes) - counts[name] :]
        members.append((name, rows_of_classes(rows_of[name], learned), learned))
        measuring = rows_of_classes(rows_of[name], held_out)
        if unseen_rows == "test":
            measuring = measuring[[items[row].split == "test" for row in measuring]]
        apart.append((held_out, measuring) if held_out else None)
    return build_stream(items, members, (), np.empty(0, dtype=np.int64), apart if any(counts.values()) else ())


def _check_apart(rows_of: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """A class of two datasets could be learned in one and be unseen in the other."""
    owner: dict[str, str] = {}
    for name, classes in rows_of.items():
        for label in classes:
            if owner.setdefault(label, name) != name:
                raise DataError(
                    f"{_KIND}: class '{label}' is in dataset '{owner[label]}' and in '{name}'; each needs classes of its own. Use "
                    "by_group, where classes may come again, or the dataset 'sequence', which puts a dataset's name before its classes"
                )


def _counts(unseen: int | float | Mapping[str, int | float], num_classes: Mapping[str, int], known: Sequence[str]) -> dict[str, int]:
    """The number of unseen classes of each dataset.

    Raises:
        ConfigError: all that do not fit, at once.
    """
    asked = unseen if isinstance(unseen, Mapping) else dict.fromkeys(num_classes, unseen)
    problems = [f"unseen: no dataset '{name}' in the data.{did_you_mean(name, known)}" for name in asked if name not in known]
    counts: dict[str, int] = {}
    for name, number in num_classes.items():
        value = asked.get(name, 0)
        count = round(value * number) if 0 < value < 1 else value
        if count != int(count) or not 0 <= count < number:
            problems.append(
                f"unseen={value} of dataset '{name}', which has {number} classes; give a number of classes that leaves one at least, or a "
                "share below 1"
            )
        counts[name] = int(count)
    if problems:
        raise ConfigError(f"stream.kind '{_KIND}'", problems)
    return counts
