"""Mixes, expansions and passes, against their equations written out."""

import math

import numpy as np
import pytest

from perdure.errors import BadQuery
from perdure.records import EncoderRef, Release, SegmentRef, SegmentUse
from perdure.retrieval.asking import Parts, Query, Search, expanded, passes

OLD, NEW = EncoderRef("demo", 1), EncoderRef("demo", 2)
RELEASE = Release(
    "demo@v2",
    "demo",
    1,
    "versioned",
    "raw",
    NEW,
    (
        SegmentUse(SegmentRef("demo", 1), OLD, OLD),
        SegmentUse(SegmentRef("demo", 2), NEW, NEW),
        SegmentUse(SegmentRef("demo", 3), NEW, NEW),
    ),
)


def unit(count: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_mix_is_the_weighted_sum_at_unit_length_and_others_are_left_alone() -> None:
    queries = [Query(id="a"), Query(text="b", image=b"c", image_weight=0.7), Query(text="d"), Query(text="e", image=b"f", image_weight=0.0)]
    parts = Parts.of(queries)
    assert [part.kind() for part in parts.queries] == ["id", "image", "text", "text", "image", "text"]
    assert parts.modalities == ["image", "image", "text", "text", "image", "text"]
    rows = unit(6, 5)
    mixed = parts.together(rows)
    np.testing.assert_array_equal(mixed[[0, 2]], rows[[0, 3]])
    for place, (picture, words, weight) in ((1, (rows[1], rows[2], 0.7)), (3, (rows[4], rows[5], 0.0))):
        expected = [weight * float(picture[d]) + (1 - weight) * float(words[d]) for d in range(5)]
        length = math.sqrt(sum(value * value for value in expected))
        np.testing.assert_allclose(mixed[place], [value / length for value in expected], atol=1e-6)
    assert Parts.of(queries[::2]).together(rows[:2]) is not None
    with pytest.raises(BadQuery, match="cancel each other out"):
        Parts.of([Query(text="b", image=b"c")]).together(np.stack([rows[0], -rows[0]]))


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_an_expansion_is_the_equation_and_moves_segments_of_the_same_encoder_alone(alpha: float) -> None:
    put = [unit(2, 4, seed=1), unit(2, 6, seed=2), unit(2, 6, seed=3)]
    before = [rows.copy() for rows in put]
    x = unit(3, 6, seed=4)
    x[2] = -before[1][0]  # a hit on the other side counts as 0, and as 1 with alpha = 0
    expanded(RELEASE, put, 0, alpha, [(1, x[0]), (2, x[1]), (1, x[2])])
    np.testing.assert_array_equal(put[0], before[0])  # its encoder made none of the hits
    for number in (1, 2):
        np.testing.assert_array_equal(put[number][1], before[number][1])
        q = before[number][0].astype(np.float64)
        moved = q.copy()
        for vector in x:
            moved = moved + max(0.0, float(q @ vector)) ** alpha * vector
        np.testing.assert_allclose(put[number][0], moved / math.sqrt(float(moved @ moved)), atol=1e-5)


def test_what_can_be_searched_together_is() -> None:
    searches = [
        Search(Query(text="a"), 5),
        Search(Query(text="b"), 3, offset=2),
        Search(Query(id="c"), 4),
        Search(Query(text="d"), 5, filter={"task": 1, "label": "x"}),
        Search(Query(text="e"), 5, filter={"label": "x", "task": 1}),
        Search(Query(text="f"), 5, exact=True),
        Search(Query(text="g"), 6),
    ]
    found = passes(searches)
    assert [step.places for step in found] == [[0, 1, 2], [3, 4], [5], [6]] and [step.depth for step in found] == [6, 6, 6, 7]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (Search(Query(text="a"), 0), "k=0"),
        (Search(Query(text="a"), offset=-1), "offset=-1"),
        (Search(Query(text="a"), expand=-2), "expand=-2"),
        (Search(Query(text="a"), alpha=-1.0), "alpha=-1"),
        (Search(Query(text="a"), alpha=math.nan), "alpha=nan"),
    ],
)
def test_numbers_out_of_range_are_refused(search: Search, message: str) -> None:
    with pytest.raises(BadQuery, match=message):
        search.check()


def test_what_cannot_be_mixed_is_refused() -> None:
    for query in (Query(text="a", image=b"b", id="c"), Query(text="a", id="b"), Query(image=b"a", vectors={})):
        with pytest.raises(BadQuery, match="a query is text, image, both, or id"):
            Parts.of([query])
    for weight in (-0.1, 1.1, math.nan):
        with pytest.raises(BadQuery, match="image_weight"):
            Parts.of([Query(text="a", image=b"b", image_weight=weight)])
