"""A dataset as several modalities that are never paired: photographs, captions and sketches of different items.

What Song and Tan, "Sequential Learning for Cross-modal Retrieval", ICCV workshops 2019, learn from: modalities with the same classes, and
no item of one that belongs to an item of another.
"""

import hashlib
import io
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from pydantic import AfterValidator, Field

from perdure.config import PartConfig
from perdure.data.dataset import Dataset, check_items, fingerprint
from perdure.data.pixels import decode_image
from perdure.data.sources import SOURCES
from perdure.errors import DataError
from perdure.records import Item, Modality

__all__ = ["Modalities", "sketch"]

_DRAWING = 1  # raised when the same picture gives another sketch, or the same words another card
_LONGEST = 128  # pixels of a side at which a sketch is drawn
_FAINT, _STRONG = 40, 90  # a change of colour between two pixels that leaves no ink, and one that leaves all
_CARD = 160  # pixels of a side of a card with words


def _distinct(names: list[Modality]) -> list[Modality]:
    if len(set(names)) < len(names):
        raise ValueError(f"{', '.join(names)}: each modality once")
    return names


def _written_out(dataset: PartConfig) -> PartConfig:
    """The dataset with every option, so that what a manifest keeps does not depend on later defaults."""
    problems = SOURCES.problems(dataset.name, dataset.options)
    if problems:
        raise ValueError("; ".join(problems))
    return PartConfig.model_validate({"name": dataset.name, **SOURCES.plain(dataset.name, dataset.options)})


Names = Annotated[list[Modality], Field(min_length=1), AfterValidator(_distinct)]
Source = Annotated[PartConfig, AfterValidator(_written_out)]
_ALL: Names = ["image", "text", "sketch"]


class Modalities:
    """The items of another dataset, each as a picture, as words, or as a sketch; ids are `image/...`, `text/...`, `sketch/...`.

    A sketch is drawn from the picture (`sketch`). Words are the item's captions; what is shown for them is a card with the first one, for
    the photograph would tell what nobody learned. Pictures and sketches come without captions, so no pair exists.

    Args:
        of: the dataset, any but a sequence.
        modalities: which.
        unpaired: each item in one modality alone: those of a class and a split are dealt out in equal parts, by a hash of their ids.
            False: each item in every modality, as items that know nothing of each other.
    Raises:
        DataError: words are asked for, but an item has no caption; whatever the dataset raises.
    """

    name = "modalities"

    def __init__(self, *, of: Source, modalities: Names = _ALL, unpaired: bool = True) -> None:
        self._dataset: Dataset = SOURCES.build(of.name, of.options)
        self._rows: list[int] = []
        items: list[Item] = []
        for modality in modalities:
            rows = _dealt(self._dataset.items, modalities, modality) if unpaired else range(len(self._dataset.items))
            self._rows += rows
            items += [self._as(modality, row) for row in rows]
        self.items: Sequence[Item] = check_items(self.name, items)
        self.digest = fingerprint([self.name, _DRAWING, modalities, unpaired, self._dataset.digest])

    def where(self, row: int) -> str:
        """The modality, and where the dataset says that the item is."""
        return f"{self.items[row].modality} of {self._dataset.where(self._rows[row])}"

    def image_bytes(self, row: int) -> bytes:
        """The picture as the dataset gives it, a sketch of it, or a card with words, as PNG.

        Raises:
            DataError: the picture cannot be read.
        """
        match self.items[row].modality:
            case "sketch":
                data = self._dataset.image_bytes(self._rows[row])
                try:
                    return _png(Image.fromarray(sketch(decode_image(data, _side(data)))))
                except DataError as error:
                    raise DataError(f"{self.where(row)}: {error}") from None
            case "text":
                return _png(_card(self.items[row].captions[0]))
            case _:
                return self._dataset.image_bytes(self._rows[row])

    def _as(self, modality: Modality, row: int) -> Item:
        item = self._dataset.items[row]
        if modality == "text" and not item.captions:
            raise DataError(
                f"{self._dataset.where(row)}: it has no caption, so it cannot be words; name the caption column, or leave out 'text'"
            )
        return replace(item, id=f"{modality}/{item.id}", captions=item.captions if modality == "text" else (), modality=modality)


def sketch(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) as lines on white, (H, W, 3) uint8: ink where colours change, none where they only waver.

    The length of the gradient in the channel where it is longest, after a median of 3 x 3 pixels and a slight blur.
    """
    image = Image.fromarray(pixels).filter(ImageFilter.MedianFilter(3)).filter(ImageFilter.GaussianBlur(0.8))
    smooth = np.pad(np.asarray(image, dtype=np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    across, down = smooth[1:-1, 2:] - smooth[1:-1, :-2], smooth[2:, 1:-1] - smooth[:-2, 1:-1]
    change = np.sqrt(across**2 + down**2).max(axis=2, keepdims=True)
    ink = np.clip((change - _FAINT) / (_STRONG - _FAINT), 0, 1)
    return np.repeat((255 * (1 - ink)).round().astype(np.uint8), 3, axis=2)


def _dealt(items: Sequence[Item], modalities: Sequence[Modality], modality: Modality) -> list[int]:
    """The rows of one modality: of every class and split, each n-th by the rank of a hash of the id."""
    rows_of: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, item in enumerate(items):
        rows_of[item.label, item.split].append(row)
    place = modalities.index(modality)
    chosen: list[int] = []
    for rows in rows_of.values():
        ranked = sorted(rows, key=lambda row: (hashlib.sha1(f"modality/{items[row].id}".encode()).digest(), items[row].id))
        chosen += ranked[place :: len(modalities)]
    return sorted(chosen)


def _side(data: bytes) -> int:
    """At which size a sketch of a picture is drawn: its own, or less."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return min(*image.size, _LONGEST)
    except Exception:  # whatever is wrong with it, `decode_image` says it better
        return _LONGEST


def _card(words: str) -> Image.Image:
    """Words on a white square."""
    image = Image.new("RGB", (_CARD, _CARD), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default()
    pen.rectangle((2, 2, _CARD - 3, _CARD - 3), outline=(190, 190, 200))
    plain = words.encode("latin-1", "replace").decode("latin-1")  # what the built-in font can draw
    pen.multiline_text((10, 10), "\n".join(textwrap.wrap(plain, 22)[:10]), fill=(30, 30, 40), font=font, spacing=3)
    return image


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, format="PNG", compress_level=1)
    return out.getvalue()
