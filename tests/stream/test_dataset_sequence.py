"""Datasets one after another: what is learned, what is unseen, in which order; nothing unseen is ever trained on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import ConfigError, DataError
from perdure.records import Item
from perdure.stream import STREAMS, TaskStream

SIZES = {"birds": 6, "dogs": 4, "cars": 5}


def dataset(sizes: dict[str, int] = SIZES, train: int = 3, test: int = 2) -> list[Item]:
    """`train` + `test` items of each class of each dataset."""
    return [
        Item(id=f"{name}/{label}/{n}", label=f"{name}/c{label}", group=name, split="train" if n < train else "test")
        for name, classes in sizes.items()
        for label in range(classes)
        for n in range(train + test)
    ]


def cut(items: Sequence[Item], seed: int = 0, **options: Any) -> TaskStream:
    return STREAMS.build("dataset_sequence", options, items, np.arange(len(items)), seed)


def labels_of(items: Sequence[Item], rows: np.ndarray) -> set[str]:
    return {items[row].label for row in rows}


COUNT = st.integers(0, 3) | st.floats(0.05, 0.7)


@given(
    sizes=st.dictionaries(st.sampled_from(list("abcde")), st.integers(4, 7), min_size=1),
    unseen=COUNT | st.dictionaries(st.sampled_from(list("abcde")), COUNT),
    order=st.sampled_from(["given", "sorted", "seeded", "reversed"]),
    class_order=st.sampled_from(["sorted", "seeded"]),
    unseen_rows=st.sampled_from(["all", "test"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=100, deadline=None)
def test_every_row_is_in_exactly_one_place_and_nothing_unseen_is_trained_on(
    sizes: dict[str, int], unseen: Any, order: str, class_order: str, unseen_rows: str, seed: int
) -> None:
    items = dataset(sizes)
    names: Any = list(reversed(sizes)) if order == "reversed" else order
    if isinstance(unseen, dict):
        unseen = {name: value for name, value in unseen.items() if name in sizes}
    stream = cut(items, seed, unseen=unseen, order=names, class_order=class_order, unseen_rows=unseen_rows)
    apart = [task for task in stream.unseen_of if task is not None]
    held_out = set().union(*(labels_of(items, task.query) for task in apart))
    learned = set().union(*(task.classes for task in stream.tasks))

    # every row once: in the train or in the test rows of one task, or in what is unseen, or (train rows of unseen classes) nowhere
    places = np.zeros(len(items), dtype=int)
    for task in stream.tasks:
        for rows in (task.train, task.query):
            places[rows] += 1
    for task in apart:
        places[task.query] += 1
    nowhere = {row for row, item in enumerate(items) if unseen_rows == "test" and item.label in held_out and item.split == "train"}
    assert set(np.flatnonzero(places == 0)) == nowhere and places.max() == 1

    # seen and unseen are apart, and together they are all classes of each dataset
    assert not held_out & learned and held_out | learned == {item.label for item in items}
    assert not any(items[row].label in held_out for task in stream.tasks for row in task.train)
    for task in stream.tasks:
        assert {items[row].group for row in [*task.train, *task.query]} == {task.name}
        assert {items[row].split for row in task.train} == {"train"} and {items[row].split for row in task.query} == {"test"}
        assert np.array_equal(task.query, task.gallery)
        own = stream.unseen_of[task.index] if stream.unseen_of else None
        if own is not None:
            assert {items[row].group for row in own.query} == {task.name} and own.index == task.index and len(own.train) == 0
            assert own.classes == () and np.array_equal(own.query, own.gallery)

    # the numbers, and the order
    asked = unseen if isinstance(unseen, dict) else dict.fromkeys(sizes, unseen)
    for task in stream.tasks:
        value = asked.get(task.name, 0)
        count = round(value * sizes[task.name]) if 0 < value < 1 else value
        assert len(task.classes) == sizes[task.name] - count
    expected = {"given": list(sizes), "sorted": sorted(sizes), "reversed": list(reversed(sizes))}.get(order)
    assert expected is None or [task.name for task in stream.tasks] == expected
    assert set(task.name for task in stream.tasks) == set(sizes)

    # class ids: a label each, the unseen ones last
    for row, number in enumerate(stream.labels):
        assert (number < 0) if row in nowhere else stream.classes[number] == items[row].label
    assert set(stream.classes[: len(learned)]) == learned and set(stream.classes[len(learned) :]) == held_out


def test_half_unseen_of_sorted_classes_is_the_rule_of_metric_learning() -> None:
    stream = cut(dataset(), unseen=0.5)
    items = dataset()
    assert [task.classes for task in stream.tasks] == [
        ("birds/c0", "birds/c1", "birds/c2"),
        ("dogs/c0", "dogs/c1"),
        ("cars/c0", "cars/c1", "cars/c2"),
    ]
    assert [sorted(labels_of(items, task.query)) for task in stream.unseen_of if task is not None] == [
        ["birds/c3", "birds/c4", "birds/c5"],
        ["dogs/c2", "dogs/c3"],
        ["cars/c3", "cars/c4"],
    ]
    assert [len(task.query) for task in stream.unseen_of if task is not None] == [15, 10, 10], "all their items, as in the thesis"


def test_numbers_by_name_are_those_of_the_thesis_and_a_dataset_without_is_measured_on_what_it_learned_alone() -> None:
    stream = cut(dataset(), unseen={"birds": 2, "cars": 0.4})
    assert [len(task.classes) for task in stream.tasks] == [4, 4, 3]
    assert [task and task.name for task in stream.unseen_of] == ["birds, unseen", None, "cars, unseen"]
    assert len(stream.measured()) == 5


def test_without_unseen_classes_there_is_nothing_apart() -> None:
    stream = cut(dataset())
    assert stream.unseen is None and stream.unseen_of == () and stream.measured() == stream.tasks


def test_datasets_that_are_not_in_the_order_are_left_out() -> None:
    items = dataset()
    stream = cut(items, order=["cars", "birds"], unseen=1)
    assert [task.name for task in stream.tasks] == ["cars", "birds"]
    assert all((stream.labels[row] < 0) == (item.group == "dogs") for row, item in enumerate(items))


def test_a_seed_draws_the_unseen_classes_and_the_order_of_the_datasets() -> None:
    items = dataset()
    drawn = {frozenset(cut(items, seed, unseen=0.5, class_order="seeded").tasks[0].classes) for seed in range(8)}
    orders = {tuple(task.name for task in cut(items, seed, order="seeded").tasks) for seed in range(8)}
    assert len(drawn) > 1 and len(orders) > 1
    assert {frozenset(cut(items, seed, unseen=0.5).tasks[0].classes) for seed in range(3)} == {frozenset(f"birds/c{n}" for n in range(3))}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"unseen": 4}, r"(?s)unseen=4 of dataset 'dogs', which has 4 classes; give a number of classes that leaves one at least"),
        ({"unseen": {"dogs": 4, "bords": 1}}, r"(?s)no dataset 'bords' in the data. Did you mean 'birds'.*unseen=4 of dataset 'dogs'"),
        ({"unseen": -1}, "unseen=-1"),
        ({"unseen": 1.5}, "unseen=1.5"),
        ({"order": ["birds", "cats"]}, "order: no dataset 'cats' in the data. Did you mean 'cars'"),
        ({"order": "givn"}, "order"),
        ({"unseen_rows": "train"}, "unseen_rows"),
    ],
)
def test_options_that_do_not_fit_are_config_errors(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        cut(dataset(), **options)


def test_a_class_of_two_datasets_is_refused() -> None:
    items = [*dataset({"birds": 2}), *(Item(id=f"x{n}", label="birds/c1", group="dogs", split="train") for n in range(3))]
    with pytest.raises(DataError, match=r"class 'birds/c1' is in dataset 'birds' and in 'dogs'.*by_group.*'sequence'"):
        cut(items)


def test_data_without_groups_is_told_what_to_do() -> None:
    items = [Item(id=str(n), label=f"c{n % 3}") for n in range(9)]
    with pytest.raises(ConfigError, match="no item of this dataset has a group; use the dataset 'sequence'"):
        cut(items)
    with pytest.raises(DataError, match="dataset_sequence: 9 of 84 items have no group"):
        cut([*items, *dataset()])


def test_a_dataset_without_a_split_is_named() -> None:
    with pytest.raises(DataError, match=r"task 1 'dogs'.*none of the test split"):
        cut([*dataset({"birds": 3}), *dataset({"dogs": 3}, test=0)])
    with pytest.raises(DataError, match=r"unseen classes dogs/c2: no usable items of the test split"):
        items = [item for item in dataset({"dogs": 3}) if item.label != "dogs/c2" or item.split == "train"]
        cut(items, unseen=1, unseen_rows="test")
