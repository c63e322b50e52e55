"""COCO Captions: 123,287 pictures of common objects in context, five captions each, as published.

Lin et al., "Microsoft COCO: Common Objects in Context", 2014; Chen et al., "Microsoft COCO Captions", 2015. The archives of a year
unpack to

    annotations/captions_train2014.json  annotations/captions_val2014.json  annotations/instances_*.json ...
    train2014/*.jpg  val2014/*.jpg

82,783 and 40,504 pictures in 2014; the same ones as 118,287 and 5,000 in 2017. The split that papers on retrieval report (Karpathy's
5,000 of val2014) is the dataset `karpathy`.
"""

import logging
from collections import defaultdict
from pathlib import Path
from types import UnionType
from typing import Any, Literal

from perdure.data.caption_files import read_json
from perdure.data.picture_files import PictureFiles, require, root_of
from perdure.errors import DataError
from perdure.records import Item

__all__ = ["COCOCaptions"]

_PARTS = {"train": "train", "val": "test"}  # the captions of the published test pictures are not public

logger = logging.getLogger(__name__)


class COCOCaptions(PictureFiles):
    """Pictures with captions: `train` is trained on, `val` tested on.

    Args:
        root: the folder with `annotations` and, say, `train2014` and `val2014`.
        year: 2014 or 2017.
        labels: "picture" makes each picture a class of its own, called by its number. "category" and "supercategory" call it by the
            category whose objects cover most of it (`instances_*.json`), one of 80, or by that one's supercategory, one of 12, which is
            the group in both cases; pictures without any object are left out, and their number is logged.
    Raises:
        DataError: a file or picture that is missing, an entry of another shape (names it), a caption or object of an unknown picture.
    """

    name = "coco_captions"

    def __init__(
        self, *, root: str, year: Literal[2014, 2017] = 2014, labels: Literal["picture", "category", "supercategory"] = "picture"
    ) -> None:
        folder = root_of(root, "annotations", f"give the folder with annotations, train{year} and val{year}")
        items: list[Item] = []
        sources: list[Path] = []
        for part, split in _PARTS.items():
            pictures = f"{part}{year}"
            source = require(folder / "annotations" / f"captions_{pictures}.json", _advice(folder, year))
            require(folder / pictures, f"unpack {pictures}.zip there")
            names, captions = _captions(source)
            sources.append(source)
            if labels == "picture":
                called = {number: (f"{number:012d}", "") for number in names}
            else:
                objects = folder / "annotations" / f"instances_{pictures}.json"
                largest = _largest(require(objects, f"labels={labels} needs it, labels=picture does not"), names)
                called = {number: (category if labels == "category" else group, group) for number, (category, group) in largest.items()}
                sources.append(objects)
            items += [
                Item(id=f"{pictures}/{names[number]}", label=label, group=group, captions=captions[number], split=split)
                for number, (label, group) in called.items()
            ]
        super().__init__(folder, items, sources=sources, unpack=f"unpack train{year}.zip and val{year}.zip again")


def _advice(folder: Path, year: int) -> str:
    """What to do about captions that are not there: they may be of the other year."""
    other = 2014 + 2017 - year
    if (folder / "annotations" / f"captions_train{other}.json").exists():
        return f"those of {other} are there: give year={other}"
    return f"unpack annotations_trainval{year}.zip there"


def _captions(path: Path) -> tuple[dict[int, str], dict[int, tuple[str, ...]]]:
    """File name and captions of each picture by its number, in the order of the file; captions without a word are left out."""
    whole = read_json(path)
    names = {row["id"]: row["file_name"] for row in _rows(path, whole, "images", id=int, file_name=str)}
    if not names:
        raise DataError(f'{path}: no picture under "images"; is it the file of another split?')
    found: dict[int, list[str]] = {number: [] for number in names}
    for place, row in enumerate(_rows(path, whole, "annotations", image_id=int, caption=str)):
        if row["image_id"] not in names:
            raise DataError(
                f'{path} annotations[{place}]: a caption of picture {row["image_id"]}, which is not among the {len(names)} "images"'
            )
        if row["caption"].strip():
            found[row["image_id"]].append(row["caption"].strip())
    return names, {number: tuple(texts) for number, texts in found.items()}


def _largest(path: Path, names: dict[int, str]) -> dict[int, tuple[str, str]]:
    """Category and supercategory whose objects cover the largest area, by the number of the picture; of equal ones the first by number."""
    whole = read_json(path, without="segmentation")
    categories = {
        row["id"]: (row["name"], row["supercategory"]) for row in _rows(path, whole, "categories", id=int, name=str, supercategory=str)
    }
    area: dict[tuple[int, int], float] = defaultdict(float)
    for place, row in enumerate(_rows(path, whole, "annotations", image_id=int, category_id=int, area=int | float)):
        if row["image_id"] not in names or row["category_id"] not in categories:
            raise DataError(
                f"{path} annotations[{place}]: an object of category {row['category_id']} in picture {row['image_id']}; one of them is "
                "unknown. Are the files of captions and instances of the same release?"
            )
        area[row["image_id"], row["category_id"]] += row["area"]
    best: dict[int, tuple[float, int]] = {}
    for (picture, category), covered in area.items():
        best[picture] = max(best.get(picture, (-1.0, 0)), (covered, -category))
    if len(best) < len(names):
        logger.info("%s: %d pictures have no object in them and are left out", path, len(names) - len(best))
    return {picture: categories[-best[picture][1]] for picture in names if picture in best}


def _rows(path: Path, whole: Any, key: str, **fields: type | UnionType) -> list[dict[str, Any]]:
    """The list under a key, each entry with these fields of these types."""
    rows = whole.get(key) if isinstance(whole, dict) else None
    if not isinstance(rows, list):
        raise DataError(f'{path}: expected {{"{key}": [...]}}, found {type(whole).__name__} without a list "{key}"')
    for place, row in enumerate(rows):
        for field, kind in fields.items():
            if not isinstance(row, dict) or not isinstance(row.get(field), kind):
                wanted = kind.__name__ if isinstance(kind, type) else str(kind)
                raise DataError(f'{path} {key}[{place}]: no "{field}" of type {wanted} in it; found {str(row)[:80]}')
    return rows
