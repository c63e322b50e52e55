"""Retrieval metrics against the same numbers written out as loops over one sorted list a query."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.metrics.retrieval import TIE, definitions, pair_metrics, recall_from_hits, retrieval_metrics

KS = (1, 2, 5, 10)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def written_out(queries, gallery, query_labels, gallery_labels, query_ids, gallery_ids):
    recalls, averages, at_r, lone = {k: [] for k in KS}, [], [], 0
    for q in range(len(queries)):
        ranking = []
        for n in range(len(gallery)):
            if query_ids is not None and query_ids[q] == gallery_ids[n]:
                continue
            score = sum(float(a) * float(b) for a, b in zip(queries[q], gallery[n], strict=True))
            ranking.append((-round(score, 5), query_labels[q] == gallery_labels[n]))
        ranking.sort()  # of equal scores, False (irrelevant) comes first
        right = [is_right for _, is_right in ranking]
        total = sum(right)
        if not total:
            lone += 1
            continue
        precisions = [sum(right[: i + 1]) / (i + 1) * right[i] for i in range(len(right))]
        averages.append(sum(precisions) / total)
        at_r.append(sum(precisions[:total]) / total)
        for k in KS:
            recalls[k].append(any(right[:k]))
    counted = len(averages)
    mean = lambda values: sum(values) / counted if counted else math.nan  # noqa: E731
    return {f"recall@{k}": mean(recalls[k]) for k in KS} | {
        "map": mean(averages),
        "map@r": mean(at_r),
        "queries": counted,
        "lone_queries": lone,
    }


@st.composite
def cases(draw):
    """Vectors on a coarse grid, so that exact ties are common, and few labels and ids, so that lone queries and repeats are."""
    num_queries, num_gallery, size = draw(st.integers(1, 9)), draw(st.integers(1, 12)), draw(st.integers(2, 4))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    queries = unit(rng.integers(-2, 3, (num_queries, size)) + np.float64(1e-9) + (rng.integers(0, 2, (num_queries, 1)) * 3))
    gallery = unit(rng.integers(-2, 3, (num_gallery, size)) + np.float64(1e-9) + (rng.integers(0, 2, (num_gallery, 1)) * 3))
    labels = np.array(["ant", "bee", "cow", "doe"])
    with_ids = draw(st.booleans())
    return (
        queries,
        gallery,
        labels[rng.integers(0, 4, num_queries)],
        labels[rng.integers(0, 3, num_gallery)],
        rng.integers(0, 15, num_queries) if with_ids else None,
        rng.integers(0, 15, num_gallery) if with_ids else None,
    )


@settings(max_examples=300, deadline=None)
@given(cases(), st.integers(1, 2000))
def test_equals_sorted_lists_written_as_loops_with_ties_self_exclusion_and_lone_queries(case, chunk_bytes):
    queries, gallery, query_labels, gallery_labels, query_ids, gallery_ids = case
    got = retrieval_metrics(
        queries, gallery, query_labels, gallery_labels, query_ids=query_ids, gallery_ids=gallery_ids, ks=KS, chunk_bytes=chunk_bytes
    )
    assert got == pytest.approx(written_out(*case), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("num_classes", [2, 7, 60])
def test_a_perfect_embedding_scores_one_on_every_metric(num_classes):
    labels = np.random.default_rng(0).permutation(np.arange(240) % num_classes)
    vectors = np.eye(num_classes, dtype=np.float32)[labels]
    result = retrieval_metrics(vectors, vectors, labels, labels, query_ids=np.arange(240), gallery_ids=np.arange(240))
    assert {key: value for key, value in result.items() if "quer" not in key} == dict.fromkeys(
        ["recall@1", "recall@5", "recall@10", "map", "map@r"], 1.0
    )
    assert (result["queries"], result["lone_queries"]) == (240, 0)


def test_an_embedding_that_maps_everything_to_one_point_does_not_profit_from_ties():
    rng = np.random.default_rng(1)
    vectors = np.repeat(unit(rng.standard_normal((1, 128))), 500, axis=0)
    labels = rng.integers(0, 50, 500)
    result = retrieval_metrics(vectors, vectors, labels, labels, query_ids=np.arange(500), gallery_ids=np.arange(500))
    assert result["recall@10"] == 0.0
    assert result["map@r"] == 0.0
    assert result["map"] < 0.02


def test_differences_within_the_rounding_of_float32_are_ties_and_larger_ones_are_not():
    queries = np.array([[1.0, 0.0]])
    for gap, expected in ((TIE / 4, 0.0), (TIE * 4, 1.0)):
        right = np.array([1.0, 0.0])
        wrong = np.array([1.0 - gap, 0.0])
        assert retrieval_metrics(queries, np.stack([wrong, right]), [0], [1, 0])["recall@1"] == expected


def test_a_worked_example_by_hand():
    # Ranked: right, wrong, right, wrong, wrong, right, right -> R = 4; precisions 1, 2/3, 3/6, 4/7
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    gallery = np.stack([scores, np.sqrt(1 - scores**2)], axis=1)
    result = retrieval_metrics(np.array([[1.0, 0.0]]), gallery, ["a"], ["a", "b", "a", "b", "b", "a", "a"], ks=(1, 5))
    assert result["recall@1"] == result["recall@5"] == 1.0
    assert result["map"] == pytest.approx((1 + 2 / 3 + 3 / 6 + 4 / 7) / 4)
    assert result["map@r"] == pytest.approx((1 + 2 / 3) / 4)


@pytest.mark.parametrize("chunk_bytes", [1, 60_000, 1_000_000])
@pytest.mark.parametrize("exact", [True, False])
def test_chunked_equals_whole(chunk_bytes, exact):
    rng = np.random.default_rng(2)
    # Rows of +-1/4 have inner products without rounding and many ties; of random rows, a pair in a million may swap by rounding.
    vectors = rng.choice([-0.25, 0.25], (700, 16)) if exact else unit(rng.standard_normal((700, 32)))
    tolerance = 0 if exact else 1e-5
    labels, ids = rng.zipf(1.5, 700) % 40, np.arange(700).astype(str)
    whole = retrieval_metrics(vectors, vectors, labels, labels, query_ids=ids, gallery_ids=ids)
    chunked = retrieval_metrics(vectors, vectors, labels, labels, query_ids=ids, gallery_ids=ids, chunk_bytes=chunk_bytes)
    assert chunked == pytest.approx(whole, abs=tolerance, rel=0)
    belongs = rng.integers(0, 700, 700)
    pairs = pair_metrics(vectors, vectors, belongs)
    assert pair_metrics(vectors, vectors, belongs, chunk_bytes=chunk_bytes) == pytest.approx(pairs, abs=tolerance, rel=0)


@pytest.mark.parametrize(("num_classes", "megabytes"), [(500, 4), (500, 16), (3, 16), (0, 16)])
def test_allocates_no_more_than_it_was_allowed_whatever_the_number_of_relevant_items(num_classes, megabytes):
    rng = np.random.default_rng(3)
    vectors, ids = unit(rng.standard_normal((4000, 16))), np.arange(4000)
    labels = rng.integers(0, num_classes, 4000) if num_classes else np.where(ids < 1500, 0, ids)  # one large class, many of one item
    retrieval_metrics(vectors[:10], vectors[:10], labels[:10], labels[:10])  # what is allocated once, on first use
    tracemalloc.start()
    try:
        retrieval_metrics(vectors, vectors, labels, labels, query_ids=ids, gallery_ids=ids, chunk_bytes=megabytes * 2**20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (megabytes + 2) * 2**20, f"{peak / 2**20:.1f} MiB; all scores at once are {4000 * 4000 * 4 / 2**20:.0f} MiB"


def test_numpy_torch_half_precision_and_lists_give_the_same():
    rng = np.random.default_rng(4)
    vectors, labels = unit(rng.standard_normal((60, 8))), rng.integers(0, 6, 60)
    expected = retrieval_metrics(vectors, vectors, labels, labels)
    tensor = torch.from_numpy(vectors)
    assert retrieval_metrics(tensor, tensor, torch.from_numpy(labels), list(labels)) == expected
    half = tensor.to(torch.bfloat16)
    assert retrieval_metrics(half, half, labels, labels) == retrieval_metrics(half.float(), half.float(), labels, labels)


def test_captions_as_relevant_items_by_picture_id():
    pictures = np.eye(3, dtype=np.float32)
    captions = np.repeat(pictures, 2, axis=0)
    result = retrieval_metrics(pictures, captions, ["x", "y", "z"], ["x", "x", "y", "y", "z", "z"])
    assert result["recall@1"] == result["map"] == 1.0


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 500))
def test_pair_metrics_equal_a_rank_written_out(seed, chunk_bytes):
    rng = np.random.default_rng(seed)
    num_queries, num_gallery = rng.integers(1, 9, 2)
    queries = unit(rng.integers(-1, 2, (num_queries, 3)) + 1e-9 + 2 * rng.integers(0, 2, (num_queries, 1)))
    gallery = unit(rng.integers(-1, 2, (num_gallery, 3)) + 1e-9 + 2 * rng.integers(0, 2, (num_gallery, 1)))
    relevant = rng.integers(0, num_gallery, num_queries)
    ranks = []
    for q in range(num_queries):
        scores = [round(float(queries[q].astype(float) @ gallery[n].astype(float)), 5) for n in range(num_gallery)]
        ranks.append(sum(score >= scores[relevant[q]] for score in scores))
    got = pair_metrics(queries, gallery, relevant, ks=KS, chunk_bytes=chunk_bytes)
    expected = {f"recall@{k}": np.mean([rank <= k for rank in ranks]) for k in KS}
    assert got == pytest.approx(expected | {"median_rank": np.median(ranks), "queries": num_queries})


def test_recall_from_hits_is_recall_of_the_full_ranking_when_there_are_no_ties():
    rng = np.random.default_rng(5)
    vectors, labels = unit(rng.standard_normal((200, 16))), rng.integers(0, 30, 200)
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    hits = labels[np.argsort(-scores, axis=1)[:, :10]]
    expected = retrieval_metrics(vectors, vectors, labels, labels, query_ids=range(200), gallery_ids=range(200))
    assert expected["lone_queries"] == 0
    for k in (1, 5, 10):
        assert recall_from_hits(hits, labels, k) == expected[f"recall@{k}"]


def test_padding_of_a_short_hit_list_is_never_right():
    assert recall_from_hits(np.array([["a", ""], ["", ""]]), ["a", "b"], 2) == 0.5


def test_all_lone_gives_nan_and_says_so_in_the_counts():
    result = retrieval_metrics(np.eye(2), np.eye(2), ["a", "b"], ["a", "b"], query_ids=[1, 2], gallery_ids=[1, 2])
    assert math.isnan(result["recall@1"])
    assert math.isnan(result["map"])
    assert (result["queries"], result["lone_queries"]) == (0, 2)


def test_every_number_has_its_definition():
    result = retrieval_metrics(np.eye(2), np.eye(2), [0, 0], [0, 0], ks=(1, 3))
    assert set(definitions(list(result))) == set(result)
    assert "irrelevant" in definitions(["recall@3"])["recall@3"]


def test_bad_input_is_refused_with_what_was_found():
    eye = np.eye(3, dtype=np.float32)
    bad = eye.copy()
    bad[1, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 3 gallery are NaN or infinite, first row 1"):
        retrieval_metrics(eye, bad, [0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match=r"\(3, 3\) and gallery \(3, 2\)"):
        retrieval_metrics(eye, eye[:, :2], [0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="at least one of each"):
        retrieval_metrics(eye[:0], eye, [], [0, 1, 2])
    with pytest.raises(ValueError, match="expected one each"):
        retrieval_metrics(eye, eye, [0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match="only one of"):
        retrieval_metrics(eye, eye, [0, 1, 2], [0, 1, 2], query_ids=[0, 1, 2])
    with pytest.raises(ValueError, match="text and those of the gallery numbers"):
        retrieval_metrics(eye, eye, ["0", "1", "2"], [0, 1, 2])
    with pytest.raises(ValueError, match=r"ks=\(0,\)"):
        retrieval_metrics(eye, eye, [0, 1, 2], [0, 1, 2], ks=(0,))
    with pytest.raises(ValueError, match="gallery rows"):
        pair_metrics(eye, eye, np.array([0, 1, 3]))
    with pytest.raises(ValueError, match=r"choose 1\.\.2"):
        recall_from_hits([[0, 1]], [0], 3)
