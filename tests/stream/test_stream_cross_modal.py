"""The cross-modal kind is the two others, of items that all have words."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from perdure.checks import check
from perdure.config import parse
from perdure.errors import ConfigError, DataError
from perdure.records import Item
from perdure.stream import STREAMS, TaskStream

ITEMS = [
    Item(f"{i}", f"class {i % 6}", f"group {i % 3}", captions=(f"words {i}", "more"), split="test" if i % 5 == 0 else "train")
    for i in range(120)
]
ROWS = np.arange(len(ITEMS))


def build(items: list[Item] = ITEMS, **options: Any) -> TaskStream:
    return STREAMS.build("cross_modal", options, items, ROWS, 7)


def same(one: TaskStream, other: TaskStream) -> bool:
    def told(stream: TaskStream) -> list[Any]:
        return [(task.name, task.classes, task.train.tolist(), task.query.tolist(), task.gallery.tolist()) for task in stream.tasks]

    return told(one) == told(other) and one.classes == other.classes and np.array_equal(one.labels, other.labels)


@pytest.mark.parametrize("order", ["sorted", "seeded", ["group 2", "group 0"]])
def test_by_group_it_is_by_group(order: Any) -> None:
    assert same(build(order=order), STREAMS.build("by_group", {"order": order}, ITEMS, ROWS, 7))
    assert same(build(by="group"), build())


@pytest.mark.parametrize("order", ["sorted", "seeded", [f"class {c}" for c in (3, 1, 0, 5)]])
def test_by_class_it_is_class_incremental(order: Any) -> None:
    options = {"first": 2, "step": 1, "order": order}
    assert same(build(by="class", **options), STREAMS.build("class_incremental", options, ITEMS, ROWS, 7))


def test_items_without_words_are_refused_and_counted() -> None:
    silent = [replace(item, captions=()) if number in (5, 50) else item for number, item in enumerate(ITEMS)]
    with pytest.raises(DataError, match=r"2 of 120 items have no caption, such as '5'.*stream\.dataset\.text"):
        build(silent)
    assert len(build(silent, order=["group 0", "group 1"]).tasks) == 2, "what is in no task needs no words"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": "class"}, "by=class: first and step missing"),
        ({"by": "class", "first": 2}, "by=class: step missing"),
        ({"first": 2}, "by=group: a task is a whole group, so first=2 means nothing"),
        ({"by": "class", "first": 20, "step": 1}, "first=20"),
        ({"order": ["group 9"]}, "no group 'group 9'"),
    ],
)
def test_numbers_that_do_not_fit_are_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(**options)


@pytest.mark.parametrize("text", ["none", {"name": "none"}])
def test_a_run_without_a_text_tower_is_refused_before_the_data_is_read(text: Any) -> None:
    config = parse({"stream": {"kind": "cross_modal"}, "encoder": {"name": "small_resnet", "text": text}})
    assert any("encoder.text=none: stream.kind=cross_modal learns pictures with captions" in problem for problem in check(config))
    assert check(parse({"stream": {"kind": "cross_modal"}})) == []
