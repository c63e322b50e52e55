"""MIRFLICKR-25000 and NUS-WIDE in miniature: what is read of each layout, what is drawn, what is said when a file does not fit."""

import io
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perdure.data import DATASETS
from perdure.data.dataset import Dataset
from perdure.data.mirflickr25k import MIRFlickr25K
from perdure.data.multi_label import LabelledPicture, multi_label_items
from perdure.data.nus_wide import NUSWIDE
from perdure.errors import ConfigError, DataError
from perdure.records import Item

ANNOTATIONS = "mirflickr25k_annotations_v080"
TAGS = [["sky", "explore"], ["explore", "sky", "sky"], ["Köln", "sky"], ["explore"], ["rare"], [], ["海", "explore"], ["sky"], ["sky"]]
WITH = {"sky": [1, 2, 3, 5, 6, 8], "clouds": [2, 3], "sea": [3, 7], "sky_r1": [1], "sea_r1": [9]}
PEOPLE = ["baby", "female", "male", "people", "portrait"]
THINGS = ["animals", "bird", "car", "dog", "flower", "food", "plant_life", "structures", "transport", "tree"]
PLACES = ["clouds", "indoor", "lake", "night", "river", "sea", "sky", "sunset", "water"]
MIR_LABELS = [*PEOPLE, *THINGS, *PLACES]

CONCEPTS = {"animal": [0], "sky": [0, 1, 2, 3, 4, 5], "sea": [1, 2, 3, 6], "sun": [4, 5, 6]}
COLUMNS = {"beach": [0, 1, 2, 6], "münchen": [1, 3, 4], "2008": [0, 5]}
NUS_PICTURES = [f"{folder}\\{n:04d}_{n}99.jpg" for n, folder in enumerate(["actor", "actor", "zoo", "zoo", "zoo", "actor", "zoo", "zoo"])]


def jpeg(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (value % 256, 0, 0)).save(path)


