"""The table of a segment: what is known of each row beside its vector; and the pictures, in a file that is mapped, not loaded.

N rows. Beside the columns that every item has, one for each field of the payload that one of them brings: texts, numbers or truth
values, one kind a field.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from perdure.errors import Corrupt, DataError
from perdure.index.filters import FieldKind, rows_that_pass
from perdure.records import Item, Scalar

__all__ = ["Entry", "Pictures", "SegmentTable", "write_pictures"]

_OWN: dict[str, FieldKind] = {"id": "text", "label": "text", "group": "text", "task": "number", "tags": "texts"}
_PAYLOAD = "payload."  # a payload field's column is named after it, with this in front
_KINDS: dict[Any, FieldKind] = {pa.string(): "text", pa.int64(): "number", pa.float64(): "number", pa.bool_(): "truth"}
_TYPES: tuple[tuple[set[type], Any], ...] = (({bool}, pa.bool_()), ({str}, pa.string()), ({int}, pa.int64()), ({int, float}, pa.float64()))
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
    payload: Mapping[str, Scalar] = field(default_factory=dict)  # the fields that this item has

    def item(self) -> Item:
        """The same without the task that brought it."""
        return Item(self.id, self.label, self.group, self.text, self.tags, payload=self.payload)


class SegmentTable:
    """Columns id, label, text, group, task, tags, and the payload."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._row_of: dict[str, int] | None = None
        self._payload: dict[str, FieldKind] = {
            column.name.removeprefix(_PAYLOAD): _KINDS[column.type] for column in table.schema if _is_payload(column)
        }

    @classmethod
    def of(cls, items: Sequence[Item], task: Sequence[int]) -> "SegmentTable":
        """A table from items and the task that brought each.

        Raises:
            DataError: a field of the payload that holds values of several kinds, or has the name of another column.
        """
        columns: dict[str, list[Any]] = {
            "id": [item.id for item in items],
            "label": [item.label for item in items],
            "text": [list(item.captions) for item in items],
            "group": [item.group for item in items],
            "task": list(task),
            "tags": [list(item.tags) for item in items],
        }
        payload = _payload_columns(items)
        schema = pa.schema([*_SCHEMA, *(pa.field(name, column.type) for name, column in payload.items())])
        return cls(pa.table({**columns, **payload}, schema=schema))

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

    def distinct_tasks(self) -> list[int]:
        """The tasks that brought items, each once."""
        return self._table.column("task").unique().to_pylist()

    def values(self, column: str, rows: NDArray[np.int64]) -> list[Any]:
        """One column of some rows, the others not read."""
        return self._table.column(column).take(pa.array(rows)).to_pylist()

    def row(self, item_id: str) -> int | None:
        """The row of an id, or None."""
        return self._rows_by_id.get(item_id)

    def rows(self, item_ids: Set[str]) -> NDArray[np.int64]:
        """The rows of those ids that are here, ascending."""
        known = self._rows_by_id
        if len(item_ids) < len(known):
            found = [known[item_id] for item_id in item_ids if item_id in known]
        else:
            found = [row for item_id, row in known.items() if item_id in item_ids]
        return np.sort(np.array(found, dtype=np.int64))

    @property
    def _rows_by_id(self) -> dict[str, int]:
        if self._row_of is None:
            self._row_of = {name: row for row, name in enumerate(self.ids)}
        return self._row_of

    def entries(self, rows: NDArray[np.int64] | Sequence[int]) -> list[Entry]:
        """What is known of some rows."""
        found = self._table.take(pa.array(np.asarray(rows, dtype=np.int64))).to_pylist()
        return [
            Entry(
                e["id"],
                e["label"],
                tuple(e["text"]),
                e["group"],
                e["task"],
                tuple(e["tags"]),
                {name: e[_PAYLOAD + name] for name in self._payload if e[_PAYLOAD + name] is not None},
            )
            for e in found
        ]

    @property
    def payload(self) -> Mapping[str, FieldKind]:
        """The fields of the payload, and what each holds."""
        return self._payload

    @property
    def fields(self) -> Mapping[str, FieldKind]:
        """What can be filtered by."""
        return _OWN | self._payload

    def column(self, field: str) -> pa.Array:
        """(N,) values of one of the `fields`."""
        return self._table.column(field if field in _OWN else _PAYLOAD + field).combine_chunks()

    def allowed(self, filter: Mapping[str, Any]) -> NDArray[np.bool_]:
        """(N,) which rows satisfy a filter over this table alone; see `filters.rows_that_pass`."""
        return rows_that_pass([self], filter)[0]

    def save(self, path: Path) -> None:
        """Write a Parquet file."""
        pq.write_table(self._table, path, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> "SegmentTable":
        """Read what `save` wrote; Corrupt when it cannot be read."""
        try:
            payload = [column for column in pq.read_schema(path) if _is_payload(column)]
            return cls(pq.read_table(path, schema=pa.schema([*_SCHEMA, *payload])).combine_chunks())
        except (pa.ArrowException, OSError, KeyError) as error:  # KeyError: a payload of a type that we never write
            raise Corrupt(f"{path}: not the table of a segment ({error})") from None


class Pictures:
    """The encoded picture of each row that has one, in an Arrow file that is memory-mapped: only what is looked at is read."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowException, OSError) as error:
            raise Corrupt(f"{path}: not the pictures of a segment ({error})") from None

    def __getitem__(self, row: int) -> bytes | None:
        batch, place = divmod(row, _ROWS_PER_BATCH)
        return self._file.get_batch(batch).column(0)[place].as_py()


def write_pictures(path: Path, count: int, picture: Callable[[int], bytes | None]) -> None:
    """Write `picture(0)` .. `picture(count - 1)` for `Pictures`, a few at a time."""
    schema = pa.schema([("picture", pa.large_binary())])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, count, _ROWS_PER_BATCH):
            column = pa.array([picture(i) for i in range(start, min(start + _ROWS_PER_BATCH, count))], type=pa.large_binary())
            writer.write_batch(pa.record_batch([column], schema=schema))


def _is_payload(column: Any) -> bool:
    return column.name.startswith(_PAYLOAD)


def _payload_columns(items: Sequence[Item]) -> dict[str, pa.Array]:
    """A column for each field that one of the items has; a number that is not finite counts as missing."""
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for item in items for name in item.payload):
        if not name or name in _SCHEMA.names:
            raise DataError(f"payload: a field named '{name}'; the names {', '.join(_SCHEMA.names)} and '' are taken, choose another")
        values = [item.payload.get(name) for item in items]
        finite = [None if isinstance(value, float) and not math.isfinite(value) else value for value in values]
        found = {type(value) for value in finite if value is not None}
        kind = next((kind for types, kind in _TYPES if found <= types), None)
        if kind is None:
            told = ", ".join(sorted(one.__name__ for one in found))
            raise DataError(f"payload: field '{name}' holds values of {told}; a field is text, number or truth value for all items")
        try:
            columns[_PAYLOAD + name] = pa.array(finite, type=kind)
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(f"payload: field '{name}' cannot be stored: {error}") from None
    return columns
