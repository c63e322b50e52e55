"""The bridge between encoders: the best turn there is, exact where one turn is all that happened, harmless where nothing is known."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import BadQuery, Corrupt
from perdure.records import EncoderRef, Release, SegmentRef, SegmentUse
from perdure.registry import open_registry
from perdure.registry.manifest import release_from_plain, release_to_plain
from perdure.retrieval import next_release
from perdure.retrieval.bridge import QUERY_BRIDGE, QueryBridge, orthogonal_map
from perdure.retrieval.compensation import asked, load_drifts


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def turn(dim: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0].astype(np.float32)


@given(count=st.integers(1, 30), dim=st.integers(2, 6), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_it_is_orthogonal_and_no_other_turn_is_better(count, dim, seed):
    draw = np.random.default_rng(seed)
    before, after = (unit(draw.standard_normal((count, dim))) for _ in range(2))
    bridge = orthogonal_map(before, after)
    np.testing.assert_allclose(bridge @ bridge.T, np.eye(dim), atol=1e-5)
    left = np.square(after @ bridge.T - before).sum()
    for other in (np.eye(dim), *(turn(dim, seed + at) for at in range(5))):
        assert left <= np.square(after @ other.T - before).sum() + 1e-4 * count


def test_one_turn_of_all_embeddings_is_undone_and_items_that_say_nothing_turn_nothing():
    before, by = unit(np.random.default_rng(0).standard_normal((40, 5))), turn(5, 1)
    bridge = QueryBridge(orthogonal_map(before, before @ by.T), None)
    np.testing.assert_allclose(bridge.taken_from(before @ by.T, "image"), before, atol=1e-5)
    np.testing.assert_allclose(orthogonal_map(before[:0], before[:0]), np.eye(5), atol=1e-6)
    np.testing.assert_allclose(orthogonal_map(before[:1], before[:1]), np.eye(5), atol=1e-3)


def test_several_hops_are_gone_back_newest_first():
    first, second = turn(4, 1), turn(4, 2)
    old = unit(np.random.default_rng(0).standard_normal((20, 4)))
    middle = old @ first.T
    new = middle @ second.T
    hops = [QueryBridge(orthogonal_map(middle, new), None), QueryBridge(orthogonal_map(old, middle), None)]
    np.testing.assert_allclose(QueryBridge.over(hops).taken_from(new, "image"), old, atol=1e-5)


def test_texts_need_a_bridge_of_their_own_and_a_damaged_file_is_found(tmp_path: Path):
    bridge = QueryBridge(turn(3, 0), None)
    with pytest.raises(BadQuery, match="no bridge was fitted for texts"):
        bridge.taken_from(np.ones((1, 3), np.float32), "text")
    bridge.save(tmp_path / "b")
    np.testing.assert_array_equal(QueryBridge.load(tmp_path / "b").image, bridge.image)
    (tmp_path / "b").write_bytes(b"no")
    with pytest.raises(Corrupt, match="not the query bridge"):
        QueryBridge.load(tmp_path / "b")


def test_a_release_that_says_so_turns_queries_to_old_vectors_and_those_alone(tmp_path: Path):
    registry = open_registry(tmp_path / "registry")
    old, by = unit(np.random.default_rng(0).standard_normal((8, 3))), turn(3, 1)
    QueryBridge(orthogonal_map(old, old @ by.T), None).save(tmp_path / QUERY_BRIDGE)
    e1 = registry.publish_encoder("demo", 1, {"w": b"1"})
    e2 = registry.publish_encoder("demo", 2, {"w": b"2", QUERY_BRIDGE: tmp_path / QUERY_BRIDGE}, parent=e1)
    s1, s2 = SegmentRef("demo", 1), SegmentRef("demo", 2)
    first = next_release("keep", None, encoder=e1, segment=s1, id="demo@v1", run="demo", task=0)
    release = next_release("keep", first, encoder=e2, segment=s2, id="demo@v2", run="demo", task=1, compensate="bridge")
    assert release.segments == (SegmentUse(s1, EncoderRef("demo", 1), e2, compensated="bridge"), SegmentUse(s2, e2, e2))
    again: Release = release_from_plain(release_to_plain(release))
    assert again == release and again.compensated
    put = asked(release, {e2: old @ by.T}, ["image"] * 8, load_drifts(registry, release))
    np.testing.assert_allclose(put[0], old, atol=1e-5)
    np.testing.assert_array_equal(put[1], old @ by.T)
