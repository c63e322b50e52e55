"""The request path, without Ray: encode the query, search the segments of one release, merge.

`Retriever` holds a whole release in one process. Its steps are functions of their own, because a server may run them in different
processes: `plan` (which encoder for which segments), `encode`, `compensation.asked` and `asking.Parts` (what is put to each segment),
`asking.passes`, `search_segments`, `finish`, `results`.

Q queries, K top-k, D embedding, S segments of the release.
"""

import io
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from perdure.data.pixels import decode_image
from perdure.data.transforms import to_float
from perdure.encoders import Encoder, load_encoder
from perdure.errors import BadQuery, DataError, Incompatible
from perdure.index import Entry, Segment, load_segment, rows_that_pass
from perdure.records import EncoderRef, Hits, Release, SegmentRef, SegmentUse
from perdure.registry import Registry
from perdure.retrieval.answers import Clock, Hit, SearchResult, finish, results
from perdure.retrieval.asking import Parts, Pass, Query, Search, expanded, passes
from perdure.retrieval.calibration import Calibration, load_calibration
from perdure.retrieval.compensation import Compensation, asked, load_drifts
from perdure.retrieval.edits import buried, release_at

__all__ = ["Hit", "Query", "Retriever", "Search", "SearchResult", "check_dim", "encode", "finish", "plan", "search_segments"]


def plan(release: Release) -> dict[EncoderRef, tuple[int, ...]]:
    """Which encoder embeds the query for which segments (numbers in the release)."""
    by_encoder: dict[EncoderRef, list[int]] = {}
    for number, use in enumerate(release.segments):
        by_encoder.setdefault(use.queried_by, []).append(number)
    return {encoder: tuple(numbers) for encoder, numbers in by_encoder.items()}


def encode(encoder: Encoder, queries: Sequence[str | bytes | NDArray[np.uint8]]) -> NDArray[np.float32]:
    """(Q, D) unit rows of texts and pictures, mixed, in their order.

    Raises:
        BadQuery: a text for an encoder without a text tower; bytes that are not a picture.
    """
    out = np.empty((len(queries), encoder.embedding_dim), np.float32)
    texts = [i for i, query in enumerate(queries) if isinstance(query, str)]
    if texts:
        out[texts] = encoder.embed_texts([str(queries[i]) for i in texts]).cpu().numpy()
    images = [i for i in range(len(queries)) if not isinstance(queries[i], str)]
    if images:
        pixels = np.stack([_pixels(queries[i], encoder.image_size) for i in images])
        out[images] = encoder.embed_images(to_float(torch.from_numpy(pixels))).cpu().numpy()
    return out


def search_segments(release: Release, segments: Sequence[Segment], queries: Sequence[NDArray[np.float32]], step: Pass) -> list[Hits]:
    """The best `step.depth` of each segment of a release among the partitions that are held, in the release's order.

    Args:
        release: says which encoder queries which segment.
        segments: of the release, in its order.
        queries: (Q, D) as they are put to each of them; of the searches of this pass alone.
        step: what may be found.
    Raises:
        BadQuery: a filter that makes no sense.
    """
    passing: list[NDArray[np.bool_] | None] = [None] * len(segments)
    if step.filter:
        passing = list(rows_that_pass([segment.table for segment in segments], step.filter))
    elif step.exact:
        passing = [np.ones(len(segment), np.bool_) for segment in segments]  # what is filtered is scanned
    return [
        segment.search(queries[number], step.depth, encoder=use.queried_by, allowed=use.queried_by, rows=passing[number], number=number)
        for number, (use, segment) in enumerate(zip(release.segments, segments, strict=True))
    ]


def check_dim(release: Release, use: SegmentUse, found: int, stored: int) -> None:
    """Whether the encoder that queries a segment has its D.

    Raises:
        Incompatible: it has not.
    """
    if found != stored:
        raise Incompatible(f"release {release.id}: {use.queried_by} gives D={found}, but the vectors of {use.segment} have D={stored}")


