"""The public number that is not a mean average precision: its formula as loops, and what it makes of a perfect embedding."""

import numpy as np
import pytest

from perdure.metrics.legacy import map_legacy_chen


def written_out(vectors, labels):
    averages = []
    for q in range(len(vectors)):
        scores = [float(vectors[q] @ vectors[n]) - (n == q) for n in range(len(vectors))]
        order = sorted(range(len(vectors)), key=lambda n: -round(scores[n], 6))  # stable: ties in gallery order
        total, before = 0.0, 0
        for place, n in enumerate(order, start=1):
            if labels[n] == labels[q]:
                total += before / place
                before += 1
        averages.append(total / before)
    return sum(averages) / len(averages)


@pytest.mark.parametrize("chunk_bytes", [1, 2**28])
def test_equals_its_formula_written_as_loops(chunk_bytes):
    rng = np.random.default_rng(0)
    vectors = rng.choice([-0.5, 0.5], (60, 4))  # unit rows whose inner products have no rounding and many ties
    labels = rng.integers(0, 5, 60)
    assert map_legacy_chen(vectors, labels, chunk_bytes=chunk_bytes) == pytest.approx(written_out(vectors, labels))


@pytest.mark.parametrize(("per_class", "expected"), [(5, 0.414), (20, 0.782), (60, 0.909)])
def test_a_perfect_embedding_does_not_score_one(per_class, expected):
    labels = np.repeat(np.arange(18), per_class)
    assert round(map_legacy_chen(np.eye(18, dtype=np.float32)[labels], labels), 3) == expected


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected one each"):
        map_legacy_chen(np.eye(3), [0, 1])
