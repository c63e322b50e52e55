"""Pixels: encoded pictures become uint8 arrays of one size, once, in a memory-mapped cache that the processes of a node share."""

import contextlib
import errno
import fcntl
import io
import json
import os
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from perdure.data.dataset import Dataset
from perdure.errors import DataError

__all__ = ["BadItem", "Pixels", "decode_image", "open_pixels", "picture_to_store"]

_CHUNK = 256  # rows that a thread decodes at a time: few enough for a steady progress bar
_LARGEST_STORED = 64 * 1024  # bytes of an encoded picture that is stored with its segment as it is
_FORMAT = 1  # of the cache; another number makes another file


@dataclass(frozen=True, slots=True)
class BadItem:
    """An item whose picture cannot be read."""

    row: int
    id: str
    where: str
    why: str


class Pixels:
    """All pictures of a dataset, (N, H, W, 3) uint8; it records which rows were read (a task may not read an earlier one's).

    Args:
        data: (N, H, W, 3) uint8, usually memory-mapped.
        bad: items without pixels; their rows are refused.
    """

    def __init__(self, data: NDArray[np.uint8], bad: tuple[BadItem, ...] = ()) -> None:
        self._data = np.asarray(data)  # a plain array over the same map: what is taken from it is plain, too
        self.bad = bad
        self.size = int(data.shape[1])
        self.rows_ok: NDArray[np.bool_] = np.ones(len(data), dtype=np.bool_)
        self.rows_ok[[item.row for item in bad]] = False
        self.read: NDArray[np.bool_] = np.zeros(len(data), dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._data)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pixels (n, H, W, 3) of rows (n,), as a copy; the rows count as read from now on.

        Raises:
            DataError: a row whose picture could not be read.
        """
        if not self.rows_ok[rows].all():
            asked = set(np.asarray(rows).tolist())
            first = next(item for item in self.bad if item.row in asked)
            raise DataError(f"{first.where}: asked for a picture that cannot be read: {first.why}")
        self.read[rows] = True
        return self._data[rows]

    def note(self, rows: NDArray[np.int64]) -> None:
        """Rows whose words were read instead of their pixels: they count as read, too."""
        self.read[rows] = True

    def forget_reads(self) -> None:
        """Start the record of what was read anew."""
        self.read[:] = False


def picture_to_store(data: bytes) -> bytes:
    """The encoded picture itself when it is small, else a JPEG of at most 256 pixels."""
    if len(data) <= _LARGEST_STORED:
        return data
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((256, 256))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


def decode_image(data: bytes, size: int, *, max_pixels: int = 50_000_000) -> NDArray[np.uint8]:
    """A picture in any format and mode that Pillow reads, as (size, size, 3) uint8.

    Turned upright by its EXIF tag, transparency laid on white, 16-bit scaled to 8, the middle square of the longer side cut out,
    resized bilinearly with antialiasing.

    Args:
        data: the encoded file.
        size: side of the result, in pixels.
        max_pixels: a picture with more is refused by its header, before anything is decoded.
    Raises:
        DataError: empty, not an image, too many pixels, truncated or damaged; the message is the reason.
    """
    if not data:
        raise DataError("empty, 0 bytes")
    try:
        image = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"more than {max_pixels:,} pixels by its header; it was not decoded") from None
    except Exception:  # Pillow's readers raise many kinds for bytes that are no image; they all mean the same
        raise DataError(f"not an image that Pillow reads, or it is cut off in its header ({len(data)} bytes: {data[:8]!r}...)") from None
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(f"{width} x {height} pixels by its header, more than {max_pixels:,}; it was not decoded")
    try:
        image.draft("RGB", (size, size))  # a JPEG is decoded at the smallest of its own scales that is large enough
        image.load()
        upright = ImageOps.exif_transpose(image)
        return np.asarray(_square(_rgb(upright), size))
    except DataError:
        raise
    except Exception as error:  # likewise: a damaged file ends in an error of whichever reader met the damage
        reason = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise DataError(f"{reason} {image.format}: {error}") from None


def _rgb(image: Image.Image) -> Image.Image:
    """Three channels of eight bits, on white where the picture is transparent."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        deep = np.asarray(image)
        if image.mode == "F" or deep.min() < 0 or deep.max() > 65535:
            raise DataError(f"{image.format} of 32-bit pixels (mode {image.mode}) has no agreed range; save it with 8 or 16 bits")
        return Image.fromarray((deep / 257.0 + 0.5).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    """The middle square, resized."""
    width, height = image.size
    if (width, height) == (size, size):
        return image
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def open_pixels(
    dataset: Dataset,
    size: int,
    *,
    cache: Path,
    on_bad_item: Literal["stop", "skip"],
    progress: Callable[[int, int], None] | None = None,
) -> Pixels:
    """The pixels of a dataset, decoded now or found in the cache.

    The file's name comes from the dataset's digest and the size; it is written under a temporary name and moved into place, so a
    reader never sees half of it. Of several processes on a node one decodes and the others wait for it. Bad items are remembered
    beside it and tried again at each opening, so that a passing fault is not kept for ever.

    Args:
        dataset: what to decode.
        size: H = W in pixels.
        cache: folder of the cache.
        on_bad_item: "stop" raises when any picture cannot be read, "skip" gives them in `Pixels.bad`.
        progress: called with (done, total) while decoding.
    Raises:
        DataError: "stop" and a bad item (the first by file and row, and how many in all); nothing can be read at all; no room.
    """
    stem = cache / f"{dataset.name}-{dataset.digest[:20]}-{size}px-f{_FORMAT}"
    with _one_at_a_time(stem.with_name(stem.name + ".lock")):
        found = _load(stem, dataset, size)
        pixels = found if found is not None else _build(stem, dataset, size, progress)
    if pixels.bad and (on_bad_item == "stop" or len(pixels.bad) == len(pixels)):
        first = pixels.bad[0]
        advice = "repair or remove them, or set stream.on_bad_item: skip" if on_bad_item == "stop" else "there is nothing to learn from"
        raise DataError(f"{first.where}: {first.why}\n  {len(pixels.bad)} of {len(pixels)} pictures cannot be read; {advice}")
    return pixels


def _load(stem: Path, dataset: Dataset, size: int) -> Pixels | None:
    """What an earlier opening left, unless it is incomplete or a bad item has become good."""
    try:
        told: dict[str, Any] = json.loads(_json(stem).read_text(encoding="utf-8"))
        data = np.load(_npy(stem), mmap_mode="r")
    except (OSError, ValueError):  # not there, or not whole: it is made anew
        return None
    if data.shape != (len(dataset.items), size, size, 3):
        return None
    bad = tuple(BadItem(**item) for item in told["bad"])
    if any(not isinstance(_decode(dataset, item.row, size), BadItem) for item in bad):
        return None
    return Pixels(data, bad)


def _build(stem: Path, dataset: Dataset, size: int, progress: Callable[[int, int], None] | None) -> Pixels:
    """Decode everything into the cache; the list of bad items is moved into place last, and completes it."""
    total = len(dataset.items)
    mark = f".{uuid.uuid4().hex}.tmp"
    npy, told = _npy(stem), _json(stem)
    npy_new, told_new = npy.with_name(npy.name + mark), told.with_name(told.name + mark)
    try:
        data = _allocate(npy_new, (total, size, size, 3))
        bad: list[BadItem] = []

        def decode_chunk(start: int) -> list[BadItem]:
            missed: list[BadItem] = []
            for row in range(start, min(start + _CHUNK, total)):
                decoded = _decode(dataset, row, size)
                if isinstance(decoded, BadItem):
                    missed.append(decoded)
                else:
                    data[row] = decoded
            return missed

        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="decode") as pool:
            for start, missed in zip(range(0, total, _CHUNK), pool.map(decode_chunk, range(0, total, _CHUNK)), strict=True):
                bad += missed
                if progress is not None:
                    progress(min(start + _CHUNK, total), total)
        told_new.write_text(json.dumps({"dataset": dataset.name, "bad": [asdict(item) for item in bad]}), encoding="utf-8")
        os.replace(npy_new, npy)
        os.replace(told_new, told)
    finally:
        npy_new.unlink(missing_ok=True)
        told_new.unlink(missing_ok=True)
    return Pixels(np.load(npy, mmap_mode="r"), tuple(bad))


def _decode(dataset: Dataset, row: int, size: int) -> NDArray[np.uint8] | BadItem:
    try:
        return decode_image(dataset.image_bytes(row), size)
    except DataError as error:
        where = dataset.where(row)
        return BadItem(row, dataset.items[row].id, where, str(error).removeprefix(f"{where}: "))


def _allocate(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A memory-mapped array whose room on the disk is certain: a full disk met while writing to the map would kill the process."""
    data = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        length = file.seek(0, os.SEEK_END)
        try:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, length)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # others: a file system that cannot reserve room
                need = f"{length / 2**30:.2f} GiB for the decode cache"
                raise DataError(f"{path.parent}: no room, {need}: {error.strerror}; set PERDURE_CACHE to another folder") from None
    return data


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Generator[None]:
    """A lock between processes; without one (some network file systems) both decode, and the later one replaces equal bytes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise DataError(
            f"{path.parent}: the decode cache cannot be written: {error.strerror}; set PERDURE_CACHE to another folder"
        ) from None
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _npy(stem: Path) -> Path:
    return stem.with_name(stem.name + ".npy")


def _json(stem: Path) -> Path:
    return stem.with_name(stem.name + ".json")
