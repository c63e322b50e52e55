"""MIRFLICKR-25000: 25,000 pictures of Flickr with the tags of their owners and 24 labels, as published.

Huiskes and Lew, "The MIR Flickr Retrieval Evaluation", MIR 2008. `mirflickr25k.zip` and `mirflickr25k_annotations_v080.zip` unpack to

    mirflickr/im1.jpg ... im25000.jpg  mirflickr/meta/tags/tags1.txt ...  mirflickr/meta/tags_raw/ ...  mirflickr/doc/ ...
    mirflickr25k_annotations_v080/sky.txt  sky_r1.txt  ...  README.txt

`tags1.txt` has a tag a line, in lower case and without blanks (`tags_raw` as it was typed); `sky.txt` has the number of a picture a
line. The 24 labels are the potential ones: a narrower, "relevant" reading of 14 of them (`*_r1.txt`) is not used.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from perdure.data.caption_files import read_lines
from perdure.data.multi_label import Count, LabelledPicture, multi_label_items
from perdure.data.picture_files import PictureFiles, require, root_of
from perdure.errors import DataError

__all__ = ["LABELS", "MIRFlickr25K"]

_PICTURES = "mirflickr"
_ANNOTATIONS = "mirflickr25k_annotations_v080"
_UNPACK_PICTURES = "unpack mirflickr25k.zip again"
_UNPACK_LABELS = "unpack mirflickr25k_annotations_v080.zip again"
_NUMBERED = re.compile(r"(?:im([1-9]\d*)\.jpg|tags([1-9]\d*)\.txt)")

LABELS = (
    *("animals", "baby", "bird", "car", "clouds", "dog", "female", "flower", "food", "indoor", "lake", "male"),
    *("night", "people", "plant_life", "portrait", "river", "sea", "sky", "structures", "sunset", "transport", "tree", "water"),
)
"""The potential labels, each a file of the annotation."""


class MIRFlickr25K(PictureFiles):
    """Pictures, each with its frequent tags as a caption and every label that applies in `tags`; its label is the rarest of them.

    As in cross-modal hashing (thesis, ch. 3), pictures without a label or without a frequent tag are left out: as published, 1,386 tags
    are frequent and 20,015 pictures are left. 2,000 are queries, 10,000 are learned, and with the others they are what is searched
    (stream.gallery=rest).

    Args:
        root: the folder that both archives were unpacked in.
        annotations: the folder of `sky.txt` and so on, if it is another one than `mirflickr25k_annotations_v080` there.
        min_tag_count: a tag is a word of captions when so many pictures have it, at least.
        queries: pictures that are tested on, drawn by the seed.
        train: pictures that are learned, drawn from the others; None = all others.
        others: whether pictures that are neither are there to be found (stream.gallery=rest); false leaves them out.
        seed: of the draw.
    Raises:
        ConfigError: more pictures asked for than there are.
        DataError: a folder, file or picture that is missing, a line that is no number, a label of a picture that does not exist.
    Deviations: which pictures papers draw is not known, and so not the same.
    """

    name = "mirflickr25k"

    def __init__(
        self,
        *,
        root: str,
        annotations: str | None = None,
        min_tag_count: Count = 20,
        queries: Count = 2000,
        train: Count | None = 10000,
        others: bool = True,
        seed: int = 0,
    ) -> None:
        folder = root_of(root, _PICTURES, f"give the folder that mirflickr25k.zip and {_ANNOTATIONS}.zip were unpacked in")
        tag_folder = require(folder / _PICTURES / "meta" / "tags", _UNPACK_PICTURES)
        tags = _tags(tag_folder)
        advice = f"unpack {_ANNOTATIONS}.zip there, or give annotations=FOLDER if it is somewhere else"
        label_folder = require(folder / _ANNOTATIONS if annotations is None else Path(annotations).expanduser(), advice)
        labels = _labels(label_folder, len(tags))
        count = Counter(tag for own in tags.values() for tag in own)
        pictures = [
            LabelledPicture(f"{_PICTURES}/im{number}.jpg", labels[number], tuple(tag for tag in own if count[tag] >= min_tag_count))
            for number, own in tags.items()
        ]
        items = multi_label_items(self.name, pictures, queries=queries, train=train, others=others, seed=seed)
        super().__init__(folder, items, sources=[tag_folder, label_folder], unpack=_UNPACK_PICTURES)


def _tags(folder: Path) -> dict[int, tuple[str, ...]]:
    """The tags of each picture, once each, by its number: 1 to N, the largest number of a picture or of a file of tags."""
    matches = [_NUMBERED.fullmatch(path.name) for place in (folder, folder.parents[1]) for path in place.iterdir()]
    last = max((int(match[1] or match[2]) for match in matches if match), default=1)
    paths = {
        number: require(folder / f"tags{number}.txt", f"there are {last} pictures; {_UNPACK_PICTURES}") for number in range(1, last + 1)
    }
    return {number: tuple(dict.fromkeys(text.strip() for _, text in read_lines(path))) for number, path in paths.items()}


def _labels(folder: Path, num_pictures: int) -> Mapping[int, tuple[str, ...]]:
    """The labels of each picture, in alphabetical order, by its number."""
    found: dict[int, tuple[str, ...]] = dict.fromkeys(range(1, num_pictures + 1), ())
    for label in LABELS:
        path = require(folder / f"{label}.txt", _UNPACK_LABELS)
        for line, text in read_lines(path):
            number = int(text) if text.strip().isdecimal() else 0
            if number not in found:
                raise DataError(
                    f"{path} line {line}: expected the number of a picture, found '{text.strip()[:80]}'; there are tags1.txt to "
                    f"tags{num_pictures}.txt, so 1 to {num_pictures}. {_UNPACK_LABELS}, and {_UNPACK_PICTURES.removeprefix('unpack ')}"
                )
            found[number] = tuple(dict.fromkeys((*found[number], label)))
    return found
