"""Parquet: any file with image bytes, by column names; bad input says where and what."""

import datetime
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from perdure.data import DATASETS
from perdure.data.parquet import Parquet
from perdure.errors import ConfigError, DataError


def png(value: int = 0, mode: str = "RGB", size: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (size, size), value).save(out, format="PNG")
    return out.getvalue()


def write(path: Path, columns: dict[str, object], row_group_size: int = 1000) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)


def test_reads_rows_of_train_then_test_with_the_columns_that_are_named(tmp_path: Path) -> None:
    train = write(
        tmp_path / "a.parquet", {"img": [png(1), png(2)], "fine": [3, 4], "words": ["a cat", None], "src": ["x", "y"], "key": ["p", "q"]}
    )
    test = write(tmp_path / "b.parquet", {"img": [png(3)], "fine": [3], "words": ["a dog"], "src": ["x"], "key": ["r"]})
    data = Parquet(train=train, test=test, image="img", label="fine", text="words", group="src", id="key")
    assert [(i.id, i.label, i.group, i.captions, i.split) for i in data.items] == [
        ("p", "3", "x", ("a cat",), "train"),
        ("q", "4", "y", (), "train"),
        ("r", "3", "x", ("a dog",), "test"),
    ]
    assert [data.image_bytes(row) for row in range(3)] == [png(1), png(2), png(3)]
    assert data.where(2) == "b.parquet row 0 (id 'r')"


def test_row_groups_are_found_whatever_their_size(tmp_path: Path) -> None:
    pictures = [png(value) for value in range(23)]
    file = write(tmp_path / "a.parquet", {"image": pictures, "label": ["c"] * 23}, row_group_size=5)
    data = Parquet(train=file)
    assert [data.image_bytes(row) for row in reversed(range(23))] == pictures[::-1]


def test_captions_may_be_lists_and_empty_ones_are_dropped(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"image": [png()] * 3, "label": ["c"] * 3, "text": [["one", "", "two"], [], None]})
    assert [item.captions for item in Parquet(train=file, text="text").items] == [("one", "two"), (), ()]


def test_tags_are_all_labels_of_a_row_once_each_from_lists_or_single_values(tmp_path: Path) -> None:
    columns = {
        "image": [png()] * 4,
        "label": ["sky"] * 4,
        "all": [["sky", "sea", "sky"], ["", "meer \u6d77"], [], None],
        "one": ["sky", "", None, "b c"],
        "numbers": [[3, 1], [0], None, []],
        "number": [0, 7, None, 7],
    }
    file = write(tmp_path / "a.parquet", columns)

    def tags(name: str) -> list[tuple[str, ...]]:
        return [item.tags for item in Parquet(train=file, tags=name).items]

    assert tags("all") == [("sky", "sea"), ("meer \u6d77",), (), ()]
    assert tags("one") == [("sky",), (), (), ("b c",)]
    assert tags("numbers") == [("3", "1"), ("0",), (), ()]
    assert tags("number") == [("0",), ("7",), (), ("7",)]
    assert {item.tags for item in Parquet(train=file).items} == {()}


def test_tags_by_number_have_the_names_that_the_file_describes(tmp_path: Path) -> None:
    table = pa.table({"image": [png()] * 2, "label": ["c", "d"], "all": [[1, 0], [1]], "wrong": [[0], [2]]})
    classes = {"names": ["sky", "sea"], "_type": "ClassLabel"}
    features = {"all": {"feature": classes, "_type": "List"}, "wrong": {"feature": classes, "_type": "Sequence"}}
    file = tmp_path / "a.parquet"
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), file)
    assert [item.tags for item in Parquet(train=str(file), tags="all").items] == [("sea", "sky"), ("sea",)]
    with pytest.raises(DataError, match="column 'wrong' has numbers beyond the 2 class names"):
        Parquet(train=str(file), tags="wrong")


