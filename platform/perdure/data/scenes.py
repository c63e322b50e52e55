"""Scenes: drawn pictures with words, the data that comes with the package. Nothing is downloaded; a seed is a dataset.

A scene is a main object (shape, colour, texture), a smaller second one in a relation to it, scattered bits that mean nothing, and a
place. The class is the main object's shape and texture, "striped circle". Colour, place, relation and second object vary inside a
class, so a class must be told by what its members share, and a detailed caption means one picture among hundreds.
"""

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from perdure.data.dataset import check_items, fingerprint, hold_out
from perdure.data.scene_places import PAINTERS, RGB, mix
from perdure.errors import ConfigError
from perdure.records import Item

__all__ = ["COLOURS", "PLACES", "RELATIONS", "SHAPES", "TEXTURES", "Scene", "Scenes"]

_DRAWING = 1  # raised when the same options draw other pictures or write other words

Points = list[tuple[float, float]]


# ---------------------------------------------------------------------------------------------------------------- vocabulary


def _star(points: int, inner: float) -> Points:
    return [
        (math.sin(math.pi * k / points) * (1 if k % 2 == 0 else inner), -math.cos(math.pi * k / points) * (1 if k % 2 == 0 else inner))
        for k in range(2 * points)
    ]


def _ring(points: int, turn: float = 0.0) -> Points:
    return [(math.sin(2 * math.pi * (k + turn) / points), -math.cos(2 * math.pi * (k + turn) / points)) for k in range(points)]


def _heart() -> Points:
    turns = [2 * math.pi * k / 40 for k in range(40)]
    return [
        (math.sin(t) ** 3 * 1.02, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15.5 - 0.1)
        for t in turns
    ]


def _crescent() -> Points:
    outer = [(math.cos(t), math.sin(t)) for t in np.linspace(0.2 * math.pi, 1.8 * math.pi, 30)]
    inner = [(0.5 + 0.66 * math.cos(t), 0.66 * math.sin(t)) for t in np.linspace(1.65 * math.pi, 0.35 * math.pi, 24)]
    return [(1.06 * x + 0.16, 1.06 * y) for x, y in outer + inner]


_CROSS: Points = [
    (-0.36, -1), (0.36, -1), (0.36, -0.36), (1, -0.36), (1, 0.36), (0.36, 0.36),
    (0.36, 1), (-0.36, 1), (-0.36, 0.36), (-1, 0.36), (-1, -0.36), (-0.36, -0.36),
]  # fmt: skip

# Outlines around (0, 0) that reach a distance of about 1.
SHAPES: dict[str, Points] = {
    "circle": _ring(40),
    "square": [(0.86 * x, 0.86 * y) for x, y in [(-1, -1), (1, -1), (1, 1), (-1, 1)]],
    "triangle": [(x * 1.1, y * 1.1 + 0.18) for x, y in _ring(3)],
    "star": _star(5, 0.45),
    "heart": _heart(),
    "cross": _CROSS,
    "hexagon": _ring(6, 0.5),
    "crescent": _crescent(),
}
_ROOMY = ("circle", "square", "heart", "hexagon")  # shapes that hold a small one in their middle

COLOURS: dict[str, RGB] = {
    "red": (220, 42, 44),
    "orange": (246, 136, 24),
    "yellow": (252, 216, 40),
    "green": (44, 164, 66),
    "blue": (38, 92, 216),
    "purple": (134, 62, 182),
    "pink": (248, 128, 182),
    "white": (248, 248, 248),
    "black": (34, 34, 40),
}

TEXTURES: dict[str, tuple[str, str]] = {  # adjective, and the same said with "with"
    "plain": ("plain", "with no pattern"),
    "striped": ("striped", "with stripes"),
    "dotted": ("dotted", "with dots"),
    "checked": ("checked", "with checks"),
}

# main -> second, second -> main; each in a few wordings
RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "left of": (("left of", "to the left of", "on the left of"), ("right of", "to the right of", "on the right of")),
    "right of": (("right of", "to the right of", "on the right of"), ("left of", "to the left of", "on the left of")),
    "above": (("above", "over", "higher than"), ("below", "under", "lower than")),
    "below": (("below", "under", "lower than"), ("above", "over", "higher than")),
    "around": (("around", "surrounding"), ("inside", "within", "in the middle of")),
}