def lines(path: Path, texts: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def mirflickr25k(root: Path) -> Path:
    """Nine pictures: 4 and 9 have no label, 5 and 6 no word of those that two pictures have."""
    for number, tags in enumerate(TAGS, start=1):
        jpeg(root / "mirflickr" / f"im{number}.jpg", number)
        lines(root / "mirflickr" / "meta" / "tags" / f"tags{number}.txt", tags)
        lines(root / "mirflickr" / "meta" / "tags_raw" / f"tags{number}.txt", ["As It Was Typed"])
    for label in [*MIR_LABELS, "sky_r1", "sea_r1"]:
        lines(root / ANNOTATIONS / f"{label}.txt", WITH.get(label, []))
    lines(root / ANNOTATIONS / "README.txt", ["not a label"])
    return root


def nus_wide(root: Path) -> Path:
    """Eight pictures: 7 has no concept and no tag, 5 the tag 2008 alone."""
    lines(root / "ImageList" / "Imagelist.txt", NUS_PICTURES)
    lines(root / "ConceptsList" / "Concepts81.txt", [*CONCEPTS])
    for concept, rows in CONCEPTS.items():
        lines(root / "Groundtruth" / "AllLabels" / f"Labels_{concept}.txt", [int(row in rows) for row in range(len(NUS_PICTURES))])
    lines(root / "NUS_WID_Tags" / "TagList1k.txt", [*COLUMNS])
    bits = ["\t".join(str(int(row in rows)) for rows in COLUMNS.values()) + "\t" for row in range(len(NUS_PICTURES))]
    lines(root / "NUS_WID_Tags" / "AllTags1k.txt", bits)
    for value, name in enumerate(NUS_PICTURES):
        jpeg(root / "Flickr" / name.replace("\\", "/"), value)
    return root


LAYOUTS: dict[str, Callable[[Path], Path]] = {"mirflickr25k": mirflickr25k, "nus_wide": nus_wide}
SMALL: dict[str, dict[str, Any]] = {
    "mirflickr25k": {"min_tag_count": 2, "queries": 2, "train": None},
    "nus_wide": {"concepts": 3, "queries": 2, "train": None},
}


def build(name: str, root: Path, **options: Any) -> Dataset:
    return DATASETS.build(name, {"root": str(root), **SMALL[name], **options})


def refused(name: str, root: Path, complaint: str, error: type[Exception] = DataError, **options: Any) -> None:
    with pytest.raises(error, match=complaint):
        build(name, root, **options)


def split_of(data: Dataset) -> dict[str, str]:
    return {item.id: item.split for item in data.items}


# --- what both of them do


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_row_has_a_picture_a_caption_and_labels_among_which_is_its_label(name: str, tmp_path: Path) -> None:
    data = build(name, LAYOUTS[name](tmp_path))
    assert data.name == name and Counter(item.split for item in data.items) == {"test": 2, "train": len(data.items) - 2}
    for row, item in enumerate(data.items):
        assert Image.open(io.BytesIO(data.image_bytes(row))).size == (6, 6)
        assert item.id in data.where(row) and len(item.captions) == 1 and item.captions[0] and item.label in item.tags


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_file_of_a_layout_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    root = LAYOUTS[name](tmp_path / "data")
    unread = {path for path in root.rglob("*.txt") if path.parent.name == "tags_raw" or path.stem.endswith("_r1") or path.stem == "README"}
    drawn = {root / item.id for item in build(name, root).items}
    tried = 0
    for path in sorted((set(root.rglob("*.txt")) - unread) | drawn):
        aside = tmp_path / "aside"
        path.rename(aside)
        with pytest.raises(DataError) as caught:
            build(name, root)
        assert path.name in str(caught.value) and ("unpack" in str(caught.value) or "get the" in str(caught.value)), path
        aside.rename(path)
        tried += 1
    assert tried >= 14 and build(name, root).items


@pytest.mark.parametrize(
    ("name", "folder"), [("mirflickr25k", ANNOTATIONS), ("mirflickr25k", "mirflickr/meta/tags"), ("nus_wide", "Flickr")]
)
def test_a_folder_that_is_missing_is_named(name: str, folder: str, tmp_path: Path) -> None:
    (LAYOUTS[name](tmp_path) / folder).rename(tmp_path / "aside")
    refused(name, tmp_path, rf"{folder}: not there; (unpack|the pictures)")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_root_that_is_not_the_dataset_says_what_is_expected_there(name: str, tmp_path: Path) -> None:
    refused(name, tmp_path / "nowhere", "no such folder; give the folder")
    refused(name, tmp_path, "give the folder")
    LAYOUTS[name](tmp_path / "deeper")
    refused(name, tmp_path, "so give root=.*deeper")


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_digest_stays_for_the_same_files_and_follows_words_labels_pictures_and_draws(name: str, tmp_path: Path) -> None:
    root = LAYOUTS[name](tmp_path)
    digests = [build(name, root).digest]
    assert build(name, root).digest == digests[0]
    labels = root / (f"{ANNOTATIONS}/night.txt" if name == "mirflickr25k" else "Groundtruth/AllLabels/Labels_sun.txt")
    labels.write_text("3\n" if name == "mirflickr25k" else "1\n1\n1\n0\n1\n0\n0\n0\n")
    digests.append(build(name, root).digest)
    words = root / ("mirflickr/meta/tags/tags7.txt" if name == "mirflickr25k" else "NUS_WID_Tags/TagList1k.txt")
    words.write_text(words.read_text(encoding="utf-8").replace("explore", "sky").replace("beach", "strand"), encoding="utf-8")
    digests.append(build(name, root).digest)
    picture = root / build(name, root).items[0].id
    picture.write_bytes(picture.read_bytes() + b" ")
    digests += [build(name, root).digest, build(name, root, queries=1).digest]
    assert len(set(digests)) == 5


@pytest.mark.parametrize("name", LAYOUTS)
def test_more_pictures_than_there_are_cannot_be_asked_for(name: str, tmp_path: Path) -> None:
    root = LAYOUTS[name](tmp_path)
    there = len(build(name, root).items)
    asked = f"queries={there}, and some to learn: {there} of {9 if name == 'mirflickr25k' else 8} pictures have a label and a word"
    refused(name, root, asked, ConfigError, queries=there)
    refused(name, root, f"queries=2 and train={there - 1}: {there} of", ConfigError, train=there - 1)
    assert len(build(name, root, train=there - 2).items) == there
    refused(name, root, "queries", ConfigError, queries=0)


# --- the draw


def pictures(number: int) -> list[LabelledPicture]:
    return [LabelledPicture(f"p{n}", ("odd",) if n % 2 else ("even", "odd"), ("a", f"w{n}")) for n in range(number)]


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_draw_has_the_numbers_asked_for_whatever_the_order_and_whoever_else_is_there(data: st.DataObject) -> None:
    some = pictures(data.draw(st.integers(2, 30)))
    queries = data.draw(st.integers(1, len(some) - 1))
    train = data.draw(st.none() | st.integers(1, len(some) - queries))
    seed = data.draw(st.integers(0, 5))

    others = data.draw(st.booleans())

    def drawn(of: list[LabelledPicture]) -> dict[str, Item]:
        return {item.id: item for item in multi_label_items("d", of, queries=queries, train=train, others=others, seed=seed)}

    items = drawn(some)
    learned = train or len(some) - queries
    rest = {"gallery": len(some) - queries - learned} if others and queries + learned < len(some) else {}
    assert Counter(item.split for item in items.values()) == {"test": queries, "train": learned, **rest}
    assert drawn(data.draw(st.permutations(some))) == items
    fewer = multi_label_items("d", some, queries=queries, train=1, others=others, seed=seed)
    assert {item.id for item in fewer if item.split == "test"} == {key for key, item in items.items() if item.split == "test"}


def test_another_seed_draws_others() -> None:
    draws = [multi_label_items("d", pictures(60), queries=20, train=20, others=False, seed=seed) for seed in (0, 1)]
    assert len({item.id for item in draws[0]} ^ {item.id for item in draws[1]}) > 10


def test_the_label_is_the_rarest_and_of_equal_ones_the_first() -> None:
    rows = [(("sea", "sky"), "sea"), (("sky",), "sky"), (("ape", "bee"), "ape"), (("bee", "ape"), "bee"), (("sky", "sea"), "sea")]
    given_ = [LabelledPicture(f"p{n}", labels, ("w",)) for n, (labels, _) in enumerate(rows)]
    items = multi_label_items("d", [*given_, LabelledPicture("x", ("sky",), ())], queries=1, train=None, others=True, seed=0)
    assert [(item.tags, item.label) for item in items] == [(labels, label) for labels, label in rows]


# --- MIRFLICKR-25000


def test_mirflickr_captions_are_frequent_tags_in_their_order_and_tags_are_the_potential_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        data = build("mirflickr25k", mirflickr25k(tmp_path))
    assert [(item.id, item.captions[0], item.tags, item.label) for item in data.items] == [
        ("mirflickr/im1.jpg", "sky explore", ("sky",), "sky"),
        ("mirflickr/im2.jpg", "explore sky", ("clouds", "sky"), "clouds"),
        ("mirflickr/im3.jpg", "sky", ("clouds", "sea", "sky"), "clouds"),
        ("mirflickr/im7.jpg", "explore", ("sea",), "sea"),
        ("mirflickr/im8.jpg", "sky", ("sky",), "sky"),
    ]
    assert "mirflickr25k: 4 of 9 pictures lack a label or a word and are left out" in caplog.text
    everything = build("mirflickr25k", tmp_path, min_tag_count=1)
    assert [item.captions[0] for item in everything.items] == ["sky explore", "explore sky", "Köln sky", "rare", "海 explore", "sky"]
    refused("mirflickr25k", tmp_path, "0 of 9 pictures have a label and a word", ConfigError, min_tag_count=20)


def test_mirflickr_leaves_out_what_is_not_drawn_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = split_of(build("mirflickr25k", mirflickr25k(tmp_path)))
    with caplog.at_level(logging.INFO):
        some = split_of(build("mirflickr25k", tmp_path, train=2, others=False))
    assert Counter(some.values()) == {"train": 2, "test": 2} and some.items() <= whole.items()
    found_too = split_of(build("mirflickr25k", tmp_path, train=2))
    assert Counter(found_too.values()) == {"train": 2, "test": 2, "gallery": 1} and some.items() <= found_too.items()
    assert "1 pictures are neither among the 2 queries nor among the 2 to learn" in caplog.text


def test_mirflickr_annotations_may_lie_elsewhere(tmp_path: Path) -> None:
    beside = build("mirflickr25k", mirflickr25k(tmp_path / "data"))
    (tmp_path / "data" / ANNOTATIONS).rename(tmp_path / "labels")
    refused("mirflickr25k", tmp_path / "data", rf"{ANNOTATIONS}: not there; .* or give annotations=FOLDER")
    assert build("mirflickr25k", tmp_path / "data", annotations=str(tmp_path / "labels")).items == beside.items


@pytest.mark.parametrize("number", ["10", "0", "-1", "1.5", "im3", "3 4"])
def test_a_label_of_a_picture_that_is_not_there_is_named(number: str, tmp_path: Path) -> None:
    lines(mirflickr25k(tmp_path) / ANNOTATIONS / "sea.txt", [3, "", number])
    complaint = rf"sea\.txt line 3: expected the number of a picture, found '{number}'; there are tags1\.txt to tags9\.txt, so 1 to 9"
    refused("mirflickr25k", tmp_path, complaint)


def test_mirflickr_without_any_tags_and_with_tags_that_are_not_utf_8_is_told(tmp_path: Path) -> None:
    folder = mirflickr25k(tmp_path) / "mirflickr" / "meta" / "tags"
    (folder / "tags2.txt").write_bytes("Köln".encode("latin-1"))
    refused("mirflickr25k", tmp_path, r"tags2\.txt line 1: not UTF-8")
    for path in folder.iterdir():
        path.unlink()
    refused("mirflickr25k", tmp_path, r"tags1\.txt: not there; there are 9 pictures; unpack mirflickr25k\.zip")


def test_mirflickr_draws_what_the_thesis_draws_by_default() -> None:
    options = DATASETS.plain("mirflickr25k", {"root": "r"})
    assert options == {"root": "r", "annotations": None, "min_tag_count": 20, "queries": 2000, "train": 10000, "others": True, "seed": 0}
    assert len(MIR_LABELS) == 24 and MIRFlickr25K.name == "mirflickr25k"


# --- NUS-WIDE


def test_nus_wide_captions_are_listed_tags_and_tags_are_the_most_frequent_concepts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        data = build("nus_wide", nus_wide(tmp_path))
    assert [(item.id, item.captions[0], item.tags, item.label) for item in data.items] == [
        ("Flickr/actor/0000_099.jpg", "beach 2008", ("sky",), "sky"),
        ("Flickr/actor/0001_199.jpg", "beach münchen", ("sky", "sea"), "sea"),
        ("Flickr/zoo/0002_299.jpg", "beach", ("sky", "sea"), "sea"),
        ("Flickr/zoo/0003_399.jpg", "münchen", ("sky", "sea"), "sea"),
        ("Flickr/zoo/0004_499.jpg", "münchen", ("sky", "sun"), "sun"),
        ("Flickr/actor/0005_599.jpg", "2008", ("sky", "sun"), "sun"),
        ("Flickr/zoo/0006_699.jpg", "beach", ("sea", "sun"), "sun"),
    ]
    assert "nus_wide: 1 of 8 pictures lack a label or a word" in caplog.text
    assert {item.label for item in build("nus_wide", tmp_path, concepts=1).items} == {"sky"}
    assert build("nus_wide", tmp_path, concepts=4).items[0].tags == ("animal", "sky")
    refused("nus_wide", tmp_path, r"concepts=5: .*Concepts81\.txt names 4; ask for fewer", ConfigError, concepts=5)


def test_concepts_that_are_equally_frequent_are_kept_in_the_order_of_the_list(tmp_path: Path) -> None:
    lines(nus_wide(tmp_path) / "Groundtruth" / "AllLabels" / "Labels_sun.txt", [0, 0, 0, 1, 1, 1, 1, 0])
    assert {tag for item in build("nus_wide", tmp_path, concepts=2).items for tag in item.tags} == {"sky", "sea"}


def test_pictures_without_a_file_stop_or_are_skipped_before_the_draw(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = nus_wide(tmp_path)
    whole = build("nus_wide", root)
    for name in ("actor/0001_199.jpg", "zoo/0007_799.jpg"):
        (root / "Flickr" / name).unlink()
    refused("nus_wide", root, r"1 of the 7 pictures that are listed .*actor/0001_199\.jpg; get the pictures, or .* on_missing=skip")
    with caplog.at_level(logging.INFO):
        data = build("nus_wide", root, on_missing="skip")
    assert "1 pictures with a concept and a tag have no file" in caplog.text
    assert {item.id for item in data.items} == {item.id for item in whole.items} - {"Flickr/actor/0001_199.jpg"}
    assert Counter(split_of(data).values()) == {"test": 2, "train": 4}


@pytest.mark.parametrize(
    ("file", "number", "text", "complaint"),
    [
        ("ImageList/Imagelist.txt", 2, "0001_199.jpg", r"Imagelist\.txt line 2: expected folder\\picture\.jpg, found '0001_199\.jpg'"),
        ("ImageList/Imagelist.txt", 2, NUS_PICTURES[0], r"1 ids are not unique: 'Flickr/actor/0000_099\.jpg'"),
        ("ImageList/Imagelist.txt", 8, "", r"Labels_animal\.txt: 8 lines, but Imagelist\.txt has 7 pictures; .* unpack Groundtruth\.zip"),
        ("Groundtruth/AllLabels/Labels_sea.txt", 3, "2", r"Labels_sea\.txt line 3: expected 0 or 1, found b'2'"),
        ("Groundtruth/AllLabels/Labels_sea.txt", 8, "", r"Labels_sea\.txt: 7 lines, but Imagelist\.txt has 8 pictures"),
        (
            "NUS_WID_Tags/AllTags1k.txt",
            4,
            "0 1",
            r"AllTags1k\.txt line 4: expected 3 times 0 or 1, .* of TagList1k\.txt, found 2 values: '0 1'",
        ),
        ("NUS_WID_Tags/AllTags1k.txt", 4, "0 1 2", r"AllTags1k\.txt line 4: expected 3 times 0 or 1"),
        ("NUS_WID_Tags/AllTags1k.txt", 8, "0 0 0\n0 0 1", r"AllTags1k\.txt: 9 lines, but Imagelist\.txt has 8 pictures"),
        ("NUS_WID_Tags/TagList1k.txt", 3, "beach", r"TagList1k\.txt: 3 names, 2 of them different; .*unpack NUS_WID_Tags\.zip again"),
        ("NUS_WID_Tags/TagList1k.txt", 3, "2008\nbook", r"AllTags1k\.txt line 1: expected 4 times 0 or 1"),
        ("ConceptsList/Concepts81.txt", 1, "ship", r"Labels_ship\.txt: not there; unpack Groundtruth\.zip again"),
    ],
)
def test_a_line_of_nus_wide_that_does_not_fit_is_named(file: str, number: int, text: str, complaint: str, tmp_path: Path) -> None:
    path = nus_wide(tmp_path) / file
    changed = path.read_text(encoding="utf-8").splitlines()
    changed[number - 1] = text
    lines(path, [line for line in changed if line])
    refused("nus_wide", tmp_path, complaint)


def test_lists_without_a_line_are_told(tmp_path: Path) -> None:
    lines(nus_wide(tmp_path) / "ConceptsList" / "Concepts81.txt", [])
    refused("nus_wide", tmp_path, r"Concepts81\.txt: 0 names, .*unpack ConceptsList\.zip again")
    lines(tmp_path / "ImageList" / "Imagelist.txt", [])
    refused("nus_wide", tmp_path, r"Imagelist\.txt: no picture in it; unpack ImageList\.zip again")


def test_nus_wide_draws_what_the_thesis_draws_by_default() -> None:
    options = DATASETS.plain("nus_wide", {"root": "r"})
    assert options == {"root": "r", "concepts": 21, "queries": 2100, "train": 10500, "others": True, "seed": 0, "on_missing": "stop"}
    assert NUSWIDE.name == "nus_wide"
