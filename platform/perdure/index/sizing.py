"""How much memory a gallery needs, and how many nodes: arithmetic for `perdure plan`."""

import math
from dataclasses import dataclass

from perdure.errors import BadQuery

__all__ = ["GalleryPlan", "plan_gallery", "vector_bytes"]

_TABLE_BYTES = 160  # of an item with a label, two captions and a few tags, in the Arrow table
_PARTITION_ITEMS = 1_000_000  # a partition is loaded, searched and moved as a whole
_USABLE = 0.75  # of a node's memory; the rest is for the encoder, Ray and the page cache
_BESIDE = 2  # a replica loads the next release beside the one it serves
_GIB = 2**30


@dataclass(frozen=True)
class GalleryPlan:
    """What a gallery of a given size asks for, when each node holds one shard."""

    items: int
    dim: int
    kind: str
    bytes_per_vector: int
    vectors_gib: float  # of one release, over all nodes
    table_gib: float  # of one release, on every node
    partitions: int
    shards: int
    shard_gib: float  # on each node, while the next release is loaded beside the live one
    node_memory_gib: float

    @property
    def nodes(self) -> int:
        """One for each shard."""
        return self.shards


def vector_bytes(dim: int, kind: str, hnsw_links: int = 32) -> int:
    """Memory of one vector of D floats: 4 D, two 8-byte row numbers, and for HNSW its links; of D bits, held twice: D / 4 and the same.

    For ivfpq a code of D / 4 bytes and the 8-byte number that stands beside it in its list.

    A graph with M links keeps 2 M 4-byte neighbours a vector on the lowest level, M on each of the 1 / (M - 1) upper levels
    that a vector is on in the mean, and 12 bytes of level and offset.
    """
    links = 8 * hnsw_links + 4 * hnsw_links / (hnsw_links - 1) + 12 if kind == "hnsw" else 0
    code = dim / 4 + 8 if kind == "ivfpq" else 0
    return math.ceil((dim / 4 if kind == "binary" else 4 * dim) + 16 + links + code)


def plan_gallery(items: int, dim: int, *, kind: str = "flat", node_memory_gib: float = 16.0, hnsw_links: int = 32) -> GalleryPlan:
    """Shards, memory and nodes for N items of D dimensions.

    Raises:
        BadQuery: a size below 1, an unknown kind, or nodes too small for the table of the items.
    """
    if min(items, dim) < 1 or kind not in ("flat", "hnsw", "binary", "ivfpq") or node_memory_gib <= 0 or hnsw_links < 2:
        raise BadQuery(
            f"plan: items={items}, dim={dim}, kind={kind}, node memory {node_memory_gib} GiB; sizes are at least 1, "
            "kind is flat, hnsw, binary or ivfpq"
        )
    each = vector_bytes(dim, kind, hnsw_links)
    vectors, table, usable = items * each / _GIB, items * _TABLE_BYTES / _GIB, _USABLE * node_memory_gib
    room = usable - _BESIDE * table
    if room <= 0:
        raise BadQuery(
            f"plan: the table of {items:,} items takes {_BESIDE * table:.1f} GiB on every node (with the next release beside it), "
            f"more than the {usable:.1f} usable of {node_memory_gib:g} GiB; plan for larger nodes"
        )
    shards = math.ceil(_BESIDE * vectors / room)
    # A power of two, at least four to a shard where there are several, so that shards can be added without building anew.
    partitions = 2 ** math.ceil(math.log2(max(1, items / _PARTITION_ITEMS, 4 * shards if shards > 1 else 1)))
    return GalleryPlan(
        items=items,
        dim=dim,
        kind=kind,
        bytes_per_vector=each,
        vectors_gib=vectors,
        table_gib=table,
        partitions=partitions,
        shards=shards,
        shard_gib=_BESIDE * (vectors / shards + table),
        node_memory_gib=node_memory_gib,
    )
