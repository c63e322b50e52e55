"""Flickr8k: 8,000 pictures of people and animals in action, five captions each, as published.

Hodosh, Young and Hockenmaier, "Framing Image Description as a Ranking Task", 2013. `Flickr8k_Dataset.zip` and `Flickr8k_text.zip` unpack to

    Flicker8k_Dataset/*.jpg  (spelt so)
    Flickr8k.token.txt  Flickr_8k.trainImages.txt  Flickr_8k.devImages.txt  Flickr_8k.testImages.txt  ...

The captions are of 8,092 pictures, one of which (`2258277193_586949ec62.jpg.1`) is not there; the lists name 6,000, 1,000 and 1,000.
"""

from pathlib import Path
from typing import Literal

from perdure.data.caption_files import listed_items, read_captions, read_splits, use_of_splits
from perdure.data.picture_files import PictureFiles, require, root_of
from perdure.errors import DataError

__all__ = ["Flickr8k"]

Split = Literal["train", "dev", "test"]

_CAPTIONS = "Flickr8k.token.txt"
_PICTURES = ("Flicker8k_Dataset", "Flickr8k_Dataset")
_UNPACK = "unpack Flickr8k_text.zip again"


class Flickr8k(PictureFiles):
    """Pictures with captions. Each picture is a class of its own, called like its file, as in image-text retrieval.

    Args:
        root: the folder that both archives were unpacked in; the text may lie in `Flickr8k_text` below it.
        train: published splits that are trained on.
        test: published splits that are tested on; pictures of no split asked for are left out, and their number is logged.
    Raises:
        ConfigError: a split that is trained and tested on.
        DataError: a file or picture that is missing, a line of another form, a list that is empty or names an unknown picture.
    """

    name = "flickr8k"

    def __init__(self, *, root: str, train: tuple[Split, ...] = ("train",), test: tuple[Split, ...] = ("test",)) -> None:
        use = use_of_splits(self.name, train, test)
        folder = Path(root).expanduser()
        texts = folder / "Flickr8k_text"
        if not (texts / _CAPTIONS).exists():
            texts = root_of(root, _CAPTIONS, "give the folder that Flickr8k_text.zip and Flickr8k_Dataset.zip were unpacked in")
        pictures = next((name for name in _PICTURES if (folder / name).is_dir()), None)
        if pictures is None:
            raise DataError(f"{folder}: no folder {' or '.join(_PICTURES)} in it; unpack Flickr8k_Dataset.zip there")
        captions = read_captions(texts / _CAPTIONS, _UNPACK)
        lists = {require(texts / f"Flickr_8k.{split}Images.txt", _UNPACK): side for split, side in use.items()}
        items = listed_items(pictures, captions, read_splits(lists, captions, _UNPACK), name=self.name)
        super().__init__(folder, items, sources=[texts / _CAPTIONS, *lists], unpack="unpack Flickr8k_Dataset.zip again")
