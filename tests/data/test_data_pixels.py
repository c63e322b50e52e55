"""Pixels: any picture becomes (size, size, 3) uint8 or a reason; the cache is shared, whole, and tells what was read."""

import io
import struct
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perdure.data.pixels import decode_image, open_pixels
from perdure.errors import DataError
from perdure.records import Item


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


def photo(size: tuple[int, int] = (40, 40), seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


class Bytes:
    """A dataset made of given files."""

    name = "bytes"

    def __init__(self, files: list[bytes | None], digest: str = "d" * 40) -> None:
        self.files = files
        self.items: Sequence[Item] = [Item(id=f"i{row}", label="c") for row in range(len(files))]
        self.digest = digest
        self.asked = 0

    def where(self, row: int) -> str:
        return f"files.bin row {row} (id 'i{row}')"

    def image_bytes(self, row: int) -> bytes:
        self.asked += 1
        found = self.files[row]
        if found is None:
            raise DataError(f"{self.where(row)}: no such file: /x/{row}.png")
        return found


# --- decoding


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode_becomes_three_channels(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((10, 10), 0x8080, dtype=np.uint16))
        expected = 0x80
    else:
        image = Image.new("L", (10, 10), 255).convert(mode)
        expected = 255
    pixels = decode_image(encoded(image), 10)
    assert pixels.shape == (10, 10, 3) and pixels.dtype == np.uint8
    assert abs(pixels.astype(int) - expected).max() <= 1


def test_sixteen_bit_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None, :].repeat(256, axis=0)
    pixels = decode_image(encoded(Image.fromarray(ramp)), 256)
    assert abs(pixels[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_thirty_two_bit_pixels_are_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match="save it with 8 or 16 bits"):
        decode_image(encoded(Image.new("F", (4, 4), 0.5), "TIFF"), 4)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_print_colours_become_rgb(mode: str) -> None:
    pixels = decode_image(encoded(Image.new("RGB", (16, 16), (200, 30, 40)).convert(mode), "JPEG", quality=95), 16)
    assert abs(pixels[8, 8].astype(int) - (200, 30, 40)).max() < 30


def test_transparency_is_laid_on_white_also_in_a_palette() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (decode_image(encoded(clear), 8) == 255).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([9, 9, 9, 0, 0, 0])
    assert (decode_image(encoded(palette, transparency=1), 8) == 255).all()
    half = decode_image(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128))), 8)
    assert abs(int(half[0, 0, 0]) - 127) <= 1


def test_the_middle_square_is_taken_and_the_exif_tag_turns() -> None:
    wide = Image.new("RGB", (30, 10), (255, 0, 0))
    wide.paste((0, 255, 0), (10, 0, 20, 10))
    assert (decode_image(encoded(wide), 10) == (0, 255, 0)).all()
    upright = Image.new("RGB", (16, 16), (0, 0, 0))
    upright.paste((255, 255, 255), (0, 0, 16, 8))  # white above
    tag = Image.Exif()
    tag[0x0112] = 3  # stored upside down
    turned = decode_image(encoded(upright.rotate(180), "JPEG", exif=tag, quality=95), 16)
    assert turned[2].mean() > 240 and turned[13].mean() < 15


def test_a_large_jpeg_is_the_same_picture_as_its_png() -> None:
    image = photo((640, 480))
    fast, plain = decode_image(encoded(image, "JPEG", quality=95), 32), decode_image(encoded(image), 32)
    assert abs(fast.astype(int) - plain).mean() < 6


def test_small_and_thin_pictures_are_enlarged() -> None:
    assert decode_image(encoded(Image.new("RGB", (1, 1), (7, 8, 9))), 12).tolist() == [[[7, 8, 9]] * 12] * 12
    assert decode_image(encoded(Image.new("RGB", (400, 1))), 12).shape == (12, 12, 3)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more than anyone wants to decode."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 11_000, 60_000])
def test_too_many_pixels_are_refused_by_the_header_before_decoding(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match="not decoded"):
        decode_image(bomb(side, side), 32)


def test_max_pixels_is_the_callers() -> None:
    with pytest.raises(DataError, match="40 x 40 pixels by its header, more than 1,599"):
        decode_image(encoded(photo()), 8, max_pixels=1_599)
    assert decode_image(encoded(photo()), 8, max_pixels=1_600).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty, 0 bytes"),
        (b"hello, this is text", "not an image"),
        (encoded(photo(), "JPEG")[:-40], "truncated JPEG"),
        (encoded(photo(), "JPEG")[:400], "or it is cut off in its header"),
        (encoded(photo())[:300], "truncated PNG"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
    ],
)
def test_what_is_not_a_whole_image_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode_image(data, 32)


@given(st.binary(max_size=300), st.integers(0, 1500), st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]))
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_give_pixels_or_a_data_error_and_nothing_else(noise: bytes, at: int, kind: str) -> None:
    whole = encoded(photo(), kind)
    at %= len(whole)
    for data in (noise, whole[:at] + noise + whole[at + len(noise) :]):
        try:
            assert decode_image(data, 8, max_pixels=100_000).shape == (8, 8, 3)
        except DataError as error:
            assert str(error)


# --- the cache


