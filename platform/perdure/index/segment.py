"""Segments: an immutable set of gallery vectors made by exactly one encoder version, cut into partitions by item id.

A segment is a folder of files:

    segment.json                kind, partitions, D, N, build options
    partition-0000.faiss ...    vectors and graph, with the rows they belong to
    table.parquet               id, label, text, group, task, tags and payload of each row
    statistics.safetensors      mean and covariance of all vectors, for merging with other segments
    images.arrow                encoded pictures, where they were given
"""

import copy
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.catalog import Catalog
from perdure.errors import BadQuery, Corrupt, DataError, Incompatible, NotLoaded
from perdure.index.binary import BinaryPartition
from perdure.index.flat import FlatPartition
from perdure.index.hnsw import HNSWPartition
from perdure.index.ivfpq import IVFPQPartition
from perdure.index.merge import merge_partitions
from perdure.index.partition import Partition, partition_of
from perdure.index.statistics import SegmentStatistics
from perdure.index.table import Pictures, SegmentTable, write_pictures
from perdure.records import EncoderRef, Hits, Item, SegmentRef

__all__ = ["PARTITIONS", "Segment", "build_segment", "load_segment"]

_KINDS: dict[str, type[Partition]] = {"flat": FlatPartition, "hnsw": HNSWPartition, "binary": BinaryPartition, "ivfpq": IVFPQPartition}
PARTITIONS: Catalog[Partition] = Catalog("index", _KINDS)


_SPARE = 64  # hits that are asked for beyond k, at least, where rows are dead


