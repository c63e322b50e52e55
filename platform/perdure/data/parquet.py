"""Parquet with image bytes in a column: one file, a folder of files or a pattern; with Hugging Face's layout, too."""

import datetime
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from perdure.catalog import did_you_mean
from perdure.data.dataset import check_items, file_stamp, fingerprint, hold_out, read_file, unique_between_splits
from perdure.errors import DataError
from perdure.records import Item, Scalar

__all__ = ["Parquet"]

_HELD_BYTES = 128 << 20  # image columns of the row groups read last; neighbours are usually asked for together


class _Columns(NamedTuple):
    image: str
    label: str
    text: str | None
    group: str | None
    id: str | None
    tags: str | None


class _File:
    """One file: its annotation columns in memory, its image column read a row group at a time."""

    def __init__(self, path: Path, columns: _Columns, payload: Sequence[str]) -> None:
        self.path = path
        self.image = columns.image
        try:
            with pq.ParquetFile(path) as file:
                self.schema: pa.Schema = file.schema_arrow
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                self.id = columns.id or ("id" if "id" in self.schema.names else None)
                wanted = [
                    name for name in (columns.label, columns.text, columns.group, self.id, columns.tags, *payload) if name is not None
                ]
                self._check(columns, wanted)
                self.table: pa.Table = file.read(columns=list(dict.fromkeys(wanted)))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise DataError(f"{path}: not a Parquet file that can be read: {error}") from None
        self.ends = np.cumsum(sizes, dtype=np.int64)

    def _check(self, columns: _Columns, wanted: Sequence[str]) -> None:
        known = list(self.schema.names)
        missing = [name for name in dict.fromkeys([columns.image, *wanted]) if name not in known]
        if missing:
            asked = "; ".join(f"no column '{name}'.{did_you_mean(name, known)}" for name in missing)
            raise DataError(f"{self.path}: {asked} The columns are: {', '.join(known)}")
        kind = self.schema.field(columns.image).type
        if not (_is_binary(kind) or (pa.types.is_struct(kind) and "bytes" in [field.name for field in kind])):
            raise DataError(
                f"{self.path}: column '{columns.image}' holds {kind}; image bytes are expected (binary, or a struct with 'bytes')"
            )

    def column(self, name: str) -> list[Any]:
        """A column as Python values."""
        return self.table.column(name).to_pylist()

    def read_group(self, group: int) -> pa.ChunkedArray:
        """The image column of one row group."""
        with pq.ParquetFile(self.path) as file:
            return file.read_row_group(group, columns=[self.image]).column(0)


