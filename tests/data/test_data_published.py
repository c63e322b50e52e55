"""Published datasets in miniature: what is read of each layout, and what is said when one of its files is missing or disagrees."""

import io
import math
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from perdure.data import DATASETS
from perdure.data.dataset import Dataset, split_anew
from perdure.errors import ConfigError, DataError
from perdure.records import Item

BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
DOGS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel")
CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")


def jpeg(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (value % 256, 0, 0)).save(path)


def cub(root: Path, per_class: int = 5) -> Path:
    """`per_class` pictures of each bird; the even ones are for training."""
    pictures = [f"{bird}/{bird[4:]}_{n:04d}.jpg" for bird in BIRDS for n in range(per_class)]
    for number, picture in enumerate(pictures):
        jpeg(root / "images" / picture, number)
    lines = {
        "images.txt": [f"{n} {picture}" for n, picture in enumerate(pictures, 1)],
        "image_class_labels.txt": [f"{n} {1 + (n - 1) // per_class}" for n in range(1, len(pictures) + 1)],
        "classes.txt": [f"{n} {bird}" for n, bird in enumerate(BIRDS, 1)],
        "train_test_split.txt": [f"{n} {n % 2}" for n in range(1, len(pictures) + 1)],
    }
    for name, text in lines.items():
        (root / name).write_text("\n".join(text) + "\n")
    return root


def cells(values: list[str]) -> np.ndarray:
    """A column of strings as MATLAB keeps it: a cell array (n, 1)."""
    return np.array(values, dtype=object)[:, None]


def dogs(root: Path) -> Path:
    """Two pictures of each breed for training, one for testing."""
    for split, numbers in (("train", (1, 2)), ("test", (3,))):
        files = [f"{dog}/{dog.partition('-')[0]}_{n}.jpg" for dog in DOGS for n in numbers]
        for number, file in enumerate(files):
            jpeg(root / "Images" / file, number)
        labels = np.repeat(np.arange(1.0, len(DOGS) + 1), len(numbers))[:, None]
        savemat(root / f"{split}_list.mat", {"file_list": cells(files), "annotation_list": cells(files), "labels": labels})
    return root


def annotations(records: list[dict[str, Any]]) -> np.ndarray:
    """A struct array (1, n) with a box, as in the devkit of Stanford Cars."""
    boxed = [{"bbox_x1": 1, "bbox_y1": 1, "bbox_x2": 5, "bbox_y2": 5, **record} for record in records]
    array = np.zeros((1, len(boxed)), dtype=[(name, object) for name in boxed[0]])
    for at, record in enumerate(boxed):
        array[0, at] = tuple(record.values())
    return array


