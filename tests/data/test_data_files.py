"""Image folders, Karpathy JSON and torchvision's datasets: files on disk, and what happens when they are not as they should be."""

import gzip
import io
import json
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perdure.data import DATASETS
from perdure.data.dataset import Dataset
from perdure.data.image_folder import ImageFolder
from perdure.data.karpathy import Karpathy
from perdure.errors import ConfigError, DataError


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (value, 0, 0)).save(path)
    return path


# --- image folder


def test_a_folder_is_a_class_and_the_id_is_the_path_below_the_root(tmp_path: Path) -> None:
    picture(tmp_path / "dog" / "deep" / "2.png")
    picture(tmp_path / "cat" / "1.JPG")
    data = ImageFolder(root=str(tmp_path))
    assert [(item.id, item.label) for item in data.items] == [("cat/1.JPG", "cat"), ("dog/deep/2.png", "dog")]
    assert data.image_bytes(1) == (tmp_path / "dog" / "deep" / "2.png").read_bytes()
    assert "2.png" in data.where(1) and "row 1" in data.where(1)


def test_a_test_root_is_the_test_split(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "cat" / "1.png")
    picture(tmp_path / "test" / "cat" / "1.png")
    data = ImageFolder(root=str(tmp_path / "train"), test_root=str(tmp_path / "test"))
    assert [(item.id, item.split) for item in data.items] == [("train/cat/1.png", "train"), ("test/cat/1.png", "test")]


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "notes.txt").write_text("soon")
    with pytest.raises(DataError, match="no pictures in class folder dog"):
        ImageFolder(root=str(tmp_path))


def test_folders_that_are_splits_are_told_from_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / "cat" / "1.png")
    with pytest.raises(DataError, match="are splits"):
        ImageFolder(root=str(tmp_path))


def test_a_missing_root_or_one_without_folders_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        ImageFolder(root=str(tmp_path / "nowhere"))
    picture(tmp_path / "1.png")
    with pytest.raises(DataError, match="no class folders"):
        ImageFolder(root=str(tmp_path))


def test_files_that_are_no_pictures_are_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    with caplog.at_level(logging.WARNING):
        assert len(ImageFolder(root=str(tmp_path)).items) == 1
    assert "1 files are not pictures" in caplog.text


def test_a_file_that_went_away_is_named(tmp_path: Path) -> None:
    path = picture(tmp_path / "cat" / "1.png")
    data = ImageFolder(root=str(tmp_path))
    path.unlink()
    with pytest.raises(DataError, match=r"1\.png row 0 \(id 'cat/1\.png'\): no such file"):
        data.image_bytes(0)


def test_digest_of_a_folder_follows_its_files(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "1.png")
    first = ImageFolder(root=str(tmp_path)).digest
    assert ImageFolder(root=str(tmp_path)).digest == first
    picture(tmp_path / "cat" / "2.png")
    assert ImageFolder(root=str(tmp_path)).digest != first


# --- Karpathy


def annotations(folder: Path, images: list[dict[str, object]]) -> dict[str, str]:
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    return {"annotations": str(folder / "dataset.json"), "images": str(folder)}


def entry(name: str, split: str = "train", **more: object) -> dict[str, object]:
    return {"filename": name, "split": split, "sentences": [{"raw": " a word . "}, {"raw": ""}], **more}


def test_karpathy_reads_captions_splits_and_file_paths(tmp_path: Path) -> None:
    picture(tmp_path / "val2014" / "x.png", 7)
    data = Karpathy(
        **annotations(
            tmp_path,
            [
                entry("x.png", "restval", filepath="val2014", cocoid=91, imgid=0),
                entry("y.png", "test", imgid=4, category="dog", group="pets"),
                entry("z.png", "val"),
            ],
        )
    )
    assert [(i.id, i.label, i.group, i.captions, i.split) for i in data.items] == [
        ("91", "x", "", ("a word .",), "train"),
        ("4", "dog", "pets", ("a word .",), "test"),
    ]
    assert data.image_bytes(0) == (tmp_path / "val2014" / "x.png").read_bytes()
    assert data.where(1) == "dataset.json images[1] row 1 (id '4')"
    with pytest.raises(DataError, match=r"images\[1\].*no such file"):
        data.image_bytes(1)


