"""Backfilling: old items move to the newest encoder slice by slice, each slice a release of its own.

    start release -> [choose a slice -> embed its stored pictures -> segments -> guard -> publish] ... -> nothing old is left

Each release holds every item where it is searched by the encoder that made its vector: the slice leaves the segments of older encoders
(their rest is published again) and joins the one segment of what has moved. The state of a backfill is its newest release and nothing
else, so it may be stopped at any moment and started again: a slice has moved when its release is there, wholly and once.

The oldest encoder's items move first, each encoder's in the order that was asked for, so that encoders fall out of use, and queries become
cheaper, as early as can be. N items, Q queries, D embedding.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.encoders import Encoder
from perdure.errors import ConfigError, DataError, Incompatible
from perdure.index.segment import Segment, build_segment, load_segment
from perdure.progress import Progress, SilentProgress
from perdure.records import EncoderRef, Release, SegmentRef, SegmentUse
from perdure.registry.registry import Registry
from perdure.retrieval.calibration import fit_calibration, held_back, load_calibration
from perdure.retrieval.embedding import Embed, embed_here
from perdure.retrieval.guard import Guard, Reading
from perdure.retrieval.merging import LEARNED
from perdure.retrieval.orders import moving_order
from perdure.retrieval.retriever import Retriever

__all__ = ["Backfill", "Pace"]

_CHUNK = 64  # pictures that are embedded at a time


class Pace:
    """At most so many items a second, over the whole time since the first.

    Args:
        items_per_s: the budget; None: as fast as it goes.
        clock: seconds, ever growing; tests bring their own, and their own sleep.
    """

    def __init__(
        self, items_per_s: float | None, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        if items_per_s is not None and not items_per_s > 0:
            raise ConfigError(
                "backfill", [f"--items-per-s {items_per_s}: a budget is more than 0 items a second; leave it out for no limit"]
            )
        self._per_s = items_per_s
        self._clock = clock
        self._sleep = sleep
        self._started: float | None = None
        self._done = 0

    def spend(self, items: int) -> None:
        """So many items are about to be embedded: wait until those before them were within the budget."""
        self._started = self._clock() if self._started is None else self._started
        if self._per_s is not None:
            ahead_s = self._done / self._per_s - (self._clock() - self._started)
            if ahead_s > 0:
                self._sleep(ahead_s)
        self._done += items


@dataclass(eq=False)
class Backfill:
    """One backfill, from the release that it started from to where it is.

    `settings` are what must not change on the way: order, seed and items a slice.
    """

    registry: Registry
    start: Release
    now: Release
    settings: dict[str, Any]
    guard: Guard
    order: list[str]  # ids of all old items of the start, first to move first
    pace: Pace
    progress: Progress
    encoders: dict[EncoderRef, Encoder]  # of the start
    first: Reading  # of the start
    reading: Reading  # of `now`
    embed: Embed = embed_here  # where slices are embedded

    @classmethod
    def open(
        cls,
        registry: Registry,
        release_id: str,
        *,
        order: str = "random",
        slice_items: int = 1000,
        seed: int = 0,
        counts: Mapping[str, int] | None = None,
        tolerance: float = 0.01,
        pace: Pace | None = None,
        progress: Progress | None = None,
        embed: Embed = embed_here,
    ) -> "Backfill":
        """Begin at a release, or go on where a backfill from it stopped; the id of any of its steps will do as well.

        Args:
            order: see `retrieval.orders`.
            slice_items: how many items move with one release.
            seed: of the order.
            counts: see `moving_order`.
            tolerance: see `Guard`.
            embed: where slices are embedded.

        Raises:
            ConfigError: it was begun in another order, seed or size of slices; or the order needs what is not there.
            Incompatible: a segment of the release is queried by another encoder than made it.
        """
        if slice_items < 1:
            raise ConfigError("backfill", [f"--slice {slice_items}: move 1 item or more at a time"])
        release = registry.release(release_id)
        start = registry.release(release.metrics["backfill"]["start"]) if "backfill" in release.metrics else release
        strangers = [str(use.segment) for use in start.segments if use.queried_by != use.made_by]
        if strangers:
            raise Incompatible(
                f"release {start.id} has {', '.join(strangers)} queried by an encoder that did not make it (policy {start.policy}); lay "
                "the run under policy backfilling first: python jobs/index.py CONFIG index.policy=backfilling"
            )
        settings = {"order": order, "seed": seed, "slice": slice_items}
        now = _latest(registry, start)
        begun = now.metrics.get("backfill", {}).get("settings", settings) if now is not start else settings
        if begun != settings:
            raise ConfigError(
                f"backfill of {start.id}", [f"it was begun with {begun}, asked is {settings}; go on as it was begun, from {now.id}"]
            )
        encoders: dict[EncoderRef, Encoder] = {}
        beginning = Retriever.load(registry, start, encoders_cache=encoders)
        guard = Guard.of(beginning, tolerance=tolerance)
        first = guard.read(beginning)
        reading = first if now is start else guard.read(Retriever.load(registry, now, encoders_cache=encoders))
        held = {segment.ref: segment for segment in beginning.segments}
        ids = _old_ids(start, held, order, seed, counts)
        spending, told = pace or Pace(None), progress or SilentProgress()
        return cls(registry, start, now, settings, guard, ids, spending, told, encoders, first, reading, embed)

    @property
    def moved(self) -> int:
        """How many of the old items have moved."""
        return int(self.now.metrics["backfill"]["moved"]) if self.now is not self.start else 0

    def step(self) -> Release | None:
        """Move the next slice: the new release, or None when nothing old is left.

        Raises:
            Regret: queries would get worse; nothing was published, `now` stays as it was.
            DataError: an item is stored without its picture.
        """
        chosen = self.order[self.moved : self.moved + int(self.settings["slice"])]
        if not chosen:
            return None
        started = time.perf_counter()
        release = self._calibrated(self._composed(chosen, _load_all(self.registry, self.now)))
        after = self.guard.read(Retriever.load(self.registry, release, encoders_cache=self.encoders))
        self.guard.judge(self.first, self.reading, after, f"moving {len(chosen)} more items of {self.now.id} to {self.start.encoder}")
        told = self._told(len(chosen), after, time.perf_counter() - started)
        metrics = {"backfill": release.metrics["backfill"] | told, "gates": self.guard.gates(self.first, self.reading, after)}
        self.now, self.reading = self.registry.publish_release(replace(release, metrics=metrics)), after
        return self.now

    def _composed(self, chosen: Sequence[str], held: Mapping[SegmentRef, Segment]) -> Release:
        """The release in which a slice has moved; its segments are published, which nobody sees before it is."""
        wanted, newest = set(chosen), self.now.encoder
        target = self.now.metrics["backfill"]["segment"] if self.now is not self.start else None
        uses: list[SegmentUse] = []
        for use in self.now.segments:
            segment = held[use.segment]
            if use.made_by == newest:
                uses += [] if str(use.segment) == target else [use]
                continue
            ids = segment.table.ids
            rest = np.array([row for row, item_id in enumerate(ids) if item_id not in wanted], dtype=np.int64)
            if len(rest) == len(ids):
                uses.append(use)
            elif len(rest):
                uses.append(SegmentUse(self._publish(use.made_by, [(segment, rest, segment.vectors(rest))]), use.made_by, use.queried_by))
        parts = self._embedded(chosen, held)
        if target is not None:
            earlier = held[SegmentRef.parse(target)]
            rows = np.arange(len(earlier), dtype=np.int64)
            parts = [(earlier, rows, earlier.vectors(rows)), *parts]
        moved = SegmentUse(self._publish(newest, parts), newest, newest)
        uses = _without_spent_encoders([*uses, moved], self._all_ids([*uses, moved], held), newest)
        return Release(
            id=f"{self.start.run}@v{self.registry.next_version('release', self.start.run)}",
            run=self.start.run,
            task=self.start.task,
            policy="backfilling",
            merge=self.start.merge,
            encoder=newest,
            segments=tuple(uses),
            metrics={"backfill": {"segment": str(moved.segment)}},
            parent=self.now.id,
            edits_through=self.start.edits_through,
        )

    def _embedded(
        self, chosen: Sequence[str], held: Mapping[SegmentRef, Segment]
    ) -> list[tuple[Segment, NDArray[np.int64], NDArray[np.float32]]]:
        """The slice by the newest encoder, within the budget: each item from the first segment that holds it."""
        left, done = dict.fromkeys(chosen), 0
        chunks: list[tuple[Segment, NDArray[np.int64]]] = []
        for use in self.now.segments:
            segment = held[use.segment]
            rows = np.array([row for row in map(segment.table.row, left) if row is not None], dtype=np.int64)
            chunks += [(segment, rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK)]
            for item_id in segment.table.values("id", rows):
                del left[item_id]
        parts: list[tuple[Segment, NDArray[np.int64], NDArray[np.float32]]] = []
        embedded = self.embed(self.encoders[self.start.encoder], (self._pictures(*chunk) for chunk in chunks))
        for (segment, rows), vectors in zip(chunks, embedded, strict=True):
            parts.append((segment, rows, vectors))
            done += len(rows)
            self.progress.count("items moved", self.moved + done, len(self.order))
        return parts

    def _pictures(self, segment: Segment, rows: NDArray[np.int64]) -> list[bytes]:
        """What is stored of some items, when the budget allows to embed them."""
        self.pace.spend(len(rows))
        return [_picture(segment, row) for row in rows.tolist()]

    def _publish(self, made_by: EncoderRef, parts: Sequence[tuple[Segment, NDArray[np.int64], NDArray[np.float32]]]) -> SegmentRef:
        """One segment of rows of others with the vectors given, built like the first; found again where a step that died had built it."""
        source, _, _ = parts[0]
        description = json.loads(self.registry.file(source.ref, "segment.json").read_text(encoding="utf-8"))
        entries = [(segment, int(row)) for segment, rows, _ in parts for row in rows]
        known = [entry for segment, rows, _ in parts for entry in segment.table.entries(rows)]
        ids = [entry.id for entry in known]
        key = hashlib.sha256(json.dumps(["backfill", str(made_by), ids, description["kind"], description["options"]]).encode()).hexdigest()
        for candidate in self.registry.segments(self.start.run):
            if self.registry.manifest(candidate).meta.get("key") == key:
                return candidate
        with tempfile.TemporaryDirectory() as folder:
            files = build_segment(
                np.concatenate([vectors for _, _, vectors in parts]),
                [each.item() for each in known],
                task=[each.task for each in known],
                folder=Path(folder),
                kind=description["kind"],
                partitions=description["partitions"],
                thumbnails=lambda at: _picture(*entries[at]),
                **description["options"],
            )
            meta = {"key": key, "items": len(ids), "tasks": sorted({each.task for each in known})}
            return self.registry.publish_segment(self.start.run, None, files, made_by=made_by, meta=meta)

    def _calibrated(self, release: Release) -> Release:
        """With what its merge is fitted to anew, what is held back for the guard left out; views of the release before are carried on."""
        if release.merge not in LEARNED:
            return release
        segments = list(_load_all(self.registry, release).values())
        earlier = load_calibration(self.registry, self.now)
        fitted = fit_calibration(release, segments, {}, earlier, use=lambda item_id: not held_back(item_id))
        return replace(release, calibration=self.registry.publish_calibration(fitted.to_bytes()))

    def _all_ids(self, uses: Sequence[SegmentUse], held: Mapping[SegmentRef, Segment]) -> dict[EncoderRef, set[str]]:
        """Which items each encoder made, in some segments."""
        out: dict[EncoderRef, set[str]] = {}
        for use in uses:
            segment = held[use.segment] if use.segment in held else _load(self.registry, use)
            out.setdefault(use.made_by, set()).update(segment.table.ids)
        return out

    def _told(self, items: int, after: Reading, took_s: float) -> dict[str, Any]:
        """What this step is, and how the guard's queries fare, for the manifest of its release."""
        moved = self.moved + items
        return {
            "start": self.start.id,
            "settings": self.settings,
            "moved": moved,
            "total": len(self.order),
            "fraction": moved / len(self.order),
            "items": items,
            "seconds": round(took_s, 3),
            "at_start": self.first.plain(),
            **after.plain(),
            "negative_flips": float((self.first.right & ~after.right).mean()),
            "positive_flips": float((~self.first.right & after.right).mean()),
        }


