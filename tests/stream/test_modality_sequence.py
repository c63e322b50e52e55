"""A stream of modalities: one task each, the same classes in all of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from perdure.errors import ConfigError, DataError
from perdure.records import Item, Modality
from perdure.stream import STREAMS, TaskStream


def items_of(*modalities: Modality, classes: int = 3) -> list[Item]:
    return [
        Item(f"{modality}/{label}/{n}", f"c{label}", split="train" if n < 3 else "test", modality=modality)
        for modality in modalities
        for label in range(classes)
        for n in range(5)
    ]


ITEMS = items_of("image", "text", "sketch")


def cut(items: Sequence[Item] = ITEMS, **options: object) -> TaskStream:
    return STREAMS.build("modality_sequence", options, items, np.arange(len(items)), 0)


def test_each_modality_is_a_task_with_every_class_and_rows_of_its_own() -> None:
    stream = cut(order=["text", "image", "sketch"])
    assert [(task.index, task.name, task.modality) for task in stream.tasks] == [
        (0, "text", "text"),
        (1, "image", "image"),
        (2, "sketch", "sketch"),
    ]
    for task in stream.tasks:
        assert task.classes == stream.classes == ("c0", "c1", "c2")
        assert {ITEMS[row].modality for row in [*task.train, *task.query]} == {task.modality}
        assert {ITEMS[row].split for row in task.train} == {"train"} and {ITEMS[row].split for row in task.query} == {"test"}
    assert all(stream.classes[label] == item.label for label, item in zip(stream.labels, ITEMS, strict=True))


def test_without_an_order_they_come_as_the_data_has_them_and_those_not_named_are_left_out() -> None:
    assert [task.name for task in cut().tasks] == ["image", "text", "sketch"]
    stream = cut(order=["sketch", "text"])
    assert [task.name for task in stream.tasks] == ["sketch", "text"]
    assert all((label < 0) == (item.modality == "image") for label, item in zip(stream.labels, ITEMS, strict=True))


def test_streams_of_other_kinds_know_no_modality() -> None:
    plain = [replace(item, modality=None) for item in items_of("image", classes=4)]
    stream = STREAMS.build("class_incremental", {"first": 2, "step": 2}, plain, np.arange(len(plain)), 0)
    assert [task.modality for task in stream.tasks] == [None, None]


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ConfigError, match=r"no item of this dataset is of one modality alone; wrap it: stream.dataset={name: modalities"):
        cut([replace(item, modality=None) for item in ITEMS])
    with pytest.raises(DataError, match=r"5 of 50 items have no modality, such as 'plain/0'"):
        cut([*ITEMS, *(Item(f"plain/{n}", "c0") for n in range(5))])
    with pytest.raises(ConfigError, match="no modality 'sketch' in the data"):
        cut(items_of("image", "text"), order=["image", "sketch"])
    with pytest.raises(ConfigError, match="modality 'text' is named 2 times"):
        cut(order=["text", "text"])
    with pytest.raises(DataError, match=r"no text of class 'c1' \(1 classes missing\); each modality needs every class"):
        cut([item for item in ITEMS if (item.modality, item.label) != ("text", "c1")])
