"""The places of `scenes`: eight backgrounds, painted with the scene's own random numbers."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["PAINTERS", "RGB", "mix"]

RGB = tuple[int, int, int]


def mix(one: RGB, other: RGB, share: float) -> RGB:
    """`share` of the other colour in the one."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return (red, green, blue)


def _gradient(side: int, stops: Sequence[tuple[float, RGB]]) -> Image.Image:
    """A picture whose rows go through colours from top (0) to bottom (1)."""
    at = np.linspace(0, 1, side)
    places = [place for place, _ in stops]
    rows = np.stack([np.interp(at, places, [colour[channel] for _, colour in stops]) for channel in range(3)], axis=1)
    return Image.fromarray(rows[:, None, :].astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)


def _hill(pen: ImageDraw.ImageDraw, side: int, height: float, swing: float, colour: RGB, random: np.random.Generator) -> None:
    """A wavy ground that fills the picture from `height` downwards."""
    phase, waves = random.uniform(0, 2 * math.pi), random.uniform(0.6, 1.6)
    ridge = [(side * k / 12, side * (height + swing * math.sin(phase + waves * math.pi * k / 6))) for k in range(13)]
    pen.polygon([*ridge, (side, side), (0, side)], fill=colour)


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: tuple[int, ...]) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _clouds(pen: ImageDraw.ImageDraw, side: int, count: int, random: np.random.Generator) -> None:
    for x, y, wide in random.uniform(0, 1, (count, 3)):
        left, top, length = x * side, (0.05 + 0.2 * y) * side, (0.08 + 0.08 * wide) * side
        for step, lift in ((-0.6, 0.0), (0.0, -0.25), (0.6, 0.0)):
            _disc(pen, left + step * length, top + lift * length, length * 0.55, (255, 255, 255, 190))


