"""Flickr30k: 31,783 pictures of everyday life, five captions each, as published.

Young et al., "From image descriptions to visual denotations", 2014. `flickr30k.tar.gz` and `flickr30k-images.tar` unpack to

    results_20130124.token  flickr30k-images/*.jpg  ...

and say nothing of splits. `train.txt`, `val.txt` and `test.txt` of Flickr30k Entities (Plummer et al., 2015; 29,783, 1,000 and 1,000
pictures) list a picture a line; lists of another origin do as well.
"""

from pathlib import Path
from typing import Literal

from perdure.data.caption_files import listed_items, read_captions, read_splits, use_of_splits
from perdure.data.dataset import split_anew
from perdure.data.picture_files import PictureFiles, TestShare, require, root_of
from perdure.errors import ConfigError
from perdure.records import Item

__all__ = ["Flickr30k"]

Split = Literal["train", "val", "test"]

_CAPTIONS = "results_20130124.token"
_PICTURES = "flickr30k-images"


class Flickr30k(PictureFiles):
    """Pictures with captions. Each picture is a class of its own, called like its file, as in image-text retrieval.

    Args:
        root: the folder that both archives were unpacked in.
        splits: the folder of `train.txt` and so on; None = the root. A line is the name of a picture, with or without `.jpg`.
        train: splits that are trained on.
        test: splits that are tested on; pictures of no split asked for are left out, and their number is logged.
        test_share: share of all pictures that is held out by a hash of the id, instead of any lists.
    Raises:
        ConfigError: a split that is trained and tested on, or both `splits` and `test_share`.
        DataError: a file or picture that is missing, a line of another form, a list that is empty or names an unknown picture.
    """

    name = "flickr30k"

    def __init__(
        self,
        *,
        root: str,
        splits: str | None = None,
        train: tuple[Split, ...] = ("train",),
        test: tuple[Split, ...] = ("test",),
        test_share: TestShare | None = None,
    ) -> None:
        if splits is not None and test_share is not None:
            raise ConfigError(f"dataset '{self.name}'", ["splits and test_share are two ways to split the pictures; give one of them"])
        use = use_of_splits(self.name, train, test)
        folder = root_of(root, _CAPTIONS, "give the folder that flickr30k.tar.gz and flickr30k-images.tar were unpacked in")
        require(folder / _PICTURES, "unpack flickr30k-images.tar there")
        captions = read_captions(folder / _CAPTIONS, "unpack flickr30k.tar.gz again")
        lists: dict[Path, str] = {}
        if test_share is not None:
            split_of = _held_out(captions, test_share)
        else:
            advice = (
                "the archives have no lists, so give splits=FOLDER with those of Flickr30k Entities (train.txt, val.txt, test.txt), or "
                "test_share=0.1 to hold out a tenth of the pictures"
            )
            listed = folder if splits is None else Path(splits).expanduser()
            lists = {require(listed / f"{split}.txt", advice): side for split, side in use.items()}
            split_of = read_splits(lists, captions, f"are these lists and {_CAPTIONS} of the same dataset?")
        items = listed_items(_PICTURES, captions, split_of, name=self.name)
        super().__init__(folder, items, sources=[folder / _CAPTIONS, *lists], unpack="unpack flickr30k-images.tar again")


def _held_out(pictures: dict[str, tuple[str, ...]], share: float) -> dict[str, str]:
    """The split of each picture; `split_anew` takes a share of each class, and here it takes one of all pictures together."""
    return {item.id: item.split for item in split_anew([Item(id=picture, label="") for picture in pictures], share)}
