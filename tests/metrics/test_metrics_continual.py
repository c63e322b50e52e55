"""Continual metrics: the named definitions on one matrix on which they all differ, and as loops on random ones."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.metrics.continual import (
    DEFINITIONS,
    average_incremental,
    averages,
    backward_transfer,
    backward_transfer_libcontinual,
    forgetting,
    forgetting_by_task,
    forgetting_continuum,
    forgetting_first,
    forgetting_mammoth,
    forgetting_max,
    forward_transfer,
    gap_closed,
    harmonic_mean,
    intransigence,
    last_average,
    summarise,
)

# What other systems' own code gives for "forgetting" and "BWT" on this matrix; four decimals, as it was written down.
MATRIX = [[0.8, 0.1, 0.1, 0.1], [0.7, 0.85, 0.1, 0.1], [0.9, 0.6, 0.8, 0.1], [0.6, 0.65, 0.85, 0.82]]


def test_the_named_definitions_on_the_matrix_where_they_differ():
    assert forgetting(MATRIX) == forgetting_max(MATRIX) == pytest.approx(0.15)
    assert forgetting_by_task(MATRIX) == pytest.approx([0.3, 0.2, -0.05])
    assert forgetting_first(MATRIX) == pytest.approx(0.35 / 3)
    assert backward_transfer(MATRIX) == pytest.approx(-0.35 / 3)
    assert forward_transfer(MATRIX, [0.05] * 4) == pytest.approx(0.05)
    assert average_incremental(MATRIX) == pytest.approx((0.8 + 0.775 + 2.3 / 3 + 0.73) / 4)
    assert last_average(MATRIX) == pytest.approx(0.73)
    assert intransigence(MATRIX, [[0.9] * 4] * 4) == pytest.approx((0.1 + 0.05 + 0.1 + 0.08) / 4)


@pytest.mark.parametrize(
    ("system", "definition", "expected"),
    [
        ("Avalanche", forgetting_first, 0.1167),
        ("Renate", forgetting_max, 0.1500),
        ("Mammoth", forgetting_mammoth, 0.1667),
        ("LibContinual and Continuum", forgetting_continuum, 0.1333),
        ("LibContinual's BWT", backward_transfer_libcontinual, -0.0500),
        ("Lopez-Paz", backward_transfer, -0.1167),
    ],
)
def test_each_named_definition_gives_the_number_of_the_system_it_is_from(system, definition, expected):
    assert round(definition(MATRIX), 4) == expected, system
    assert round(summarise(MATRIX)[definition.__name__], 4) == expected


def test_two_definitions_are_zero_after_two_tasks_whatever_was_forgotten():
    lost = [[0.9, 0.1], [0.2, 0.9]]
    assert forgetting_max(lost) == pytest.approx(0.7)
    assert forgetting_continuum(lost) == backward_transfer_libcontinual(lost) == 0.0


def test_no_definition_is_told_of_one_task():
    for definition in (forgetting_max, forgetting_first, forgetting_mammoth, forgetting_continuum, backward_transfer_libcontinual):
        assert definition([[0.5, 0.1]]) is None


def test_mammoths_forgetting_is_never_negative_and_does_not_look_before_a_task_was_learned():
    assert forgetting_mammoth([[0.5, 0.1], [0.7, 0.9]]) == 0.0
    assert forgetting_mammoth([[0.5, 0.95, 0.1], [0.5, 0.6, 0.1], [0.5, 0.6, 0.9]]) == 0.0
    assert forgetting_max([[0.5, 0.95, 0.1], [0.5, 0.6, 0.1], [0.5, 0.6, 0.9]]) == pytest.approx(0.35 / 2)


def test_a_divisor_that_is_not_a_count_gives_nothing_where_a_term_was_not_measured():
    matrix = [[0.8, 0.1, 0.1], [None, 0.6, 0.1], [None, 0.5, 0.7]]
    assert forgetting_continuum(matrix) is None
    assert backward_transfer_libcontinual(matrix) is None
    assert forgetting_max(matrix) == pytest.approx(0.1)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_other_definitions_equal_their_equations_written_as_loops(tasks, seed):
    matrix = np.random.default_rng(seed).random((tasks, tasks)).tolist()
    weights = np.random.default_rng(seed + 1).integers(1, 50, tasks).tolist()
    last = tasks - 1
    mammoth, continuum, libcontinual = 0.0, 0.0, 0.0
    for j in range(last):
        best = 0.0
        for t in range(j, tasks):
            best = max(best, matrix[t][j])
        mammoth += best - matrix[last][j]
        if j < last - 1:
            continuum += matrix[j][j] - matrix[last][j]
        for t in range(j + 2, tasks):
            libcontinual += matrix[t][j] - matrix[j][j]
    micro = []
    for t in range(tasks):
        right, total = 0.0, 0
        for j in range(t + 1):
            right += weights[j] * matrix[t][j]
            total += weights[j]
        micro.append(right / total)
    assert averages(matrix, weights) == pytest.approx(micro)
    assert average_incremental(matrix, weights) == pytest.approx(sum(micro) / tasks)
    assert last_average(matrix, weights) == pytest.approx(micro[-1])
    if tasks > 1:
        assert forgetting_mammoth(matrix) == pytest.approx(mammoth / last)
        assert forgetting_continuum(matrix) == pytest.approx(continuum / last)
        assert backward_transfer_libcontinual(matrix) == pytest.approx(libcontinual / (tasks * last / 2))


def test_weights_leave_out_what_was_not_measured_and_tasks_without_queries():
    matrix = [[0.2, None, None], [0.4, None, None], [0.4, None, 0.8]]
    assert averages(matrix, [1, 5, 3]) == pytest.approx([0.2, 0.4, (0.4 + 3 * 0.8) / 4])
    assert averages(matrix, [0, 5, 3]) == [None, None, pytest.approx(0.8)]
    with pytest.raises(ValueError, match="one for each task"):
        averages(matrix, [1, 2])


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2), st.booleans(), st.integers(0, 2**32 - 1))
def test_equal_the_equations_written_as_loops(tasks, extra, only_seen, seed):
    matrix = np.random.default_rng(seed).random((tasks, tasks + extra)).tolist()
    if only_seen:
        matrix = [[value if j <= t else None for j, value in enumerate(row)] for t, row in enumerate(matrix)]
    last = tasks - 1
    terms = []
    for j in range(last):
        best = -math.inf
        for t in range(last):
            if matrix[t][j] is not None:
                best = max(best, matrix[t][j])
        terms.append(best - matrix[last][j])
    first = [matrix[j][j] - matrix[last][j] for j in range(last)]
    incremental = [sum(matrix[t][: t + 1]) / (t + 1) for t in range(tasks)]
    assert average_incremental(matrix) == pytest.approx(sum(incremental) / tasks)
    assert last_average(matrix) == pytest.approx(sum(matrix[last][:tasks]) / tasks)
    if tasks == 1:
        assert forgetting(matrix) is forgetting_first(matrix) is backward_transfer(matrix) is None
    else:
        assert forgetting(matrix) == pytest.approx(sum(terms) / last)
        assert forgetting_first(matrix) == pytest.approx(sum(first) / last)
        assert backward_transfer(matrix) == pytest.approx(-sum(first) / last)


def test_what_was_not_measured_is_left_out_and_never_counted_as_zero():
    matrix = [[0.8, None, None], [float("nan"), 0.6, None], [0.5, None, 0.7]]
    assert forgetting_by_task(matrix) == [pytest.approx(0.3), None]
    assert forgetting(matrix) == pytest.approx(0.3)
    assert last_average(matrix) == pytest.approx(0.6)
    assert forward_transfer(matrix, [0.1, 0.1, 0.1]) is None


def test_forgetting_may_be_negative_when_an_old_task_got_better():
    assert forgetting([[0.5, 0.1], [0.7, 0.9]]) == pytest.approx(-0.2)


def test_harmonic_mean_and_gap_closed():
    assert harmonic_mean(0.8, 0.4) == pytest.approx(2 * 0.8 * 0.4 / 1.2)
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert gap_closed(0.7441, 0.5390, 0.7733) == pytest.approx(0.8753, abs=1e-4)
    assert gap_closed(0.5, 0.6, 0.6) is None


def test_summary_names_old_new_seen_unseen_and_has_a_definition_of_each():
    matrix = [[*row, 0.4] for row in MATRIX]
    summary = summarise(matrix, unseen=0.4)
    assert summary["old"] == pytest.approx(0.7)
    assert summary["new"] == pytest.approx(0.82)
    assert summary["seen"] == pytest.approx(0.73)
    assert summary["H"] == pytest.approx(2 * 0.73 * 0.4 / 1.13)
    assert set(summary) <= set(DEFINITIONS)
    assert "unseen" not in summarise(MATRIX)
    assert not {"forward_transfer", "last_average_micro"} & set(summarise(MATRIX))
    more = summarise(MATRIX, baseline=[0.05] * 4, weights=[1, 1, 1, 5])
    assert more["forward_transfer"] == pytest.approx(0.05)
    assert more["last_average_micro"] == pytest.approx((0.6 + 0.65 + 0.85 + 5 * 0.82) / 8)
    assert set(more) <= set(DEFINITIONS)
    assert summarise([[0.5]])["old"] is None


def test_a_matrix_that_is_none_is_refused():
    for matrix in ([], [[0.1], [0.2]], [[0.1, 0.2], [0.3]]):
        with pytest.raises(ValueError, match="accuracy matrix"):
            forgetting(matrix)
    with pytest.raises(ValueError, match="one for each task"):
        forward_transfer(MATRIX, [0.1])
    with pytest.raises(ValueError, match="in the reference"):
        intransigence(MATRIX, MATRIX[:2])
