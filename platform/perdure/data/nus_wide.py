"""NUS-WIDE: 269,648 pictures of Flickr with the tags of their owners and 81 concepts, as published.

Chua et al., "NUS-WIDE: A Real-World Web Image Database from National University of Singapore", CIVR 2009. The archives unpack to

    ImageList/Imagelist.txt            actor\\0001_2124494179.jpg, a picture a line
    ConceptsList/Concepts81.txt        airport, a concept a line
    Groundtruth/AllLabels/Labels_airport.txt ...       0 or 1 a line, for the picture of that line
    NUS_WID_Tags/TagList1k.txt         a tag a line, in the order of the columns of
    NUS_WID_Tags/AllTags1k.txt         1,000 times 0 or 1 a line, for the picture of that line
    Flickr/actor/0001_2124494179.jpg   ...

The pictures come from the authors on request, or one by one from their addresses, and some of those are gone.
"""

import logging
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perdure.data.caption_files import read_lines
from perdure.data.dataset import read_file
from perdure.data.multi_label import Count, LabelledPicture, multi_label_items
from perdure.data.picture_files import PictureFiles, require, root_of
from perdure.errors import ConfigError, DataError

__all__ = ["NUSWIDE"]

_PICTURES = "Flickr"
_ADVICE = "give the folder that NUS-WIDE's archives were unpacked in: Groundtruth, ConceptsList, ImageList, NUS_WID_Tags, Flickr"
_BITS = {b"0", b"1"}

logger = logging.getLogger(__name__)


class NUSWIDE(PictureFiles):
    """Pictures, each with its tags as a caption and every concept that applies in `tags`; its label is the rarest of them.

    As in cross-modal hashing (thesis, ch. 3), the most frequent concepts are kept, and pictures without one of them or without any of
    the 1,000 tags are left out. 2,100 are queries, 10,500 are learned, and with the others they
    are what is searched (stream.gallery=rest). The published lists of training and test pictures are not used.

    Args:
        root: the folder that the archives were unpacked in.
        concepts: how many of the concepts are kept, the most frequent ones; of equal ones, the first of `Concepts81.txt`.
        queries: pictures that are tested on, drawn by the seed.
        train: pictures that are learned, drawn from the others; None = all others.
        others: whether pictures that are neither are there to be found (stream.gallery=rest), and so have to be there and are decoded;
            false leaves them out.
        seed: of the draw.
        on_missing: "stop" names a picture that is drawn and has no file; "skip" leaves out all without a file before the draw.
    Raises:
        ConfigError: more concepts or pictures asked for than there are.
        DataError: a folder or file that is missing, lines of another form, files of unequal length.
    Deviations: as `MIRFlickr25K`.
    """

    name = "nus_wide"

    def __init__(
        self,
        *,
        root: str,
        concepts: Count = 21,
        queries: Count = 2100,
        train: Count | None = 10500,
        others: bool = True,
        seed: int = 0,
        on_missing: Literal["stop", "skip"] = "stop",
    ) -> None:
        folder = root_of(root, "Groundtruth", _ADVICE)
        require(folder / _PICTURES, "the pictures of NUS-WIDE belong there")
        listed = folder / "ImageList" / "Imagelist.txt"
        names = _pictures(listed)
        kept = self._kept(folder, concepts, len(names))
        words = _words(folder / "NUS_WID_Tags", len(names))
        labels: list[tuple[str, ...]] = [()] * len(names)
        for concept, applies in kept.items():
            for row in np.flatnonzero(applies).tolist():
                labels[row] = (*labels[row], concept)
        pictures = [LabelledPicture(f"{_PICTURES}/{name}", own, said) for name, own, said in zip(names, labels, words, strict=True)]
        if on_missing == "skip":
            pictures = _there(folder, pictures)
        items = multi_label_items(self.name, pictures, queries=queries, train=train, others=others, seed=seed)
        unpack = "get the pictures, or leave out those without a file: on_missing=skip"
        super().__init__(folder, items, sources=[listed, folder / "NUS_WID_Tags" / "AllTags1k.txt"], unpack=unpack)

    def _kept(self, folder: Path, num_concepts: int, num_pictures: int) -> dict[str, NDArray[np.bool_]]:
        """To which pictures (N,) each of the most frequent concepts applies, in the order of `Concepts81.txt`."""
        path = folder / "ConceptsList" / "Concepts81.txt"
        concepts = _names(path)
        if num_concepts > len(concepts):
            raise ConfigError(f"dataset '{self.name}'", [f"concepts={num_concepts}: {path} names {len(concepts)}; ask for fewer"])
        applies = {name: _column(folder / "Groundtruth" / "AllLabels" / f"Labels_{name}.txt", num_pictures) for name in concepts}
        frequent = set(sorted(concepts, key=lambda name: -int(applies[name].sum()))[:num_concepts])
        return {name: column for name, column in applies.items() if name in frequent}


