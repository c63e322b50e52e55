"""What was written lies over a release: its edits bring segments of new items, and bury rows below them.

    demo@v3         the release, as it was published
    demo@v3+17      the same with the edits of its run up to the 17th

Edits belong to the run and not to one of its releases, so what was written stays when another release of the run is promoted, or the
live one is rolled back. An edit buries every row below it, in the release or in edits before it, whose id it removes or brings anew; an id
is therefore found once at most. A release that says `edits_through` has the edits up to that one in its own segments.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import overload

from perdure.errors import NotFound
from perdure.index.segment import Segment, load_segment
from perdure.records import Edit, EncoderRef, Release, SegmentRef, SegmentUse
from perdure.registry.registry import Registry
from perdure.retrieval.merging import LEARNED

__all__ = ["buried", "edited", "load_segments", "release_at", "touched"]


@overload
def edited(registry: Registry, release: Release) -> Release: ...
@overload
def edited(registry: Registry, release: None) -> None: ...
@overload
def edited(registry: Registry, release: Release | None) -> Release | None: ...
def edited(registry: Registry, release: Release | None) -> Release | None:
    """A release with all edits of its run so far; itself where there are none. None stays None."""
    if release is None:
        return None
    log = registry.edits(release.run)
    number = log.newest()
    return _under(release, number, log.active(number))


def release_at(registry: Registry, id: str) -> Release:
    """The release of an id such as `demo@v3`, or `demo@v3+17`.

    Raises:
        NotFound: there is no such release, or no such edit.
    """
    base, plus, number = id.partition("+")
    release = registry.release(base)
    if not plus:
        return release
    if not number.isdecimal() or not int(number):
        raise NotFound(f"no release '{id}'; after the + stands the number of an edit, from 1")
    return _under(release, int(number), registry.edits(release.run).active(int(number)))


def buried(release: Release, segments: Sequence[Segment]) -> list[Segment]:
    """The segments of a release, in its order, without the rows that its edits bury. Their partitions are not needed."""
    found = list(segments)
    own = _own_places(release)
    above: set[str] = set()
    for edit, places in zip(reversed(release.edits), reversed(own), strict=True):
        for place in places:
            found[place] = _without(found[place], above)
        above |= touched(edit, [segments[place] for place in places])
    for place in range(len(found) - sum(map(len, own))):
        found[place] = _without(found[place], above)
    return found


def load_segments(registry: Registry, release: Release, only: Collection[int] | None = None) -> list[Segment]:
    """The segments of a release, in its order, without the rows that its edits bury.

    Args:
        only: numbers of the partitions to hold; see `load_segment`.
    """
    held = {
        use.segment: load_segment(registry.files(use.segment), ref=use.segment, made_by=use.made_by, only=only) for use in release.segments
    }
    return buried(release, [held[use.segment] for use in release.segments])


def touched(edit: Edit, segments: Sequence[Segment]) -> set[str]:
    """The ids that an edit, whose segments are given, removes or brings."""
    return {*edit.removed, *(item_id for segment in segments for item_id in segment.table.ids)}


def _own_places(release: Release) -> list[range]:
    """Where the segments of each edit stand among those of the release: they are the last ones."""
    start = len(release.segments) - sum(len(edit.segments) for edit in release.edits)
    places: list[range] = []
    for edit in release.edits:
        places.append(range(start, start + len(edit.segments)))
        start = places[-1].stop
    return places


def _without(segment: Segment, ids: set[str]) -> Segment:
    dead = segment.table.rows(ids) if ids else ()
    return segment.without(dead) if len(dead) else segment  # type: ignore[arg-type]


def _under(release: Release, number: int, active: Sequence[Edit]) -> Release:
    """A release below those edits that it does not have in its segments yet."""
    edits = tuple(edit for edit in active if edit.last > release.edits_through)
    if not edits:
        return release
    uses = [_use(release, ref, made_by) for edit in edits for ref, made_by in edit.segments]
    curves = {use.made_by for use in release.segments}
    unknown = release.merge in LEARNED and any(use.made_by not in curves for use in uses)
    return replace(
        release,
        id=f"{release.id}+{number}",
        segments=(*release.segments, *uses),
        edits=edits,
        merge="standardised" if unknown else release.merge,  # nothing was learned about the scores of that encoder
    )


def _use(release: Release, ref: SegmentRef, made_by: EncoderRef) -> SegmentUse:
    """Queried as the release queries that encoder's other vectors; by the encoder itself where it has none."""
    like = next((use for use in release.segments if use.made_by == made_by), None)
    return SegmentUse(ref, made_by, made_by) if like is None else SegmentUse(ref, made_by, like.queried_by, like.compensated)
