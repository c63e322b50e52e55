"""Rows of several segments, and new ones, become one segment, their vectors as they are: nothing is embedded."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from perdure.index.segment import Segment, build_segment
from perdure.records import EncoderRef, Item, SegmentRef
from perdure.registry.pruning import is_marked
from perdure.registry.registry import Registry
from perdure.registry.store import sha256_of

__all__ = ["Gathered", "publish"]


@dataclass(frozen=True, eq=False)
class Gathered:
    """n items with their vectors, by one encoder."""

    vectors: NDArray[np.float32]  # (n, D) unit rows
    items: list[Item]
    tasks: list[int]
    pictures: list[bytes | tuple[Segment, int] | None]  # itself, or where it lies: large galleries are read when they are written

    @classmethod
    def of(cls, segment: Segment, rows: NDArray[np.int64]) -> Self:
        """Some rows of a segment."""
        known = segment.table.entries(rows)
        at: list[bytes | tuple[Segment, int] | None] = [(segment, int(row)) if segment.pictures is not None else None for row in rows]
        return cls(segment.vectors(rows), [each.item() for each in known], [each.task for each in known], at)

    @classmethod
    def joined(cls, parts: "Sequence[Gathered]") -> "Gathered":
        """Several, one at least, one after the other."""
        return cls(
            np.concatenate([part.vectors for part in parts]),
            [item for part in parts for item in part.items],
            [task for part in parts for task in part.tasks],
            [picture for part in parts for picture in part.pictures],
        )

    def __len__(self) -> int:
        return len(self.items)

    def picture(self, at: int) -> bytes | None:
        """The encoded picture of items[at]."""
        held = self.pictures[at]
        return held[0].picture(held[1]) if isinstance(held, tuple) else held


def publish(
    registry: Registry,
    run: str,
    made_by: EncoderRef,
    gathered: Gathered,
    *,
    kind: str,
    partitions: int = 1,
    options: Mapping[str, Any] | None = None,
) -> SegmentRef:
    """A segment `<run>.writes`, whose version is a digest of its bytes: the same rows again are the same segment, whoever lays them.

    Nobody has to look for a free number, and what a process that died had published is found by the one that goes on. A version that is
    about to be pruned is left alone, for the next one.
    """
    with tempfile.TemporaryDirectory(prefix="perdure-") as folder:
        files = build_segment(
            gathered.vectors,
            gathered.items,
            task=gathered.tasks,
            folder=Path(folder),
            kind=kind,
            partitions=partitions,
            thumbnails=gathered.picture if any(picture is not None for picture in gathered.pictures) else None,
            **(options or {}),
        )
        bytes_of = sorted((name, sha256_of(path)) for name, path in files.items())
        version = 1 + int(hashlib.sha256(repr((str(made_by), bytes_of)).encode()).hexdigest()[:12], 16)
        while is_marked(registry, SegmentRef(f"{run}.writes", version)):
            version += 1
        meta = {"items": len(gathered), "tasks": sorted(set(gathered.tasks))}
        return registry.publish_segment(f"{run}.writes", version, files, made_by=made_by, meta=meta)