def test_karpathy_can_train_and_test_on_other_splits(tmp_path: Path) -> None:
    data = Karpathy(**annotations(tmp_path, [entry("x.png"), entry("z.png", "val")]), test=("val",))
    assert [item.split for item in data.items] == ["train", "test"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not a JSON file"),
        ("[]", 'expected {"images"'),
        ('{"images": [{"split": "train"}]}', r'images\[0\]: no "filename"'),
        ('{"images": [{"filename": "a.png", "split": "train", "sentences": ["a"]}]}', r'images\[0\] \(a\.png\): "sentences"'),
        ('{"images": [{"filename": "a.png", "split": "dev"}]}', "no image of split train, restval, test"),
    ],
)
def test_karpathy_of_another_shape_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(DataError, match=complaint):
        Karpathy(annotations=str(tmp_path / "d.json"), images=str(tmp_path))


def test_karpathy_refuses_ids_that_repeat_and_a_missing_folder(tmp_path: Path) -> None:
    given = annotations(tmp_path, [entry("x.png", imgid=1), entry("y.png", imgid=1)])
    with pytest.raises(DataError, match="not unique: '1' in rows 0, 1"):
        Karpathy(**given)
    with pytest.raises(DataError, match="no such folder of images"):
        Karpathy(annotations=given["annotations"], images=str(tmp_path / "nowhere"))


# --- torchvision


@pytest.fixture(scope="module")
def _torchvision() -> None:
    try:
        from perdure.torchvision_guard import import_torchvision

        import_torchvision()
    except ImportError as error:
        pytest.skip(f"torchvision is not importable here: {error}")


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Torchvision's MNIST with three training pictures and two test pictures."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, labels in (("train", [3, 1, 3]), ("t10k", [1, 0])):
        pictures = np.arange(len(labels) * 28 * 28, dtype=np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, len(labels), 28, 28) + pictures.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(labels)) + bytes(labels))
        for file in raw.glob(f"{prefix}*ubyte"):
            file.with_suffix(".gz").write_bytes(gzip.compress(file.read_bytes()))
    return tmp_path


@pytest.mark.usefixtures("_torchvision")
def test_torchvision_gives_both_splits_with_class_names_and_lossless_pictures(mnist: Path) -> None:
    data: Dataset = DATASETS.build("torchvision", {"dataset": "MNIST", "root": str(mnist)})
    assert [(item.id, item.label, item.split) for item in data.items] == [
        ("train/0", "3 - three", "train"),
        ("train/1", "1 - one", "train"),
        ("train/2", "3 - three", "train"),
        ("test/0", "1 - one", "test"),
        ("test/1", "0 - zero", "test"),
    ]
    expected = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)[1]
    assert (np.asarray(Image.open(io.BytesIO(data.image_bytes(1)))) == expected).all()
    assert data.where(3) == "torchvision MNIST row 3 (id 'test/0')"


@pytest.mark.usefixtures("_torchvision")
def test_torchvision_of_a_single_set_is_split_by_the_hash_of_the_id() -> None:
    options = {"size": 60, "image_size": (3, 8, 8), "num_classes": 2}
    data: Dataset = DATASETS.build("torchvision", {"dataset": "FakeData", "root": "/nonexistent", "train_options": options})
    assert len(data.items) == 60 and {item.label for item in data.items} == {"0", "1"}
    assert 10 <= sum(item.split == "test" for item in data.items) <= 12


@pytest.mark.usefixtures("_torchvision")
def test_torchvision_without_files_or_of_an_unknown_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="set download: true"):
        DATASETS.build("torchvision", {"dataset": "MNIST", "root": str(tmp_path)})
    with pytest.raises(DataError, match="Did you mean 'CIFAR100'"):
        DATASETS.build("torchvision", {"dataset": "CIFAR1000", "root": str(tmp_path)})


def test_the_catalog_holds_every_source_and_suggests_names() -> None:
    published = {"cub200", "stanford_dogs", "stanford_cars", "cifar100_binary", "flickr8k", "flickr30k", "coco_captions", "cuhk_pedes"}
    multi_label, wrappers = {"mirflickr25k", "nus_wide"}, {"sequence", "modalities"}
    assert set(DATASETS) == {"scenes", "parquet", "image_folder", "karpathy", "torchvision", *published, *multi_label, *wrappers}
    with pytest.raises(ConfigError, match="Did you mean 'parquet'"):
        DATASETS.build("parket", {})
    for name in DATASETS:
        assert DATASETS.schema(name).model_fields, name