class Segment:
    """A segment in memory, with all of its partitions or with some (a replica of a shard)."""

    def __init__(
        self,
        ref: SegmentRef,
        made_by: EncoderRef,
        partitions: Mapping[int, Partition],
        table: SegmentTable,
        statistics: SegmentStatistics,
        *,
        num_partitions: int,
        kind: str = "flat",
        pictures: Pictures | None = None,
    ) -> None:
        self.ref = ref
        self.made_by = made_by
        self.partitions = dict(partitions)
        self.table = table
        self.statistics = statistics
        self.num_partitions = num_partitions
        self.kind = kind
        self.pictures = pictures
        self.dead = np.empty(0, np.int64)

    def without(self, dead: NDArray[np.int64]) -> "Segment":
        """The same segment, some rows of which (ascending) are not found any more: deleted, or written again elsewhere."""
        view = copy.copy(self)
        view.dead = dead
        return view

    def __len__(self) -> int:
        return len(self.table)

    @property
    def dim(self) -> int:
        """D."""
        return len(self.statistics.mean)

    @property
    def alive(self) -> NDArray[np.int64]:
        """The rows that can be found, ascending."""
        return np.setdiff1d(np.arange(len(self), dtype=np.int64), self.dead, assume_unique=True)

    def row(self, item_id: str) -> int | None:
        """The row of an id that can be found, or None."""
        row = self.table.row(item_id)
        return None if row is None or _among(self.dead, np.array([row]))[0] else row

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        encoder: EncoderRef,
        allowed: EncoderRef | None = None,
        rows: NDArray[np.bool_] | None = None,
        number: int = 0,
    ) -> Hits:
        """The best k rows of each query over the partitions that are held; a shorter list where there are fewer.

        Args:
            queries: (Q, D) unit rows.
            k: at least 1.
            encoder: who made the queries.
            allowed: the encoder that the release lets query this segment; None = the one that made it.
            rows: (N,) rows that may be found; None = all.
            number: the segment's number in its release, for `Hits.segments`.

        Raises:
            Incompatible: the queries were made by another encoder than is allowed, whatever their dimension.
            BadQuery: k < 1, queries of another D, or not finite.
        """
        self.admit(encoder, allowed)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise BadQuery(f"{self.ref} has D={self.dim}, the queries have shape {queries.shape}; expected (Q, {self.dim})")
        parts = [self._search(partition, queries, k, rows) for partition in self.partitions.values()]
        none = (len(queries), 0)
        nothing = Hits(np.empty(none, np.float32), np.empty(none, np.int64), np.empty(none, np.int32))
        hits = merge_partitions(parts or [nothing], k)
        return Hits(hits.scores, hits.rows, np.full(hits.rows.shape, number, np.int32), hits.metric)

    def _search(self, partition: Partition, queries: NDArray[np.float32], k: int, rows: NDArray[np.bool_] | None) -> Hits:
        """A partition's best k without the dead, as exact as the partition is.

        A few more than k are asked for, and the dead among them left out. Where that leaves fewer than k, all that live are scanned.
        """
        num_dead = int(_among(partition.rows, self.dead).sum())
        if not num_dead:
            return partition.search(queries, k, rows)
        if rows is None:
            hits = _left_out(partition.search(queries, k + min(num_dead, max(k, _SPARE)), None), self.dead)
            wanted = min(k, len(partition.rows) - num_dead)
            if ((hits.rows >= 0).sum(axis=1) >= wanted).all():
                return Hits(hits.scores[:, :wanted], hits.rows[:, :wanted], hits.segments[:, :wanted], hits.metric)
            rows = np.ones(len(self), np.bool_)
        rows = rows.copy()
        rows[self.dead] = False
        return partition.search(queries, k, rows)

    def admit(self, encoder: EncoderRef, allowed: EncoderRef | None = None) -> None:
        """Let queries of an encoder in.

        Raises:
            Incompatible: it is not the allowed one (None = the one that made the segment).
        """
        allowed = allowed or self.made_by
        if encoder != allowed:
            raise Incompatible(
                f"{self.ref} was made by {self.made_by} and may be queried by {allowed}; these queries come from {encoder}. "
                "Embed them with that encoder, or publish a release that allows this pair (index.policy keep)."
            )

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(len(rows), D) stored vectors.

        Raises:
            NotLoaded: a row is in a partition that this replica does not hold.
        """
        out = np.empty((len(rows), self.dim), np.float32)
        places = np.array([partition_of(entry.id, self.num_partitions) for entry in self.table.entries(rows)], dtype=np.int64)
        for number in np.unique(places):
            if int(number) not in self.partitions:
                raise NotLoaded(f"{self.ref}: partition {number} is not held here, only {sorted(self.partitions)}")
            out[places == number] = self.partitions[int(number)].vectors(rows[places == number])
        return out

    def picture(self, row: int) -> bytes | None:
        """The encoded picture of a row, or None when it was stored without one."""
        return self.pictures[row] if self.pictures is not None else None


def build_segment(
    vectors: NDArray[np.float32],
    items: Sequence[Item],
    *,
    task: Sequence[int] | int,
    folder: Path,
    kind: str = "flat",
    partitions: int = 1,
    hnsw_links: int = 32,
    ef_construction: int = 200,
    ef_search: int = 64,
    ivf_lists: int = 0,
    ivf_probes: int = 32,
    pq_bytes: int = 0,
    rerank: int = 8,
    thumbnails: Callable[[int], bytes | None] | None = None,
) -> dict[str, Path]:
    """Write the files of a segment into a folder; their paths by name, ready to publish. The same input gives the same bytes.

    Args:
        vectors: (N, D) float32, unit rows: row i is items[i].
        items: N items with unique ids.
        task: the task that brought each item, or one number for all.
        folder: where to write; made if missing.
        kind: "flat", "hnsw", "ivfpq", or "binary", of the signs of the vectors.
        partitions: how many; item i goes to `partition_of(items[i].id, partitions)`.
        hnsw_links: see `HNSWPartition`.
        ef_construction: see `HNSWPartition`.
        ef_search: see `HNSWPartition`.
        ivf_lists: see `IVFPQPartition`.
        ivf_probes: see `IVFPQPartition`.
        pq_bytes: see `IVFPQPartition`.
        rerank: see `IVFPQPartition`.
        thumbnails: the encoded picture of items[i], by i, or None where it has none; None = no pictures.

    Raises:
        DataError: no items, an id that occurs twice, numbers of items, vectors and tasks that differ, or a payload field of several kinds.
        ValueError: a vector that is not finite.
    """
    tasks = [task] * len(items) if isinstance(task, int) else [int(one) for one in task]
    if not items or vectors.ndim != 2 or not len(vectors) == len(items) == len(tasks):
        raise DataError(f"segment: {len(items)} items, {vectors.shape} vectors, {len(tasks)} tasks; expected N of each, at least one")
    repeated = [name for name, times in Counter(item.id for item in items).items() if times > 1]
    if repeated:
        raise DataError(f"segment: {len(repeated)} ids occur more than once ({', '.join(map(repr, repeated[:5]))}); an id names one item")
    of_kind = {
        "hnsw": {"hnsw_links": hnsw_links, "ef_construction": ef_construction, "ef_search": ef_search},
        "ivfpq": {"ivf_lists": ivf_lists, "ivf_probes": ivf_probes, "pq_bytes": pq_bytes, "rerank": rerank},
    }
    options = of_kind.get(kind, {})
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    place = np.array([partition_of(item.id, partitions) for item in items])
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(partitions):
        rows = np.flatnonzero(place == number).astype(np.int64)
        PARTITIONS.build(kind, options, rows, vectors[rows]).save(folder / _partition_file(number))
    SegmentTable.of(items, tasks).save(folder / "table.parquet")
    SegmentStatistics.of(_KINDS[kind].kept(vectors)).save(folder / "statistics.safetensors")
    if thumbnails is not None:
        write_pictures(folder / "images.arrow", len(items), thumbnails)
    description = {"kind": kind, "partitions": partitions, "dim": vectors.shape[1], "items": len(items), "options": options}
    (folder / "segment.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    names = ["segment.json", "table.parquet", "statistics.safetensors", *map(_partition_file, range(partitions))]
    return {name: folder / name for name in [*names, *(["images.arrow"] if thumbnails is not None else [])]}


def load_segment(files: Mapping[str, Path], *, ref: SegmentRef, made_by: EncoderRef, only: Collection[int] | None = None) -> Segment:
    """A segment from its files, which the registry has checked.

    Args:
        files: paths by name.
        ref: its reference.
        made_by: the encoder of its manifest.
        only: numbers of the partitions to hold (empty: none, only the table); None = all.

    Raises:
        Corrupt: a file is missing or cannot be read.
    """
    try:
        description: dict[str, Any] = json.loads(files["segment.json"].read_text(encoding="utf-8"))
        numbers = [number for number in range(description["partitions"]) if only is None or number in only]
        kind = _KINDS[description["kind"]]
        paths = {number: files[_partition_file(number)] for number in numbers}
        table = SegmentTable.load(files["table.parquet"])
        statistics = SegmentStatistics.load(files["statistics.safetensors"])
    except (KeyError, ValueError) as error:
        raise Corrupt(f"{ref}: its files are not those of a segment ({error!r})") from None
    return Segment(
        ref,
        made_by,
        {number: kind.load(path) for number, path in paths.items()},
        table,
        statistics,
        num_partitions=description["partitions"],
        kind=description["kind"],
        pictures=Pictures(files["images.arrow"]) if "images.arrow" in files else None,
    )


def _left_out(hits: Hits, dead: NDArray[np.int64]) -> Hits:
    """Lists without some rows, what is behind them moved up."""
    gone = _among(dead, hits.rows)
    order = np.argsort(gone, axis=1, kind="stable")
    rows = np.where(gone, -1, hits.rows)
    scores, rows, numbers = (np.take_along_axis(each, order, axis=1) for each in (hits.scores, rows, hits.segments))
    return Hits(scores, rows, numbers, hits.metric)


def _among(ascending: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of some rows are among others, which ascend."""
    if not len(ascending):
        return np.zeros(rows.shape, np.bool_)
    return ascending[np.minimum(np.searchsorted(ascending, rows), len(ascending) - 1)] == rows


def _partition_file(number: int) -> str:
    return f"partition-{number:04d}.faiss"
