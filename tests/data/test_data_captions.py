"""Published datasets with captions in miniature: what is read of each layout, and what is said when a file of it does not fit."""

import io
import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from perdure.data import DATASETS
from perdure.data.dataset import Dataset
from perdure.errors import ConfigError, DataError

STRAY = "2258277193_586949ec62.jpg.1"  # Flickr8k has captions of it, and no picture


def jpeg(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (value % 256, 0, 0)).save(path)


def lines(path: Path, texts: list[str]) -> None:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def tokens(path: Path, pictures: list[str]) -> None:
    """Two captions of each picture."""
    lines(path, [f"{picture}#{n}\tA dog {n} of {picture[:3]} ." for picture in pictures for n in range(2)])


def flickr8k(root: Path) -> Path:
    """Four pictures for training, one for development, two for testing, and captions of a picture that is not there."""
    pictures = [f"10{n}_ab.jpg" for n in range(7)]
    for number, picture in enumerate(pictures):
        jpeg(root / "Flicker8k_Dataset" / picture, number)
    tokens(root / "Flickr8k.token.txt", [*pictures, STRAY])
    for split, listed in (("train", pictures[:4]), ("dev", pictures[4:5]), ("test", pictures[5:])):
        lines(root / f"Flickr_8k.{split}Images.txt", listed)
    return root


def flickr30k(root: Path) -> Path:
    """As above, with numbers in lists that lie beside the captions."""
    pictures = [f"100{n}" for n in range(7)]
    for number, picture in enumerate(pictures):
        jpeg(root / "flickr30k-images" / f"{picture}.jpg", number)
    tokens(root / "results_20130124.token", [f"{picture}.jpg" for picture in pictures])
    for split, listed in (("train", pictures[:4]), ("val", pictures[4:5]), ("test", pictures[5:])):
        lines(root / f"{split}.txt", listed)
    return root


def coco(root: Path, year: int = 2014) -> Path:
    """Pictures 1 to 4 for training, 5 and 6 for testing. 1, 2 and 5 have two dogs and a person, 6 has a person."""
    categories = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 18, "name": "dog", "supercategory": "animal"}]
    animals = [(1, 30.0), (18, 25.5), (18, 25.0)]
    objects = {1: animals, 2: animals, 3: [(1, 1)], 5: animals, 6: [(1, 2.5)]}
    (root / "annotations").mkdir(parents=True)
    for part, numbers in (("train", (1, 2, 3, 4)), ("val", (5, 6))):
        names = {number: f"COCO_{part}{year}_{number:012d}.jpg" for number in numbers}
        images = [{"id": number, "file_name": name, "height": 6, "width": 6} for number, name in names.items()]
        for number, name in names.items():
            jpeg(root / f"{part}{year}" / name, number)
        captions = [{"id": n, "image_id": number, "caption": f"Thing {n} of {number}.\n"} for n in (0, 1) for number in numbers]
        captions.append({"id": 9, "image_id": numbers[0], "caption": "  "})
        areas = [
            {"image_id": number, "category_id": category, "area": area, "segmentation": [[1, 2]], "iscrowd": 0}
            for number in numbers
            for category, area in objects.get(number, [])
        ]
        write_json(root / "annotations" / f"captions_{part}{year}.json", {"images": images, "annotations": captions})
        write_json(
            root / "annotations" / f"instances_{part}{year}.json", {"images": images, "annotations": areas, "categories": categories}
        )
    return root


def pedes(root: Path) -> Path:
    """Persons 1 and 2 for training (three pictures each), 3 for validation, 4 for testing."""
    entries: list[dict[str, Any]] = []
    for person, split, count in ((1, "train", 3), (2, "train", 3), (3, "val", 1), (4, "test", 2)):
        for n in range(count):
            path = f"{('CUHK01', 'cam_a')[n % 2]}/{person:03d}_{n}.png"
            jpeg(root / "imgs" / path, person)
            captions = [f"Person {person} walks.", " A bag .", " "]
            entries.append({"split": split, "captions": captions, "file_path": path, "processed_tokens": [["a"]], "id": person})
    write_json(root / "reid_raw.json", entries)
    return root


def write_json(path: Path, whole: Any) -> None:
    path.write_text(json.dumps(whole), encoding="utf-8")


