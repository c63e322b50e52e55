"""Pictures brought to the size at which a page shows them, so that a page of two hundred of them stays small."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["encoded", "thumbnail"]

_LONGEST = 160  # pixels: what a page shows, on a screen of twice the density
_QUALITY = 84


def thumbnail(data: bytes) -> bytes:
    """An encoded picture of at most 160 pixels, as WebP; the bytes themselves where that is no smaller, or they cannot be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "WEBP" and max(image.size) <= _LONGEST:
                return data
            small = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return data
    small.thumbnail((_LONGEST, _LONGEST))
    shown = _webp(small)
    return shown if len(shown) < len(data) else data


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) as WebP, at most 160 pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((_LONGEST, _LONGEST))
    return _webp(image)


def _webp(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", quality=_QUALITY, method=4)
    return out.getvalue()
