"""What merges and folds of written items leave behind goes, in two steps a day apart.

    unused/<run>.writes/v<N>.json    since when nothing uses that segment

A segment of writes is used by the edits that count now, and by releases. What nothing uses is marked. What was marked long enough ago, and
is still unused, is deleted: by then every search that was pinned to an older edit has ended. A writer whose rows happen to be those of a
marked segment lays them under another version (`retrieval.gathering.publish`), so nothing comes to be used between the look and the
deletion. Encoders, releases and the segments that runs publish are never touched.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from perdure.errors import Corrupt, Exists, NotFound, RegistryError
from perdure.records import SegmentRef
from perdure.registry.registry import Registry

__all__ = ["LEAST", "Pruned", "is_marked", "prune"]

LEAST = timedelta(hours=1)  # much longer than any writer takes from its segment to its edit
_WRITES = ".writes"


@dataclass(frozen=True)
class Pruned:
    """What a call of `prune` did, or would do."""

    marked: list[SegmentRef]  # unused, seen so for the first time
    waiting: list[SegmentRef]  # marked before, not long enough ago
    deleted: list[SegmentRef]
    freed_bytes: int


def prune(registry: Registry, *, after: timedelta = timedelta(days=1), dry_run: bool = False, now: datetime | None = None) -> Pruned:
    """Mark the segments of writes that nothing uses, delete those that were marked so long ago; harmless beside writers and servers.

    Killed at any moment, the next call goes on.

    Args:
        after: between mark and deletion.
        dry_run: only say what would be done.
        now: the time, if not the clock's.
    Raises:
        RegistryError: `after` is shorter than `LEAST`.
    """
    if after < LEAST:
        raise RegistryError(f"prune after {after}: give at least {LEAST}, so that no writer is between its segment and its edit")
    now = now or datetime.now(UTC)
    marks = dict(_marks(registry))
    written, used = _written_and_used(registry)
    marked, waiting, deleted = list[SegmentRef](), list[SegmentRef](), list[SegmentRef]()
    freed = 0
    for ref in sorted({*written, *marks}, key=str):
        since = marks.get(ref)
        if ref in used:
            if since is not None and not dry_run:
                registry.store.delete(_mark_key(ref))
        elif since is None:
            marked.append(ref)
            if not dry_run:
                _mark(registry, ref, now)
        elif now - since < after:
            waiting.append(ref)
        else:
            deleted.append(ref)
            freed += _delete(registry, ref, dry_run)
    return Pruned(marked, waiting, deleted, freed)


def is_marked(registry: Registry, ref: SegmentRef) -> bool:
    """Whether a segment may go at any moment."""
    try:
        registry.store.read(_mark_key(ref))
    except NotFound:
        return False
    return True


def _written_and_used(registry: Registry) -> tuple[list[SegmentRef], set[SegmentRef]]:
    """The segments of the runs that have a log of writes; and those of all releases, and of the edits that count now."""
    by_run: dict[str, list[SegmentRef]] = {}
    for ref in registry.segments():
        if ref.run.endswith(_WRITES):
            by_run.setdefault(ref.run.removesuffix(_WRITES), []).append(ref)
    written: list[SegmentRef] = []
    used = {use.segment for release in registry.releases() for use in release.segments}
    for run, refs in by_run.items():
        log = registry.edits(run)
        if newest := log.newest():
            written += refs
            used |= {ref for edit in log.active(newest) for ref, _ in edit.segments}
    return written, used


def _marks(registry: Registry) -> Iterator[tuple[SegmentRef, datetime]]:
    for key in registry.store.list("unused/"):
        _, run, name = key.split("/")
        try:
            since = datetime.fromisoformat(json.loads(registry.store.read(key))["since"])
        except NotFound:
            continue  # another prune was faster
        except (ValueError, KeyError, TypeError):
            raise Corrupt(f"{key} is damaged: it does not say since when the segment is unused; remove that file") from None
        yield SegmentRef(run, int(name.removeprefix("v").removesuffix(".json"))), since


def _mark(registry: Registry, ref: SegmentRef, now: datetime) -> None:
    with suppress(Exists):
        registry.store.create(_mark_key(ref), json.dumps({"since": now.isoformat()}).encode())


def _delete(registry: Registry, ref: SegmentRef, dry_run: bool) -> int:
    """The manifest first, without which there is no such version, and the mark last; the bytes of the files."""
    folder = f"segments/{ref.run}/v{ref.version}"
    try:
        size = sum(entry.bytes for entry in registry.manifest(ref).files.values())
    except NotFound:
        size = 0  # the rest of one whose deletion was cut off
    if not dry_run:
        registry.store.delete(f"{folder}/manifest.json")
        for key in registry.store.list(f"{folder}/"):
            registry.store.delete(key)
        registry.store.delete(_mark_key(ref))
    return size


def _mark_key(ref: SegmentRef) -> str:
    return f"unused/{ref.run}/v{ref.version}.json"