LAYOUTS: dict[str, Callable[[Path], Path]] = {"flickr8k": flickr8k, "flickr30k": flickr30k, "coco_captions": coco, "cuhk_pedes": pedes}


def build(name: str, root: Path, **options: Any) -> Dataset:
    return DATASETS.build(name, {"root": str(root), **options})


def refused(name: str, root: Path, complaint: str, **options: Any) -> None:
    with pytest.raises(DataError, match=complaint):
        build(name, root, **options)


# --- what all of them do


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_row_has_an_id_a_label_a_split_captions_and_a_picture(name: str, tmp_path: Path) -> None:
    data = build(name, LAYOUTS[name](tmp_path))
    assert data.name == name and len({item.id for item in data.items}) == len(data.items) >= 6
    assert {item.split for item in data.items} == {"train", "test"} and all(item.label for item in data.items)
    for row, item in enumerate(data.items):
        assert Image.open(io.BytesIO(data.image_bytes(row))).size == (6, 6)
        assert item.id in data.where(row) and f"row {row}" in data.where(row)
        assert len(item.captions) == 2 and all(text and text == text.strip() for text in item.captions)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_digest_stays_for_the_same_files_and_follows_new_captions_and_new_pictures(name: str, tmp_path: Path) -> None:
    root = LAYOUTS[name](tmp_path)
    first = build(name, root).digest
    assert build(name, root).digest == first
    named = ("Flickr8k.token.txt", "results_20130124.token", "captions_val2014.json", "reid_raw.json")
    annotation = next(path for path in root.rglob("*") if path.name in named)
    annotation.write_text(annotation.read_text().replace("A dog", "A cat").replace("bag", "cap").replace("Thing", "Object"))
    second = build(name, root).digest
    picture = root / build(name, root).items[0].id
    picture.write_bytes(picture.read_bytes() + b" ")
    assert len({first, second, build(name, root).digest}) == 3


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_file_of_a_layout_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    """All but those that nothing is read from unless it is asked for: the split between, objects."""
    root = LAYOUTS[name](tmp_path / "data")
    texts = {path for pattern in ("*.txt", "*.token", "*.json") for path in root.rglob(pattern)}
    unread = {path for path in texts if path.stem in ("val", "Flickr_8k.devImages") or "instances" in path.stem}
    tried = 0
    for path in sorted((texts - unread) | {root / item.id for item in build(name, root).items}):
        aside = tmp_path / "aside"
        path.rename(aside)
        with pytest.raises(DataError) as caught:
            build(name, root)
        assert path.name in str(caught.value), path
        aside.rename(path)
        tried += 1
    assert tried >= 8 and build(name, root).items


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_root_that_is_not_the_dataset_says_what_is_expected_there(name: str, tmp_path: Path) -> None:
    refused(name, tmp_path / "nowhere", "no such folder; give the folder")
    refused(name, tmp_path, "give the folder")
    LAYOUTS[name](tmp_path / "deeper")
    refused(name, tmp_path, "so give root=.*deeper")


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "coco_captions"])
def test_splits_are_chosen_by_name_and_the_others_are_left_out_and_counted(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = LAYOUTS[name](tmp_path)
    with caplog.at_level(logging.INFO):
        usual = Counter(item.split for item in build(name, root).items)
    left = {"flickr8k": "2 pictures .* left out, such as " + STRAY, "flickr30k": "1 pictures", "cuhk_pedes": "1 pictures .*{'val': 1}"}
    assert len(caplog.messages) == 1 and re.search(left[name], caplog.text)
    between = "dev" if name == "flickr8k" else "val"
    more = Counter(item.split for item in build(name, root, train=["train", between]).items)
    assert more == {"train": usual["train"] + 1, "test": usual["test"]}
    assert Counter(item.split for item in build(name, root, test=[between]).items) == {"train": usual["train"], "test": 1}
    with pytest.raises(ConfigError, match=f"split '{between}' is in train and in test"):
        build(name, root, train=[between], test=[between])
    with pytest.raises(ConfigError, match="train"):
        build(name, root, train=["trian"])


# --- Flickr8k and Flickr30k


def test_flickr8k_has_the_published_lists_and_a_class_for_each_picture(tmp_path: Path) -> None:
    data = build("flickr8k", flickr8k(tmp_path))
    labels = ["100_ab", "101_ab", "102_ab", "103_ab", "105_ab", "106_ab"]
    assert [(item.label, item.split) for item in data.items] == list(zip(labels, ["train"] * 4 + ["test"] * 2, strict=True))
    assert data.items[0].id == "Flicker8k_Dataset/100_ab.jpg"
    assert data.items[0].captions == ("A dog 0 of 100 .", "A dog 1 of 100 .")


def test_flickr8k_may_be_spelt_right_and_have_its_text_in_a_folder(tmp_path: Path) -> None:
    flickr8k(tmp_path)
    (tmp_path / "Flicker8k_Dataset").rename(tmp_path / "Flickr8k_Dataset")
    (tmp_path / "Flickr8k_text").mkdir()
    for path in tmp_path.glob("*.txt"):
        path.rename(tmp_path / "Flickr8k_text" / path.name)
    assert build("flickr8k", tmp_path).items[0].id == "Flickr8k_Dataset/100_ab.jpg"
    (tmp_path / "Flickr8k_Dataset").rename(tmp_path / "pictures")
    refused("flickr8k", tmp_path, r"no folder Flicker8k_Dataset or Flickr8k_Dataset in it; unpack Flickr8k_Dataset\.zip")


@pytest.mark.parametrize(
    ("file", "number", "text", "complaint"),
    [
        (
            "Flickr8k.token.txt",
            3,
            "101_ab.jpg A dog .",
            r"token\.txt line 3: expected 'picture\.jpg#0', a tab and a caption, found '101_ab",
        ),
        ("Flickr8k.token.txt", 3, "101_ab.jpg\tA dog .", r"token\.txt line 3: expected"),
        (
            "Flickr_8k.trainImages.txt",
            2,
            "999_ab.jpg",
            r"trainImages\.txt line 2: no captions of a picture '999_ab\.jpg', only of 8 others",
        ),
        ("Flickr_8k.trainImages.txt", 2, "100_ab.jpg", r"line 2: '100_ab\.jpg' is in Flickr_8k\.trainImages\.txt line 1 already"),
        ("Flickr_8k.testImages.txt", 2, "101_ab.jpg", r"testImages\.txt line 2: '101_ab\.jpg' is in Flickr_8k\.trainImages\.txt line 2"),
        ("Flickr_8k.testImages.txt", 2, STRAY, r"1 of the 6 pictures that are listed .* are not there, such as .*jpg\.1; unpack"),
    ],
)
def test_a_line_that_does_not_fit_is_named(file: str, number: int, text: str, complaint: str, tmp_path: Path) -> None:
    path = flickr8k(tmp_path) / file
    changed = path.read_text().splitlines()
    changed[number - 1] = text
    lines(path, changed)
    refused("flickr8k", tmp_path, complaint)


def test_empty_lists_and_empty_captions_are_told(tmp_path: Path) -> None:
    flickr8k(tmp_path)
    (tmp_path / "Flickr_8k.testImages.txt").write_text("\n \n")
    refused("flickr8k", tmp_path, r"Flickr_8k\.testImages\.txt: no picture in it")
    (tmp_path / "Flickr8k.token.txt").write_text("")
    refused("flickr8k", tmp_path, r"Flickr8k\.token\.txt: no captions in it")


def test_captions_are_utf_8_whatever_ends_their_lines(tmp_path: Path) -> None:
    flickr8k(tmp_path)
    path = tmp_path / "Flickr8k.token.txt"
    text = (
        path.read_text(encoding="utf-8").replace("A dog 0 of 100 .", "Un chien\u2028 près d'un #1 café").replace("A dog 1 of 100 .", "\t ")
    )
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    lists = tmp_path / "Flickr_8k.trainImages.txt"
    lists.write_bytes(b"\xef\xbb\xbf" + lists.read_bytes().replace(b"\n", b" \r\n\r\n"))
    data = build("flickr8k", tmp_path)
    assert data.items[0].captions == ("Un chien\u2028 près d'un #1 café",) and len(data.items[1].captions) == 2
    path.write_bytes(text.encode("latin-1", errors="replace"))
    refused("flickr8k", tmp_path, r"Flickr8k\.token\.txt line 1: not UTF-8")


def test_flickr30k_takes_lists_of_names_or_numbers_from_any_folder(tmp_path: Path) -> None:
    root = flickr30k(tmp_path / "data")
    beside = build("flickr30k", root)
    assert Counter(item.split for item in beside.items) == {"train": 4, "test": 2}
    assert (beside.items[4].id, beside.items[4].label) == ("flickr30k-images/1005.jpg", "1005")
    (tmp_path / "lists").mkdir()
    for split in ("train", "test"):
        (root / f"{split}.txt").rename(tmp_path / "lists" / f"{split}.txt")
    refused("flickr30k", root, r"train\.txt: not there; the archives have no lists, so give splits=FOLDER .* or test_share=0\.1")
    assert build("flickr30k", root, splits=str(tmp_path / "lists")).items == beside.items
    lines(tmp_path / "lists" / "test.txt", ["1005.jpg", "1006.jpg"])
    assert build("flickr30k", root, splits=str(tmp_path / "lists")).items == beside.items


def test_flickr30k_without_lists_holds_out_a_share_of_all_pictures(tmp_path: Path) -> None:
    root = flickr30k(tmp_path)
    for path in root.glob("*.txt"):
        path.unlink()
    data = build("flickr30k", root, test_share=0.25)
    assert Counter(item.split for item in data.items) == {"train": 5, "test": 2}  # of 7: rounded up, whatever their order
    path = root / "results_20130124.token"
    lines(path, path.read_text().splitlines()[::-1])
    again = build("flickr30k", root, test_share=0.25)
    assert {item.id: item.split for item in again.items} == {item.id: item.split for item in data.items}
    with pytest.raises(ConfigError, match="splits and test_share are two ways"):
        build("flickr30k", root, splits=str(root), test_share=0.25)


# --- COCO


def test_coco_learns_train_and_tests_on_val_of_the_year_that_is_asked_for(tmp_path: Path) -> None:
    coco(tmp_path / "2014")
    data = build("coco_captions", tmp_path / "2014")
    splits = ["train"] * 4 + ["test"] * 2
    assert [(item.label, item.group, item.split) for item in data.items] == [(f"{n:012d}", "", at) for n, at in enumerate(splits, start=1)]
    assert data.items[0].id == "train2014/COCO_train2014_000000000001.jpg"
    assert data.items[4].captions == ("Thing 0 of 5.", "Thing 1 of 5.")
    refused("coco_captions", tmp_path / "2014", r"captions_train2017\.json: not there; those of 2014 are there: give year=2014", year=2017)
    coco(tmp_path / "2017", year=2017)
    assert [item.label for item in build("coco_captions", tmp_path / "2017", year=2017).items] == [item.label for item in data.items]
    with pytest.raises(ConfigError, match="year"):
        build("coco_captions", tmp_path, year=2015)


@pytest.mark.parametrize(("labels", "dog"), [("category", "dog"), ("supercategory", "animal")])
def test_coco_pictures_can_be_called_by_what_covers_most_of_them(
    labels: str, dog: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        data = build("coco_captions", coco(tmp_path), labels=labels)
    told = [(int(item.id[-6:-4]), item.label, item.group, item.split) for item in data.items]
    assert told == [
        (1, dog, "animal", "train"),
        (2, dog, "animal", "train"),
        (3, "person", "person", "train"),
        (5, dog, "animal", "test"),
        (6, "person", "person", "test"),
    ]
    assert "instances_train2014.json: 1 pictures have no object in them and are left out" in caplog.text
    assert data.digest != build("coco_captions", tmp_path).digest


def test_objects_of_equal_area_give_the_category_with_the_smaller_number(tmp_path: Path) -> None:
    path = coco(tmp_path) / "annotations" / "instances_val2014.json"
    path.write_text(path.read_text().replace("25.5", "5.0"))
    assert build("coco_captions", tmp_path, labels="category").items[3].label == "person"


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("captions_val2014", '{"images"', '{"pictures"', r'captions_val2014\.json: expected {"images": \[\.\.\.\]}, found dict'),
        ("captions_val2014", '"file_name"', '"name"', r'val2014\.json images\[0\]: no "file_name" of type str in it; found {\'id\': 5'),
        ("captions_val2014", '"image_id": 6', '"image_id": 7', r'annotations\[1\]: a caption of picture 7, .* the 2 "images"'),
        ("captions_val2014", '"caption": "Thing', '"text": "Thing', r'annotations\[0\]: no "caption" of type str'),
        ("captions_val2014", "}]}", "", r"captions_val2014\.json: not a JSON file"),
        ("instances_val2014", '"category_id": 18', '"category_id": 19', r"annotations\[1\]: an object of category 19 in picture 5"),
        ("instances_val2014", '"area": 2.5', '"area": null', r'annotations\[3\]: no "area" of type int \| float'),
        ("instances_val2014", "", None, r"instances_val2014\.json: not there; labels=category needs it"),
    ],
)
def test_entries_of_coco_that_do_not_fit_are_named(file: str, old: str, new: str | None, complaint: str, tmp_path: Path) -> None:
    path = coco(tmp_path) / "annotations" / f"{file}.json"
    if new is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace(old, new))
    refused("coco_captions", tmp_path, complaint, labels="category")


