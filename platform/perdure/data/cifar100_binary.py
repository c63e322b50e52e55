"""CIFAR-100, the binary version as published: 50,000 + 10,000 pictures of 32 x 32 in 100 classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. `cifar-100-binary.tar.gz` unpacks to

    train.bin  test.bin  fine_label_names.txt  coarse_label_names.txt

A record is 3,074 bytes: coarse label, fine label, 1,024 red, 1,024 green, 1,024 blue, row by row. The other published version, "for
Python", is a pickle: to open one is to run what is in it, so it is not read here. Who has only that one names torchvision's reader,
`{name: torchvision, dataset: CIFAR100, root: ...}`, which opens it after it has checked the files' MD5.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perdure.data.dataset import check_items, file_stamp, fingerprint
from perdure.data.picture_files import require, root_of
from perdure.errors import DataError
from perdure.records import Item

__all__ = ["CIFAR100Binary"]

_SIDE = 32
_RECORD = 2 + 3 * _SIDE * _SIDE  # bytes
_ADVICE = "it is in cifar-100-binary.tar.gz (the binary version)"


class CIFAR100Binary:
    """The label is the fine class, `group` the coarse one (20 groups of five classes); pictures are handed on as PNG.

    Args:
        root: the folder with `train.bin`.
    Raises:
        DataError: a file that is missing, of another length, or with a class that has no name.
    """

    name = "cifar100_binary"

    def __init__(self, *, root: str) -> None:
        folder = root_of(root, "train.bin", f"give the folder cifar-100-binary; {_ADVICE}")
        files = {split: require(folder / f"{split}.bin", _ADVICE) for split in ("train", "test")}
        fine, coarse = _names(folder / "fine_label_names.txt"), _names(folder / "coarse_label_names.txt")
        self._folder = folder
        items = [item for split, path in files.items() for item in _items(path, split, fine, coarse)]
        self.items: Sequence[Item] = check_items(f"{self.name} {folder}", items)
        self._num_train = sum(item.split == "train" for item in items)
        stamps = [file_stamp(path) for path in files.values()]
        self.digest = fingerprint([self.name, fine, coarse, *stamps])

    def where(self, row: int) -> str:
        """The file and the number of the record in it."""
        path, inside = self._locate(row)
        return f"{path} record {inside} row {row} (id '{self.items[row].id}')"

    def image_bytes(self, row: int) -> bytes:
        """The picture as PNG, which loses nothing.

        Raises:
            DataError: the file is gone, or has become shorter.
        """
        path, inside = self._locate(row)
        try:
            with path.open("rb") as file:
                file.seek(inside * _RECORD + 2)
                planes = np.frombuffer(file.read(_RECORD - 2), dtype=np.uint8).reshape(3, _SIDE, _SIDE)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.where(row)}: cannot be read: {error}") from None
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(out, format="PNG", compress_level=1)
        return out.getvalue()

    def _locate(self, row: int) -> tuple[Path, int]:
        """File and record of a row."""
        test = row >= self._num_train
        return self._folder / ("test.bin" if test else "train.bin"), row - self._num_train if test else row


def _names(path: Path) -> list[str]:
    return [line.strip() for line in require(path, _ADVICE).read_text(encoding="utf-8").splitlines() if line.strip()]


def _labels(path: Path) -> NDArray[np.uint8]:
    """Coarse and fine class (N, 2) of every record of a file."""
    size = path.stat().st_size
    if size == 0 or size % _RECORD:
        raise DataError(f"{path}: {size:,} bytes, which is no whole number of records of {_RECORD:,}; it is cut off, unpack it again")
    return np.array(np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, _RECORD)[:, :2])


def _items(path: Path, split: str, fine: list[str], coarse: list[str]) -> list[Item]:
    labels = _labels(path)
    for what, largest, names in (("coarse", labels[:, 0].max(), coarse), ("fine", labels[:, 1].max(), fine)):
        if largest >= len(names):
            raise DataError(
                f"{path}: a picture is of {what} class {largest}, but {what}_label_names.txt has {len(names)} names; unpack all files again"
            )
    return [
        Item(id=f"{split}/{number}", label=fine[label], group=coarse[group], split=split)
        for number, (group, label) in enumerate(labels.tolist())
    ]
