"""Writing by hand: items come and go beside what a run learns, without a new encoder.

    changes -> which items are brought and which are gone -> one small segment -> one edit, appended to the log of the run

Changes that arrive together become one edit. Small edits before it are taken in, so that many small writes leave few segments: sizes
double from edit to edit, as in O'Neil, Cheng, Gawlick and O'Neil, "The log-structured merge-tree", Acta Informatica 1996, up to `_LARGEST`
items; beyond that, see `retrieval.compaction`. Vectors are taken over as they are. D embedding.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.errors import BadQuery, Conflict, DataError, Exists, PerdureError
from perdure.index.segment import Segment, load_segment
from perdure.index.table import SegmentTable
from perdure.records import Edit, EncoderRef, Item, Release, SegmentRef
from perdure.registry.channels import this_user
from perdure.registry.manifest import now
from perdure.registry.registry import Registry
from perdure.retrieval.edits import touched
from perdure.retrieval.gathering import Gathered, publish

__all__ = ["Change", "NewItem", "Outcome", "Writer"]

_SMALL = 8  # an edit of so few items is always taken in
_LARGEST = 512  # items of an edit that others were taken into
_REQUESTS = 1000  # keys that are remembered, at least
_SEGMENTS = 32  # that a writer keeps loaded
_ATTEMPTS = 200  # another writer was faster so often: something is wrong
_EXACT = 2**53  # integers up to this are exact as floating-point numbers, too
_LONGEST_ID = 512


@dataclass(frozen=True, eq=False)
class NewItem:
    """An item with its vector."""

    item: Item
    vector: NDArray[np.float32]  # (D,) unit
    made_by: EncoderRef
    task: int
    picture: bytes | None = None  # to be stored, encoded


@dataclass(frozen=True, eq=False)
class Change:
    """What one request changes: items that are brought, each in place of the one of its id, and ids that are gone."""

    items: Sequence[NewItem] = ()
    removed: Sequence[str] = ()
    by: str = ""
    key: str | None = None  # the same key again is the same request again, and changes nothing
    digest: str = ""  # of the request, to notice another one under its key
    refused: Mapping[str, str] = field(default_factory=dict)  # id -> why it is not among the items


@dataclass(frozen=True)
class Outcome:
    """What became of a change."""

    edit: int  # the edit that has it; 0 where there was nothing to write
    refused: Mapping[str, str]  # id -> why it was not written


@dataclass(eq=False)
class _Plan:
    """Changes on top of the edits that count."""

    fields: dict[str, str]
    requests: dict[str, Mapping[str, Any]]
    final: dict[str, NewItem | None] = field(default_factory=dict)  # None: gone


class Writer:
    """Appends edits to the log of one run. Any number of writers, in any processes, may do so at once; each comes after the others."""

    def __init__(self, registry: Registry, run: str) -> None:
        self.registry = registry
        self.run = run
        self._log = registry.edits(run)
        self._segments: OrderedDict[SegmentRef, Segment] = OrderedDict()

    def commit(self, release: Release, segments: Sequence[Segment], changes: Sequence[Change]) -> list[Outcome | PerdureError]:
        """Write some changes, in their order and as one edit; durable when this returns. Outcomes in the order of the changes.

        Args:
            release: that is live; small edits that it has in its segments already are not taken in.
            segments: of the release: their kinds, and the fields of their payload. Partitions are not needed.
            changes: each is written as a whole, but for the items that are refused.
        Raises:
            Conflict: other writers were faster again and again.
            RegistryError: the registry cannot be written to; whether the changes are there is then not known, and to ask again is harmless.
        """
        known: dict[str, set[str]] = {}
        for segment in segments:
            for name, kind in segment.table.payload.items():
                known.setdefault(name, set()).add(kind)
        binary = {segment.made_by for segment in segments if segment.kind == "binary"}
        for _ in range(_ATTEMPTS):
            newest = self._log.newest()
            active = self._log.active(newest)
            plan = _Plan(dict(active[-1].fields) if active else {}, requests_of(active))
            outcomes = [_planned(plan, change, known, newest + 1) for change in changes]
            if not plan.final:
                return outcomes
            taken = _taken_in(active, len(plan.final), release.edits_through)
            edit = self._built(plan, newest + 1, active[: len(active) - len(taken)], taken, binary, _who(changes))
            try:
                self._log.append(edit)
            except Exists:
                continue
            return outcomes
        raise Conflict(f"run '{self.run}': other writers were faster {_ATTEMPTS} times; nothing was written, send it again")

    def segment(self, ref: SegmentRef, made_by: EncoderRef) -> Segment:
        """A segment of the log, loaded; the last few are kept."""
        if ref not in self._segments:
            self._segments[ref] = load_segment(self.registry.files(ref), ref=ref, made_by=made_by)
            while len(self._segments) > _SEGMENTS:
                self._segments.popitem(last=False)
        self._segments.move_to_end(ref)
        return self._segments[ref]

    def gathered(self, edits: Sequence[Edit], above: Iterable[str] = ()) -> tuple[dict[EncoderRef, list[Gathered]], list[str]]:
        """What some edits, put together, bring by each encoder, in their order, and what they remove; without the ids above them."""
        seen, parts, removed = set(above), dict[EncoderRef, list[Gathered]](), list[str]()
        for edit in reversed(edits):
            own = [self.segment(*each) for each in edit.segments]
            for segment in own:
                rows = np.setdiff1d(np.arange(len(segment), dtype=np.int64), segment.table.rows(seen))
                if len(rows):
                    parts.setdefault(segment.made_by, []).insert(0, Gathered.of(segment, rows))
            removed += [item_id for item_id in edit.removed if item_id not in seen]
            seen |= touched(edit, own)
        return parts, removed

    def publish(
        self, parts: Mapping[EncoderRef, Sequence[Gathered]], binary: Collection[EncoderRef]
    ) -> tuple[tuple[SegmentRef, EncoderRef], ...]:
        """A segment for each encoder; of bits where its others are. Nobody sees them before an edit names them."""
        return tuple(
            (publish(self.registry, self.run, made_by, Gathered.joined(some), kind="binary" if made_by in binary else "flat"), made_by)
            for made_by, some in parts.items()
        )

    def _built(self, plan: _Plan, number: int, before: Sequence[Edit], taken: Sequence[Edit], binary: set[EncoderRef], by: str) -> Edit:
        """The edit of a plan; its segments are published."""
        parts, removed = self.gathered(taken, plan.final)
        for new in [new for new in plan.final.values() if new is not None]:
            own = Gathered(new.vector[None], [new.item], [new.task], [new.picture])
            parts.setdefault(new.made_by, []).append(own)
        return Edit(
            number=number,
            active=(*(edit.number for edit in before), number),
            last=number,
            segments=self.publish(parts, binary),
            removed=(*removed, *(item_id for item_id, new in plan.final.items() if new is None)),
            items=sum(len(each) for some in parts.values() for each in some),
            fields=plan.fields,
            requests=remembered(plan.requests, requests_of(before)),
            action="write",
            by=by,
            user=this_user(),
            at=now(),
        )


def _check_id(item_id: str) -> None:
    """Refuse what cannot name an item.

    Raises:
        BadQuery: empty, too long, or with characters that a path or a table cannot hold.
    """
    if not item_id or len(item_id) > _LONGEST_ID or not item_id.isprintable():
        raise BadQuery(f"id {item_id[:40]!r}: an id is 1 to {_LONGEST_ID} printable characters")


def requests_of(edits: Sequence[Edit]) -> dict[str, Mapping[str, Any]]:
    """The requests that some edits remember, the oldest first."""
    return {key: told for edit in edits for key, told in edit.requests.items()}


def remembered(requests: Mapping[str, Mapping[str, Any]], elsewhere: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The newest of some requests; those that other edits that count remember are left to them."""
    own = [(key, told) for key, told in requests.items() if key not in elsewhere]
    return dict(own[-_REQUESTS:])


