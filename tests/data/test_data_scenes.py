"""Scenes: the same seed draws the same bytes, words say what is drawn, classes are mixed."""

import hashlib
import io
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perdure.data.dataset import hold_out
from perdure.data.scenes import COLOURS, PLACES, RELATIONS, SHAPES, TEXTURES, Scenes
from perdure.errors import ConfigError


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes()


def test_the_same_options_give_the_same_bytes_in_any_order_and_another_seed_gives_others() -> None:
    one, other, third = Scenes(items=48), Scenes(items=48), Scenes(items=48, seed=1)
    forward = [one.image_bytes(row) for row in range(12)]
    backward = [other.image_bytes(row) for row in reversed(range(12))]
    assert forward == backward[::-1] and one.digest == other.digest and one.items == other.items
    assert one.digest != third.digest and forward[0] != third.image_bytes(0)


def test_pictures_are_png_of_the_size_asked_for() -> None:
    for size in (16, 48, 100):
        image = Image.open(io.BytesIO(Scenes(items=24, size=size).image_bytes(3)))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (size, size))


def test_every_place_texture_shape_and_relation_draws_a_picture_with_contrast(scenes: Scenes) -> None:
    seen: set[str] = set()
    for row, item in enumerate(scenes.items):
        if set(item.tags) - seen:
            seen |= set(item.tags)
            pixels = np.asarray(Image.open(io.BytesIO(scenes.image_bytes(row))))
            assert pixels.std() > 10
    assert sum(tag.startswith("place:") for tag in seen) == len(PLACES)
    assert sum(tag.startswith("relation:") for tag in seen) == len(RELATIONS)
    assert sum(tag.startswith("colour:") for tag in seen) == len(COLOURS)


def test_classes_are_equally_frequent_and_a_fifth_of_each_is_held_out(scenes: Scenes) -> None:
    assert set(Counter(item.label for item in scenes.items).values()) == {150}
    assert set(Counter(item.label for item in scenes.items if item.split == "test").values()) == {30}


def test_each_eight_classes_have_all_shapes_and_each_texture_twice() -> None:
    names = Scenes(items=32, classes=32).class_names
    assert len(set(names)) == 32
    for start in range(0, 32, 8):
        textures, shapes = zip(*(name.split() for name in names[start : start + 8]), strict=True)
        assert set(shapes) == set(SHAPES) and set(Counter(textures).values()) == {2} and set(textures) == set(TEXTURES)


def test_the_first_caption_says_everything_and_means_one_test_picture(scenes: Scenes) -> None:
    for scene, item in zip(scenes.scenes, scenes.items, strict=True):
        words = item.captions[0].split()
        for word in (scene.shape, scene.texture, scene.colour, scene.second_shape, scene.second_colour):
            assert word in words
    first = [item.captions[0] for item in scenes.items if item.split == "test"]
    assert len(set(first)) >= 0.99 * len(first)


def test_captions_of_a_picture_differ_and_have_the_right_article(scenes: Scenes) -> None:
    for item in scenes.items:
        assert len(set(item.captions)) == 4
        for caption in item.captions:
            words = caption.replace(",", "").split()
            for article, word in itertools.pairwise(words):
                assert article != "a" or word[0] not in "aeiou", caption
                assert article != "an" or word[0] in "aeiou", caption


def test_second_object_differs_in_shape_and_colour_and_the_group_is_the_place(scenes: Scenes) -> None:
    for scene, item in zip(scenes.scenes, scenes.items, strict=True):
        assert scene.second_shape != scene.shape and scene.second_colour != scene.colour
        assert item.group == scene.place in PLACES


def test_the_main_object_is_where_its_relation_says() -> None:
    """The picture's strongest colour pixels of a red main object lie on the side that the caption names."""
    data = Scenes(items=9600, clutter=0)
    checked = 0
    for row, scene in enumerate(data.scenes):
        if (
            scene.colour == "red"
            and scene.texture == "plain"
            and scene.place in ("snow", "sea")
            and scene.second_colour in ("blue", "green")
        ):
            pixels = np.asarray(Image.open(io.BytesIO(data.image_bytes(row)))).astype(int)
            y, x = np.nonzero((pixels[..., 0] > 150) & (pixels[..., 1] < 110) & (pixels[..., 2] < 110))
            centre = {"left of": x.mean() < 22, "right of": x.mean() > 26, "above": y.mean() < 22, "below": y.mean() > 26, "around": True}
            assert centre[scene.relation], data.items[row].captions[0]
            checked += 1
    assert checked > 5


@pytest.mark.parametrize("options", [{"classes": 33}, {"items": 10}, {"size": 8}, {"captions": 9}, {"clutter": -1}, {"seed": -1}])
def test_options_out_of_range_are_named(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Scenes(**options)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=80))
@settings(max_examples=60, deadline=None)
def test_hold_out_takes_a_fifth_of_each_class_and_follows_only_the_ids(classes: list[int]) -> None:
    ids = [f"item {n}" for n in range(len(classes))]
    labels = [str(label) for label in classes]
    splits = hold_out(ids, labels)
    for label in set(labels):
        rows = [row for row, other in enumerate(labels) if other == label]
        held = [row for row in rows if splits[row] == "test"]
        if len(rows) >= 5:
            assert len(held) == len(rows) // 5
        else:
            assert held == [row for row in rows if int(hashlib.sha1(ids[row].encode()).hexdigest(), 16) % 5 == 0]
    assert hold_out(ids[::-1], labels[::-1]) == splits[::-1]