def cars(root: Path) -> Path:
    """The first layout: two pictures of each car for training, one of each for testing."""
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": cells(list(CARS)).T})
    for split, per_class, path in (("train", 2, "devkit/cars_train_annos.mat"), ("test", 1, "cars_test_annos_withlabels.mat")):
        records = [{"class": 1 + n // per_class, "fname": f"{n + 1:05d}.jpg"} for n in range(len(CARS) * per_class)]
        for number, record in enumerate(records):
            jpeg(root / f"cars_{split}" / record["fname"], number)
        savemat(root / path, {"annotations": annotations(records)})
    return root


def newer_cars(root: Path) -> Path:
    """The newer layout: three pictures of each car, the last of each for testing."""
    records = [{"relative_im_path": f"car_ims/{n + 1:06d}.jpg", "class": 1 + n // 3, "test": int(n % 3 == 2)} for n in range(3 * len(CARS))]
    for number, record in enumerate(records):
        jpeg(root / record["relative_im_path"], number)
    savemat(root / "cars_annos.mat", {"annotations": annotations(records), "class_names": cells(list(CARS)).T})
    return root


def cifar(root: Path, train: int = 4, test: int = 2) -> Path:
    """Picture n of a split has coarse class n % 2, fine class n % 3, and pixel values that follow from n."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "fine_label_names.txt").write_text("apple\nbear\nclock\n\n")
    (root / "coarse_label_names.txt").write_text("fruit\nlarge_carnivores\n")
    for name, count in (("train", train), ("test", test)):
        records = [bytes([n % 2, n % 3]) + bytes((np.arange(3072) * (n + 1) % 251).astype(np.uint8)) for n in range(count)]
        (root / f"{name}.bin").write_bytes(b"".join(records))
    return root


LAYOUTS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "cub200": ("cub200", cub),
    "stanford_dogs": ("stanford_dogs", dogs),
    "stanford_cars": ("stanford_cars", cars),
    "stanford_cars, newer": ("stanford_cars", newer_cars),
    "cifar100_binary": ("cifar100_binary", cifar),
}


def build(name: str, root: Path, **options: Any) -> Dataset:
    return DATASETS.build(name, {"root": str(root), **options})


# --- what all of them do


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_row_has_an_id_a_label_a_split_and_a_picture(layout: str, tmp_path: Path) -> None:
    name, write = LAYOUTS[layout]
    data = build(name, write(tmp_path / "data"))
    assert data.name == name and len({item.id for item in data.items}) == len(data.items) > 4
    assert {item.split for item in data.items} == {"train", "test"} and all(item.label for item in data.items)
    for row, item in enumerate(data.items):
        assert Image.open(io.BytesIO(data.image_bytes(row))).size in {(6, 6), (32, 32)}
        assert item.id in data.where(row) and f"row {row}" in data.where(row)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_digest_stays_for_the_same_files_and_follows_a_change(layout: str, tmp_path: Path) -> None:
    name, write = LAYOUTS[layout]
    root = write(tmp_path / "data")
    first = build(name, root).digest
    assert build(name, root).digest == first
    changed = next(path for path in sorted(root.rglob("*")) if path.suffix in (".jpg", ".bin"))
    changed.write_bytes(changed.read_bytes()[: 3074 if changed.suffix == ".bin" else -1])
    assert build(name, root).digest != first


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_file_of_a_layout_that_is_missing_is_named(layout: str, tmp_path: Path) -> None:
    """All files but those that nothing is read from; a picture is named by its path below the root."""
    name, write = LAYOUTS[layout]
    root = write(tmp_path / "data")
    tried = 0
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        aside = tmp_path / "aside"
        path.rename(aside)
        with pytest.raises(DataError) as caught:
            build(name, root)
        assert path.name in str(caught.value), path
        aside.rename(path)
        tried += 1
    assert tried >= 4 and build(name, root)


@pytest.mark.parametrize("name", sorted({name for name, _ in LAYOUTS.values()}))
def test_a_root_that_is_not_the_dataset_says_what_is_expected_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        build(name, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"(?i)give the folder|expected there"):
        build(name, tmp_path)


def test_a_root_one_folder_too_high_is_told_the_right_one(tmp_path: Path) -> None:
    cub(tmp_path / "CUB_200_2011")
    with pytest.raises(DataError, match=r"no images\.txt in it; it is in .*CUB_200_2011, so give root="):
        build("cub200", tmp_path)


def test_a_picture_that_went_away_after_opening_is_named(tmp_path: Path) -> None:
    data = build("cub200", cub(tmp_path))
    (tmp_path / data.items[3].id).unlink()
    with pytest.raises(DataError, match=r"row 3 .*no such file"):
        data.image_bytes(3)
    data = build("cifar100_binary", cifar(tmp_path / "cifar"))
    (tmp_path / "cifar" / "train.bin").write_bytes(b"x" * 3074)
    with pytest.raises(DataError, match=r"train\.bin record 2 .*cannot be read"):
        data.image_bytes(2)


# --- a split of one's own


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if "cifar" not in layout])
def test_a_test_share_replaces_the_published_split(layout: str, tmp_path: Path) -> None:
    name, write = LAYOUTS[layout]
    root = write(tmp_path)
    ours, published = build(name, root, test_share=0.4), build(name, root)
    held_out = Counter(item.label for item in ours.items if item.split == "test")
    sizes = Counter(item.label for item in ours.items)
    assert held_out == {label: math.ceil(0.4 * size - 1e-9) for label, size in sizes.items()}
    assert [item.id for item in ours.items] == [item.id for item in published.items] and ours.digest != published.digest
    with pytest.raises(ConfigError, match="test_share"):
        build(name, root, test_share=1.0)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=5), st.integers(1, 99), st.randoms())
@settings(max_examples=60, deadline=None)
def test_a_split_anew_takes_the_same_share_of_each_class_whatever_the_order(sizes: list[int], percent: int, shuffle: Any) -> None:
    items = [Item(id=f"{label}/{n}", label=str(label), split="?") for label, size in enumerate(sizes) for n in range(size)]
    split = split_anew(items, percent / 100)
    for label, size in enumerate(sizes):
        held_out = sum(item.split == "test" for item in split if item.label == str(label))
        assert held_out == min(-(-percent * size // 100), size - 1)  # in whole numbers: nothing to round
    mixed = list(items)
    shuffle.shuffle(mixed)
    assert {item.id: item.split for item in split_anew(mixed, percent / 100)} == {item.id: item.split for item in split}


def test_sixty_forty_gives_the_counts_of_the_thesis_for_classes_of_sixty_and_fifty_nine() -> None:
    items = [Item(id=f"{size}/{n}", label=str(size)) for size in (60, 59) for n in range(size)]
    train = Counter(item.label for item in split_anew(items, 0.4) if item.split == "train")
    assert train == {"60": 36, "59": 35}


# --- CUB-200-2011


def test_birds_have_the_published_split_and_their_numbered_class_as_label(tmp_path: Path) -> None:
    data = build("cub200", cub(tmp_path))
    assert [item.label for item in data.items] == [bird for bird in BIRDS for _ in range(5)]
    assert [item.split for item in data.items[:4]] == ["train", "test", "train", "test"]
    assert data.items[0].id == "images/001.Black_footed_Albatross/Black_footed_Albatross_0000.jpg"


@pytest.mark.parametrize(
    ("name", "line", "text", "complaint"),
    [
        ("images.txt", 2, "two", r"images\.txt line 2: expected a number and a value, found 'two'"),
        ("images.txt", 2, "1 a.jpg", r"images\.txt line 2: number 1 comes twice"),
        ("image_class_labels.txt", 2, "99 1", r"image_class_labels\.txt: 15 pictures.*picture 2 is in one of them only"),
        ("image_class_labels.txt", 2, "2 9", r"picture 2 is of class 9, but classes\.txt names 3 classes and no 9"),
        ("image_class_labels.txt", 2, "2 3", r"picture 2 is 001\.Black.* of class '003\.Sooty_Albatross'"),
        ("classes.txt", 1, "1 001.Robin", r"of class '001\.Robin'"),
        ("train_test_split.txt", 4, "4 2", "picture 4 has '2'; 1 .train. or 0 .test. is expected"),
    ],
)
def test_files_of_the_birds_that_disagree_are_told_with_the_picture(
    name: str, line: int, text: str, complaint: str, tmp_path: Path
) -> None:
    path = cub(tmp_path) / name
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[: line - 1], text, *lines[line:]]))
    with pytest.raises(DataError, match=complaint):
        build("cub200", tmp_path)


# --- Stanford Dogs


def test_dogs_have_the_lists_splits_and_their_folder_as_label(tmp_path: Path) -> None:
    data = build("stanford_dogs", dogs(tmp_path))
    assert Counter((item.label, item.split) for item in data.items) == {(d, s): n for d in DOGS for s, n in (("train", 2), ("test", 1))}
    assert data.items[0].id == "Images/n02085620-Chihuahua/n02085620_1.jpg"


def test_lists_of_the_dogs_that_disagree_are_told(tmp_path: Path) -> None:
    dogs(tmp_path)
    shutil.copy(tmp_path / "train_list.mat", tmp_path / "test_list.mat")
    with pytest.raises(DataError, match=r"4 pictures are in train_list\.mat and in test_list\.mat"):
        build("stanford_dogs", tmp_path)
    files = [f"{dog}/{n}.jpg" for dog in DOGS for n in (1, 2)]
    for labels, files_given, complaint in (
        ([1.0, 1, 1, 2], files, "class 1 is of folder n02085620-Chihuahua, but 'n02085782"),
        ([1.0, 2], files, "4 files in file_list, but 2 labels"),
        ([1.0], ["1.jpg"], "file_list names '1.jpg'; a path"),
    ):
        savemat(tmp_path / "test_list.mat", {"file_list": cells(files_given), "labels": np.array(labels)[:, None]})
        with pytest.raises(DataError, match=complaint):
            build("stanford_dogs", tmp_path)


def test_a_mat_file_that_is_none_or_lacks_a_variable_is_told(tmp_path: Path) -> None:
    dogs(tmp_path)
    savemat(tmp_path / "test_list.mat", {"labels": np.ones((2, 1))})
    with pytest.raises(DataError, match=r"test_list\.mat: no variable 'file_list' in it; its variables are: labels"):
        build("stanford_dogs", tmp_path)
    (tmp_path / "test_list.mat").write_bytes(b"no matrix" * 100)
    with pytest.raises(DataError, match=r"test_list\.mat: not a \.mat file that can be read"):
        build("stanford_dogs", tmp_path)


# --- Stanford Cars


@pytest.mark.parametrize("write", [cars, newer_cars])
def test_cars_of_both_layouts_have_numbered_names_as_labels(write: Callable[[Path], Path], tmp_path: Path) -> None:
    data = build("stanford_cars", write(tmp_path))
    labels = ("001.AM General Hummer SUV 2000", "002.Acura RL Sedan 2012")
    assert Counter((item.label, item.split) for item in data.items) == {(c, s): n for c in labels for s, n in (("train", 2), ("test", 1))}


def test_labels_of_the_test_cars_may_lie_in_the_devkit(tmp_path: Path) -> None:
    cars(tmp_path)
    name = "cars_test_annos_withlabels.mat"
    (tmp_path / name).rename(tmp_path / "devkit" / name)
    assert len(build("stanford_cars", tmp_path).items) == 6


def test_test_annotations_without_classes_and_classes_without_a_name_are_told(tmp_path: Path) -> None:
    cars(tmp_path)
    path = tmp_path / "cars_test_annos_withlabels.mat"
    savemat(path, {"annotations": annotations([{"fname": "00001.jpg"}, {"fname": "00002.jpg"}])})
    with pytest.raises(DataError, match=r"withlabels\.mat: an annotation has no field 'class', it has: bbox_x1.*fname"):
        build("stanford_cars", tmp_path)
    savemat(path, {"annotations": annotations([{"class": 7, "fname": "00001.jpg"}])})
    with pytest.raises(DataError, match="of class 7, but there are 2 names"):
        build("stanford_cars", tmp_path)


# --- CIFAR-100, binary


def test_cifar_has_fine_labels_coarse_groups_and_lossless_pictures(tmp_path: Path) -> None:
    data = build("cifar100_binary", cifar(tmp_path))
    assert [(item.id, item.label, item.group, item.split) for item in data.items] == [
        ("train/0", "apple", "fruit", "train"),
        ("train/1", "bear", "large_carnivores", "train"),
        ("train/2", "clock", "fruit", "train"),
        ("train/3", "apple", "large_carnivores", "train"),
        ("test/0", "apple", "fruit", "test"),
        ("test/1", "bear", "large_carnivores", "test"),
    ]
    for row, n in ((2, 2), (5, 1)):
        values = (np.arange(3072) * (n + 1) % 251).astype(np.uint8)
        decoded = np.asarray(Image.open(io.BytesIO(data.image_bytes(row))))
        for channel, y, x in ((0, 0, 0), (1, 3, 7), (2, 31, 30)):
            assert decoded[y, x, channel] == values[channel * 1024 + y * 32 + x]
    assert data.where(5).startswith(str(tmp_path / "test.bin record 1"))


def test_cifar_files_of_another_length_or_with_nameless_classes_are_told(tmp_path: Path) -> None:
    cifar(tmp_path)
    whole = (tmp_path / "train.bin").read_bytes()
    for broken in (whole[:-1], b""):
        (tmp_path / "train.bin").write_bytes(broken)
        with pytest.raises(DataError, match="no whole number of records of 3,074"):
            build("cifar100_binary", tmp_path)
    (tmp_path / "train.bin").write_bytes(b"\x00\x63" + whole[2:])
    with pytest.raises(DataError, match=r"of fine class 99, but fine_label_names\.txt has 3 names"):
        build("cifar100_binary", tmp_path)


def test_the_pickled_version_of_cifar_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    for name in ("train", "test", "meta"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"no train\.bin in it; give the folder cifar-100-binary"):
        build("cifar100_binary", tmp_path)
    assert not (tmp_path / "sprung").exists()
