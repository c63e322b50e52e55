"""A small gallery without an encoder to wait for, and what is in it: a plain dict beside what the registry gives back."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.index import Segment, build_segment
from perdure.records import EncoderRef, Hits, Item, Release, SegmentUse
from perdure.registry import Registry, open_registry
from perdure.retrieval.asking import Pass
from perdure.retrieval.edits import edited, load_segments
from perdure.retrieval.retriever import finish, search_segments
from perdure.retrieval.writes import Change, NewItem, Writer

__all__ = ["DIM", "OLD", "Plain", "apply", "begin", "best", "brought", "change", "gallery", "live", "vector", "write"]

DIM = 16
OLD = [f"old-{number}" for number in range(24)]
Plain = dict[str, int]
"""id -> the seed of its vector, which is its payload, too."""


def vector(seed: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


def brought(item_id: str, seed: int) -> NewItem:
    item = Item(item_id, f"class {seed % 3}", payload={"seed": seed})
    return NewItem(item, vector(seed), EncoderRef("shop", 1), task=0, picture=f"picture {seed}".encode() if seed % 4 else None)


def change(items: Mapping[str, int] | None = None, removed: list[str] | None = None, **more: Any) -> Change:
    return Change([brought(item_id, seed) for item_id, seed in (items or {}).items()], removed or [], by="test", **more)


def begin(url: str | Path, kind: str = "flat", rows: int = len(OLD), **options: Any) -> tuple[Registry, Plain]:
    """A registry in which shop@v1 is live: two segments of one encoder; and what is in them."""
    registry = open_registry(url)
    encoder = registry.publish_encoder("shop", 1, {"weights": b"none"})
    ids = OLD if rows == len(OLD) else [f"old-{number}" for number in range(rows)]
    plain = {item_id: 10_000 + number for number, item_id in enumerate(ids)}
    uses: list[SegmentUse] = []
    for part in (ids[: rows // 2], ids[rows // 2 :]):
        with tempfile.TemporaryDirectory() as folder:
            new = [brought(item_id, plain[item_id]) for item_id in part]
            files = build_segment(
                np.stack([each.vector for each in new]),
                [each.item for each in new],
                task=0,
                folder=Path(folder),
                kind=kind,
                partitions=2,
                thumbnails=lambda row, new=new: new[row].picture,
                **options,
            )
            uses.append(SegmentUse(registry.publish_segment("shop", None, files, made_by=encoder), encoder, encoder))
    registry.publish_release(Release("shop@v1", "shop", 0, "versioned", "standardised", encoder, tuple(uses)))
    registry.promote("shop@v1", by="test")
    return registry, plain


def live(registry: Registry) -> tuple[Release, list[Segment]]:
    """The live release with what was written over it."""
    release = edited(registry, registry.channel())
    assert release is not None
    return release, load_segments(registry, release)


def gallery(registry: Registry) -> Plain:
    """What can be found, each item once, its vector, payload and picture those that belong together."""
    found: Plain = {}
    _, segments = live(registry)
    for segment in segments:
        for entry, row in zip(segment.table.entries(segment.alive), segment.alive.tolist(), strict=True):
            assert entry.id not in found, f"{entry.id} is there twice"
            seed = int(entry.payload["seed"])
            new = brought(entry.id, seed)
            assert entry.label == new.item.label and segment.picture(row) == new.picture and segment.row(entry.id) == row
            if segment.kind != "binary":
                np.testing.assert_allclose(segment.vectors(np.array([row]))[0], new.vector, atol=1e-6)
            found[entry.id] = seed
    return found


def apply(plain: Plain, changed: Change) -> None:
    """The same change on the dict."""
    for new in changed.items:
        plain[new.item.id] = int(new.item.payload["seed"])
    for item_id in changed.removed:
        plain.pop(item_id, None)


def best(registry: Registry, query: NDArray[np.float32], k: int, filter: Mapping[str, Any] | None = None) -> list[tuple[str, float]]:
    """What a search finds."""
    release, segments = live(registry)
    put = [query[None]] * len(segments)
    parts: list[Hits] = search_segments(release, segments, put, Pass([0], k, filter or {}, exact=False))
    return [(hit.id, hit.raw_score) for hit in finish(release, parts, dict(enumerate(segments)), put, k)[0]]


def write(registry: Registry, *changes: Change) -> list[Any]:
    """The changes as one commit."""
    return Writer(registry, "shop").commit(*live(registry), changes)