def test_coco_without_a_single_picture_is_told(tmp_path: Path) -> None:
    write_json(coco(tmp_path) / "annotations" / "captions_val2014.json", {"images": [], "annotations": []})
    refused("coco_captions", tmp_path, r'captions_val2014\.json: no picture under "images"')


# --- CUHK-PEDES


def test_persons_have_their_number_as_label_and_the_set_they_are_from_as_group(tmp_path: Path) -> None:
    data = build("cuhk_pedes", pedes(tmp_path))
    assert Counter((item.label, item.split) for item in data.items) == {("00001", "train"): 3, ("00002", "train"): 3, ("00004", "test"): 2}
    assert (data.items[1].id, data.items[1].group) == ("imgs/cam_a/001_1.png", "cam_a")
    assert data.items[1].captions == ("Person 1 walks.", "A bag .")


def test_a_test_share_makes_the_persons_known_that_are_tested_on(tmp_path: Path) -> None:
    data = build("cuhk_pedes", pedes(tmp_path), test_share=0.3)
    counted = Counter((item.label, item.split) for item in data.items)
    known = {(label, split): n for label in ("00001", "00002") for split, n in (("train", 2), ("test", 1))}
    assert counted == known | {("00004", "train"): 1, ("00004", "test"): 1}


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"split": 1}, r'reid_raw\.json \[2\]: no "split" of type str in it; found {\'split\': 1'),
        ({"id": "1"}, r'\[2\]: no "id" of type int'),
        ({"file_path": None}, r'\[2\]: no "file_path" of type str'),
        ({"captions": "a bag"}, r'\[2\]: "captions" is not a list of texts'),
        ({"captions": [["a"]]}, r'\[2\]: "captions" is not a list of texts'),
        ({"file_path": "CUHK01/001_0.png"}, r"1 ids are not unique: 'imgs/CUHK01/001_0\.png' in rows 0, 2"),
        ({"file_path": "CUHK01/gone.png"}, r"1 of the 8 pictures .*reid_raw\.json. are not there, such as imgs/CUHK01/gone\.png"),
    ],
)
def test_entries_of_persons_that_do_not_fit_are_named(entry: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    path = pedes(tmp_path) / "reid_raw.json"
    entries = json.loads(path.read_text())
    entries[2] |= entry
    write_json(path, entries)
    refused("cuhk_pedes", tmp_path, complaint)


def test_a_split_of_persons_that_is_empty_and_another_file_are_told(tmp_path: Path) -> None:
    path = pedes(tmp_path) / "reid_raw.json"
    write_json(path, [entry for entry in json.loads(path.read_text()) if entry["split"] != "test"])
    refused("cuhk_pedes", tmp_path, r"reid_raw\.json: no picture of split test; found {'train': 6, 'val': 1}")
    write_json(path, {"images": []})
    refused("cuhk_pedes", tmp_path, r"expected a list of pictures, found dict")
    write_json(path, [3])
    refused("cuhk_pedes", tmp_path, r"\[0\]: an entry is an object with file_path, id, split and captions; found 3")
