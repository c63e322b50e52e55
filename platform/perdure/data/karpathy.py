"""Karpathy-style JSON: the splits and captions of COCO, Flickr8k and Flickr30k in one file, beside a folder of pictures."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perdure.data.caption_files import read_json
from perdure.data.dataset import check_items, file_stamp, fingerprint, read_file
from perdure.errors import DataError
from perdure.records import Item

__all__ = ["Karpathy"]

logger = logging.getLogger(__name__)


class Karpathy:
    """`{"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}], "cocoid" | "imgid"?}]}`.

    The label is `label` or `category` where an image has one, else the stem of its file name (every picture a class of its own, as
    in image-text retrieval); `group` is taken over for `by_group`. The id is `cocoid`, else `imgid`, else the file name.

    Args:
        annotations: the JSON file.
        images: folder that `filepath/filename` is below.
        train: splits of the file that are trained on.
        test: splits of the file that are tested on; items of any other split are left out, and their number is logged.
    Raises:
        DataError: a file that is missing or of another shape (names the entry), no item in the splits asked for.
    """

    name = "karpathy"

    def __init__(
        self, *, annotations: str, images: str, train: tuple[str, ...] = ("train", "restval"), test: tuple[str, ...] = ("test",)
    ) -> None:
        self._source = Path(annotations).expanduser()
        folder = Path(images).expanduser()
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of images")
        split_of = {**dict.fromkeys(train, "train"), **dict.fromkeys(test, "test")}
        entries = _entries(self._source)
        counted = Counter(str(entry.get("split", "")) for entry in entries)
        kept = [number for number, entry in enumerate(entries) if entry.get("split") in split_of]
        if not kept:
            raise DataError(f"{self._source}: no image of split {', '.join(split_of)}; found {dict(counted)}")
        if len(kept) < len(entries):
            left = {split: count for split, count in counted.items() if split not in split_of}
            logger.info("%s: %d images of other splits are left out: %s", self._source, len(entries) - len(kept), left)
        self._numbers = kept
        self._paths = [folder / str(entries[number].get("filepath", "")) / entries[number]["filename"] for number in kept]
        items = [_item(entries[number], split_of) for number in kept]
        self.items: Sequence[Item] = check_items(str(self._source), items)
        self.digest = fingerprint([self.name, train, test, file_stamp(self._source), *map(file_stamp, self._paths)])

    def where(self, row: int) -> str:
        """The annotation file, the number of the entry in it, and the id."""
        return f"{self._source.name} images[{self._numbers[row]}] row {row} (id '{self.items[row].id}')"

    def image_bytes(self, row: int) -> bytes:
        """The bytes of the picture.

        Raises:
            DataError: the file is missing or cannot be read.
        """
        return read_file(self._paths[row], self.where(row))


def _entries(path: Path) -> list[dict[str, Any]]:
    """The list under "images", each with a file name and well-formed sentences."""
    whole = read_json(path)
    entries = whole.get("images") if isinstance(whole, dict) else None
    if not isinstance(entries, list):
        raise DataError(f'{path}: expected {{"images": [...]}}, found {type(whole).__name__} without a list "images"')
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
            raise DataError(f'{path} images[{number}]: no "filename" in it')
        sentences = entry.get("sentences", [])
        if not isinstance(sentences, list) or not all(isinstance(each, dict) and isinstance(each.get("raw"), str) for each in sentences):
            raise DataError(f'{path} images[{number}] ({entry["filename"]}): "sentences" is not a list of {{"raw": text}}')
    return entries


def _item(entry: dict[str, Any], split_of: dict[str, str]) -> Item:
    captions = tuple(text for each in entry.get("sentences", []) if (text := each["raw"].strip()))
    key = next((entry[name] for name in ("cocoid", "imgid") if entry.get(name) is not None), entry["filename"])
    label = next((str(entry[name]) for name in ("label", "category") if entry.get(name) not in (None, "")), Path(entry["filename"]).stem)
    return Item(id=str(key), label=label, group=str(entry.get("group") or ""), captions=captions, split=split_of[entry["split"]])