def _without_spent_encoders(uses: Sequence[SegmentUse], ids: Mapping[EncoderRef, set[str]], newest: EncoderRef) -> list[SegmentUse]:
    """Without the segments of encoders all of whose items the newest one has, too (those that `index.both` stored)."""
    spent = {maker for maker, own in ids.items() if maker != newest and own <= ids[newest]}
    return [use for use in uses if use.made_by not in spent]


def _latest(registry: Registry, start: Release) -> Release:
    """The newest step of the backfill that began at a release; the release itself where none did."""
    steps = [each for each in registry.releases(start.run) if each.metrics.get("backfill", {}).get("start") == start.id]
    return max(steps, key=lambda each: int(each.metrics["backfill"]["moved"]), default=start)


def _old_ids(start: Release, held: Mapping[SegmentRef, Segment], order: str, seed: int, counts: Mapping[str, int] | None) -> list[str]:
    """Ids of the items that the newest encoder did not make, first to move first: by encoder, the oldest first, then in the order asked."""
    newest = {item_id for use in start.segments if use.made_by == start.encoder for item_id in held[use.segment].table.ids}
    out: dict[str, None] = {}
    for maker in sorted({use.made_by for use in start.segments if use.made_by != start.encoder}):
        own = [held[use.segment] for use in start.segments if use.made_by == maker]
        ids = [item_id for segment in own for item_id in segment.table.ids]
        labels = [label for segment in own for label in segment.table.labels]
        vectors = np.concatenate([segment.vectors(np.arange(len(segment), dtype=np.int64)) for segment in own])
        rows = moving_order(order, ids, labels, vectors, seed=seed, counts=counts)
        out |= dict.fromkeys(ids[row] for row in rows.tolist() if ids[row] not in newest)
    return list(out)


def _load(registry: Registry, use: SegmentUse) -> Segment:
    return load_segment(registry.files(use.segment), ref=use.segment, made_by=use.made_by)


def _load_all(registry: Registry, release: Release) -> dict[SegmentRef, Segment]:
    return {use.segment: _load(registry, use) for use in release.segments}


def _picture(segment: Segment, row: int) -> bytes:
    picture = segment.picture(row)
    if picture is None:
        name = segment.table.values("id", np.array([row]))[0]
        raise DataError(f"item '{name}' in {segment.ref} is stored without its picture, so no other encoder can embed it; it cannot move")
    return picture
