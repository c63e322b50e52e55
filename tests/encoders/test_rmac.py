import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perdure.encoders.pooling import MAC
from perdure.encoders.rmac import RMAC, regions


def test_the_regions_of_a_7_x_7_map_are_those_of_the_paper() -> None:
    found = regions(7, 7, 3)
    assert len(found) == 1 + 4 + 9
    assert found[0] == (0, 0, 7)
    assert found[1:5] == ((0, 0, 4), (0, 3, 4), (3, 0, 4), (3, 3, 4))
    assert found[5:] == tuple((top, left, 3) for top in (0, 2, 4) for left in (0, 2, 4))


@pytest.mark.parametrize(("height", "width"), [(16, 24), (24, 16), (10, 12), (20, 55)])
def test_the_largest_squares_lie_along_the_longer_side_and_overlap_by_about_two_fifths(height: int, width: int) -> None:
    side = min(height, width)
    along = 1 if width > height else 0
    starts = sorted(square[along] for square in regions(height, width, 1))
    assert all(square[2] == side and square[1 - along] == 0 for square in regions(height, width, 1))
    assert starts[0] == 0 and starts[-1] + side == max(height, width)
    rest = max(height, width) - side
    shares = {steps: abs((1 - rest / steps / side) - 0.4) for steps in range(1, 60)}
    assert len(starts) - 1 == min(shares, key=shares.__getitem__)
    levels = [sum(square[2] == 2 * side // (level + 1) for square in regions(height, width, 3)) for level in (1, 2, 3)]
    assert levels == [len(starts), 2 * (len(starts) + 1), 3 * (len(starts) + 2)]


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5))
def test_regions_lie_inside_come_once_and_together_cover_the_map(height: int, width: int, levels: int) -> None:
    found = regions(height, width, levels)
    assert len(set(found)) == len(found) >= 1
    covered = torch.zeros(height, width)
    for top, left, side in found:
        assert top >= 0 and left >= 0 and side >= 1 and top + side <= height and left + side <= width
        covered[top : top + side, left : left + side] += 1
    if max(height, width) <= 2 * min(height, width):
        assert covered.min() >= 1


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 1000))
def test_equals_its_equation_written_as_loops(height: int, width: int, levels: int, seed: int) -> None:
    features = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    pooled = RMAC(levels=levels, eps=1e-3)(features).flatten(1)
    for b, image in enumerate(features.tolist()):
        total = [0.0] * 3
        for top, left, side in regions(height, width, levels):
            highest = [max(channel[y][x] for y in range(top, top + side) for x in range(left, left + side)) for channel in image]
            length = math.sqrt(sum(value**2 for value in highest) + 1e-3**2)
            total = [sum_ + value / length for sum_, value in zip(total, highest, strict=True)]
        torch.testing.assert_close(pooled[b], torch.tensor(total), rtol=1e-4, atol=1e-5)


def test_one_level_on_a_square_map_is_mac_at_unit_length() -> None:
    features = torch.rand(2, 3, 5, 5)
    unit = torch.nn.functional.normalize(MAC()(features), dim=1)
    torch.testing.assert_close(RMAC(levels=1)(features), unit, rtol=1e-4, atol=1e-5)


def test_a_map_of_one_place_has_one_region() -> None:
    assert regions(1, 1, 3) == ((0, 0, 1),)
    assert RMAC()(torch.full((1, 1, 1, 1), 5.0)).item() == pytest.approx(1.0)


def test_every_region_counts_the_same_however_strong_it_is() -> None:
    features = torch.zeros(1, 2, 8, 8)
    features[0, 0, 0, 0], features[0, 1, 7, 7] = 100.0, 0.01
    # Each corner lies in three regions, one of each size; the largest, which holds both, belongs to the stronger.
    torch.testing.assert_close(RMAC(eps=1e-6)(features).flatten(), torch.tensor([3.0, 2.0]), rtol=1e-3, atol=1e-3)
