"""Every label that applies to an item, as rows of 0 and 1: for losses and metrics that know more than one class of a picture."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from perdure.records import Item

__all__ = ["known_tags", "tag_matrix", "tags_of"]


def tags_of(item: Item) -> tuple[str, ...]:
    """An item's tags; its class where it has none."""
    return item.tags or (item.label,)


def known_tags(items: Sequence[Item], rows: Iterable[int]) -> tuple[str, ...]:
    """The tags of rows in the order in which they first come, so that more rows only append."""
    return tuple(dict.fromkeys(tag for row in rows for tag in tags_of(items[row])))


def tag_matrix(items: Sequence[Item], rows: Sequence[int] | NDArray[np.int64], tags: Sequence[str]) -> NDArray[np.bool_]:
    """(n, C) which of C tags each of n rows has; tags that are not among them are left out."""
    column = {tag: at for at, tag in enumerate(tags)}
    out = np.zeros((len(rows), len(tags)), dtype=np.bool_)
    for at, row in enumerate(rows):
        out[at, [column[tag] for tag in tags_of(items[int(row)]) if tag in column]] = True
    return out
