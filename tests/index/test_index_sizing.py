"""The arithmetic of `perdure plan` agrees with what is really stored."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import BadQuery
from perdure.index import FlatPartition, HNSWPartition, plan_gallery
from perdure.index.sizing import vector_bytes


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_bytes_of_a_vector_are_those_of_the_file_and_the_row_numbers_beside_it(kind: str, tmp_path: Path):
    count, dim, links = 4000, 64, 16
    vectors = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    partition = (
        FlatPartition(np.arange(count), vectors)
        if kind == "flat"
        else HNSWPartition(np.arange(count), vectors, hnsw_links=links, ef_construction=20)
    )
    partition.save(tmp_path / "p")
    stored = (tmp_path / "p").stat().st_size / count + 8  # in memory the rows are held twice
    assert stored == pytest.approx(vector_bytes(dim, kind, links), rel=0.02)


@given(
    items=st.integers(1, 10**9),
    dim=st.integers(1, 2048),
    kind=st.sampled_from(["flat", "hnsw"]),
    memory=st.floats(1, 4096),
)
def test_what_is_planned_fits(items: int, dim: int, kind: str, memory: float):
    try:
        plan = plan_gallery(items, dim, kind=kind, node_memory_gib=memory)
    except BadQuery as error:
        assert "on every node" in str(error) and 2 * items * 160 / 2**30 >= 0.75 * memory
        return
    assert plan.shard_gib <= 0.75 * memory * (1 + 1e-9)
    assert plan.nodes == plan.shards >= 1
    assert plan.partitions >= plan.shards and items / plan.partitions <= 1_000_000
    assert plan.partitions & (plan.partitions - 1) == 0


def test_a_small_gallery_is_one_partition_on_one_node():
    plan = plan_gallery(10_000, 128)
    assert (plan.partitions, plan.nodes) == (1, 1)


@pytest.mark.parametrize(
    "asked",
    [{"items": 0, "dim": 8}, {"items": 8, "dim": 0}, {"items": 8, "dim": 8, "kind": "ivf"}, {"items": 8, "dim": 8, "node_memory_gib": 0}],
)
def test_a_size_that_makes_no_sense_is_refused(asked):
    with pytest.raises(BadQuery, match="plan:"):
        plan_gallery(**asked)