def test_pixels_are_those_of_decode_image_cold_and_warm(tmp_path: Path) -> None:
    data = Bytes([encoded(photo(seed=seed)) for seed in range(600)])
    steps: list[tuple[int, int]] = []
    cold = open_pixels(data, 8, cache=tmp_path, on_bad_item="stop", progress=lambda done, total: steps.append((done, total)))
    assert steps == [(256, 600), (512, 600), (600, 600)] and data.asked == 600
    warm = open_pixels(data, 8, cache=tmp_path, on_bad_item="stop", progress=lambda *_: pytest.fail("decoded again"))
    assert data.asked == 600
    rows = np.array([599, 0, 3, 0])
    expected = np.stack([decode_image(data.files[row] or b"", 8) for row in rows])
    assert (cold.take(rows) == expected).all() and (warm.take(rows) == expected).all()
    assert len(warm) == 600 and warm.size == 8 and warm.rows_ok.all() and not list(tmp_path.glob("*.tmp"))


def test_another_digest_or_size_is_another_cache(tmp_path: Path) -> None:
    one = open_pixels(Bytes([encoded(photo(seed=1))]), 8, cache=tmp_path, on_bad_item="stop")
    other = open_pixels(Bytes([encoded(photo(seed=2))], digest="e" * 40), 8, cache=tmp_path, on_bad_item="stop")
    assert (one.take(np.array([0])) != other.take(np.array([0]))).any()
    assert open_pixels(Bytes([encoded(photo(seed=1))]), 9, cache=tmp_path, on_bad_item="stop").size == 9


def test_what_is_read_is_recorded_until_forgotten(tmp_path: Path) -> None:
    pixels = open_pixels(Bytes([encoded(photo())] * 5), 8, cache=tmp_path, on_bad_item="stop")
    pixels.take(np.array([1, 3, 3]))
    assert pixels.read.tolist() == [False, True, False, True, False]
    pixels.forget_reads()
    assert not pixels.read.any()


def test_taken_pixels_are_a_copy(tmp_path: Path) -> None:
    pixels = open_pixels(Bytes([encoded(photo())]), 8, cache=tmp_path, on_bad_item="stop")
    before = pixels.take(np.array([0]))
    pixels.take(np.array([0]))[:] = 0
    assert (pixels.take(np.array([0])) == before).all()


def test_stop_names_file_and_row_of_the_first_bad_item_and_how_many_there_are(tmp_path: Path) -> None:
    whole = encoded(photo(), "JPEG")
    data = Bytes([whole, whole, whole[:-40], whole, b"", None])
    for _ in range(2):  # cold, then from the cache
        with pytest.raises(DataError) as caught:
            open_pixels(data, 8, cache=tmp_path, on_bad_item="stop")
        message = str(caught.value)
        assert (
            message.startswith("files.bin row 2 (id 'i2'): truncated JPEG")
            and "3 of 6 pictures" in message
            and "on_bad_item: skip" in message
        )


def test_skip_counts_them_and_refuses_their_rows(tmp_path: Path) -> None:
    whole = encoded(photo())
    data = Bytes([whole, whole[:300], whole, None])
    for _ in range(2):
        pixels = open_pixels(data, 8, cache=tmp_path, on_bad_item="skip")
        assert [(bad.row, bad.id) for bad in pixels.bad] == [(1, "i1"), (3, "i3")]
        assert pixels.rows_ok.tolist() == [True, False, True, False]
        assert pixels.bad[1].why == "no such file: /x/3.png" and pixels.bad[1].where == "files.bin row 3 (id 'i3')"
        with pytest.raises(DataError, match="row 3"):
            pixels.take(np.array([0, 3]))
    assert not pixels.read.any()


def test_a_bad_item_that_became_good_is_found(tmp_path: Path) -> None:
    whole = encoded(photo())
    data = Bytes([whole, None])
    assert len(open_pixels(data, 8, cache=tmp_path, on_bad_item="skip").bad) == 1
    data.files[1] = whole
    pixels = open_pixels(data, 8, cache=tmp_path, on_bad_item="stop")
    assert not pixels.bad and (pixels.take(np.array([1])) == pixels.take(np.array([0]))).all()


def test_nothing_readable_at_all_is_an_error_even_with_skip(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 of 2 pictures cannot be read"):
        open_pixels(Bytes([b"x", b"y"]), 8, cache=tmp_path, on_bad_item="skip")


def test_a_broken_cache_is_made_anew(tmp_path: Path) -> None:
    data = Bytes([encoded(photo())] * 3)
    before = open_pixels(data, 8, cache=tmp_path, on_bad_item="stop").take(np.arange(3))
    for file in [*tmp_path.glob("*.npy"), *tmp_path.glob("*.json")]:
        file.write_bytes(file.read_bytes()[:40])
        assert (open_pixels(data, 8, cache=tmp_path, on_bad_item="stop").take(np.arange(3)) == before).all()


def test_of_two_that_race_one_decodes_and_both_get_all(tmp_path: Path) -> None:
    data = Bytes([encoded(photo(seed=seed)) for seed in range(300)])
    found: list[np.ndarray] = []

    def work() -> None:
        found.append(open_pixels(data, 8, cache=tmp_path, on_bad_item="stop").take(np.arange(300)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and (found[0] == found[1]).all() and (found[0] == found[2]).all()
    assert data.asked == 300


def test_a_full_disk_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DataError, match=r"no room.*No space left.*PERDURE_CACHE"):
        open_pixels(Bytes([encoded(photo())]), 8, cache=tmp_path, on_bad_item="stop")
    assert not list(tmp_path.glob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written.*PERDURE_CACHE"):
        open_pixels(Bytes([encoded(photo())]), 8, cache=tmp_path / "file", on_bad_item="stop")
