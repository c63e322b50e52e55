"""A stream that is measured on held-out train items: no test item, no later task, no unseen class is in it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import ConfigError
from perdure.records import Item
from perdure.stream import STREAMS, TaskStream
from perdure.stream.validation import first_tasks, hold_out_train_items


def some_items(classes: int = 6, each: int = 20) -> list[Item]:
    return [
        Item(id=f"{label}-{number}", label=f"class {label}", split="test" if number % 4 == 0 else "train")
        for label in range(classes)
        for number in range(each)
    ]


def cut(items: list[Item], rows: np.ndarray, **options: int) -> TaskStream:
    return STREAMS.build("class_incremental", {"first": 2, "step": 2, **options}, items, rows, 3)


@given(share=st.floats(0.05, 0.9), seed=st.integers(0, 100))
def test_held_out_are_train_items_of_every_class_whatever_the_order_of_rows(share: float, seed: int) -> None:
    items = some_items()
    order = np.random.default_rng(seed).permutation(len(items))
    shuffled = [items[number] for number in order]
    chosen: list[set[str]] = []
    for some in (items, shuffled):
        out, rows = hold_out_train_items(some, np.arange(len(some)), share)
        assert all(some[row].split == "train" for row in rows) and len(rows) == 6 * 15
        held_out = {out[row].id for row in rows if out[row].split == "test"}
        assert {out[row].label for row in rows if out[row].split == "test"} == {item.label for item in items}
        assert {out[row].label for row in rows if out[row].split == "train"} == {item.label for item in items}
        chosen.append(held_out)
    assert chosen[0] == chosen[1]


def test_the_first_tasks_are_those_of_the_whole_stream_without_anything_of_the_rest() -> None:
    items = some_items()
    whole = cut(items, np.arange(len(items)), unseen=2)
    held, rows = hold_out_train_items(items, np.arange(len(items)), 0.2)
    part = first_tasks(cut(held, rows, unseen=2), 2)
    assert [task.classes for task in part.tasks] == [task.classes for task in whole.tasks]
    assert part.unseen is None and part.measured() == part.tasks
    one = first_tasks(cut(held, rows), 1)
    used = np.concatenate([one.tasks[0].train, one.tasks[0].query])
    assert set(np.flatnonzero(one.labels >= 0)) == set(used) <= set(rows)
    assert one.classes == tuple(whole.tasks[0].classes)
    assert not set(one.tasks[0].train) & set(one.tasks[0].query)


def test_more_tasks_than_there_are_is_refused() -> None:
    items = some_items()
    with pytest.raises(ConfigError, match="tasks=4: the stream has 3"):
        first_tasks(cut(items, np.arange(len(items))), 4)
