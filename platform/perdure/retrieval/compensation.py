"""Query drift compensation: a query of the newest encoder is brought back to where an older one would have put it.

    q_s = q_T - sum over hops h = s+1 .. T of delta_h,        delta_h = mean over items i of task h of ( f_h(i) - f_h-1(i) )

f_h(i): the unit embedding of a training item of task h by the encoder after task h. One delta for pictures and one for captions: the two
modalities do not drift alike. The items are those of the new task, which both encoders can see while nothing of an earlier one is read.

After Goswami, Wang, Twardowski and van de Weijer, "Query drift compensation" (arXiv 2506.00037), for texts alone. From their program: one
stored vector for each hop, subtracted, the hops summed. Ours: over which items the mean is taken, one vector for each modality, and that
q_s is brought to unit length, because every score here is a cosine.

What is exact: over the items that delta was measured on, the mean of q_T - delta is the mean of the older embeddings; and where every unit
embedding moved by one and the same vector, q_s is the older embedding. A translation of the embeddings before they are normalised moves
unit rows unlike each other, and is compensated on average only. Q queries, D embedding, n items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from perdure.errors import BadQuery, Incompatible, NotFound
from perdure.records import EncoderRef, QueryModality, Release
from perdure.registry.registry import Registry
from perdure.retrieval.bridge import QUERY_BRIDGE, QueryBridge
from perdure.retrieval.hop import Hop

__all__ = ["QUERY_DRIFT", "Compensation", "QueryDrift", "asked", "load_drifts", "mean_drift"]

QUERY_DRIFT = "query_drift.safetensors"  # beside the weights of an encoder version, of the hop from its parent


@dataclass(frozen=True, eq=False)
class QueryDrift(Hop):
    """delta of one hop, or of several. Arrays are (D,)."""

    called: ClassVar[str] = "query drift"

    @classmethod
    def over(cls, hops: Sequence["QueryDrift"]) -> Self:
        """The sum over hops, one at least; without text where one of them is."""
        texts = [hop.text for hop in hops if hop.text is not None]
        return cls(np.sum([hop.image for hop in hops], axis=0), np.sum(texts, axis=0) if len(texts) == len(hops) else None)

    def taken_from(self, queries: NDArray[np.float32], modality: QueryModality) -> NDArray[np.float32]:
        """(Q, D) unit rows of the newer encoder -> (Q, D) unit rows where the older one would have put them; 0 where nothing is left.

        Raises:
            BadQuery: texts, but this drift is of pictures alone.
        """
        drift = self.image if modality == "image" else self.text
        if drift is None:
            raise BadQuery("the drift of texts was not measured, because the encoder had no text tower; search by image or by item id")
        moved = queries - drift
        return (moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)).astype(np.float32)


Compensation = QueryDrift | QueryBridge
"""What is done to a query on its way to an older encoder's vectors."""


def mean_drift(before: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.float32]:
    """(D,) delta: the mean over n items of what (n, D) unit rows of the new encoder are off those of the old one; 0 for no items."""
    if not len(before):
        return np.zeros(before.shape[1], np.float32)
    return (after.astype(np.float64) - before).mean(axis=0).astype(np.float32)


def load_drifts(registry: Registry, release: Release) -> dict[int, Compensation]:
    """Of each compensated segment of a release, by its number, the drift, or the bridge, from its encoder to the one that queries it.

    Raises:
        Incompatible: the one is not an ancestor of the other, or a version between them was published without its drift.
        Corrupt: a file's bytes are not those that were published.
    """
    out: dict[int, Compensation] = {}
    for number, use in enumerate(release.segments):
        if use.compensated:
            path = _lineage(registry, use.made_by, use.queried_by)
            if use.compensated == "bridge":
                out[number] = QueryBridge.over([QueryBridge.load(_hop(registry, ref, QUERY_BRIDGE)) for ref in path])
            else:
                out[number] = QueryDrift.over([QueryDrift.load(_hop(registry, ref, QUERY_DRIFT)) for ref in path])
    return out


def asked(
    release: Release,
    embedded: Mapping[EncoderRef, NDArray[np.float32]],
    modalities: Sequence[QueryModality | None],
    drifts: Mapping[int, Compensation],
) -> list[NDArray[np.float32]]:
    """The queries as they are put to each segment of a release, in its order; compensated where the release says so.

    Args:
        release: says which encoder queries which segment.
        embedded: (Q, D) unit rows of each of these encoders.
        modalities: Q, what each query was made of; None where nobody said.
        drifts: what `load_drifts` gave.
    Raises:
        BadQuery: a segment is compensated, and nobody said what a query was made of.
        Incompatible: the drift of a compensated segment is missing.
    """
    out: list[NDArray[np.float32]] = []
    for number, use in enumerate(release.segments):
        queries = embedded[use.queried_by]
        if use.compensated:
            if number not in drifts:
                raise Incompatible(f"release {release.id} compensates queries to {use.segment}, but its query drift was not loaded")
            queries = queries.copy()
            for modality in dict.fromkeys(modalities):
                if modality is None:
                    raise BadQuery(
                        f"release {release.id} takes another drift off pictures than off texts; say what the vectors were made of: "
                        "modality='image' or modality='text'"
                    )
                rows = [at for at, each in enumerate(modalities) if each == modality]
                queries[rows] = drifts[number].taken_from(queries[rows], modality)
        out.append(queries)
    return out


def _lineage(registry: Registry, older: EncoderRef, newer: EncoderRef) -> list[EncoderRef]:
    """The versions after `older` up to `newer`, newest first."""
    path: list[EncoderRef] = []
    ref = newer
    while ref != older:
        path.append(ref)
        parent = registry.manifest(ref).meta.get("parent")
        if parent is None:
            raise Incompatible(
                f"{newer} does not descend from {older}, so no drift leads from one to the other; choose index.compensate=false"
            )
        ref = EncoderRef.parse(parent)
    return path


def _hop(registry: Registry, ref: EncoderRef, name: str) -> Path:
    """What a version was published with of its hop."""
    try:
        return registry.file(ref, name)
    except NotFound:
        raise Incompatible(
            f"{ref} was published without {name}, before there was such a thing; choose index.compensate=false, or learn the run "
            "again under another name"
        ) from None
