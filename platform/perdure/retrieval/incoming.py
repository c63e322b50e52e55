"""Items from a file, to be written: one JSON object a line, or Parquet. They are embedded by the encoder that takes new items.

    {"id": "sku-7", "image": "pictures/7.png", "text": ["a striped circle"], "label": "circle", "group": "", "tags": [], "price": 9}

`image` is a path beside the file, or bytes in Parquet; `text` and `tags` a text or a list; every other field is payload.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from perdure.data.pixels import picture_to_store
from perdure.encoders import Encoder
from perdure.errors import BadQuery, DataError, PerdureError
from perdure.records import Item, Release
from perdure.retrieval.retriever import encode
from perdure.retrieval.writes import NewItem

__all__ = ["Incoming", "batches", "embed", "read_ids", "read_items"]

_OWN = ("id", "image", "text", "label", "group", "tags")


@dataclass(frozen=True, eq=False)
class Incoming:
    """An item that is not embedded yet."""

    item: Item
    image: bytes | None


def read_items(path: Path) -> Iterator[Incoming]:
    """The items of a file, in their order.

    Raises:
        DataError: it cannot be read; the message names the row.
    """
    for number, row in enumerate(_rows(path), start=1):
        try:
            yield _incoming(row, path.parent)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: item {number}: {error!r}; expected fields {', '.join(_OWN)}, of which id is needed") from None


def read_ids(path: Path) -> list[str]:
    """One id a line; blank lines do not count.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a file of ids: {error}") from None


def batches(items: Iterator[Incoming], size: int) -> Iterator[list[Incoming]]:
    """So many at a time."""
    while some := list(islice(items, size)):
        yield some


def embed(release: Release, encoder: Encoder, incoming: Sequence[Incoming]) -> tuple[list[NewItem], dict[str, str]]:
    """Items with their vectors, and why others have none, by id."""
    new: list[NewItem] = []
    refused: dict[str, str] = {}
    for each in incoming:
        try:
            source = each.image if each.image is not None else each.item.captions[0] if each.item.captions else None
            if source is None:
                raise BadQuery("an item is embedded by its image, or by its text; this one has neither")
            vector = encode(encoder, [source])[0]
        except PerdureError as error:
            refused[each.item.id] = str(error)
            continue
        picture = None if each.image is None else picture_to_store(each.image)
        new.append(NewItem(each.item, vector, release.encoder, release.task, picture))
    return new, refused


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=256):
                    yield from batch.to_pylist()
        else:
            with path.open(encoding="utf-8") as lines:
                yield from (json.loads(line) for line in lines if line.strip())
    except (OSError, ValueError) as error:  # pyarrow's and json's are ValueErrors
        raise DataError(f"{path}: neither Parquet (.parquet) nor one JSON object a line: {error}") from None


def _incoming(row: dict[str, Any], folder: Path) -> Incoming:
    image = row.get("image")
    if isinstance(image, str):
        image = (folder / image).read_bytes()
    elif isinstance(image, dict):
        image = image["bytes"]
    payload = {name: value for name, value in row.items() if name not in _OWN and value is not None}
    item = Item(
        str(row["id"]),
        str(row.get("label") or ""),
        str(row.get("group") or ""),
        _texts(row.get("text")),
        _texts(row.get("tags")),
        payload=payload,
    )
    return Incoming(item, image)


def _texts(value: Any) -> tuple[str, ...]:
    return () if not value else (value,) if isinstance(value, str) else tuple(map(str, value))
