"""A dataset as modalities: every item once, in equal parts of each class, and nothing that would pair two of them."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from perdure.data import DATASETS
from perdure.data.modalities import Modalities, sketch
from perdure.errors import ConfigError, DataError

SMALL = {"name": "scenes", "items": 120, "classes": 4, "size": 32}


def dataset(**options: object) -> Modalities:
    found = DATASETS.build("modalities", {"of": SMALL, **options})
    assert isinstance(found, Modalities)
    return found


def origin(item_id: str) -> str:
    return item_id.partition("/")[2]


def test_each_item_is_of_one_modality_and_each_class_and_split_is_dealt_out_evenly() -> None:
    items = dataset().items
    assert len(items) == 120 == len({origin(item.id) for item in items})
    counts = Counter((item.modality, item.label, item.split) for item in items)
    assert len(counts) == 3 * 4 * 2
    assert {count for (_, _, split), count in counts.items() if split == "train"} == {8}
    assert {count for (_, _, split), count in counts.items() if split == "test"} == {2}


def test_which_item_is_what_does_not_depend_on_how_many_there_are_of_other_classes() -> None:
    one, again = (dict(zip([origin(item.id) for item in found.items], found.items, strict=True)) for found in (dataset(), dataset()))
    assert one == again


def test_every_item_in_every_modality_where_that_is_asked() -> None:
    items = dataset(unpaired=False, modalities=["sketch", "text"]).items
    assert len(items) == 240 == len({item.id for item in items})
    assert Counter(item.modality for item in items) == {"sketch": 120, "text": 120}


def test_only_words_have_words() -> None:
    for item in dataset().items:
        assert bool(item.captions) == (item.modality == "text")
        assert item.id.startswith(f"{item.modality}/")


def test_a_picture_stays_as_it_is_and_words_show_a_card_not_the_picture_they_were_written_for() -> None:
    found, scenes = dataset(), DATASETS.build("scenes", {key: value for key, value in SMALL.items() if key != "name"})
    row_of = {item.id: row for row, item in enumerate(scenes.items)}
    for modality in ("image", "text", "sketch"):
        row = next(row for row, item in enumerate(found.items) if item.modality == modality)
        shown, source = found.image_bytes(row), scenes.image_bytes(row_of[origin(found.items[row].id)])
        assert (shown == source) == (modality == "image")
        assert shown == dataset().image_bytes(row), "the same bytes each time"
        assert modality in found.where(row)
    words = next(row for row, item in enumerate(found.items) if item.modality == "text")
    with Image.open(io.BytesIO(found.image_bytes(words))) as card:
        assert np.asarray(card.convert("L")).mean() > 220, "mostly paper"


def test_a_sketch_is_lines_where_colours_change_and_paper_elsewhere() -> None:
    picture = np.full((20, 20, 3), 200, np.uint8)
    picture[5:15, 5:15] = (200, 40, 40)
    picture[0, 0] += 3  # grain
    lines = sketch(picture)
    assert lines.shape == picture.shape and lines.dtype == np.uint8
    assert (lines[..., 0] == lines[..., 1]).all()
    assert lines[10, 5, 0] == 0 and lines[5, 10, 0] == 0, "ink on the outline"
    assert (lines[8:12, 8:12] == 255).all() and (lines[:3] == 255).all(), "none inside or outside"
    assert (sketch(np.full((8, 8, 3), 90, np.uint8)) == 255).all()


def test_another_choice_is_another_digest_and_the_same_choice_the_same() -> None:
    digests = {dataset(**options).digest for options in ({}, {"unpaired": False}, {"modalities": ["text", "image"]})}
    assert len(digests) == 3 and dataset().digest in digests


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"image, image: each modality once"):
        dataset(modalities=["image", "image"])
    with pytest.raises(ConfigError, match="modalities"):
        dataset(modalities=["image", "smell"])
    with pytest.raises(ConfigError, match=r"no such option. Did you mean 'classes'"):
        dataset(of={"name": "scenes", "clases": 4})


def test_words_are_refused_of_a_dataset_without_captions(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    for label in ("one", "two"):
        (folder / label).mkdir()
        for number in range(4):
            Image.new("RGB", (8, 8), (20 * number, 90, 90)).save(folder / label / f"{number}.png")
    source = {"name": "image_folder", "root": str(folder)}
    with pytest.raises(DataError, match=r"it has no caption, so it cannot be words; name the caption column, or leave out 'text'"):
        dataset(of=source)
    assert {item.modality for item in dataset(of=source, modalities=["image", "sketch"]).items} == {"image", "sketch"}