def _planned(plan: _Plan, change: Change, known: Mapping[str, set[str]], number: int) -> Outcome | PerdureError:
    """Put a change on top of a plan."""
    if change.key is not None and change.key in plan.requests:
        told = plan.requests[change.key]
        if told["digest"] != change.digest:
            return BadQuery(f"the key '{change.key}' belongs to another request; a key is for one request and its repetitions")
        return Outcome(told["edit"], told["refused"])
    refused = dict(change.refused)
    wrote = False
    for new in change.items:
        try:
            _admit(plan, new, known)
        except (PerdureError, ValueError) as error:
            refused[new.item.id] = str(error)
            continue
        _put(plan, new.item.id, new)
        wrote = True
    for item_id in change.removed:
        try:
            _check_id(item_id)
        except BadQuery as error:
            refused[item_id] = str(error)
            continue
        _put(plan, item_id, None)
        wrote = True
    outcome = Outcome(number if wrote else 0, refused)
    if change.key is not None and wrote:
        plan.requests[change.key] = {"digest": change.digest, "edit": outcome.edit, "refused": refused}
    return outcome


def _put(plan: _Plan, item_id: str, new: NewItem | None) -> None:
    plan.final.pop(item_id, None)  # the last one decides, also about the order
    plan.final[item_id] = new


def _admit(plan: _Plan, new: NewItem, known: Mapping[str, set[str]]) -> None:
    """Let an item in, and remember the kinds of its fields.

    Raises:
        BadQuery: its id is none.
        DataError: its payload has a field of another kind than the gallery, or of none.
    """
    _check_id(new.item.id)
    large = [name for name, value in new.item.payload.items() if type(value) is int and abs(value) > _EXACT]
    if large:
        raise DataError(f"payload: field '{large[0]}' holds an integer beyond 2^53; send it as a text")
    kinds = SegmentTable.of([new.item], [new.task]).payload
    for name, kind in kinds.items():
        wanted = {plan.fields[name]} if name in plan.fields else known.get(name, {kind})
        if kind not in wanted:
            raise DataError(f"payload: field '{name}' is a {kind} here, and a {' or '.join(sorted(wanted))} in the gallery")
    plan.fields |= kinds


def _taken_in(active: Sequence[Edit], size: int, through: int) -> list[Edit]:
    """The newest edits, as far as they are small beside what comes."""
    taken: list[Edit] = []
    for edit in reversed(active):
        if edit.last <= through or edit.size > max(size, _SMALL) or size + edit.size > _LARGEST:
            break
        taken.insert(0, edit)
        size += edit.size
    return taken


def _who(changes: Sequence[Change]) -> str:
    return ", ".join(dict.fromkeys(change.by for change in changes if change.by))