class Parquet:
    """Any Parquet with image bytes; the columns are given by name.

    Args:
        train: a file, a folder of `*.parquet`, or a pattern such as `data/train-*.parquet`.
        test: the same for the test split; without it a fifth of each class is held out (`hold_out`).
        image: column of encoded pictures: binary, or Hugging Face's struct of `bytes` and `path`.
        label: column of the class, any scalar; names of a Hugging Face ClassLabel are used.
        text: column of captions, a string or a list of strings.
        group: column that `by_group` cuts along.
        id: column of the ids; by default `id` where a file has it, else `<file>:<row>`.
        tags: column of all labels that apply, any scalar or a list of them, as of `label`; an empty cell is an item without tags.
        payload: columns to be kept beside each item, to filter searches by and to be shown: texts, numbers, truth values, and dates, which
            become ISO texts; an empty cell is an item without the field.
    Raises:
        DataError: a missing file or column, a column of another type, an empty label, ids that repeat inside a split.
    """

    name = "parquet"

    def __init__(
        self,
        *,
        train: str,
        test: str | None = None,
        image: str = "image",
        label: str = "label",
        text: str | None = None,
        group: str | None = None,
        id: str | None = None,
        tags: str | None = None,
        payload: tuple[str, ...] = (),
    ) -> None:
        columns = _Columns(image, label, text, group, id, tags)
        train_files = [_File(path, columns, payload) for path in _paths(train)]
        test_files = [_File(path, columns, payload) for path in _paths(test)] if test is not None else []
        self._files = [*train_files, *test_files]
        self._starts = np.cumsum([0, *(file.table.num_rows for file in self._files)], dtype=np.int64)
        stamps = [file_stamp(file.path) for file in self._files]
        asked = columns if tags is not None else columns[:-1]  # without tags the digest is what it was before there were any
        self.digest = fingerprint([self.name, asked, len(train_files), *stamps, *([payload] if payload else [])])
        self.items: Sequence[Item] = check_items(self.name, _items(train_files, test_files, columns, payload))
        self._held: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def where(self, row: int) -> str:
        """`train.parquet row 17 (id 'abc')`."""
        number, inside = self._locate(row)
        return f"{self._files[number].path.name} row {inside} (id '{self.items[row].id}')"

    def image_bytes(self, row: int) -> bytes:
        """The bytes in the image column of a row.

        Raises:
            DataError: the cell is empty, or names a file that cannot be read.
        """
        number, inside = self._locate(row)
        file = self._files[number]
        group = int(np.searchsorted(file.ends, inside, side="right"))
        first = int(file.ends[group - 1]) if group else 0
        cell = self._group(number, group)[inside - first].as_py()
        if isinstance(cell, dict):
            path = cell.get("path")
            if cell["bytes"] is None and path:
                return read_file(file.path.parent / path, self.where(row))
            cell = cell["bytes"]
        if cell is None:
            raise DataError(f"{self.where(row)}: no image, column '{file.image}' is null")
        return cell

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_held", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._held = OrderedDict()
        self._lock = threading.Lock()

    def _locate(self, row: int) -> tuple[int, int]:
        """Number of the file and row inside it."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return number, row - int(self._starts[number])

    def _group(self, number: int, group: int) -> pa.ChunkedArray:
        """The images of a row group, from memory when it was read lately."""
        with self._lock:  # threads that decode neighbours wait for one read instead of reading it each
            key = (number, group)
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            try:
                column = self._files[number].read_group(group)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{self._files[number].path} row group {group}: cannot be read: {error}") from None
            self._held[key] = column
            while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > _HELD_BYTES:
                self._held.popitem(last=False)
            return column


def _paths(text: str) -> list[Path]:
    """The files that a path, a folder or a pattern names, sorted."""
    path = Path(text).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(path.glob("*.parquet"))
        missing = f"{path}: no *.parquet in this folder"
    elif any(mark in path.name for mark in "*?["):
        found = sorted(path.parent.glob(path.name))
        missing = f"{path}: no file matches this pattern"
    else:
        near = [other.name for other in path.parent.glob("*.parquet")] if path.parent.is_dir() else []
        beside = f" Parquet files beside it: {', '.join(sorted(near)[:10])}." if near else ""
        found, missing = [], f"{path}: no such file.{did_you_mean(path.name, near)}{beside}"
    if not found:
        raise DataError(missing)
    return found


def _items(train_files: Sequence[_File], test_files: Sequence[_File], columns: _Columns, payload: Sequence[str]) -> list[Item]:
    """All rows of all files, train first."""
    train_ids = [key for file in train_files for key in _ids(file)]
    test_ids = [key for file in test_files for key in _ids(file)]
    train_ids, test_ids = unique_between_splits(train_ids, test_ids)
    files = [*train_files, *test_files]
    labels = [label for file in files for label in _labels(file, columns.label)]
    captions = [text for file in files for text in _captions(file, columns.text)]
    groups = [group for file in files for group in _groups(file, columns.group)]
    tags = [own for file in files for own in _tags(file, columns.tags)]
    known = [fields for file in files for fields in _payload(file, payload)]
    splits = ["train"] * len(train_ids) + ["test"] * len(test_ids) if test_files else hold_out(train_ids, labels)
    return [
        Item(id=key, label=label, group=group, captions=text, tags=own, split=split, payload=fields)
        for key, label, group, text, own, split, fields in zip(
            [*train_ids, *test_ids], labels, groups, captions, tags, splits, known, strict=True
        )
    ]


def _ids(file: _File) -> list[str]:
    if file.id is None:
        return [f"{file.path.name}:{row}" for row in range(file.table.num_rows)]
    return _scalars(file, file.id, "an id")


def _labels(file: _File, name: str) -> list[str]:
    return _named(file, name, _scalars(file, name, "a label"), _class_names(file.schema, name))


def _tags(file: _File, name: str | None) -> list[tuple[str, ...]]:
    """The labels that apply to each row, once each, in the order of the file; what is empty in a list is left out."""
    if name is None:
        return [()] * file.table.num_rows
    kind = file.schema.field(name).type
    one = kind.value_type if _is_list(kind) else kind
    if pa.types.is_nested(one) or _is_binary(one):
        raise DataError(f"{file.path}: column '{name}' holds {kind}; tags are a string, a number or a boolean, or a list of these")
    cells = file.column(name) if _is_list(kind) else [[value] for value in file.column(name)]
    names = _class_names(file.schema, name)
    told = [[str(value) for value in cell or () if value not in (None, "")] for cell in cells]
    return [tuple(dict.fromkeys(_named(file, name, own, names))) for own in told]


def _payload(file: _File, names: Sequence[str]) -> list[dict[str, Scalar]]:
    """The payload of each row; what is null is left out."""
    rows: list[dict[str, Scalar]] = [{} for _ in range(file.table.num_rows)]
    for name in names:
        for row, value in enumerate(file.column(name)):
            if isinstance(value, datetime.date | datetime.time):
                value = value.isoformat()
            if isinstance(value, Decimal):
                value = float(value)
            if value is None:
                continue
            if not isinstance(value, str | int | float | bool):
                kind = file.schema.field(name).type
                raise DataError(f"{file.path}: column '{name}' holds {kind}; payload is texts, numbers, truth values or dates")
            rows[row][name] = value
    return rows


def _named(file: _File, name: str, labels: Sequence[str], names: Sequence[str]) -> list[str]:
    """The labels by their names, where the file's own description has names for them."""
    if not names:
        return list(labels)
    try:
        return [names[int(label)] for label in labels]
    except (ValueError, IndexError):
        raise DataError(
            f"{file.path}: column '{name}' has numbers beyond the {len(names)} class names in the file's own description"
        ) from None


