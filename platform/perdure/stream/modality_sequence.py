"""Modalities, one after another: each task learns the same classes from another kind of item, and no item has a partner in another task.

Song and Tan, "Sequential Learning for Cross-modal Retrieval", ICCV workshops 2019: class labels are the only bridge.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from perdure.errors import ConfigError, DataError
from perdure.records import Item, Modality
from perdure.stream.task_stream import TaskStream, arrange, build_stream

__all__ = ["modality_sequence"]

_KIND = "modality_sequence"


def modality_sequence(items: Sequence[Item], rows: NDArray[np.int64], seed: int, *, order: list[Modality] | None = None) -> TaskStream:
    """One task a modality, named after it, all of the same classes; its test rows are of its modality too.

    Args:
        items: the dataset's, each of one modality.
        rows: those that are usable.
        seed: of nothing; a stream of this kind is not drawn.
        order: in which the modalities are learned; those not listed are left out. None: as the dataset has them.
    Raises:
        ConfigError: no item is of a modality, or a modality in `order` is of no item.
        DataError: some items have no modality, a class that a modality lacks, a modality without train or test rows.
    """
    rows_of: dict[Modality, list[int]] = defaultdict(list)
    without: list[int] = []
    for row in rows.tolist():
        modality = items[row].modality
        (without if modality is None else rows_of[modality]).append(row)
    if not rows_of:
        instead = "wrap it: stream.dataset={name: modalities, of: {name: ...}}"
        raise ConfigError(f"stream.kind '{_KIND}'", [f"no item of this dataset is of one modality alone; {instead}"])
    if without:
        raise DataError(f"{_KIND}: {len(without)} of {len(rows)} items have no modality, such as '{items[without[0]].id}'")
    by_name: dict[str, list[int]] = {modality: rows_of[modality] for modality in rows_of}
    names = list(by_name) if order is None else arrange(list(by_name), order, seed, what="modality")
    _check_same_classes(items, {name: by_name[name] for name in names})
    members = [(name, np.array(by_name[name], dtype=np.int64), None) for name in names]
    stream = build_stream(items, members, (), np.empty(0, dtype=np.int64))
    return replace(stream, tasks=tuple(replace(task, modality=items[int(task.train[0])].modality) for task in stream.tasks))


def _check_same_classes(items: Sequence[Item], rows_of: dict[str, list[int]]) -> None:
    """Class labels are all that connects the modalities, so each has to have every class."""
    classes = {name: {items[row].label for row in rows} for name, rows in rows_of.items()}
    every = set[str]().union(*classes.values())
    for name, own in classes.items():
        lacking = sorted(every - own)
        if lacking:
            raise DataError(f"{_KIND}: no {name} of class '{lacking[0]}' ({len(lacking)} classes missing); each modality needs every class")