PLACES: dict[str, tuple[str, ...]] = {
    "sea": ("at sea", "by the sea", "over the sea"),
    "meadow": ("in a meadow", "on a green meadow", "among the flowers of a meadow"),
    "desert": ("in the desert", "on desert sand", "among the dunes of a desert"),
    "snow": ("in the snow", "on a snowy hill", "on a field of snow"),
    "night": ("at night", "under a night sky", "on a starry night"),
    "city": ("in the city", "in front of city houses", "in a city street"),
    "forest": ("in a forest", "among forest trees", "in front of a forest"),
    "sunset": ("at sunset", "in the light of a sunset", "while the sun sets"),
}


# ------------------------------------------------------------------------------------------------------------------- dataset


@dataclass(frozen=True, slots=True)
class Scene:
    """What is in a picture, apart from where exactly."""

    shape: str
    texture: str
    colour: str
    second_shape: str
    second_colour: str
    relation: str
    place: str

    @property
    def label(self) -> str:
        """The class: "striped circle"."""
        return f"{self.texture} {self.shape}"

    @property
    def tags(self) -> tuple[str, ...]:
        """All attributes, for retrieval by several labels."""
        return (
            f"shape:{self.shape}",
            f"texture:{self.texture}",
            f"colour:{self.colour}",
            f"second:{self.second_colour} {self.second_shape}",
            f"relation:{self.relation}",
            f"place:{self.place}",
        )


class Scenes:
    """The embedded data. Pictures are drawn when they are asked for; the same options give the same bytes.

    Class c is shape c mod 8 with texture (c + c // 8) mod 4, so every eight consecutive classes have all eight shapes and each
    texture twice, and 32 is all of them. The group is the place. A fifth of each class is the test split, by a hash of the id.

    Args:
        items: how many pictures.
        classes: how many classes, 2 to 32.
        size: side of a picture in pixels, 16 to 1024.
        clutter: bits scattered in a picture, 0 to 40.
        captions: sentences for a picture, 1 to 8; the first is the most exact.
        seed: of everything.
    Raises:
        ConfigError: an option out of range.
    """

    name = "scenes"

    def __init__(self, *, items: int = 3600, classes: int = 24, size: int = 48, clutter: int = 3, captions: int = 4, seed: int = 0) -> None:
        asked = {"items": items, "classes": classes, "size": size, "clutter": clutter, "captions": captions, "seed": seed}
        limits = {
            "items": (classes, 10_000_000),
            "classes": (2, 32),
            "size": (16, 1024),
            "clutter": (0, 40),
            "captions": (1, len(_SENTENCES)),
        }
        limits["seed"] = (0, 2**63)
        problems = [f"{key}: {asked[key]} is outside {low}..{high}" for key, (low, high) in limits.items() if not low <= asked[key] <= high]
        if problems:
            raise ConfigError("dataset 'scenes'", problems)
        self._size, self._clutter, self._seed = size, clutter, seed
        self.digest = fingerprint([self.name, _DRAWING, asked])
        self.class_names = tuple(f"{texture} {shape}" for shape, texture in _classes(classes))
        self.scenes, texts = _imagine(items, classes, captions, seed)
        ids = [f"scene-{seed}-{row:05d}" for row in range(items)]
        splits = hold_out(ids, [scene.label for scene in self.scenes])
        described = [
            Item(id=key, label=scene.label, group=scene.place, captions=text, tags=scene.tags, split=split)
            for key, scene, text, split in zip(ids, self.scenes, texts, splits, strict=True)
        ]
        self.items: Sequence[Item] = check_items(self.name, described)

    def where(self, row: int) -> str:
        """The picture's number and id."""
        return f"scenes row {row} (id '{self.items[row].id}')"

    def image_bytes(self, row: int) -> bytes:
        """The picture as PNG."""
        out = io.BytesIO()
        # A stream of its own for each picture: any row can be drawn first, in any process.
        _draw_scene(self.scenes[row], self._size, self._clutter, _stream(self._seed, "picture", row)).save(
            out, format="PNG", compress_level=1
        )
        return out.getvalue()