def _pictures(path: Path) -> list[str]:
    """The pictures of the list, `actor/0001_2124494179.jpg`."""
    names: list[str] = []
    for number, text in read_lines(require(path, _again("ImageList"))):
        name = text.strip().replace("\\", "/")
        if len(name.split("/")) != 2:
            raise DataError(f"{path} line {number}: expected folder\\picture.jpg, found '{text.strip()[:80]}'; {_again('ImageList')}")
        names.append(name)
    if not names:
        raise DataError(f"{path}: no picture in it; {_again('ImageList')}")
    return names


def _names(path: Path) -> list[str]:
    """A name a line."""
    again = _again(path.parent.name)
    names = [text.strip() for _, text in read_lines(require(path, again))]
    if len(set(names)) != len(names) or not names:
        raise DataError(f"{path}: {len(names)} names, {len(set(names))} of them different; each line is one of its own. {again}")
    return names


def _column(path: Path, num_pictures: int) -> NDArray[np.bool_]:
    """0 or 1 a line, for each picture -> (N,)."""
    values = read_file(require(path, _again("Groundtruth")), str(path)).split()
    wrong = next((place for place, value in enumerate(values) if value not in _BITS), None)
    if wrong is not None:
        raise DataError(f"{path} line {wrong + 1}: expected 0 or 1, found {values[wrong][:80]!r}; {_again('Groundtruth')}")
    _check_length(path, len(values), num_pictures, "Groundtruth")
    return np.array(values) == b"1"


def _words(folder: Path, num_pictures: int) -> Sequence[tuple[str, ...]]:
    """The tags of each picture, in the order of the list of tags."""
    listed, path = folder / "TagList1k.txt", folder / "AllTags1k.txt"
    tags = _names(listed)
    found: list[tuple[str, ...]] = []
    with require(path, _again("NUS_WID_Tags")).open("rb") as lines:  # half a gigabyte, so line by line
        for number, line in enumerate(lines, start=1):
            values = line.split()
            if len(values) != len(tags) or not _BITS.issuperset(values):
                raise DataError(
                    f"{path} line {number}: expected {len(tags)} times 0 or 1, one for each tag of {listed.name}, found {len(values)} "
                    f"values: '{line[:40].decode(errors='replace').strip()}'; {_again('NUS_WID_Tags')}"
                )
            found.append(tuple(compress(tags, map(b"1".__eq__, values))))
    _check_length(path, len(found), num_pictures, "NUS_WID_Tags")
    return found


def _check_length(path: Path, num_lines: int, num_pictures: int, archive: str) -> None:
    if num_lines != num_pictures:
        raise DataError(
            f"{path}: {num_lines} lines, but Imagelist.txt has {num_pictures} pictures; line by line they are about the same ones. "
            f"{_again(archive)}"
        )


def _again(archive: str) -> str:
    return f"unpack {archive}.zip again"


def _there(folder: Path, pictures: Sequence[LabelledPicture]) -> list[LabelledPicture]:
    """Without the pictures that have no file; only those are looked for that may be drawn."""
    left = [picture for picture in pictures if not picture.is_pair or (folder / picture.id).is_file()]
    if len(left) < len(pictures):
        logger.info("%s: %d pictures with a concept and a tag have no file and are left out", folder, len(pictures) - len(left))
    return left
