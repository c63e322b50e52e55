"""By group: each task is one group of the data (a source, a domain, a week); classes may come again in later groups."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perdure.errors import ConfigError
from perdure.records import Item
from perdure.stream.task_stream import TaskStream, arrange, build_stream, group_names

__all__ = ["by_group"]


def by_group(
    items: Sequence[Item],
    rows: NDArray[np.int64],
    seed: int,
    *,
    order: Literal["sorted", "seeded"] | list[str] = "sorted",
    unseen: int | float = 0,
) -> TaskStream:
    """One task a group, named after it; its classes are the labels found in its rows.

    Args:
        items: the dataset's, with a `group`.
        rows: those that are usable.
        seed: of a seeded order and of the choice of unseen classes.
        order: "sorted", "seeded", or a list of groups in their order; groups not listed are left out.
        unseen: how many classes no task learns: a number of classes, or a share of them below 1. They are drawn from the classes that
            have test rows, from all groups; their train rows are in no task.
    Raises:
        ConfigError: no item has a group, a group in `order` does not exist, more unseen classes than can be held out.
        DataError: some items have no group, a group without train or test rows.
    """
    instead = "name the column (stream.dataset.group for parquet), or use class_incremental"
    groups = arrange(group_names(items, rows.tolist(), kind="by_group", instead=instead), order, seed, what="group")
    taken = set(groups)
    chosen = [row for row in rows.tolist() if items[row].group in taken]
    held_out = _held_out(items, chosen, seed, unseen)
    rows_of: dict[str, list[int]] = defaultdict(list)
    unseen_rows: list[int] = []
    aside = set(held_out)
    for row in chosen:
        (unseen_rows if items[row].label in aside else rows_of[items[row].group]).append(row)
    members = [(group, np.array(rows_of[group], dtype=np.int64), None) for group in groups]
    return build_stream(items, members, held_out, np.array(unseen_rows, dtype=np.int64))


def _held_out(items: Sequence[Item], rows: Sequence[int], seed: int, unseen: int | float) -> list[str]:
    """The classes that no task learns."""
    classes = {items[row].label for row in rows}
    measurable = sorted({items[row].label for row in rows if items[row].split == "test"})
    count = round(unseen * len(classes)) if 0 < unseen < 1 else unseen
    if count != int(count) or not 0 <= count < len(classes) or count > len(measurable):
        found = f"there are {len(classes)} classes, {len(measurable)} of them with test rows"
        raise ConfigError("stream.kind 'by_group'", [f"unseen={unseen}: {found}; give a number of classes or a share below 1"])
    return [measurable[place] for place in np.random.default_rng([seed, 1]).permutation(len(measurable))[: int(count)]]
