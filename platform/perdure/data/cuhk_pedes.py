"""CUHK-PEDES: 40,206 pictures of 13,003 persons, two descriptions each, as published.

Li et al., "Person Search with Natural Language Description", CVPR 2017. The folder `CUHK-PEDES` holds

    reid_raw.json  imgs/CUHK01/*.png  imgs/CUHK03/*  imgs/Market/*  imgs/cam_a/*  imgs/cam_b/*  imgs/test_query/*  imgs/train_query/*

`[{"split": "train", "captions": [...], "file_path": "CUHK01/0363004.png", "id": 1, ...}]`; no person is in two of the splits train
(11,003 persons), val (1,000) and test (1,000). `caption_all.json` is the same without the splits.
"""

import logging
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from perdure.data.caption_files import read_json, use_of_splits
from perdure.data.picture_files import PictureFiles, TestShare, require, root_of
from perdure.errors import DataError
from perdure.records import Item

__all__ = ["CUHKPEDES"]

Split = Literal["train", "val", "test"]

logger = logging.getLogger(__name__)


class CUHKPEDES(PictureFiles):
    """Persons and what they look like in words. The label is the person's number in five digits, the group the set that a picture is from.

    Args:
        root: the folder with `reid_raw.json` and `imgs`.
        train: published splits that are trained on.
        test: published splits that are tested on; pictures of other splits are left out, and their number is logged.
        test_share: share of each person's pictures, of the splits above, that is held out instead. Persons are then known when they are
            tested on, which streams that cut by class need; as published, all persons of the test are new.
    Raises:
        ConfigError: a split that is trained and tested on.
        DataError: a file or picture that is missing, an entry of another shape (names it), a split without a picture.
    """

    name = "cuhk_pedes"

    def __init__(
        self,
        *,
        root: str,
        train: tuple[Split, ...] = ("train",),
        test: tuple[Split, ...] = ("test",),
        test_share: TestShare | None = None,
    ) -> None:
        use = use_of_splits(self.name, train, test)
        folder = root_of(root, "reid_raw.json", "give the folder CUHK-PEDES; caption_all.json alone does not tell the splits")
        require(folder / "imgs", "the pictures of CUHK-PEDES belong there")
        source = folder / "reid_raw.json"
        entries = _entries(source)
        counted = Counter(entry["split"] for entry in entries)
        lacking = [split for split in use if not counted[split]]
        if lacking:
            raise DataError(f"{source}: no picture of split {', '.join(lacking)}; found {dict(counted)}")
        items = [_item(entry, use[entry["split"]]) for entry in entries if entry["split"] in use]
        if len(items) < len(entries):
            left = {split: count for split, count in counted.items() if split not in use}
            logger.info("%s: %d pictures of other splits are left out: %s", source, len(entries) - len(items), left)
        super().__init__(folder, items, sources=[source], unpack="copy the folder imgs again", test_share=test_share)


def _entries(path: Path) -> list[dict[str, Any]]:
    """The pictures, each with a path, a person, a split and captions."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of pictures, found {type(entries).__name__}; is it reid_raw.json of CUHK-PEDES?")
    for place, entry in enumerate(entries):
        problem = _problem(entry)
        if problem:
            raise DataError(f"{path} [{place}]: {problem}; found {str(entry)[:80]}")
    return entries


def _problem(entry: Any) -> str:
    """What an entry lacks; empty when nothing."""
    if not isinstance(entry, dict):
        return "an entry is an object with file_path, id, split and captions"
    for field, kind in (("file_path", str), ("split", str), ("id", int)):
        if not isinstance(entry.get(field), kind):
            return f'no "{field}" of type {kind.__name__} in it'
    captions = entry.get("captions")
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        return '"captions" is not a list of texts'
    return ""


def _item(entry: dict[str, Any], split: str) -> Item:
    return Item(
        id=f"imgs/{entry['file_path']}",
        label=f"{entry['id']:05d}",
        group=entry["file_path"].partition("/")[0],
        captions=tuple(text.strip() for text in entry["captions"] if text.strip()),
        split=split,
    )
