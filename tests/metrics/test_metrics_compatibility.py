"""AC, BC and who may query what, by hand and against their definitions as loops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.metrics.compatibility import average_compatibility, backward_compatibility, compatible


def test_by_hand():
    matrix = [[0.5, None, None], [0.5, 0.6, None], [0.4, 0.7, 0.8]]
    assert compatible(matrix) == [[None] * 3, [True, None, None], [False, True, None]]
    assert average_compatibility(matrix) == pytest.approx(2 / 3)  # the tie counts
    assert backward_compatibility(matrix) == pytest.approx((-0.1 + 0.1) / 2)


@given(count=st.integers(2, 5), data=st.data())
def test_equals_the_definitions_written_as_loops(count: int, data: st.DataObject):
    matrix = [[data.draw(st.floats(0, 1)) if j <= i else None for j in range(count)] for i in range(count)]
    pairs = [(i, j) for i in range(count) for j in range(i)]
    assert average_compatibility(matrix) == pytest.approx(2 / (count * (count - 1)) * sum(matrix[i][j] >= matrix[j][j] for i, j in pairs))
    assert backward_compatibility(matrix) == pytest.approx(sum(matrix[-1][j] - matrix[j][j] for j in range(count - 1)) / (count - 1))


def test_what_was_not_measured_is_not_made_up():
    assert average_compatibility([[0.5]]) is None and backward_compatibility([[0.5]]) is None
    holed = [[0.5, None], [None, 0.6]]
    assert (
        compatible(holed) == [[None, None], [None, None]] and average_compatibility(holed) is None and backward_compatibility(holed) is None
    )
    with pytest.raises(ValueError, match=r"expected \(T, T\)"):
        average_compatibility([[0.1, 0.2]])
