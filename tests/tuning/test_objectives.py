"""Retention and gain, by hand and by what they may depend on."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import DataError
from perdure.report.comparison import compare
from perdure.tuning import CurrentTaskValidation, FirstTasks, Oracle, figures_of, looked_up

MEASURED = FirstTasks(name="first_tasks")
ESTIMATED = CurrentTaskValidation(name="current_task_validation")


def report(matrix: list[list[float]], agreement: list[float | None] | None = None) -> dict[str, Any]:
    return {"main": "recall@1", "metrics": {"recall@1": {"matrix": matrix}}, "agreement": agreement or [None, 0.5, 0.5][: len(matrix)]}


FINE_TUNE = report([[0.8, 0.1, 0.1], [0.5, 0.7, 0.1], [0.3, 0.4, 0.9]], [None, 0.2, 0.4])
METHOD = report([[0.8, 0.1, 0.1], [0.7, 0.6, 0.1], [0.6, 0.5, 0.8]], [None, 0.6, 0.8])


def test_retention_and_gain_by_hand() -> None:
    figures = figures_of(MEASURED, METHOD, FINE_TUNE, "recall@1")
    old, of_fine_tuning, when_learned = (0.6 + 0.5) / 2, (0.3 + 0.4) / 2, (0.8 + 0.7) / 2
    assert figures["retention"] == pytest.approx((old - of_fine_tuning) / (when_learned - of_fine_tuning))
    assert figures["gain"] == pytest.approx((0.6 + 0.8) / 2)
    assert figures["last_average"] == pytest.approx((0.6 + 0.5 + 0.8) / 3)


def test_retention_is_what_a_comparison_calls_kept() -> None:
    runs = [
        {**told, "name": name, "config": {"strategy": {"name": name}}, "summary": {"metric": "recall@1"}}
        for name, told in (("lwf", METHOD), ("fine_tune", FINE_TUNE))
    ]
    kept = next(row["kept"] for row in compare(runs) if row["run"] == "lwf")
    assert figures_of(MEASURED, METHOD, FINE_TUNE, "recall@1")["retention"] == pytest.approx(kept)


def test_fine_tuning_itself_retains_nothing_and_what_loses_nothing_retains_all() -> None:
    assert figures_of(MEASURED, FINE_TUNE, FINE_TUNE, "recall@1")["retention"] == pytest.approx(0)
    held = report([[0.8, 0.1, 0.1], [0.8, 0.7, 0.1], [0.8, 0.7, 0.2]])
    assert figures_of(MEASURED, held, FINE_TUNE, "recall@1")["retention"] == pytest.approx(1)


def test_part_of_a_stream_is_compared_with_fine_tuning_after_as_many_tasks() -> None:
    part = report(METHOD["metrics"]["recall@1"]["matrix"][:2], [None, 0.6])
    assert figures_of(MEASURED, part, FINE_TUNE, "recall@1")["retention"] == pytest.approx((0.7 - 0.5) / (0.8 - 0.5))
    assert figures_of(ESTIMATED, part, FINE_TUNE, "recall@1")["retention"] == pytest.approx((0.6 - 0.2) / (1 - 0.2))


def test_the_estimate_is_the_share_of_the_agreement_that_fine_tuning_gives_up() -> None:
    figures = figures_of(ESTIMATED, METHOD, FINE_TUNE, "recall@1")
    assert figures == {"retention": pytest.approx((0.7 - 0.3) / (1 - 0.3)), "gain": pytest.approx(0.7)}


@given(st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_where_old_tasks_may_not_be_looked_at_no_figure_depends_on_them(others: list[float]) -> None:
    numbers = iter(others)
    changed = [copy.deepcopy(METHOD), copy.deepcopy(FINE_TUNE)]
    for told in changed:
        for t, row in enumerate(told["metrics"]["recall@1"]["matrix"]):
            for j in range(3):
                if j != t:
                    row[j] = next(numbers)
    assert figures_of(ESTIMATED, *changed, "recall@1") == figures_of(ESTIMATED, METHOD, FINE_TUNE, "recall@1")


def test_a_single_task_has_a_gain_and_nothing_to_retain() -> None:
    single = report([[0.8]], [None])
    for protocol in (MEASURED, ESTIMATED, Oracle(name="oracle")):
        figures = figures_of(protocol, single, single, "recall@1")
        assert (figures["retention"], figures["gain"]) == (None, 0.8)


def test_a_whole_report_is_judged_by_its_own_summary_too() -> None:
    whole = {**METHOD, "summary": {"metric": "recall@1", "H": 0.4, "by_metric": {"recall@1": {"old": 0.55}}}}
    figures = figures_of(MEASURED, whole, FINE_TUNE, "recall@1")
    assert looked_up(figures, "H") == 0.4
    assert looked_up(figures, "by_metric.recall@1.old") == 0.55
    assert looked_up(figures, "gain") == pytest.approx(0.7)


def test_a_figure_or_metric_that_is_not_there_is_told_with_those_that_are() -> None:
    figures = figures_of(ESTIMATED, METHOD, FINE_TUNE, "recall@1")
    with pytest.raises(DataError, match=r"no figure 'last_average'.*retention, gain"):
        looked_up(figures, "last_average")
    with pytest.raises(DataError, match="no metric 'recall@7'; it has recall@1"):
        figures_of(MEASURED, METHOD, FINE_TUNE, "recall@7")
