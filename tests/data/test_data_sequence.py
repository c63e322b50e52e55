"""A sequence of datasets: ids, labels and groups of its parts, one opened dataset for parts of one file, and what it hands on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.checks import check, resolved
from perdure.config import parse
from perdure.data import DATASETS
from perdure.data.dataset import Dataset, split_anew
from perdure.errors import ConfigError, DataError
from perdure.records import Item

LABELS = ("bear", "bus", "cat", "tram")


def table(path: Path, labels: Sequence[str] = LABELS, per_class: int = 5) -> dict[str, str]:
    """A Parquet file whose pictures are the text of their id, in the order of their number; the options that open it."""
    ids = [f"{label}{n}" for n in range(per_class) for label in labels]
    columns = {"image": [key.encode() for key in ids], "label": [key[:-1] for key in ids], "id": ids}
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return {"name": "parquet", "train": str(path)}


def sequence(*parts: dict[str, Any]) -> Dataset:
    return DATASETS.build("sequence", {"parts": list(parts)})


def test_ids_labels_and_groups_carry_the_name_of_their_part(tmp_path: Path) -> None:
    one, two = table(tmp_path / "one.parquet"), table(tmp_path / "two.parquet", ("bus",))
    data = sequence({"dataset": one, "as": "first"}, {"dataset": two, "as": "second"})
    assert [item.group for item in data.items] == ["first"] * 20 + ["second"] * 5
    assert {item.label for item in data.items} == {"first/bear", "first/bus", "first/cat", "first/tram", "second/bus"}
    assert {item.id for item in data.items if item.group == "second"} == {f"second/bus{n}" for n in range(5)}


def test_items_keep_their_splits_and_captions(tmp_path: Path) -> None:
    scenes = {"name": "scenes", "items": 60, "classes": 3, "size": 24}
    alone = DATASETS.build("scenes", {key: value for key, value in scenes.items() if key != "name"})
    part = sequence({"dataset": scenes, "as": "drawn"})
    assert [(item.split, item.captions, item.tags) for item in part.items] == [(i.split, i.captions, i.tags) for i in alone.items]


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return table(tmp_path_factory.mktemp("data") / "all.parquet")


@given(st.lists(st.sets(st.sampled_from(LABELS), min_size=1), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_pictures_and_places_are_those_of_the_row_of_the_part(one_file: dict[str, str], subsets: list[set[str]]) -> None:
    alone = DATASETS.build("parquet", {"train": one_file["train"]})
    data = sequence(*({"dataset": one_file, "as": f"part{n}", "labels": sorted(labels)} for n, labels in enumerate(subsets)))
    place = {item.id: row for row, item in enumerate(alone.items)}
    assert len(data.items) == sum(5 * len(labels) for labels in subsets)
    for row, item in enumerate(data.items):
        name, _, inner = item.id.partition("/")
        assert data.image_bytes(row) == inner.encode()
        assert data.where(row) == f"{name}: {alone.where(place[inner])}"
        assert item.label.removeprefix(f"{name}/") in subsets[int(name.removeprefix("part"))]


def test_parts_of_one_file_share_one_opened_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = table(tmp_path / "one.parquet"), table(tmp_path / "two.parquet")
    opened: list[str] = []

    class Counting(pq.ParquetFile):
        def __init__(self, source: Path) -> None:
            opened.append(source.name)
            super().__init__(source)

    monkeypatch.setattr("perdure.data.parquet.pq.ParquetFile", Counting)
    data = sequence(
        {"dataset": one, "as": "a", "labels": ["bear"]},
        {"dataset": {**one, "label": "label"}, "as": "b", "labels": ["bus"]},  # the same options, one of them written out
        {"dataset": two, "as": "c"},
    )
    assert opened == ["one.parquet", "two.parquet"]
    assert [data.image_bytes(row) for row in (0, 5, 10)] == [b"bear0", b"bus0", b"bear0"]


def test_a_part_can_have_a_split_of_its_own(tmp_path: Path) -> None:
    one = table(tmp_path / "one.parquet")
    data = sequence({"dataset": one, "as": "a", "test_share": 0.4}, {"dataset": one, "as": "b"})
    alone = DATASETS.build("parquet", {"train": one["train"]})
    assert [item.split for item in data.items[:20]] == [item.split for item in split_anew(alone.items, 0.4)]
    assert [item.split for item in data.items[20:]] == [item.split for item in alone.items]


def test_the_digest_follows_every_part_its_name_its_labels_and_its_split(tmp_path: Path) -> None:
    one, two = table(tmp_path / "one.parquet"), table(tmp_path / "two.parquet", per_class=6)
    base: dict[str, Any] = {"dataset": one, "as": "a"}
    variants = [
        [base],
        [{**base, "as": "b"}],
        [{**base, "labels": ["bus"]}],
        [{**base, "test_share": 0.4}],
        [{**base, "dataset": two}],
        [base, {**base, "as": "b"}],
    ]
    digests = [sequence(*parts).digest for parts in variants]
    assert len(set(digests)) == len(variants) and digests == [sequence(*parts).digest for parts in variants]
    table(tmp_path / "one.parquet", per_class=7)
    assert sequence(base).digest != digests[0]


def test_a_label_that_a_part_does_not_have_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"part 'a': labels: no class 'baer'\. Did you mean 'bear'.* parquet has 4 classes"):
        sequence({"dataset": table(tmp_path / "one.parquet"), "as": "a", "labels": ["baer", "bus"]})


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ([], "parts: List should have at least 1 item"),
        ([{"dataset": "scenes"}], "parts.0.as: this option is required"),
        ([{"dataset": "scenes", "as": "a/b"}], "parts.0.as: String should match pattern"),
        ([{"dataset": "scenes", "as": "a"}, {"dataset": "scenes", "as": "a"}], "two parts are called 'a'"),
        ([{"dataset": "scense", "as": "a"}], "no dataset named 'scense'.*Did you mean 'scenes'"),
        ([{"dataset": {"name": "scenes", "itmes": 9}, "as": "a"}], "itmes: no such option. Did you mean 'items'"),
        ([{"dataset": {"name": "sequence", "parts": []}, "as": "a"}], "no dataset named 'sequence'"),
        ([{"dataset": "scenes", "as": "a", "labels": []}], "parts.0.labels"),
        ([{"dataset": "scenes", "as": "a", "test_share": 0}], "parts.0.test_share"),
    ],
)
def test_parts_that_are_wrong_are_found_before_any_file_is_opened(parts: list[Any], complaint: str) -> None:
    said = "\n".join(check(parse({"stream": {"dataset": {"name": "sequence", "parts": parts}}})))
    with pytest.raises(ConfigError, match=complaint):
        sequence(*parts)
    assert "stream.dataset.parts" in said


def test_a_resolved_configuration_has_every_option_of_every_part_and_resolves_to_itself() -> None:
    part = {"dataset": {"name": "parquet", "train": "x.parquet"}, "as": "a"}
    config = resolved(parse({"stream": {"dataset": {"name": "sequence", "parts": [part]}}}))
    (plain,) = config.plain()["stream"]["dataset"]["parts"]
    assert plain["as"] == "a" and plain["dataset"]["image"] == "image" and plain["labels"] is None
    assert resolved(parse(config.plain())) == config


def test_an_item_is_not_changed_by_being_in_a_sequence(tmp_path: Path) -> None:
    alone: Sequence[Item] = DATASETS.build("parquet", {"train": table(tmp_path / "one.parquet")["train"]}).items
    before = list(alone)
    sequence({"dataset": {"name": "parquet", "train": str(tmp_path / "one.parquet")}, "as": "a"})
    assert list(alone) == before