def _sea(side: int, random: np.random.Generator) -> Image.Image:
    line = random.uniform(0.34, 0.52)
    image = _gradient(side, [(0, (120, 190, 236)), (line - 0.01, (214, 238, 248)), (line, (34, 128, 178)), (1, (10, 62, 118))])
    pen = ImageDraw.Draw(image, "RGBA")
    _clouds(pen, side, 2, random)
    for x, y, wide in random.uniform(0, 1, (16, 3)):
        top, half = side * (line + 0.03 + (0.95 - line) * y), side * (0.03 + 0.05 * wide) * (0.5 + y)
        pen.arc((x * side - half, top, x * side + half, top + half * 0.7), 200, 340, fill=(190, 226, 240, 150), width=max(1, side // 72))
    return image


def _meadow(side: int, random: np.random.Generator) -> Image.Image:
    image = _gradient(side, [(0, (134, 200, 240)), (0.5, (216, 238, 246)), (1, (216, 238, 246))])
    pen = ImageDraw.Draw(image, "RGBA")
    _clouds(pen, side, 2, random)
    line = random.uniform(0.38, 0.5)
    _hill(pen, side, line, 0.04, (126, 186, 92), random)
    _hill(pen, side, line + 0.16, 0.05, (92, 162, 68), random)
    petals = ((255, 250, 250, 255), (255, 224, 90, 255), (240, 150, 200, 255))
    for x, y, kind in random.uniform(0, 1, (22, 3)):
        _disc(pen, x * side, side * (line + 0.12 + (0.86 - line) * y), side * (0.006 + 0.008 * y), petals[int(kind * 3)])
    return image


def _desert(side: int, random: np.random.Generator) -> Image.Image:
    image = _gradient(side, [(0, (120, 196, 214)), (0.45, (252, 232, 188)), (1, (252, 232, 188))])
    pen = ImageDraw.Draw(image, "RGBA")
    x, y = random.uniform(0.1, 0.9), random.uniform(0.08, 0.2)
    _disc(pen, x * side, y * side, side * 0.12, (255, 250, 214, 90))
    _disc(pen, x * side, y * side, side * 0.07, (255, 250, 214, 255))
    line = random.uniform(0.38, 0.5)
    for step, colour in enumerate(((236, 196, 128), (224, 174, 102), (206, 148, 80))):
        _hill(pen, side, line + 0.17 * step, 0.05, colour, random)
    return image


def _snow(side: int, random: np.random.Generator) -> Image.Image:
    image = _gradient(side, [(0, (142, 164, 190)), (0.55, (212, 222, 234)), (1, (212, 222, 234))])
    pen = ImageDraw.Draw(image, "RGBA")
    line = random.uniform(0.4, 0.54)
    _hill(pen, side, line, 0.05, (226, 234, 244), random)
    _hill(pen, side, line + 0.18, 0.04, (246, 249, 253), random)
    for x, y, r in random.uniform(0, 1, (34, 3)):
        _disc(pen, x * side, y * side, side * (0.005 + 0.007 * r), (255, 255, 255, 235))
    return image


def _night(side: int, random: np.random.Generator) -> Image.Image:
    image = _gradient(side, [(0, (10, 12, 44)), (0.7, (48, 44, 104)), (1, (74, 60, 124))])
    pen = ImageDraw.Draw(image, "RGBA")
    for x, y, r in random.uniform(0, 1, (30, 3)):
        _disc(pen, x * side, y * side * 0.8, side * (0.003 + 0.007 * r * r), (255, 250, 220, 240))
    line = random.uniform(0.72, 0.84)
    _hill(pen, side, line, 0.04, (26, 28, 62), random)
    _hill(pen, side, line + 0.09, 0.03, (16, 18, 42), random)
    return image


def _city(side: int, random: np.random.Generator) -> Image.Image:
    image = _gradient(side, [(0, (150, 160, 190)), (0.8, (232, 214, 204)), (1, (232, 214, 204))])
    pen = ImageDraw.Draw(image, "RGBA")
    left = -side * random.uniform(0, 0.1)
    while left < side:
        width, top, shade, lit = random.uniform(0, 1, 4)
        right, roof = left + side * (0.13 + 0.12 * width), side * (0.14 + 0.4 * top)
        pen.rectangle((left, roof, right, side), fill=mix((74, 82, 108), (132, 118, 124), shade))
        gap = side * 0.058
        for row in range(1, int((side - roof) / gap)):
            for column in range(1, int((right - left) / gap)):
                glows = (row * 7 + column * 11 + int(lit * 13)) % 5 < 2
                x, y = left + column * gap - gap * 0.2, roof + row * gap - gap * 0.2
                pen.rectangle((x, y, x + gap * 0.42, y + gap * 0.42), fill=(255, 222, 132, 255) if glows else (50, 56, 80, 255))
        left = right + side * 0.012
    pen.rectangle((0, side * 0.9, side, side), fill=(66, 66, 74))
    for k in range(5):
        pen.rectangle((side * (0.04 + 0.2 * k), side * 0.94, side * (0.13 + 0.2 * k), side * 0.96), fill=(226, 222, 206))
    return image


def _forest(side: int, random: np.random.Generator) -> Image.Image:
    image = _gradient(side, [(0, (188, 218, 206)), (0.6, (224, 236, 214)), (1, (224, 236, 214))])
    pen = ImageDraw.Draw(image, "RGBA")
    for depth, (colour, height) in enumerate((((120, 166, 136), 0.5), ((70, 126, 90), 0.42), ((34, 88, 58), 0.32))):
        foot = side * (0.72 + 0.1 * depth)
        for k, (jitter, tall) in enumerate(random.uniform(0, 1, (6, 2))):
            x, top = side * (k + jitter) / 6, foot - side * height * (0.7 + 0.5 * tall)
            for tier in range(3):
                crown, half = top + (foot - top) * 0.27 * tier, side * (0.045 + 0.025 * tier)
                pen.polygon([(x, crown), (x + half, crown + (foot - top) * 0.42), (x - half, crown + (foot - top) * 0.42)], fill=colour)
            pen.rectangle((x - side * 0.012, foot - side * 0.06, x + side * 0.012, foot), fill=(86, 64, 48))
        _hill(pen, side, foot / side - 0.01, 0.012, mix(colour, (96, 132, 60), 0.5), random)
    return image


def _sunset(side: int, random: np.random.Generator) -> Image.Image:
    line = random.uniform(0.58, 0.7)
    image = _gradient(
        side, [(0, (84, 56, 128)), (line * 0.55, (232, 104, 92)), (line, (255, 200, 110)), (line + 0.01, (170, 84, 96)), (1, (60, 40, 92))]
    )
    pen = ImageDraw.Draw(image, "RGBA")
    x, radius = side * random.uniform(0.2, 0.8), side * 0.17
    pen.pieslice((x - radius, side * line - radius, x + radius, side * line + radius), 180, 360, fill=(255, 236, 170, 255))
    for k in range(6):
        half, y = radius * (0.95 - 0.12 * k) * random.uniform(0.6, 1), side * (line + 0.03 + 0.055 * k)
        pen.line((x - half, y, x + half, y), fill=(255, 214, 140, 170), width=max(1, side // 60))
    return image


PAINTERS: dict[str, Callable[[int, np.random.Generator], Image.Image]] = {
    "sea": _sea,
    "meadow": _meadow,
    "desert": _desert,
    "snow": _snow,
    "night": _night,
    "city": _city,
    "forest": _forest,
    "sunset": _sunset,
}
