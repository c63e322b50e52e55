"""PictureFiles: what the loaders of published datasets share, whose pictures are files below one folder, listed in other files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from perdure.data.dataset import check_items, file_stamp, fingerprint, read_file, split_anew
from perdure.errors import DataError
from perdure.records import Item

__all__ = ["PictureFiles", "TestShare", "require", "root_of"]

TestShare = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
"""Share of each class that is held out by a hash of the id, in place of the published split."""


class PictureFiles:
    """Items, each with the path of its picture.

    Args:
        root: the folder that messages name.
        items: the annotation, row by row; the ids are paths below the root.
        sources: the files that the annotation was read from; a change of one changes the digest.
        unpack: what to do when pictures are missing, for the message.
        test_share: see `split_anew`; None keeps the split that the items have.
    Raises:
        DataError: pictures that are listed and not there, ids that repeat, no items.
    """

    name = "picture_files"

    def __init__(self, root: Path, items: Sequence[Item], *, sources: Sequence[Path], unpack: str, test_share: float | None = None) -> None:
        split = items if test_share is None else split_anew(items, test_share)
        self.items: Sequence[Item] = check_items(f"{self.name} {root}", split)
        self._root = root
        stamps = [file_stamp(root / item.id) for item in items]
        missing = [item.id for item, (_, size, _) in zip(items, stamps, strict=True) if size < 0]
        if missing:
            listed = ", ".join(source.name for source in sources)
            raise DataError(
                f"{self.name} {root}: {len(missing)} of the {len(items)} pictures that are listed ({listed}) are not there, such as "
                f"{missing[0]}; {unpack}"
            )
        annotation = [(item.id, item.label, item.split, stamp, *_told(item)) for item, stamp in zip(self.items, stamps, strict=True)]
        self.digest = fingerprint([self.name, *map(file_stamp, sources), *annotation])

    def where(self, row: int) -> str:
        """The file's path."""
        return f"{self._root / self.items[row].id} row {row} (id '{self.items[row].id}')"

    def image_bytes(self, row: int) -> bytes:
        """The bytes of the file.

        Raises:
            DataError: the file is gone or cannot be read.
        """
        return read_file(self._root / self.items[row].id, self.where(row))


def _told(item: Item) -> tuple[tuple[str, ...], ...]:
    """What options make of the sources, where there are several labels: the words and labels of a picture."""
    return (item.captions, item.tags) if item.tags else ()


def root_of(text: str, marker: str, advice: str) -> Path:
    """The folder that a user names, once it holds `marker`; the message tells where below it the marker is, if it is.

    Raises:
        DataError: no such folder, or not the one that holds the marker.
    """
    root = Path(text).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; {advice}")
    if not (root / marker).exists():
        deeper = sorted(path.parent for path in root.glob(f"*/{marker}"))
        hint = f"it is in {deeper[0]}, so give root={deeper[0]}" if deeper else advice
        raise DataError(f"{root}: no {marker} in it; {hint}")
    return root


def require(path: Path, advice: str) -> Path:
    """The path, once it is certain that it is there.

    Raises:
        DataError: it is not.
    """
    if not path.exists():
        raise DataError(f"{path}: not there; {advice}")
    return path
