"""What the loaders of multi-label datasets share: pictures with words and several labels, of which queries are drawn by a seed.

Cross-modal hashing is measured on such data: two pictures are alike when they have a label in common. `Item.tags` are all labels of a
picture; `Item.label`, by which streams are cut, is the rarest of them, so that no class of a stream takes nearly all pictures.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from perdure.errors import ConfigError
from perdure.records import Item

__all__ = ["Count", "LabelledPicture", "multi_label_items"]

Count = Annotated[int, Field(ge=1)]
"""A number of pictures, words or labels, at least one."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """A picture as it is annotated: its path below the root, the labels that apply, the words that it was tagged with."""

    id: str
    labels: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def is_pair(self) -> bool:
        """Whether it has something to be found by on both sides: a label at least and a word."""
        return bool(self.labels and self.words)


def multi_label_items(
    name: str, pictures: Sequence[LabelledPicture], *, queries: int, train: int | None, others: bool, seed: int
) -> list[Item]:
    """The pictures with a label and a word: queries ("test"), learned ("train") and others ("gallery"), in the order of the list.

    Which is which is a matter of seed and id alone: ranked by sha1("seed id"), the first `queries` are tested on and the next `train`
    are learned. What is left out is logged, with its number.

    Args:
        name: of the dataset, for messages.
        pictures: all that are annotated; how frequent a label is, is counted here.
        queries: how many are tested on.
        train: how many of the others are learned; None = all of them.
        others: whether what is neither is in the gallery, or left out.
        seed: of the draw.
    Returns:
        Items whose caption is the words, whose tags are the labels and whose label is the rarest one, of equal ones the first.
    Raises:
        ConfigError: more pictures asked for than there are.
    """
    frequency = Counter(label for picture in pictures for label in picture.labels)
    pairs = [picture for picture in pictures if picture.is_pair]
    if len(pairs) < len(pictures):
        logger.info("%s: %d of %d pictures lack a label or a word and are left out", name, len(pictures) - len(pairs), len(pictures))
    if queries + (train or 1) > len(pairs):
        asked = f"queries={queries} and train={train}" if train is not None else f"queries={queries}, and some to learn"
        raise ConfigError(
            f"dataset '{name}'", [f"{asked}: {len(pairs)} of {len(pictures)} pictures have a label and a word; ask for fewer"]
        )
    ranked = sorted(pairs, key=lambda picture: (_drawn(seed, picture.id), picture.id))
    end = len(ranked) if train is None else queries + train
    split_of = {picture.id: "test" if place < queries else "train" for place, picture in enumerate(ranked[:end])}
    if others:
        split_of |= {picture.id: "gallery" for picture in ranked[end:]}
    elif end < len(ranked):
        logger.info("%s: %d pictures are neither among the %d queries nor among the %d to learn", name, len(ranked) - end, queries, train)
    return [
        Item(
            id=picture.id,
            label=min(picture.labels, key=frequency.__getitem__),
            captions=(" ".join(picture.words),),
            tags=picture.labels,
            split=split_of[picture.id],
        )
        for picture in pairs
        if picture.id in split_of
    ]


def _drawn(seed: int, key: str) -> bytes:
    return hashlib.sha1(f"{seed} {key}".encode()).digest()
