"""What the loaders of published image-caption datasets share: captions by picture, lists of splits, lines, JSON.

A token file (Flickr8k, Flickr30k) has a line for each caption: `1000268201_693b08cb0e.jpg#0`, a tab, the words. A list of a split has
a line for each picture: its name, or its name without `.jpg`.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.data.dataset import read_file
from perdure.errors import ConfigError, DataError
from perdure.records import Item

__all__ = ["listed_items", "read_captions", "read_json", "read_lines", "read_splits", "use_of_splits"]

_CAPTION = re.compile(r"([^\t]+)#\d+\t(.*)")
_SUFFIX = ".jpg"

logger = logging.getLogger(__name__)


def use_of_splits(name: str, train: Sequence[str], test: Sequence[str]) -> dict[str, str]:
    """What each published split that is asked for serves as: "train" or "test".

    Raises:
        ConfigError: a split that is to serve as both.
    """
    both = [split for split in train if split in test]
    if both:
        raise ConfigError(
            f"dataset '{name}'", [f"split '{both[0]}' is in train and in test; what is trained on cannot test what was learned"]
        )
    return {**dict.fromkeys(train, "train"), **dict.fromkeys(test, "test")}


def read_captions(path: Path, advice: str) -> dict[str, tuple[str, ...]]:
    """The captions of each picture of a token file, by its name; captions without a word are left out.

    Raises:
        DataError: no such file, a line of another form (names it), no line at all.
    """
    found: dict[str, tuple[str, ...]] = {}
    for number, text in read_lines(path):
        match = _CAPTION.fullmatch(text)
        if match is None:
            raise DataError(f"{path} line {number}: expected 'picture{_SUFFIX}#0', a tab and a caption, found '{text[:80]}'; {advice}")
        caption = match[2].strip()
        found[match[1]] = (*found.get(match[1], ()), *((caption,) if caption else ()))
    if not found:
        raise DataError(f"{path}: no captions in it; {advice}")
    return found


def read_splits(lists: Mapping[Path, str], captions: Mapping[str, object], advice: str) -> dict[str, str]:
    """The split of each picture that is listed, by its name, in the order of the lists.

    Args:
        lists: files with a picture a line, and what those pictures serve as.
        captions: by the names of the pictures that have some.
        advice: what to do about a list that does not fit.
    Raises:
        DataError: no such file; a picture without captions, or listed twice (names the line); a list without a picture.
    """
    split_of: dict[str, str] = {}
    listed_in: dict[str, str] = {}
    for path, split in lists.items():
        before = len(split_of)
        for number, line in read_lines(path):
            text = line.strip()
            name = text if text in captions else text + _SUFFIX
            if name not in captions:
                raise DataError(f"{path} line {number}: no captions of a picture '{text[:80]}', only of {len(captions)} others; {advice}")
            if name in split_of:
                raise DataError(f"{path} line {number}: '{name}' is in {listed_in[name]} already; a picture belongs to one split, once")
            split_of[name] = split
            listed_in[name] = f"{path.name} line {number}"
        if len(split_of) == before:
            raise DataError(f"{path}: no picture in it; {advice}")
    return split_of


def listed_items(folder: str, captions: Mapping[str, tuple[str, ...]], split_of: Mapping[str, str], *, name: str) -> list[Item]:
    """The pictures that have a split, each a class of its own; how many have none is logged.

    Args:
        folder: of the pictures, below the root.
        captions: of each picture.
        split_of: of each picture that is taken.
        name: of the dataset, for the log.
    """
    left = [picture for picture in captions if picture not in split_of]
    if left:
        logger.info("%s: %d pictures are in none of the splits asked for and are left out, such as %s", name, len(left), left[-1])
    return [
        Item(id=f"{folder}/{picture}", label=picture.removesuffix(_SUFFIX), captions=captions[picture], split=split)
        for picture, split in split_of.items()
    ]


def read_json(path: Path, *, without: str | None = None) -> Any:
    """What a JSON file says; members called `without` are dropped as they are read, so that their bulk is never in memory at once.

    Raises:
        DataError: no such file, or not JSON.
    """

    def kept(members: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in members if key != without}

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=None if without is None else kept)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a JSON file: {error}") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers; only a line feed ends a line, for captions may hold other separators.

    Raises:
        DataError: no such file, or not UTF-8 (names the line).
    """
    raw = read_file(path, str(path))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path} line {line}: not UTF-8 ({error.reason}); convert the file to UTF-8") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line