def test_payload_is_the_named_columns_dates_as_texts_and_nothing_where_a_cell_is_empty(tmp_path: Path) -> None:
    columns = {
        "image": [png()] * 2,
        "label": [1, 1],
        "price": [1.5, None],
        "made": [datetime.date(2026, 11, 21), datetime.date(2025, 1, 2)],
        "sale": [True, False],
        "parts": [[1], [2]],
    }
    file = write(tmp_path / "a.parquet", columns)
    data = Parquet(train=file, payload=("price", "made", "sale"))
    assert [item.payload for item in data.items] == [
        {"price": 1.5, "made": "2026-11-21", "sale": True},
        {"made": "2025-01-02", "sale": False},
    ]
    assert data.digest != Parquet(train=file).digest
    with pytest.raises(DataError, match="column 'parts' holds list"):
        Parquet(train=file, payload=("parts",))
    with pytest.raises(DataError, match=r"no column 'prize'\. Did you mean 'price'"):
        Parquet(train=file, payload=("prize",))


def test_id_is_the_id_column_else_file_and_row(tmp_path: Path) -> None:
    assert [i.id for i in Parquet(train=write(tmp_path / "a.parquet", {"image": [png()] * 2, "label": [1, 1], "id": [7, 8]})).items] == [
        "7",
        "8",
    ]
    assert [i.id for i in Parquet(train=write(tmp_path / "b.parquet", {"image": [png()] * 2, "label": [1, 1]})).items] == [
        "b.parquet:0",
        "b.parquet:1",
    ]


def test_ids_that_come_in_both_splits_are_prefixed_by_the_split(tmp_path: Path) -> None:
    train = write(tmp_path / "a.parquet", {"image": [png()] * 2, "label": [1, 1], "id": ["0", "1"]})
    test = write(tmp_path / "b.parquet", {"image": [png()], "label": [1], "id": ["0"]})
    assert [item.id for item in Parquet(train=train, test=test).items] == ["train/0", "train/1", "test/0"]


def test_hugging_face_layout_bytes_in_a_struct_and_class_names_in_the_metadata(tmp_path: Path) -> None:
    (tmp_path / "beside.png").write_bytes(png(9))
    table = pa.table({"image": [{"bytes": png(5), "path": None}, {"bytes": None, "path": "beside.png"}], "label": [1, 0]})
    described = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(described)}), tmp_path / "a.parquet")
    data = Parquet(train=str(tmp_path / "a.parquet"))
    assert [item.label for item in data.items] == ["dog", "cat"]
    assert [data.image_bytes(0), data.image_bytes(1)] == [png(5), png(9)]


def test_a_folder_and_a_pattern_stand_for_their_files(tmp_path: Path) -> None:
    for name in ("x-00001.parquet", "x-00000.parquet"):
        write(tmp_path / name, {"image": [png()], "label": ["c"]})
    expected = ["x-00000.parquet:0", "x-00001.parquet:0"]
    assert [item.id for item in Parquet(train=str(tmp_path)).items] == expected
    assert [item.id for item in Parquet(train=str(tmp_path / "x-*.parquet")).items] == expected


def test_without_test_a_fifth_of_each_class_is_held_out_whatever_the_row_order(tmp_path: Path) -> None:
    ids = [f"i{n}" for n in range(60)]
    labels = [f"c{n % 3}" for n in range(60)]
    one = Parquet(train=write(tmp_path / "a.parquet", {"image": [png()] * 60, "label": labels, "id": ids}))
    other = Parquet(train=write(tmp_path / "b.parquet", {"image": [png()] * 60, "label": labels[::-1], "id": ids[::-1]}))
    held = {item.id for item in one.items if item.split == "test"}
    assert held == {item.id for item in other.items if item.split == "test"}
    assert [sum(item.split == "test" and item.label == f"c{k}" for item in one.items) for k in range(3)] == [4, 4, 4]


def test_a_wrong_column_is_answered_with_the_columns_and_a_suggestion(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"image": [png()], "fine_label": ["c"], "words": ["w"]})
    with pytest.raises(DataError) as caught:
        Parquet(train=file, image="imgae", label="fine_lable")
    message = str(caught.value)
    assert "a.parquet" in message and "no column 'imgae'" in message and "Did you mean 'image'?" in message
    assert "Did you mean 'fine_label'?" in message and "image, fine_label, words" in message


