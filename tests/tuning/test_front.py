"""The Pareto front and its knee, against their definitions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.tuning import knee, pareto_front

few = st.integers(0, 5).map(lambda number: number / 4)  # few values, so that points tie and coincide
anything = st.floats(-3, 3, allow_nan=False, allow_subnormal=False)
points = st.lists(st.tuples(few, few), max_size=12) | st.lists(st.tuples(anything, anything), max_size=12)


def beats(q: tuple[float, float], p: tuple[float, float]) -> bool:
    return q[0] >= p[0] and q[1] >= p[1] and q != p


@given(points)
def test_the_front_is_what_nothing_beats_from_left_to_right(all_points: list[tuple[float, float]]) -> None:
    front = pareto_front(all_points)
    assert sorted(front) == [n for n, p in enumerate(all_points) if not any(beats(q, p) for q in all_points)]
    on_front = [all_points[number] for number in front]
    assert on_front == sorted(on_front, key=lambda point: (point[0], -point[1]))


@given(points.filter(bool), st.tuples(few, few))
def test_a_point_that_is_beaten_changes_neither_front_nor_knee(all_points: list[tuple[float, float]], less: tuple[float, float]) -> None:
    x, y = all_points[pareto_front(all_points)[0]]
    more = [*all_points, (x - 1 - less[0], y - less[1])]
    assert pareto_front(more) == pareto_front(all_points)
    assert knee(more) == knee(all_points)


@given(points)
def test_the_knee_is_on_the_front_and_no_point_of_it_is_farther_above_the_line_of_its_ends(all_points: list[tuple[float, float]]) -> None:
    chosen, front = knee(all_points), pareto_front(all_points)
    if not all_points:
        assert chosen is None
        return
    assert chosen in front
    (left, top), (right, bottom) = all_points[front[0]], all_points[front[-1]]
    if right - left > 1e-6 and top - bottom > 1e-6:
        length = math.hypot(right - left, top - bottom)

        def scaled_distance(number: int) -> float:
            """Signed, to the line through (0, 1) and (1, 0) after scaling."""
            x, y = all_points[number]
            return ((x - left) / (right - left) + (y - bottom) / (top - bottom) - 1) / math.sqrt(2)

        assert length > 0 and scaled_distance(chosen) >= max(map(scaled_distance, front)) - 1e-6


@given(st.lists(st.tuples(few, few), min_size=1, max_size=12), st.sampled_from([0.5, 2.0, 8.0]), st.sampled_from([-1.0, 0.0, 2.0]))
def test_the_front_does_not_depend_on_the_scale_of_an_axis(all_points: list[tuple[float, float]], scale: float, shift: float) -> None:
    moved = [(scale * x + shift, y) for x, y in all_points]
    assert pareto_front(moved) == pareto_front(all_points)


@pytest.mark.parametrize(
    ("front", "chosen"),
    [
        ([(0.0, 0.60), (0.6, 0.59), (0.9, 0.57), (1.0, 0.45)], 2),  # bends outwards: where it turns
        ([(0.0, 0.60), (0.1, 0.30), (1.0, 0.25)], 2),  # bends inwards: the greatest sum
        ([(0.88, 0.60), (0.90, 0.30)], 0),  # two points: the greatest sum
        ([(0.5, 0.5)], 0),
        ([(0.5, 0.5), (0.5, 0.5)], 0),  # equal: the first
        ([(0.2, 0.9), (0.9, 0.9), (0.9, 0.1)], 1),  # one beats all
    ],
)
def test_the_knee_by_hand(front: list[tuple[float, float]], chosen: int) -> None:
    assert knee(front) == chosen
