"""Drift between two encoder versions: displacement, CKA and neighbours as loops, and what they are blind to."""

import math

import numpy as np
import pytest

from perdure.metrics.drift import linear_cka, mean_displacement, neighbour_agreement


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def rows(seed: int, n: int = 9, d: int = 5):
    return unit(np.random.default_rng(seed).standard_normal((n, d)))


def rotation(d: int):
    return np.linalg.qr(np.random.default_rng(1).standard_normal((d, d)))[0]


def hsic_in_loops(x, y) -> float:
    """Song et al., Eq. (5), entry by entry."""
    n = len(x)
    k = [[0.0 if i == j else float(x[i] @ x[j]) for j in range(n)] for i in range(n)]
    l = [[0.0 if i == j else float(y[i] @ y[j]) for j in range(n)] for i in range(n)]  # noqa: E741
    trace = sum(k[i][j] * l[j][i] for i in range(n) for j in range(n))
    all_k, all_l = sum(map(sum, k)), sum(map(sum, l))
    chain = sum(k[i][j] * l[j][m] for i in range(n) for j in range(n) for m in range(n))
    return (trace + all_k * all_l / ((n - 1) * (n - 2)) - 2 / (n - 2) * chain) / (n * (n - 3))


def test_displacement_is_the_mean_distance_written_as_a_loop() -> None:
    before, after = rows(0), rows(2)
    expected = sum(math.dist(one, other) for one, other in zip(before.tolist(), after.tolist(), strict=True)) / 9
    assert mean_displacement(before, after) == pytest.approx(expected)
    assert mean_displacement(before, before) == 0
    assert mean_displacement(before, -before) == pytest.approx(2)


@pytest.mark.parametrize(("n", "d", "e"), [(4, 5, 5), (9, 5, 3), (30, 4, 4)])
def test_cka_is_equation_2_with_the_unbiased_hsic_written_as_loops(n: int, d: int, e: int) -> None:
    before, after = rows(0, n, d).astype(np.float64), rows(2, n, e).astype(np.float64)
    itself = hsic_in_loops(before, before) * hsic_in_loops(after, after)
    if itself > 0:
        assert linear_cka(before, after) == pytest.approx(hsic_in_loops(before, after) / math.sqrt(itself))


def test_a_rotation_moves_every_item_and_leaves_cka_at_one() -> None:
    before = rows(0, 40)
    after = (before @ rotation(5)).astype(np.float32)
    assert linear_cka(before, after) == pytest.approx(1, abs=1e-5)
    assert mean_displacement(before, after) > 0.5


def test_a_move_of_the_whole_space_is_displacement_and_no_loss_of_cka() -> None:
    before = rows(0, 40)
    assert linear_cka(before, before + 3) == pytest.approx(1, abs=1e-4)


def test_few_items_in_many_dimensions_do_not_look_alike_by_chance() -> None:
    values = [linear_cka(rows(seed, 40, 128), rows(1000 + seed, 40, 128)) for seed in range(20)]
    assert abs(float(np.mean(values))) < 0.1


def test_too_few_items_and_a_collapsed_version_have_no_cka() -> None:
    assert math.isnan(linear_cka(rows(0, 3), rows(1, 3)))
    same = np.repeat(rows(0, 1), 8, axis=0)
    assert math.isnan(linear_cka(rows(1, 8), same)) and math.isnan(linear_cka(same, same))


def test_items_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="same n"):
        mean_displacement(rows(0, 4), rows(0, 5))
    with pytest.raises(ValueError, match="same n"):
        linear_cka(rows(0, 4), rows(0, 5))


# Neighbours


def agreement_in_loops(x, y, k: int) -> float:
    """Who is near whom, item by item."""

    def nearest(vectors, i: int) -> set[int]:
        others = [j for j in range(len(vectors)) if j != i]
        return set(sorted(others, key=lambda j: -float(vectors[i] @ vectors[j]))[:k])

    return sum(len(nearest(x, i) & nearest(y, i)) / k for i in range(len(x))) / len(x)


@pytest.mark.parametrize(("n", "k"), [(5, 1), (9, 2), (41, 10), (60, 10)])
def test_neighbour_agreement_equals_its_definition_written_as_loops(n: int, k: int) -> None:
    x, y = rows(3, n), unit(rows(3, n) + 0.4 * rows(4, n))
    assert neighbour_agreement(x, y) == pytest.approx(agreement_in_loops(x, y, k))


def test_neighbour_agreement_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rows(3, 50), unit(rows(3, 50) + 0.4 * rows(4, 50))
    whole = neighbour_agreement(x, y)
    monkeypatch.setattr("perdure.metrics.drift._BLOCK", 7)
    assert neighbour_agreement(x, y) == whole


def test_neighbours_are_the_same_after_a_turn_of_the_whole_space_and_by_chance_for_strangers() -> None:
    x = rows(3, 200)
    assert neighbour_agreement(x, unit(x @ rotation(5))) == 1.0
    assert neighbour_agreement(x, rows(9, 200)) < 3 * 10 / 199


def test_neighbours_need_five_items_and_as_many_on_both_sides() -> None:
    assert math.isnan(neighbour_agreement(rows(1, 4), rows(2, 4)))
    with pytest.raises(ValueError, match="of the same n items"):
        neighbour_agreement(rows(1, 6), rows(2, 7))
