"""Codes across modalities: ranking and lookup by loops, and the numbers beside them."""

import numpy as np
import pytest

from perdure.data.tags import known_tags, tag_matrix
from perdure.records import Item
from perdure.retrieval import codes
from perdure.retrieval.codes import code_metrics
from perdure.retrieval.evaluation import SplitEmbeddings

LABELS = np.array([[1, 0], [1, 1], [0, 1]], dtype=bool)


def drawn(bits: int = 8) -> SplitEmbeddings:
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((3, bits)).astype(np.float32), rng.standard_normal((5, bits)).astype(np.float32)
    return SplitEmbeddings(np.arange(3), image, text, np.array([0, 0, 1, 2, 2]))


def test_real_numbers_are_ranked_and_averaged_as_by_loops() -> None:
    seen = drawn()
    assert seen.text is not None
    precisions = []
    for i in range(3):
        order = sorted(range(5), key=lambda j: -float(seen.image[i] @ seen.text[j]))
        right = [bool((LABELS[i] & LABELS[seen.text_of[j]]).any()) for j in order]
        hits = [sum(right[: n + 1]) / (n + 1) for n in range(5) if right[n]]
        precisions.append(sum(hits) / len(hits))
    assert code_metrics(seen, LABELS, seen, LABELS)["i2t"]["real_map"] == pytest.approx(np.mean(precisions))


def test_the_lookup_counts_what_lies_within_a_radius() -> None:
    seen = drawn()
    assert seen.text is not None
    found = code_metrics(seen, LABELS, seen, LABELS)
    assert found["bits"] == 8
    for radius in range(9):
        recalls = []
        for j in range(5):
            near = [i for i in range(3) if ((seen.text[j] >= 0) != (seen.image[i] >= 0)).sum() <= radius]
            right = [i for i in range(3) if (LABELS[seen.text_of[j]] & LABELS[i]).any()]
            recalls.append(len(set(near) & set(right)) / len(right))
        assert found["t2i"]["lookup_recall"][radius] == pytest.approx(np.mean(recalls), abs=1e-5)
    assert found["t2i"]["lookup_recall"][8] == 1


@pytest.mark.parametrize("most", [20_000_000, 1], ids=["at once", "query by query"])
def test_a_gallery_of_its_own_is_searched_and_means_are_over_queries_however_many_at_a_time(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "_MOST_PAIRS", most)
    rng = np.random.default_rng(3)
    gallery = SplitEmbeddings(np.arange(6), *rng.standard_normal((2, 6, 8)).astype(np.float32), np.arange(6))
    theirs, mine = rng.random((6, 3)) < 0.4, np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=bool)
    seen = drawn()
    found = code_metrics(seen, mine, gallery, theirs)
    assert seen.text is not None and gallery.text is not None
    for way, queries, labels, items in (("i2t", seen.image, mine, gallery.text), ("t2i", seen.text, mine[seen.text_of], gallery.image)):
        precisions, recalls = [], []
        for query, own in zip(queries, labels, strict=True):
            right = (own & theirs).any(axis=1)
            if not right.any():
                continue
            order = [bool(right[j]) for j in sorted(range(6), key=lambda j: -float(query @ items[j]))]
            hits = [sum(order[: n + 1]) / (n + 1) for n in range(6) if order[n]]
            precisions.append(sum(hits) / len(hits))
            near = ((query >= 0) != (items >= 0)).sum(axis=1) <= 3
            recalls.append((near & right).sum() / right.sum())
        assert precisions and found[way]["real_map"] == pytest.approx(np.mean(precisions))
        assert found[way]["lookup_recall"][3] == pytest.approx(np.mean(recalls), abs=1e-5)


def test_codes_that_are_the_labels_find_everything_first() -> None:
    one_hot = np.array([[1, -1], [1, -1], [-1, 1]], dtype=np.float32)
    seen = SplitEmbeddings(np.arange(3), one_hot, one_hot, np.arange(3))
    found = code_metrics(seen, one_hot > 0, seen, one_hot > 0)
    assert all(found[way][name] == 1 for way in ("i2t", "t2i") for name in ("hamming_map", "real_map"))


def test_without_captions_there_is_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="no captions"):
        silent = SplitEmbeddings(np.arange(2), np.ones((2, 8), np.float32), None, np.zeros(0, np.int64))
        code_metrics(silent, LABELS[:2], silent, LABELS[:2])


def test_tags_keep_their_columns_as_more_items_come_and_a_class_stands_in_for_none() -> None:
    items = [Item("a", "cat", tags=("furry", "small")), Item("b", "dog", tags=("furry", "loud")), Item("c", "car")]
    before, after = known_tags(items, [0]), known_tags(items, [0, 1, 2])
    assert before == ("furry", "small") and after == ("furry", "small", "loud", "car")
    assert tag_matrix(items, np.array([2, 1]), after).tolist() == [[False, False, False, True], [True, False, True, False]]
    assert tag_matrix(items, [1], before).tolist() == [[True, False]]