def _classes(count: int) -> list[tuple[str, str]]:
    """Shape and texture of each class."""
    shapes, textures = list(SHAPES), list(TEXTURES)
    return [(shapes[c % 8], textures[(c + c // 8) % 4]) for c in range(count)]


def _stream(seed: int, purpose: str, row: int = 0) -> np.random.Generator:
    """An independent random stream for each purpose and row."""
    return np.random.Generator(np.random.PCG64([seed, row, int.from_bytes(hashlib.sha1(purpose.encode()).digest()[:4], "big")]))


def _imagine(items: int, classes: int, captions: int, seed: int) -> tuple[list[Scene], list[tuple[str, ...]]]:
    """What is in each picture and what is said of it."""
    random = _stream(seed, "content")
    pairs = _classes(classes)
    shapes, colours, relations, places = list(SHAPES), list(COLOURS), list(RELATIONS), list(PLACES)
    order = random.permutation(items) % classes  # equal classes, shuffled
    draws = random.random((items, 5))
    wordings = random.random((items, len(_SENTENCES) + 3))
    scenes: list[Scene] = []
    texts: list[tuple[str, ...]] = []
    for row in range(items):
        shape, texture = pairs[order[row]]
        colour = _pick(colours, draws[row, 0])
        scene = Scene(
            shape=shape,
            texture=texture,
            colour=colour,
            second_shape=_pick([other for other in shapes if other != shape], draws[row, 1]),
            second_colour=_pick([other for other in colours if other != colour], draws[row, 2]),
            relation=_pick(relations if shape in _ROOMY else relations[:-1], draws[row, 3]),
            place=_pick(places, draws[row, 4]),
        )
        scenes.append(scene)
        texts.append(_captions(scene, captions, wordings[row]))
    return scenes, texts


def _pick(choices: Sequence[str], draw: float) -> str:
    return choices[int(draw * len(choices))]


# --------------------------------------------------------------------------------------------------------------------- words


@dataclass(frozen=True, slots=True)
class _Words:
    """The phrases of one scene that sentences are made of."""

    main: str  # "a striped blue circle"
    main_long: str  # "a blue circle with stripes"
    second: str  # "a red star"
    to_second: str  # "left of"
    to_main: str  # "right of"
    place: str  # "in the snow"


_SENTENCES: tuple[Callable[[_Words], str], ...] = (
    lambda w: f"{w.main} {w.to_second} {w.second} {w.place}",
    lambda w: f"{w.second} {w.to_main} {w.main_long}, {w.place}",
    lambda w: f"{w.place}, {w.main_long} is {w.to_second} {w.second}",
    lambda w: f"{w.main} {w.place}",
    lambda w: f"there is {w.main} {w.to_second} {w.second} {w.place}",
    lambda w: f"a picture of {w.main} and {w.second} {w.place}",
    lambda w: f"{w.place} we see {w.second}, and it is {w.to_main} {w.main}",
    lambda w: f"{w.main_long}, {w.to_second} {w.second}",
)


def _captions(scene: Scene, count: int, draws: NDArray[np.float64]) -> tuple[str, ...]:
    """`count` different sentences; the first in the plainest words."""
    adjective, after = TEXTURES[scene.texture]
    forward, backward = RELATIONS[scene.relation]
    main = _with_article(f"{adjective} {scene.colour} {scene.shape}")
    main_long = f"{_with_article(f'{scene.colour} {scene.shape}')} {after}"
    second = _with_article(f"{scene.second_colour} {scene.second_shape}")
    first = _Words(main, main_long, second, forward[0], backward[0], PLACES[scene.place][0])
    varied = _Words(main, main_long, second, _pick(forward, draws[0]), _pick(backward, draws[1]), _pick(PLACES[scene.place], draws[2]))
    others = 1 + np.argsort(draws[4:], kind="stable")[: count - 1]
    return (_SENTENCES[0](first), *(_SENTENCES[number](varied) for number in others))


def _with_article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


# ------------------------------------------------------------------------------------------------------------------- drawing


def _draw_scene(scene: Scene, size: int, clutter: int, random: np.random.Generator) -> Image.Image:
    """One picture (size x size, RGB): place, bits, second object, main object, light and grain."""
    zoom = 3 if size <= 96 else 2  # drawn larger and averaged down, which is what smooths the edges
    side = size * zoom
    image = PAINTERS[scene.place](side, random)
    pen = ImageDraw.Draw(image, "RGBA")
    _scatter(pen, side, clutter, random)
    (x, y, r), (x2, y2, r2) = _layout(scene.relation, random)
    turns = np.radians(random.uniform(-25, 25, 2))
    main = _place(SHAPES[scene.shape], x * side, y * side, r * side, turns[0])
    second = _place(SHAPES[scene.second_shape], x2 * side, y2 * side, r2 * side, turns[1])
    _object(image, pen, main, scene.colour, scene.texture, r * side, random)
    _object(image, pen, second, scene.second_colour, "plain", r2 * side, random)
    small = np.asarray(image.reduce(zoom), dtype=np.float32)
    light = random.uniform(0.9, 1.08)
    grain = random.standard_normal(small.shape, dtype=np.float32) * 4
    return Image.fromarray(np.clip(small * light + grain, 0, 255).astype(np.uint8))


def _layout(relation: str, random: np.random.Generator) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Centre and radius of both objects, as shares of the picture."""
    near, far, drift, other, grow, grow2 = random.uniform(0, 1, 6)
    r, r2 = 0.195 + 0.055 * grow, 0.105 + 0.03 * grow2
    if relation == "around":
        r = 0.29 + 0.05 * grow
        x, y = 0.42 + 0.16 * near, 0.42 + 0.16 * far
        return (x, y, r), (x, y, 0.40 * r)
    main, second = 0.29 + 0.08 * near, 0.76 + 0.07 * far
    across, across2 = 0.36 + 0.28 * drift, 0.3 + 0.4 * other
    across2 = across + (across2 - across) * 0.6  # not so far aside that the relation becomes doubtful
    match relation:
        case "left of":
            return (main, across, r), (second, across2, r2)
        case "right of":
            return (1 - main, across, r), (1 - second, across2, r2)
        case "above":
            return (across, main, r), (across2, second, r2)
        case _:
            return (across, 1 - main, r), (across2, 1 - second, r2)


def _place(outline: Points, x: float, y: float, radius: float, turn: float) -> Points:
    """An outline turned, scaled and moved."""
    c, s = math.cos(turn) * radius, math.sin(turn) * radius
    return [(x + c * px - s * py, y + s * px + c * py) for px, py in outline]


def _object(
    image: Image.Image, pen: ImageDraw.ImageDraw, points: Points, colour: str, texture: str, radius: float, random: np.random.Generator
) -> None:
    """Shadow, fill with its texture, outline."""
    fill = COLOURS[colour]
    drop = radius * 0.12
    pen.polygon([(x + drop, y + 1.4 * drop) for x, y in points], fill=(10, 10, 30, 70))
    if texture == "plain":
        pen.polygon(points, fill=fill)
    else:
        left, top = (math.floor(min(values)) for values in zip(*points, strict=True))
        right, bottom = (math.ceil(max(values)) + 1 for values in zip(*points, strict=True))
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in points], fill=255)
        image.paste(_pattern(mask.size, fill, _tone(colour), texture, radius, random), (left, top), mask)
    edge = (235, 235, 240, 255) if colour == "black" else (*mix(fill, (16, 14, 30), 0.72), 255)
    pen.line([*points, points[0], points[1]], fill=edge, width=max(2, round(radius * 0.085)), joint="curve")


def _pattern(shape: tuple[int, int], fill: RGB, tone: RGB, texture: str, radius: float, random: np.random.Generator) -> Image.Image:
    """A tile (width, height) of a texture in two colours, at a random angle; its grain follows the object's size."""
    width, height = shape
    angle, shift_u, shift_v = random.uniform(0, math.pi), random.uniform(0, 1), random.uniform(0, 1)
    x, y = np.arange(width, dtype=np.float32)[None, :] / radius, np.arange(height, dtype=np.float32)[:, None] / radius
    c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    u, v = c * x + s * y + shift_u, c * y - s * x + shift_v
    match texture:
        case "striped":
            toned = (u / 0.52) % 1 < 0.46
        case "checked":
            toned = (np.floor(u / 0.42) + np.floor(v / 0.42)) % 2 < 1
        case _:
            toned = ((u / 0.56) % 1 - 0.5) ** 2 + ((v / 0.56) % 1 - 0.5) ** 2 < 0.105
    return Image.fromarray(np.array([fill, tone], dtype=np.uint8)[toned.astype(np.intp)])


def _tone(colour: str) -> RGB:
    """The second colour of a texture: pale on strong colours, deep on pale ones."""
    match colour:
        case "white":
            return (120, 126, 146)
        case "yellow":
            return (176, 112, 4)
        case "pink":
            return (178, 34, 104)
        case "orange":
            return (255, 232, 178)
        case _:
            return mix(COLOURS[colour], (255, 255, 255), 0.76)


def _scatter(pen: ImageDraw.ImageDraw, side: int, count: int, random: np.random.Generator) -> None:
    """Bits that mean nothing: they only make it harder to find what does."""
    colours, outlines = list(COLOURS.values()), (SHAPES["circle"], SHAPES["square"], SHAPES["triangle"], SHAPES["cross"])
    for x, y, r, turn, colour, outline in random.uniform(0, 1, (count, 6)):
        points = _place(outlines[int(outline * 4)], x * side, y * side, (0.026 + 0.024 * r) * side, turn * math.pi)
        pen.polygon(points, fill=(*colours[int(colour * len(colours))], 215))
