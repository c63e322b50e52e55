"""Compaction: what many writes have left becomes few segments, without rows that nobody can find. Nothing is embedded again.

`put_together` makes one edit of those that count, so that the log stays short. `fold` puts what was written into the segments of the
live release: a new release, which says `edits_through`, and which serves the same items with the same vectors.

Neither holds writers up. Both may be killed at any moment and run again: segments are named by their bytes, an edit is created once, and
a release that was folded but not promoted is found again.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from perdure.errors import Conflict, Exists, NotFound
from perdure.index.segment import Segment
from perdure.records import Edit, Release, SegmentRef, SegmentUse
from perdure.registry.channels import this_user
from perdure.registry.edits import EditLog
from perdure.registry.manifest import now
from perdure.registry.registry import Registry
from perdure.retrieval.edits import edited, load_segments
from perdure.retrieval.gathering import Gathered, publish
from perdure.retrieval.writes import Writer, remembered, requests_of

__all__ = ["SMALL", "fold", "put_together"]

SMALL = 10_000  # rows of a segment that others are put together with
_ATTEMPTS = 50


def put_together(registry: Registry, run: str, by: str = "compact") -> Edit | None:
    """One edit in place of all that count at this moment; None where there are fewer than two.

    Raises:
        Conflict: writers changed the log again and again; nothing is lost, and it may be tried in a quieter hour.
    """
    log, writer = registry.edits(run), Writer(registry, run)
    for _ in range(_ATTEMPTS):
        newest = log.newest()
        active = log.active(newest)
        if len(active) < 2:
            return None
        parts, removed = writer.gathered(active)
        own = [writer.segment(*each) for edit in active for each in edit.segments]
        edit = Edit(
            number=newest + 1,
            active=(newest + 1,),
            last=active[-1].last,
            segments=writer.publish(parts, {segment.made_by for segment in own if segment.kind == "binary"}),
            removed=tuple(removed),
            items=sum(len(each) for some in parts.values() for each in some),
            fields=active[-1].fields,
            requests=remembered(requests_of(active), {}),
            action="compact",
            by=by,
            user=this_user(),
            at=now(),
        )
        if (appended := _appended(log, edit, active)) is not None:
            return appended
    raise Conflict(f"run '{run}': the log of writes changed {_ATTEMPTS} times while it was put together; try again when fewer write")


def _appended(log: EditLog, edit: Edit, active: Sequence[Edit]) -> Edit | None:
    """The edit, once it is in the log, below what was written meanwhile; None where what it stands for was changed."""
    while True:
        try:
            log.append(edit)
            return edit
        except Exists:
            newest = log.newest()
            counting = log.active(newest)
            if counting[: len(active)] != tuple(active):
                return None
            later = counting[len(active) :]
            edit = replace(
                edit,
                number=newest + 1,
                active=(newest + 1, *(each.number for each in later)),
                fields=counting[-1].fields,
                requests=remembered(edit.requests, requests_of(later)),
            )


def fold(registry: Registry, channel: str = "live", *, small: int = SMALL, by: str = "compact") -> Release | None:
    """A release that has in its segments what was written over the one of a channel, promoted; None where nothing was written.

    Segments with buried rows are laid again without them; those of fewer than `small` rows, and what was written, become one for each
    encoder, built like the largest of that encoder.

    Raises:
        NotFound: the channel points to no release.
        Conflict: another release was promoted meanwhile; that one stays, and the fold may be tried again.
    """
    base = registry.channel(channel)
    if base is None:
        raise NotFound(f"channel '{channel}' points to no release; promote one first: perdure promote RELEASE")
    over = edited(registry, base)
    if not over.edits:
        return None
    told = {"of": base.id, "through": over.edits[-1].last}
    done = [each for each in registry.releases(base.run) if told.items() <= each.metrics.get("compaction", {}).items()]
    if not done:
        uses = _folded(registry, over, load_segments(registry, over), small)
        release = replace(
            base,
            id=f"{base.run}@v{registry.next_version('release', base.run)}",
            merge=over.merge,
            segments=tuple(uses),
            metrics={"compaction": told | {"segments_before": len(over.segments), "segments": len(uses)}},
            parent=base.id,
            created="",
            calibration=base.calibration if over.merge == base.merge else None,
            edits_through=told["through"],
        )
        done = [registry.publish_release(release)]
    return registry.promote(done[-1].id, channel, by=by, reason=f"writes up to {told['through']} are in its segments", expected=base.id)


def _folded(registry: Registry, over: Release, segments: Sequence[Segment], small: int) -> list[SegmentUse]:
    """The segments of the new release: large ones that nothing was buried in as they are, the others laid anew."""
    num_base = len(over.segments) - sum(len(edit.segments) for edit in over.edits)
    groups: list[list[int]] = []  # of places, to become one segment each
    open_group: dict[SegmentUse, list[int]] = {}  # by space, the one that may grow
    for place, segment in enumerate(segments):
        space = replace(over.segments[place], segment=over.segments[0].segment)
        own = open_group.get(space, [])
        if (place < num_base and len(segment) >= small) or not _fits([segments[each] for each in own], segment):
            groups.append([place])
        elif own:
            own.append(place)
        else:
            groups.append(open_group.setdefault(space, [place]))
    uses: list[SegmentUse] = []
    for places in groups:
        use, parts = over.segments[places[0]], [segments[place] for place in places if len(segments[place].alive)]
        if len(parts) == 1 and not len(parts[0].dead) and segments.index(parts[0]) < num_base:
            uses.append(replace(use, segment=parts[0].ref))
        elif parts:
            like = max((each for each in segments[:num_base] if each.made_by == use.made_by), key=len, default=parts[0])
            uses.append(replace(use, segment=_laid(registry, over.run, parts, like)))
    return uses


def _fits(parts: Sequence[Segment], segment: Segment) -> bool:
    """Whether a segment can be put together with others: it has none of their ids, and no field that is of another kind there."""
    ids = set(segment.table.values("id", segment.alive)) if parts else set[str]()
    kinds = segment.table.payload.items()
    return not any(
        len(np.setdiff1d(each.table.rows(ids), each.dead)) or any(each.table.payload.get(name, kind) != kind for name, kind in kinds)
        for each in parts
    )


def _laid(registry: Registry, run: str, parts: Sequence[Segment], like: Segment) -> SegmentRef:
    """What lives in some segments of one encoder as one segment, built like another."""
    built = json.loads(registry.file(like.ref, "segment.json").read_text(encoding="utf-8"))
    gathered = Gathered.joined([Gathered.of(segment, segment.alive) for segment in parts])
    return publish(registry, run, like.made_by, gathered, kind=built["kind"], partitions=built["partitions"], options=built["options"])
