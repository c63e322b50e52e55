"""Which values are tried, and what is remembered of trials."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import ConfigError
from perdure.tuning import SweepConfig, Trials, planned_values, trial_name

SEARCH = {"a.x": {"choice": [1, 2, 3]}, "a.y": {"loguniform": [0.01, 10.0]}, "b": {"uniform": [-1.0, 1.0]}}


def sweep(**changes: Any) -> SweepConfig:
    return SweepConfig.model_validate({"protocol": {"name": "oracle"}, "search": SEARCH, **changes})


@given(seed=st.integers(0, 2**32), fewer=st.integers(1, 20), more=st.integers(0, 20))
def test_drawn_values_lie_in_their_spaces_and_a_longer_sweep_begins_with_those_of_a_shorter_one(seed: int, fewer: int, more: int) -> None:
    values = planned_values(sweep(seed=seed, trials=fewer + more))
    assert len(values) == fewer + more == len({trial_name("s", each) for each in values})
    for each in values:
        assert list(each) == list(SEARCH)
        assert each["a.x"] in (1, 2, 3) and 0.01 <= each["a.y"] <= 10 and -1 <= each["b"] <= 1
    assert planned_values(sweep(seed=seed, trials=fewer)) == values[:fewer]


def test_no_combination_of_choices_is_drawn_twice_and_a_grid_has_them_all() -> None:
    choices = {"x": {"choice": [1, 2]}, "y": {"choice": ["a", "b", "c"]}}
    grid = planned_values(sweep(search=choices, order="grid"))
    assert [tuple(each.values()) for each in grid] == [(1, "a"), (1, "b"), (1, "c"), (2, "a"), (2, "b"), (2, "c")]
    drawn = planned_values(sweep(search=choices, trials=30))
    assert sorted(map(str, drawn)) == sorted(map(str, grid))


def test_a_record_is_there_again_and_is_over_when_all_tasks_are_reported_or_it_was_stopped(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    trials.claim(sweep())
    first, second = trials.begin("s-1", {"x": 1}), trials.begin("s-2", {"x": 2})
    first.of = second.of = 2
    first.reports = [{"learned": 1}, {"learned": 2}]
    second.reports = [{"learned": 1}]
    for record in (second, first):
        trials.save(record)
    assert [(record.name, record.number, record.over) for record in Trials(tmp_path).all()] == [("s-1", 0, True), ("s-2", 1, False)]
    second.stopped = True
    trials.save(second)
    assert trials.begin("s-2", {"x": 2}).over


def test_another_sweep_of_the_same_name_is_refused_and_a_longer_one_is_not(tmp_path: Path) -> None:
    Trials(tmp_path).claim(sweep(trials=3))
    Trials(tmp_path).claim(sweep(trials=5, concurrent=2, best="metric"))
    with pytest.raises(ConfigError, match="seed: was 0, now 1"):
        Trials(tmp_path).claim(sweep(seed=1))
