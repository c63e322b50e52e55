"""Stanford Dogs: 20,580 pictures of 120 breeds, as published.

Khosla et al., "Novel Dataset for Fine-Grained Image Categorization", 2011. `images.tar` and `lists.tar` unpack to

    Images/n02085620-Chihuahua/*.jpg  ...  train_list.mat  test_list.mat  file_list.mat

and `annotation.tar` to `Annotation/`, boxes that nothing here needs.
"""

from pathlib import Path

from perdure.data.mat_file import read_mat
from perdure.data.picture_files import PictureFiles, TestShare, require, root_of
from perdure.errors import DataError
from perdure.records import Item

__all__ = ["StanfordDogs"]

_UNPACK = "unpack images.tar and lists.tar into one folder again"


class StanfordDogs(PictureFiles):
    """Dogs. The label is the class's folder, `n02085620-Chihuahua`, so that sorted labels are in official order.

    Args:
        root: the folder with `Images`, `train_list.mat` and `test_list.mat`.
        test_share: share of each class that is held out instead of the published split (100 pictures of each class are for training).
    Raises:
        DataError: a file that is missing, or that disagrees with another one.
    """

    name = "stanford_dogs"

    def __init__(self, *, root: str, test_share: TestShare | None = None) -> None:
        folder = root_of(root, "Images", "give the folder that images.tar and lists.tar were unpacked to")
        lists = {split: require(folder / f"{split}_list.mat", "it is in lists.tar; unpack it beside Images") for split in ("train", "test")}
        items = [item for split, path in lists.items() for item in _items(path, split)]
        _check_splits(folder, items)
        super().__init__(folder, items, sources=list(lists.values()), unpack=_UNPACK, test_share=test_share)


def _items(path: Path, split: str) -> list[Item]:
    """The items of one list; its numbers of classes have to agree with the folders in it."""
    files = [str(file) for file in read_mat(path, "file_list")]
    numbers = [int(number) for number in read_mat(path, "labels")]
    if len(files) != len(numbers):
        raise DataError(f"{path}: {len(files)} files in file_list, but {len(numbers)} labels; {_UNPACK}")
    folder_of: dict[int, str] = {}
    for file, number in zip(files, numbers, strict=True):
        folder, slash, _ = file.partition("/")
        if not slash:
            raise DataError(f"{path}: file_list names '{file}'; a path such as n02085620-Chihuahua/n02085620_5927.jpg is expected")
        if folder_of.setdefault(number, folder) != folder:
            raise DataError(f"{path}: class {number} is of folder {folder_of[number]}, but '{file}' is of class {number}, too; {_UNPACK}")
    return [Item(id=f"Images/{file}", label=file.partition("/")[0], split=split) for file in files]


def _check_splits(folder: Path, items: list[Item]) -> None:
    """No picture may be in both lists."""
    train = {item.id for item in items if item.split == "train"}
    both = sorted(train & {item.id for item in items if item.split == "test"})
    if both:
        raise DataError(f"{folder}: {len(both)} pictures are in train_list.mat and in test_list.mat, such as {both[0]}; {_UNPACK}")
