"""A folder of pictures, one folder a class."""

import logging
from collections.abc import Sequence
from pathlib import Path

from perdure.data.dataset import check_items, file_stamp, fingerprint, hold_out, read_file, unique_between_splits
from perdure.errors import DataError
from perdure.records import Item

__all__ = ["ImageFolder"]

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SPLITS = frozenset({"train", "test", "val", "valid", "validation"})

logger = logging.getLogger(__name__)


class ImageFolder:
    """`root/<class>/.../picture.jpg`; the id is the path below the root.

    Args:
        root: folder of class folders.
        test_root: the same for the test split; without it a fifth of each class is held out (`hold_out`).
    Raises:
        DataError: no such folder, no class folders, a class folder without pictures.
    """

    name = "image_folder"

    def __init__(self, *, root: str, test_root: str | None = None) -> None:
        train = _pictures(Path(root).expanduser())
        test = _pictures(Path(test_root).expanduser()) if test_root is not None else []
        self._paths = [path for path, _, _ in [*train, *test]]
        train_ids, test_ids = unique_between_splits([key for _, key, _ in train], [key for _, key, _ in test])
        labels = [label for _, _, label in [*train, *test]]
        splits = ["train"] * len(train) + ["test"] * len(test) if test else hold_out(train_ids, labels)
        rows = zip([*train_ids, *test_ids], labels, splits, strict=True)
        self.items: Sequence[Item] = check_items(self.name, [Item(id=key, label=label, split=split) for key, label, split in rows])
        self.digest = fingerprint(
            [self.name, *((item.id, item.split, file_stamp(path)) for item, path in zip(self.items, self._paths, strict=True))]
        )

    def where(self, row: int) -> str:
        """The file's path."""
        return f"{self._paths[row]} row {row} (id '{self.items[row].id}')"

    def image_bytes(self, row: int) -> bytes:
        """The bytes of the file.

        Raises:
            DataError: the file is gone or cannot be read.
        """
        return read_file(self._paths[row], self.where(row))


def _pictures(root: Path) -> list[tuple[Path, str, str]]:
    """Path, id and label of every picture below a root, in a fixed order."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; image_folder expects one folder a class below it")
    classes = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if not classes:
        raise DataError(f"{root}: no class folders in it; put the pictures of each class into a folder of its own")
    if len(classes) > 1 and {folder.name for folder in classes} <= _SPLITS:
        names = ", ".join(folder.name for folder in classes)
        raise DataError(f"{root}: its folders are splits ({names}), not classes; give root={root / 'train'} and test_root={root / 'test'}")
    found: list[tuple[Path, str, str]] = []
    empty: list[str] = []
    others: list[Path] = []
    for folder in classes:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        pictures = [path for path in files if path.suffix.lower() in _SUFFIXES]
        others += [path for path in files if path.suffix.lower() not in _SUFFIXES]
        found += [(path, path.relative_to(root).as_posix(), folder.name) for path in pictures]
        if not pictures:
            empty.append(folder.name)
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise DataError(f"{root}: no pictures in class folder {shown}; add some ({', '.join(sorted(_SUFFIXES))}) or remove the folder")
    if others:
        logger.warning("%s: %d files are not pictures by their suffix and were left out, such as %s", root, len(others), others[0])
    return found