class Retriever:
    """One release, wholly loaded."""

    def __init__(
        self,
        release: Release,
        encoders: Mapping[EncoderRef, Encoder],
        segments: Sequence[Segment],
        drifts: Mapping[int, Compensation] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Take the encoders that the release needs, its segments in its order, what `load_drifts` and `load_calibration` gave for it.

        Raises:
            Incompatible: a segment is not the one, or not by the encoder, that the release says; or an encoder's D is not the segment's.
        """
        for use, segment in zip(release.segments, segments, strict=True):
            if use.queried_by in encoders:
                check_dim(release, use, encoders[use.queried_by].embedding_dim, segment.dim)
            if (segment.ref, segment.made_by) != (use.segment, use.made_by):
                raise Incompatible(
                    f"release {release.id} asks for {use.segment} made by {use.made_by}; loaded is {segment.ref} made by {segment.made_by}"
                )
        self.release = release
        self.encoders = dict(encoders)
        self.segments = tuple(segments)
        self.drifts = dict(drifts or {})
        self.calibration = calibration

    @classmethod
    def load(
        cls,
        registry: Registry,
        release: Release | str,
        *,
        encoders_cache: MutableMapping[EncoderRef, Encoder] | None = None,
        segments_cache: MutableMapping[SegmentRef, Segment] | None = None,
    ) -> "Retriever":
        """Load a release from the registry, every file checked; what a cache holds is taken from it, and what is loaded put there.

        Raises:
            NotFound: the release or a part of it does not exist.
            Corrupt: a file's bytes are not those that were published.
            Incompatible: it compensates for a drift that was not measured.
        """
        release = release_at(registry, release) if isinstance(release, str) else release
        encoders = {} if encoders_cache is None else encoders_cache
        segments = {} if segments_cache is None else segments_cache
        for ref in release.encoders():
            if ref not in encoders:
                encoders[ref] = load_encoder(registry.folder(ref))
        for use in release.segments:
            if use.segment not in segments:
                segments[use.segment] = load_segment(registry.files(use.segment), ref=use.segment, made_by=registry.made_by(use.segment))
        parts = buried(release, [segments[use.segment] for use in release.segments])
        own = {ref: encoders[ref] for ref in release.encoders()}
        return cls(release, own, parts, load_drifts(registry, release), load_calibration(registry, release))

    def search(self, query: Query, k: int = 10, filter: Mapping[str, Any] | None = None) -> SearchResult:
        """The best k items for a query.

        Args:
            query: a text, a picture, both, an item of the gallery, or vectors.
            k: at least 1.
            filter: conditions on fields of the items; see `index.filters`.

        Raises:
            BadQuery: see `answer`.
        """
        return self.search_many([query], k, filter)[0]

    def search_many(self, queries: Sequence[Query], k: int = 10, filter: Mapping[str, Any] | None = None) -> list[SearchResult]:
        """As `search`, for Q queries at once; the timings are those of all of them together."""
        return self.answer([Search(query, k, filter=filter or {}) for query in queries])

    def answer(self, searches: Sequence[Search]) -> list[SearchResult]:
        """Q searches of any kind at once; the timings are those of all of them together.

        Raises:
            BadQuery: nothing to search by, an unknown id, not a picture, a number out of range, a filter that makes no sense; vectors
                without `made_of` where the release compensates for drift.
        """
        if not searches:
            return []
        for search in searches:
            search.check()
        clock = Clock()
        parts = Parts.of([search.query for search in searches])
        embedded = {encoder: self.embed(parts.queries, encoder) for encoder in plan(self.release)}
        put = [parts.together(rows) for rows in asked(self.release, embedded, parts.modalities, self.drifts)]
        clock.took("encode")
        moved_by: dict[int, list[Hit]] = {}
        expanding = [place for place, search in enumerate(searches) if search.expand]
        if expanding:
            first = [searches[place].first() for place in expanding]
            moved_by = dict(zip(expanding, self._lists(first, [queries[expanding] for queries in put]), strict=True))
            put = [queries.copy() for queries in put]
            for place, hits in moved_by.items():
                hits = moved_by[place] = hits[: searches[place].expand]
                vectors = [(hit.segment, self.segments[hit.segment].vectors(np.array([hit.row]))[0]) for hit in hits]
                expanded(self.release, put, place, searches[place].alpha, vectors)
            clock.took("expand")
        lists = self._lists(searches, put, clock)
        return results(self.release, searches, lists, put, moved_by, clock.timings_ms)

    def _lists(self, searches: Sequence[Search], put: Sequence[NDArray[np.float32]], clock: Clock | None = None) -> list[list[Hit]]:
        """The `wanted` hits of each search, by the queries as they are put to each segment."""
        lists: list[list[Hit]] = [[] for _ in searches]
        clock = clock or Clock()
        for step in passes(searches):
            queries = [rows[step.places] for rows in put]
            parts = search_segments(self.release, self.segments, queries, step)
            clock.took("search")
            leave_out = [searches[place].query.id for place in step.places]
            found = finish(
                self.release,
                parts,
                dict(enumerate(self.segments)),
                queries,
                step.depth,
                leave_out=leave_out,
                calibration=self.calibration,
                modalities=[searches[place].query.modality() for place in step.places],
            )
            for place, hits in zip(step.places, found, strict=True):
                lists[place] = hits[: searches[place].wanted]
            clock.took("merge")
        return lists

    def embed(self, queries: Sequence[Query], encoder: EncoderRef) -> NDArray[np.float32]:
        """(Q, D) the queries as one encoder of the release sees them."""
        out: list[NDArray[np.float32] | None] = []
        raw: list[str | bytes | NDArray[np.uint8]] = []
        for query in queries:
            vector, source = self._resolve(query, encoder)
            out.append(vector)
            raw += [] if source is None else [source]
        fresh = iter(encode(self.encoders[encoder], raw)) if raw else iter(())
        return np.stack([next(fresh) if vector is None else vector for vector in out])

    def locate(self, item_id: str) -> tuple[int, int]:
        """(segment number, row) of an item, in the newest segment that holds it.

        Raises:
            BadQuery: no segment of the release holds it.
        """
        for number in reversed(range(len(self.segments))):
            row = self.segments[number].row(item_id)
            if row is not None:
                return number, row
        raise BadQuery(f"no item '{item_id}' in release {self.release.id}")

    def entry(self, item_id: str) -> Entry:
        """What is known of an item; see `locate`."""
        number, row = self.locate(item_id)
        return self.segments[number].table.entries([row])[0]

    def picture(self, item_id: str) -> bytes | None:
        """The encoded picture of an item, or None when its segment holds no pictures; see `locate`."""
        number, row = self.locate(item_id)
        return self.segments[number].picture(row)

    def _resolve(self, query: Query, encoder: EncoderRef) -> tuple[NDArray[np.float32] | None, str | bytes | NDArray[np.uint8] | None]:
        """The vector of a query that has one for this encoder already, or else what must be encoded."""
        kind = query.kind()
        if kind == "vectors":
            assert query.vectors is not None
            if encoder not in query.vectors:
                raise BadQuery(f"release {self.release.id} needs the query as seen by {encoder}; given: {_names(query.vectors)}")
            vector = np.asarray(query.vectors[encoder], dtype=np.float32)
            if vector.shape != (self.encoders[encoder].embedding_dim,):
                raise BadQuery(f"a query vector of shape {vector.shape}; {encoder} makes ({self.encoders[encoder].embedding_dim},)")
            return vector, None
        if kind == "id":
            assert query.id is not None
            return self._resolve_item(query.id, encoder)
        return None, query.text if query.text is not None else query.image

    def _resolve_item(self, item_id: str, encoder: EncoderRef) -> tuple[NDArray[np.float32] | None, bytes | None]:
        """The stored vector where this encoder made it, or else the stored picture."""
        number, _ = self.locate(item_id)
        for segment in self.segments:
            row = segment.row(item_id) if segment.made_by == encoder else None
            if row is not None:
                return segment.vectors(np.array([row]))[0], None
        picture = self.picture(item_id)
        if picture is None:
            raise BadQuery(
                f"item '{item_id}' is in {self.segments[number].ref}, made by {self.segments[number].made_by} and stored without its "
                f"picture; it cannot be embedded by {encoder}. Search by the picture itself."
            )
        return None, picture


def _pixels(query: Any, size: int) -> NDArray[np.uint8]:
    """A picture of a query as (size, size, 3)."""
    if isinstance(query, np.ndarray):
        if query.dtype != np.uint8 or query.ndim != 3 or query.shape[2] != 3:
            raise BadQuery(f"a picture as an array is uint8 (H, W, 3); found {query.dtype} {query.shape}")
        buffer = io.BytesIO()
        Image.fromarray(query).save(buffer, "BMP")
        query = buffer.getvalue()
    try:
        return decode_image(query, size)
    except DataError as error:
        raise BadQuery(f"the picture to search by: {error}") from None


def _names(refs: Iterable[EncoderRef]) -> str:
    return ", ".join(map(str, refs)) or "none"