def test_a_missing_file_is_named_with_what_lies_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"image": [png()], "label": ["c"]})
    with pytest.raises(DataError, match=r"tran\.parquet: no such file\. Did you mean 'train\.parquet'\?"):
        Parquet(train=str(tmp_path / "tran.parquet"))
    with pytest.raises(DataError, match="no file matches"):
        Parquet(train=str(tmp_path / "z*.parquet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \*\.parquet in this folder"):
        Parquet(train=str(tmp_path / "empty"))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("hello")
    with pytest.raises(DataError, match="not a Parquet file"):
        Parquet(train=str(tmp_path / "a.parquet"))


def test_columns_of_another_type_are_refused(tmp_path: Path) -> None:
    columns = {"image": [png()], "label": ["c"], "number": [1], "pair": [[1, 2]]}
    file = write(tmp_path / "a.parquet", columns)
    with pytest.raises(DataError, match="column 'number' holds int64; image bytes are expected"):
        Parquet(train=file, image="number")
    with pytest.raises(DataError, match="a label is a string, a number or a boolean"):
        Parquet(train=file, label="pair")
    with pytest.raises(DataError, match="captions are a string or a list of strings"):
        Parquet(train=file, text="number")
    with pytest.raises(DataError, match="column 'image' holds binary; tags are a string, a number or a boolean, or a list of these"):
        Parquet(train=file, tags="image")
    with pytest.raises(DataError, match=r"column 'pairs' holds .*; tags are"):
        Parquet(train=write(tmp_path / "b.parquet", {**columns, "pairs": [[[1, 2]]]}), tags="pairs")
    with pytest.raises(DataError, match=r"no column 'numbr'\. Did you mean 'number'"):
        Parquet(train=file, tags="numbr")


def test_an_empty_label_names_file_and_row(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"image": [png()] * 2, "label": ["c", None]})
    with pytest.raises(DataError, match=r"a\.parquet row 1: column 'label' is empty"):
        Parquet(train=file)


def test_a_null_image_names_file_row_and_id_when_it_is_asked_for(tmp_path: Path) -> None:
    data = Parquet(train=write(tmp_path / "a.parquet", {"image": [png(), None], "label": ["c", "c"], "id": ["p", "q"]}))
    with pytest.raises(DataError, match=r"a\.parquet row 1 \(id 'q'\): no image"):
        data.image_bytes(1)


def test_ids_that_repeat_inside_a_split_are_named_with_their_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"image": [png()] * 4, "label": ["c"] * 4, "id": ["p", "q", "p", "r"]})
    with pytest.raises(DataError, match="1 ids are not unique: 'p' in rows 0, 2"):
        Parquet(train=file)


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())})
    with pytest.raises(DataError, match="no items at all"):
        Parquet(train=file)


def test_digest_changes_with_the_file_and_with_the_options_and_not_otherwise(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"image": [png()] * 2, "label": ["c", "d"], "other": ["x", "y"]})
    first = Parquet(train=file)
    assert first.digest == Parquet(train=file).digest
    assert first.digest != Parquet(train=file, label="other").digest
    assert first.digest != Parquet(train=file, tags="other").digest
    write(tmp_path / "a.parquet", {"image": [png(1)] * 3, "label": ["c", "d", "d"], "other": ["x", "y", "y"]})
    assert first.digest != Parquet(train=file).digest


def test_survives_pickling(tmp_path: Path) -> None:
    data = Parquet(train=write(tmp_path / "a.parquet", {"image": [png(3)], "label": ["c"]}))
    data.image_bytes(0)
    assert pickle.loads(pickle.dumps(data)).image_bytes(0) == png(3)


def test_is_built_from_a_config_with_a_suggestion_for_a_misspelt_option(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"image": [png()], "label": ["c"]})
    assert len(DATASETS.build("parquet", {"train": file}).items) == 1
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        DATASETS.build("parquet", {"trian": file})


@pytest.mark.data
def test_cifar100_opens() -> None:
    import os

    folder = Path(os.environ.get("PERDURE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "cifar100"
    if not (folder / "test.parquet").is_file():
        pytest.skip(f"no CIFAR-100 in {folder}; set PERDURE_DATA to the data folder")
    data = Parquet(train=str(folder / "test.parquet"))
    assert len(data.items) == 10_000 and len({item.label for item in data.items}) == 100
    assert np.asarray(Image.open(io.BytesIO(data.image_bytes(9_999)))).shape == (32, 32, 3)
