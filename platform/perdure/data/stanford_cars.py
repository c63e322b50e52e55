"""Stanford Cars: 16,185 pictures of 196 models of cars, in both of the published layouts.

Krause et al., "3D Object Representations for Fine-Grained Categorization", 2013.

    cars_train/*.jpg  cars_test/*.jpg  devkit/cars_meta.mat  devkit/cars_train_annos.mat  cars_test_annos_withlabels.mat   (the first)
    car_ims/*.jpg  cars_annos.mat                                                                                          (the newer)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perdure.data.mat_file import read_mat
from perdure.data.picture_files import PictureFiles, TestShare, require
from perdure.errors import DataError
from perdure.records import Item

__all__ = ["StanfordCars"]

_LAYOUTS = "car_ims/ and cars_annos.mat, or cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat"


class StanfordCars(PictureFiles):
    """Cars. The label is number and name of the class, `006.Acura Integra Type R 2001`, so that sorted labels are in official order.

    Args:
        root: the folder with `car_ims` and `cars_annos.mat`, or with `cars_train`, `cars_test` and `devkit`; the labels of the test
            pictures (`cars_test_annos_withlabels.mat`) lie there or in `devkit`.
        test_share: share of each class that is held out instead of the published split, which halves each class.
    Raises:
        DataError: a file that is missing, or that disagrees with another one.
    """

    name = "stanford_cars"

    def __init__(self, *, root: str, test_share: TestShare | None = None) -> None:
        folder = Path(root).expanduser()
        if (folder / "car_ims").is_dir():
            items, sources = _newer(folder)
        elif (folder / "cars_train").is_dir() or (folder / "devkit").is_dir():
            items, sources = _first(folder)
        else:
            raise DataError(f"{folder}: {'' if folder.is_dir() else 'no such folder; '}Stanford Cars is expected there: {_LAYOUTS}")
        super().__init__(folder, items, sources=sources, unpack="unpack the archives of the pictures again", test_share=test_share)


def _newer(folder: Path) -> tuple[list[Item], list[Path]]:
    path = require(folder / "cars_annos.mat", f"the whole layout is {_LAYOUTS}")
    names = [str(name) for name in read_mat(path, "class_names")]
    records = read_mat(path, "annotations")
    items = [
        Item(id=str(_field(path, record, "relative_im_path")), label=_label(path, record, names), split=_split(path, record))
        for record in records
    ]
    return items, [path]


def _split(path: Path, record: Any) -> str:
    return "test" if int(_field(path, record, "test")) else "train"


def _first(folder: Path) -> tuple[list[Item], list[Path]]:
    advice = f"the whole layout is {_LAYOUTS}"
    meta = require(folder / "devkit" / "cars_meta.mat", advice)
    train = require(folder / "devkit" / "cars_train_annos.mat", advice)
    name = "cars_test_annos_withlabels.mat"
    inside = folder / "devkit" / name
    test = inside if inside.exists() else require(folder / name, f"it has the labels that devkit/cars_test_annos.mat lacks; {advice}")
    for pictures in ("cars_train", "cars_test"):
        require(folder / pictures, advice)
    names = [str(each) for each in read_mat(meta, "class_names")]
    items = [
        Item(id=f"cars_{split}/{_field(path, record, 'fname')}", label=_label(path, record, names), split=split)
        for split, path in (("train", train), ("test", test))
        for record in read_mat(path, "annotations")
    ]
    return items, [meta, train, test]


def _field(path: Path, record: Any, name: str) -> Any:
    if not isinstance(record, dict) or name not in record:
        known = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise DataError(f"{path}: an annotation has no field '{name}', it has: {known}; is it another file of the dataset?")
    return record[name]


def _label(path: Path, record: Any, names: Sequence[str]) -> str:
    number = int(_field(path, record, "class"))
    if not 1 <= number <= len(names):
        raise DataError(f"{path}: an annotation is of class {number}, but there are {len(names)} names of classes, from 1 on")
    return f"{number:03d}.{names[number - 1]}"
