"""CUB-200-2011: 11,788 pictures of 200 species of birds, as published.

Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011. `CUB_200_2011.tgz` unpacks to

    images.txt  image_class_labels.txt  classes.txt  train_test_split.txt  images/001.Black_footed_Albatross/*.jpg  ...

where every line is a number and what it stands for.
"""

from pathlib import Path

from perdure.data.picture_files import PictureFiles, TestShare, require, root_of
from perdure.errors import DataError
from perdure.records import Item

__all__ = ["CUB200"]

_UNPACK = "unpack CUB_200_2011.tgz again"


class CUB200(PictureFiles):
    """Birds. The label is the class as published, `001.Black_footed_Albatross`, so that sorted labels are in official order.

    Args:
        root: the folder with `images.txt`.
        test_share: share of each class that is held out instead of the published split, which halves each class; 0.4 is the thesis's
            60/40 (ch. 5 to 7: the same counts, other pictures, since it does not say which).
    Raises:
        DataError: a file that is missing, or that disagrees with another one.
    """

    name = "cub200"

    def __init__(self, *, root: str, test_share: TestShare | None = None) -> None:
        folder = root_of(root, "images.txt", "give the folder CUB_200_2011 that CUB_200_2011.tgz unpacks to")
        pictures = _numbered(folder / "images.txt")
        class_of = _numbered(folder / "image_class_labels.txt", of=pictures)
        classes = _numbered(folder / "classes.txt")
        in_train = _numbered(folder / "train_test_split.txt", of=pictures)
        require(folder / "images", _UNPACK)
        items = [_item(folder, number, path, class_of[number], classes, in_train[number]) for number, path in pictures.items()]
        sources = [folder / name for name in ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt")]
        super().__init__(folder, items, sources=sources, unpack=_UNPACK, test_share=test_share)


def _numbered(path: Path, of: dict[str, str] | None = None) -> dict[str, str]:
    """The lines `12 something` of a file; with `of`, the numbers have to be the same as there.

    Raises:
        DataError: no such file, a line of another form, a number that comes twice, is missing or too many.
    """
    require(path, _UNPACK)
    found: dict[str, str] = {}
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        number, _, value = text.strip().partition(" ")
        if not number.isdigit() or not value:
            raise DataError(f"{path} line {line}: expected a number and a value, found '{text[:80]}'; {_UNPACK}")
        if number in found:
            raise DataError(f"{path} line {line}: number {number} comes twice; {_UNPACK}")
        found[number] = value.strip()
    if of is not None and found.keys() != of.keys():
        odd = min(found.keys() ^ of.keys(), key=int)
        raise DataError(
            f"{path}: {len(found)} pictures, but images.txt has {len(of)}; picture {odd} is in one of them only. They have to be of the "
            f"same release: {_UNPACK}"
        )
    return found


def _item(folder: Path, number: str, path: str, class_number: str, classes: dict[str, str], in_train: str) -> Item:
    if class_number not in classes:
        raise DataError(
            f"{folder / 'image_class_labels.txt'}: picture {number} is of class {class_number}, but classes.txt names {len(classes)} "
            f"classes and no {class_number}; {_UNPACK}"
        )
    label = classes[class_number]
    if path.partition("/")[0] != label:
        raise DataError(
            f"{folder}: picture {number} is {path} in images.txt, but of class '{label}' by image_class_labels.txt and classes.txt; "
            f"{_UNPACK}"
        )
    if in_train not in ("0", "1"):
        raise DataError(f"{folder / 'train_test_split.txt'}: picture {number} has '{in_train}'; 1 (train) or 0 (test) is expected")
    return Item(id=f"images/{path}", label=label, split="train" if in_train == "1" else "test")
