"""The Pareto front of trials with two objectives, and its knee."""

from collections.abc import Sequence

__all__ = ["knee", "pareto_front"]

Point = tuple[float, float]


def pareto_front(points: Sequence[Point]) -> list[int]:
    """The points that no other one beats, both coordinates to be large.

    q beats p when q_1 >= p_1 and q_2 >= p_2, and one of the two is greater. Equal points do not beat each other.

    Args:
        points: (x, y), finite.
    Returns:
        their numbers, by growing x and so by falling y; empty for no points.
    """
    order = sorted(range(len(points)), key=lambda number: (-points[number][0], -points[number][1], number))
    front: list[int] = []
    highest = float("-inf")  # y of all points with a greater x
    for number in order:
        x, y = points[number]
        if y > highest or (front and points[front[-1]] == (x, y)):
            front.append(number)
            highest = y
    return sorted(front, key=lambda number: (points[number][0], number))


def knee(points: Sequence[Point]) -> int | None:
    """Where giving up more of one objective begins to buy little of the other.

    Of the points p of the front, each coordinate scaled so that the front spans 0 to 1, the one farthest above the line that joins the
    two ends of the front, (0, 1) and (1, 0):

        argmax_p  ( x'_p + y'_p - 1 ) / sqrt(2),        x' = (x - min x) / (max x - min x),  y' likewise

    As in Das, "On characterizing the 'knee' of the Pareto curve based on normal-boundary intersection", Structural Optimization 1999,
    for two objectives and a finite front. The ends themselves lie on the line, at distance 0; so a front that bends inwards everywhere,
    or has two points, has no knee. Then, and between points equally far, the one with the greatest x + y, unscaled; of those the first.

    Returns:
        the number of a point on the front; None for no points.
    """
    front = pareto_front(points)
    if not front:
        return None
    (x_low, y_high), (x_high, y_low) = points[front[0]], points[front[-1]]

    def rank(number: int) -> tuple[float, float, int]:
        x, y = points[number]
        above = 0.0 if x_high == x_low else (x - x_low) / (x_high - x_low) + (y - y_low) / (y_high - y_low) - 1
        return round(max(above, 0.0), 9), x + y, -number

    return max(front, key=rank)
