"""Seen and unseen classes of each dataset: equation 7.10 for every entry, and the rows of Table 7.3."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.metrics.datasets import DATASET_DEFINITIONS, by_dataset, harmonic_matrix

VALUE = st.none() | st.floats(0, 1)


@given(st.integers(1, 4).flatmap(lambda t: st.tuples(*[st.lists(st.lists(VALUE, min_size=t, max_size=t), min_size=t, max_size=t)] * 2)))
def test_equals_equation_7_10_written_as_loops(matrices: tuple[list[list[float | None]], list[list[float | None]]]) -> None:
    seen, unseen = matrices
    harmonic = harmonic_matrix(seen, unseen)
    for t in range(len(seen)):
        for j in range(len(seen)):
            s, u = seen[t][j], unseen[t][j]
            if s is None or u is None:
                assert harmonic[t][j] is None
            else:
                assert harmonic[t][j] == pytest.approx(2 * s * u / (s + u) if s + u > 0 else 0.0)


def test_the_last_row_of_table_7_3() -> None:
    """SFT on CUB-200, Stanford-Dogs, Stanford-Cars, as printed."""
    (harmonic,) = harmonic_matrix([[28.9, 40.6, 72.6]], [[28.1, 63.3, 78.1]])
    assert harmonic == pytest.approx([28.5, 49.5, 75.3], abs=0.06)  # one digit is printed


def test_matrices_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="the same shape"):
        harmonic_matrix([[0.1, 0.2]], [[0.1]])
    with pytest.raises(ValueError, match="the same shape"):
        harmonic_matrix([[0.1]], [[0.1], [0.2]])


def test_every_dataset_learned_so_far_has_a_row_after_every_task() -> None:
    seen, unseen = [[0.8, 0.1], [0.6, 0.9]], [[0.4, None], [0.3, 0.9]]
    rows = by_dataset(["birds", "dogs"], "recall@1", seen, unseen)
    assert [(row["name"], row["task"], row["after"], row["seen"], row["unseen"]) for row in rows] == [
        ("birds", 0, 0, 0.8, 0.4),
        ("birds", 0, 1, 0.6, 0.3),
        ("dogs", 1, 1, 0.9, 0.9),
    ]
    assert [row["H"] for row in rows] == pytest.approx([2 * 0.32 / 1.2, 0.4, 0.9])
    assert {row["metric"] for row in rows} == {"recall@1"}


def test_what_a_report_holds_has_a_definition() -> None:
    assert {"unseen", "H", "H_datasets", "datasets", "unseen matrix", "H matrix"} == set(DATASET_DEFINITIONS)
