"""Streams: classes and groups become tasks; same seed same split, whatever the order of rows; numbers that do not fit are said."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import ConfigError, DataError
from perdure.records import Item
from perdure.stream import STREAMS, TaskStream


def dataset(classes: int = 10, train: int = 4, test: int = 2, groups: Sequence[str] = ("",)) -> list[Item]:
    """`train` + `test` items of each class in each group."""
    return [
        Item(id=f"{group}/{label}/{n}", label=f"c{label}", group=group, split="train" if n < train else "test")
        for group in groups
        for label in range(classes)
        for n in range(train + test)
    ]


def cut(kind: str, items: Sequence[Item], seed: int = 0, rows: np.ndarray | None = None, **options: object) -> TaskStream:
    return STREAMS.build(kind, options, items, np.arange(len(items)) if rows is None else rows, seed)


def ids(items: Sequence[Item], rows: np.ndarray) -> set[str]:
    return {items[row].id for row in rows}


# --- class_incremental


def test_tasks_take_first_then_step_classes_and_split_their_rows() -> None:
    items = dataset()
    stream = cut("class_incremental", items, first=4, step=3)
    assert [task.classes for task in stream.tasks] == [stream.classes[:4], stream.classes[4:7], stream.classes[7:]]
    assert [task.name for task in stream.tasks] == ["classes 0-3", "classes 4-6", "classes 7-9"] and stream.unseen is None
    for task in stream.tasks:
        assert {items[row].label for row in task.train} == set(task.classes) == {items[row].label for row in task.query}
        assert {items[row].split for row in task.train} == {"train"} and {items[row].split for row in task.query} == {"test"}
        assert np.array_equal(task.query, task.gallery)
    assert all(stream.classes[label] == item.label for label, item in zip(stream.labels, items, strict=True))


def test_the_last_task_takes_what_is_left() -> None:
    stream = cut("class_incremental", dataset(), first=4, step=5)
    assert [len(task.classes) for task in stream.tasks] == [4, 5, 1] and stream.tasks[2].name == "class 9"


def test_tasks_can_be_limited_and_the_classes_beyond_are_in_none() -> None:
    items = dataset()
    stream = cut("class_incremental", items, first=4, step=2, tasks=2)
    assert [len(task.classes) for task in stream.tasks] == [4, 2] and len(stream.classes) == 6
    assert {items[row].label for row in np.flatnonzero(stream.labels < 0)}.isdisjoint(stream.classes)
    assert len(cut("class_incremental", items, first=10, step=5, tasks=1).tasks) == 1


def test_unseen_classes_are_in_no_training_and_come_last() -> None:
    items = dataset()
    stream = cut("class_incremental", items, first=4, step=2, unseen=2)
    assert stream.unseen is not None and stream.unseen.name == "unseen" and stream.unseen.index == 3 and stream.unseen.classes == ()
    held_out = {items[row].label for row in stream.unseen.query}
    assert held_out == set(stream.classes[-2:]) and {items[row].split for row in stream.unseen.query} == {"test"}
    assert not any(items[row].label in held_out for task in stream.tasks for row in task.train)
    assert all(stream.labels[row] == -1 for row, item in enumerate(items) if item.label in held_out and item.split == "train")


def test_order_can_be_sorted_or_given_and_what_is_not_named_is_left_out() -> None:
    assert cut("class_incremental", dataset(), first=5, step=5, order="sorted").classes == tuple(f"c{n}" for n in range(10))
    given_order = ["c3", "c1", "c7"]
    stream = cut("class_incremental", dataset(), first=2, step=1, order=given_order)
    assert stream.classes == tuple(given_order) and (stream.labels >= 0).sum() == 18


@given(st.permutations([0, 1, 2]))
@settings(max_examples=6, deadline=None)
def test_the_tasks_can_be_learned_in_another_order(task_order: list[int]) -> None:
    items = dataset()
    as_they_come = cut("class_incremental", items, first=4, step=3)
    stream = cut("class_incremental", items, first=4, step=3, task_order=task_order)
    assert [task.index for task in stream.tasks] == [0, 1, 2]
    for task, place in zip(stream.tasks, task_order, strict=True):
        same = as_they_come.tasks[place]
        assert task.name == same.name and set(task.classes) == set(same.classes)
        assert np.array_equal(task.train, same.train) and np.array_equal(task.query, same.query)
    introduced = [label for task in stream.tasks for label in task.classes]
    assert list(stream.classes) == introduced, "class ids follow the order in which the classes are learned"


@pytest.mark.parametrize(
    ("task_order", "complaint"),
    [
        ([0, 1], "2 is missing"),
        ([1, 2, 3], "0 is missing"),
        ([0, 0, 0], "1, 2 are missing"),
        ([], "task_order=[]:"),
        ([0, 1, 2, 2], "task_order=[0, 1, 2, 2]:"),
    ],
)
def test_a_task_order_that_is_no_permutation_is_a_config_error(task_order: list[int], complaint: str) -> None:
    with pytest.raises(ConfigError, match=r"task_order=.*there are 3 tasks; name each of 0 to 2 once") as caught:
        cut("class_incremental", dataset(), first=4, step=3, task_order=task_order)
    assert complaint in str(caught.value)


@given(st.integers(0, 5000), st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_same_seed_same_split_whatever_the_order_of_rows(shuffle: int, seed: int) -> None:
    items = dataset(groups=("x", "y"))
    other = [items[place] for place in np.random.default_rng(shuffle).permutation(len(items))]
    for kind, options in (("class_incremental", {"first": 3, "step": 3, "unseen": 2}), ("by_group", {"order": "seeded", "unseen": 0.3})):
        one, two = cut(kind, items, seed, **options), cut(kind, other, seed, **options)
        assert one.classes == two.classes
        for a, b in zip([*one.tasks, one.unseen], [*two.tasks, two.unseen], strict=True):
            assert a is not None and b is not None and a.classes == b.classes
            assert ids(items, a.train) == ids(other, b.train) and ids(items, a.query) == ids(other, b.query)


def test_another_seed_is_another_order() -> None:
    assert len({cut("class_incremental", dataset(), seed, first=5, step=5).classes for seed in range(8)}) > 1


def test_rows_that_are_not_usable_are_in_no_task() -> None:
    items = dataset()
    usable = np.delete(np.arange(len(items)), [0, 7])
    stream = cut("class_incremental", items, rows=usable, first=5, step=5)
    assert stream.labels[[0, 7]].tolist() == [-1, -1]
    assert sum(len(task.train) + len(task.query) for task in stream.tasks) == len(items) - 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"first": 8, "step": 8}, "first=8 [+] step=8 is 16 classes, but the data has 10 classes"),
        ({"first": 6, "step": 4, "unseen": 2}, "10 classes, 2 of them held out"),
        ({"first": 4, "step": 3, "tasks": 4}, "make 3 tasks at most"),
        ({"first": 11, "step": 1, "tasks": 1}, "first=11: more than there are"),
        ({"first": 0, "step": 0, "unseen": -1}, "(?s)first=0.*step=0.*unseen=-1"),
        ({"first": 2, "step": 2, "tasks": 0}, "tasks=0"),
        ({"first": 2, "step": 2, "unseen": 99}, "99 of them"),
        ({"first": 2, "step": 2, "order": ["c1", "c2", "c3", "c44"]}, "no class 'c44' in the data. Did you mean 'c4'"),
        ({"first": 2, "step": 2, "order": ["c1", "c2", "c1", "c4"]}, "class 'c1' is named 2 times"),
        ({"first": 2, "step": 2, "order": []}, "names no class"),
        ({"first": 2, "stepp": 2}, "Did you mean 'step'"),
    ],
)
def test_numbers_and_names_that_do_not_fit_are_config_errors(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        cut("class_incremental", dataset(), **options)


def test_a_task_without_a_split_is_named() -> None:
    with pytest.raises(DataError, match=r"task 0 'classes 0-4'.*none of the test split"):
        cut("class_incremental", dataset(test=0), first=5, step=5)
    with pytest.raises(DataError, match="none of the train split"):
        cut("class_incremental", dataset(train=0), first=5, step=5)
    items = [item for item in dataset() if item.label != "c9" or item.split == "train"]
    with pytest.raises(DataError, match="unseen classes c9"):
        cut("class_incremental", items, first=5, step=4, order="sorted", unseen=1)


# --- by_group


def test_each_group_is_a_task_named_after_it_and_classes_come_again() -> None:
    items = [*dataset(3, groups=("b",)), *dataset(5, groups=("a",))]
    stream = cut("by_group", items)
    assert [(task.name, task.classes) for task in stream.tasks] == [("a", ("c0", "c1", "c2", "c3", "c4")), ("b", ("c0", "c1", "c2"))]
    for task in stream.tasks:
        assert {items[row].group for row in [*task.train, *task.query]} == {task.name}
    assert stream.classes == ("c0", "c1", "c2", "c3", "c4") and (stream.labels >= 0).all()


def test_groups_can_be_ordered_and_chosen() -> None:
    items = dataset(groups=("a", "b", "c"))
    stream = cut("by_group", items, order=["c", "a"])
    assert [task.name for task in stream.tasks] == ["c", "a"]
    assert all((stream.labels[row] < 0) == (item.group == "b") for row, item in enumerate(items))
    with pytest.raises(ConfigError, match="no group 'd'"):
        cut("by_group", items, order=["c", "d"])


@pytest.mark.parametrize(("unseen", "count"), [(3, 3), (0.25, 2), (0, 0)])
def test_unseen_classes_are_a_number_or_a_share(unseen: float, count: int) -> None:
    items = dataset(groups=("a", "b"))
    stream = cut("by_group", items, unseen=unseen)
    held_out = set() if stream.unseen is None else {items[row].label for row in stream.unseen.query}
    assert len(held_out) == count and set(stream.classes[10 - count :]) == held_out
    assert not any(items[row].label in held_out for task in stream.tasks for row in [*task.train, *task.query])


def test_unseen_classes_are_drawn_from_those_that_can_be_measured() -> None:
    items = [Item(id=str(n), label=f"c{n}", group="g", split="test" if n % 5 == 0 else "train") for n in range(50)]
    stream = cut("by_group", items, unseen=4)
    assert stream.unseen is not None and len(stream.unseen.query) == 4


@pytest.mark.parametrize("unseen", [10, 99, -1, 1.5])
def test_more_unseen_classes_than_can_be_held_out_are_refused(unseen: float) -> None:
    with pytest.raises(ConfigError, match="there are 10 classes"):
        cut("by_group", dataset(groups=("a",)), unseen=unseen)


def test_no_group_column_is_a_config_error_and_a_missing_group_a_data_error() -> None:
    with pytest.raises(ConfigError, match=r"no item of this dataset has a group; name the column"):
        cut("by_group", dataset())
    with pytest.raises(DataError, match="60 of 120 items have no group"):
        cut("by_group", [*dataset(groups=("a",)), *dataset()])


def test_a_group_without_a_split_is_named() -> None:
    items = [*dataset(groups=("a",)), *dataset(groups=("b",), test=0)]
    with pytest.raises(DataError, match=r"task 1 'b'.*none of the test split"):
        cut("by_group", items)


def test_the_catalog_holds_every_way_of_cutting() -> None:
    assert set(STREAMS) == {"class_incremental", "by_group", "dataset_sequence", "cross_modal", "modality_sequence"}


# --- few test items


def test_where_no_class_has_two_test_items_the_training_items_can_be_found_too(caplog: pytest.LogCaptureFixture) -> None:
    items = [*dataset(classes=4, train=5, test=1), *dataset(classes=2, train=5, test=2, groups=("more",))]
    stream = cut("class_incremental", items, first=2, step=2, order=["c2", "c3", "c0", "c1"])
    few, enough = stream.tasks
    assert few.gallery.tolist() == sorted({*few.train.tolist(), *few.query.tolist()}) and len(few.query) == 2
    assert np.array_equal(enough.gallery, enough.query)
    assert "no class has two test items" in caplog.text and "task 0" in caplog.text


def test_captions_are_enough_to_search_for() -> None:
    items = [Item(id=str(n), label=f"c{n % 4}", split="train" if n < 8 else "test", captions=("a word",)) for n in range(12)]
    stream = cut("class_incremental", items, first=2, step=2)
    assert all(np.array_equal(task.gallery, task.query) for task in stream.tasks)
