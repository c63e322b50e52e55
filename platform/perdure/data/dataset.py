"""Dataset: what every source of pictures looks like to the rest of the house, and what the sources share."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from perdure.errors import DataError
from perdure.records import Item

__all__ = ["Dataset", "check_items", "file_stamp", "fingerprint", "hold_out", "read_file", "split_anew", "unique_between_splits"]

_SHOWN = 3  # examples in a message: enough to find the fault, few enough to read


class Dataset(Protocol):
    """Items with their annotation in memory, and their encoded pictures on request by row."""

    @property
    def name(self) -> str:
        """What the dataset is called in messages and file names."""
        ...

    @property
    def items(self) -> Sequence[Item]:
        """Row i is `items[i]`; ids are unique."""
        ...

    @property
    def digest(self) -> str:
        """Hex; changes whenever the content may have changed, and keys the decode cache."""
        ...

    def image_bytes(self, row: int) -> bytes:
        """The encoded picture (PNG, JPEG ...) as it is stored.

        Raises:
            DataError: it cannot be read; the message names the file and the row.
        """
        ...

    def where(self, row: int) -> str:
        """Where a person finds this row: `train.parquet row 17 (id 'abc')`."""
        ...


def check_items(name: str, items: Sequence[Item]) -> Sequence[Item]:
    """The items, unchanged, once it is certain that there are some and that their ids are unique.

    Raises:
        DataError: no items, or ids that occur more than once; names the first few with their rows.
    """
    if not items:
        raise DataError(f"{name}: no items at all; nothing can be learned from it")
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, item in enumerate(items):
        rows_of[item.id].append(row)
    if len(rows_of) < len(items):
        repeated = [(key, rows) for key, rows in rows_of.items() if len(rows) > 1]
        shown = "; ".join(f"'{key}' in rows {', '.join(map(str, rows[:_SHOWN]))}" for key, rows in repeated[:_SHOWN])
        more = f" and {len(repeated) - _SHOWN} more" if len(repeated) > _SHOWN else ""
        raise DataError(f"{name}: {len(repeated)} ids are not unique: {shown}{more}; an item is found by its id, so each needs its own")
    return items


def unique_between_splits(train: Sequence[str], test: Sequence[str]) -> tuple[list[str], list[str]]:
    """Ids of both splits as they are, or all prefixed by `train/` and `test/` when any id occurs in both."""
    if set(train).isdisjoint(test):
        return list(train), list(test)
    return [f"train/{key}" for key in train], [f"test/{key}" for key in test]


def hold_out(ids: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The split of each item when the source has none: a fifth of each class is "test", chosen by a hash of the id.

    The n items of a class are ranked by sha1(id) and the first n // 5 are held out; a class with fewer than five items holds an
    item out iff sha1(id) mod 5 is 0, so that a dataset of singletons is split too. Neither row order nor a seed plays a part.
    """
    hashes = [_hash(key) for key in ids]
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows_of[label].append(row)
    splits = ["train"] * len(ids)
    for rows in rows_of.values():
        if len(rows) < 5:
            held_out = [row for row in rows if hashes[row] % 5 == 0]
        else:
            held_out = sorted(rows, key=lambda row: (hashes[row], ids[row]))[: len(rows) // 5]
        for row in held_out:
            splits[row] = "test"
    return splits


def split_anew(items: Sequence[Item], test_share: float) -> list[Item]:
    """The items with a split of our own instead of theirs: a share of each class is "test", chosen by a hash of the id.

    Of the n items of a class, ranked by sha1(id), the first ceil(test_share n) are held out, so that 0.4 leaves floor(0.6 n) for
    training; one item at least stays there. Neither row order nor a seed plays a part.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, item in enumerate(items):
        rows_of[item.label].append(row)
    held_out: set[int] = set()
    for rows in rows_of.values():
        count = min(math.ceil(round(test_share * len(rows), 9)), len(rows) - 1)  # rounded: 0.07 * 100 is 7.000000000000001
        held_out.update(sorted(rows, key=lambda row: (_hash(items[row].id), items[row].id))[:count])
    return [replace(item, split="test" if row in held_out else "train") for row, item in enumerate(items)]


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha1(key.encode()).digest(), "big")


def fingerprint(parts: Iterable[object]) -> str:
    """Sha256 (hex) of plain data, one part after the other."""
    total = hashlib.sha256()
    for part in parts:
        total.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\n")
    return total.hexdigest()


def file_stamp(path: Path) -> tuple[str, int, int]:
    """Name, size in bytes and modification time in ns of a file; (-1, -1) when it is not there, so its arrival is a change too."""
    try:
        found = path.stat()
    except OSError:
        return (path.name, -1, -1)
    return (path.name, found.st_size, found.st_mtime_ns)


def read_file(path: Path, where: str) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: there is no such file, or it cannot be read; opens with `where`.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{where}: no such file: {path}") from None
    except OSError as error:
        raise DataError(f"{where}: cannot read {path}: {error.strerror}") from None