def _groups(file: _File, name: str | None) -> list[str]:
    return [""] * file.table.num_rows if name is None else _scalars(file, name, "a group")


def _captions(file: _File, name: str | None) -> list[tuple[str, ...]]:
    if name is None:
        return [()] * file.table.num_rows
    kind = file.schema.field(name).type
    if _is_text(kind):
        return [(text,) if text else () for text in file.column(name)]
    if _is_list(kind) and _is_text(kind.value_type):
        return [tuple(text for text in texts or () if text) for texts in file.column(name)]
    raise DataError(f"{file.path}: column '{name}' holds {kind}; captions are a string or a list of strings")


def _scalars(file: _File, name: str, what: str) -> list[str]:
    """A column of scalars as strings; an empty cell is an error that names its row."""
    kind = file.schema.field(name).type
    if pa.types.is_nested(kind) or _is_binary(kind):
        raise DataError(f"{file.path}: column '{name}' holds {kind}; {what} is a string, a number or a boolean")
    values = file.column(name)
    for row, value in enumerate(values):
        if value is None or value == "":
            raise DataError(f"{file.path} row {row}: column '{name}' is empty; every row needs {what}")
    return [value if isinstance(value, str) else str(value) for value in values]


def _class_names(schema: pa.Schema, name: str) -> list[str]:
    """Names of a column of ClassLabels or of lists of them, which Hugging Face writes as JSON into the file's metadata; or none."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][name]
        described = described.get("feature", described)  # of a list: what one of its values is
        return [str(label) for label in described["names"]] if described.get("_type") == "ClassLabel" else []
    except (KeyError, TypeError, AttributeError, ValueError):
        return []


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
