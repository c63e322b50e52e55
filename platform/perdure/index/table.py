"""The table of a segment: what is known of each row beside its vector; and the pictures, in a file that is mapped, not loaded.

N rows. Filters are equalities over columns; a list of values means any of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from perdure.catalog import did_you_mean
from perdure.errors import BadQuery, Corrupt
from perdure.records import Item

__all__ = ["FILTERS", "Entry", "Pictures", "SegmentTable", "write_pictures"]

pc: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them

FILTERS = ("id", "label", "group", "task", "tags")
_ROWS_PER_BATCH = 256
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.string()),
        ("text", pa.list_(pa.string())),
        ("group", pa.string()),
        ("task", pa.int32()),
        ("tags", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a segment."""

    id: str
    label: str
    text: tuple[str, ...]
    group: str
    task: int
    tags: tuple[str, ...]


class SegmentTable:
    """Columns id, label, text, group, task, tags."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._row_of: dict[str, int] | None = None

    @classmethod
    def of(cls, items: Sequence[Item], task: Sequence[int]) -> "SegmentTable":
        """A table from items and the task that brought each."""
        columns = {
            "id": [item.id for item in items],
            "label": [item.label for item in items],
            "text": [list(item.captions) for item in items],
            "group": [item.group for item in items],
            "task": list(task),
            "tags": [list(item.tags) for item in items],
        }
        return cls(pa.table(columns, schema=_SCHEMA))

    def __len__(self) -> int:
        return self._table.num_rows

    @property
    def ids(self) -> list[str]:
        """Every id, by row."""
        return self._table.column("id").to_pylist()

    @property
    def labels(self) -> list[str]:
        """Every label, by row."""
        return self._table.column("label").to_pylist()

    def row(self, item_id: str) -> int | None:
        """The row of an id, or None."""
        if self._row_of is None:
            self._row_of = {name: row for row, name in enumerate(self.ids)}
        return self._row_of.get(item_id)

    def entries(self, rows: NDArray[np.int64] | Sequence[int]) -> list[Entry]:
        """What is known of some rows."""
        found = self._table.take(pa.array(np.asarray(rows, dtype=np.int64))).to_pylist()
        return [Entry(e["id"], e["label"], tuple(e["text"]), e["group"], e["task"], tuple(e["tags"])) for e in found]

    def allowed(self, filter: Mapping[str, Any]) -> NDArray[np.bool_]:
        """(N,) which rows satisfy every equality of a filter; for `tags`, a row that has one of the values.

        Raises:
            BadQuery: a column that cannot be filtered by, or a value of the wrong type.
        """
        mask = np.ones(len(self), np.bool_)
        for column, value in filter.items():
            if column not in FILTERS:
                raise BadQuery(f"filter: no column '{column}'; filter by {', '.join(FILTERS)}.{did_you_mean(column, FILTERS)}")
            kind = int if column == "task" else str
            values = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
            if not all(type(one) is kind for one in values):
                raise BadQuery(f"filter: {column}={value!r}; expected {'a number' if kind is int else 'a text'} or a list of them")
            mask &= self._holds(column, values)
        return mask

    def save(self, path: Path) -> None:
        """Write a Parquet file."""
        pq.write_table(self._table, path, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> "SegmentTable":
        """Read what `save` wrote; Corrupt when it cannot be read."""
        try:
            return cls(pq.read_table(path, schema=_SCHEMA).combine_chunks())
        except (pa.ArrowException, OSError) as error:
            raise Corrupt(f"{path}: not the table of a segment ({error})") from None

    def _holds(self, column: str, values: list[Any]) -> NDArray[np.bool_]:
        """(N,) whether a row's value, or one of its list of values, is among these."""
        data = self._table.column(column).combine_chunks()
        wanted = pa.array(values, type=pa.int32() if column == "task" else pa.string())
        if column != "tags":
            return pc.is_in(data, value_set=wanted).to_numpy(zero_copy_only=False)
        has_it = pc.is_in(pc.list_flatten(data), value_set=wanted).to_numpy(zero_copy_only=False)
        mask = np.zeros(len(self), np.bool_)
        mask[pc.list_parent_indices(data).to_numpy()[has_it]] = True
        return mask


class Pictures:
    """The encoded picture of each row, in an Arrow file that is memory-mapped: only what is looked at is read."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowException, OSError) as error:
            raise Corrupt(f"{path}: not the pictures of a segment ({error})") from None

    def __getitem__(self, row: int) -> bytes:
        batch, place = divmod(row, _ROWS_PER_BATCH)
        return self._file.get_batch(batch).column(0)[place].as_py()


def write_pictures(path: Path, count: int, picture: Callable[[int], bytes]) -> None:
    """Write `picture(0)` .. `picture(count - 1)` for `Pictures`, a few at a time."""
    schema = pa.schema([("picture", pa.large_binary())])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, count, _ROWS_PER_BATCH):
            column = pa.array([picture(i) for i in range(start, min(start + _ROWS_PER_BATCH, count))], type=pa.large_binary())
            writer.write_batch(pa.record_batch([column], schema=schema))
