"""Index policies: what becomes of the old gallery when a task brings a new encoder.

policy       old vectors             queried by                embedded for a new task
reindex      replaced                the new encoder           every gallery item so far, from its picture
keep         stay                    the new encoder           the new items
versioned    stay                    the one that made them    the new items
backfilling  stay, then move         the one that made them    the new items; old ones bit by bit, see `retrieval.backfill`
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from perdure.errors import ConfigError
from perdure.records import EncoderRef, Release, SegmentRef, SegmentUse
from perdure.retrieval.merging import LEARNED, MERGES

__all__ = ["POLICIES", "Policy", "items_to_embed", "next_release"]

Policy = Literal["reindex", "keep", "versioned", "backfilling"]
POLICIES: tuple[Policy, ...] = ("reindex", "keep", "versioned", "backfilling")
_OWN_QUERIES = ("versioned", "backfilling")  # every vector is queried by the encoder that made it


def items_to_embed(policy: str, galleries: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Which rows the newest encoder embeds into the new segment.

    Args:
        policy: one of POLICIES.
        galleries: rows of the gallery of each task so far, the newest task last.
    Returns:
        (n,) rows, by task and in the order given: all of them for reindex, those of the newest task otherwise.
    """
    _check(policy)
    return np.concatenate(galleries) if policy == "reindex" else np.asarray(galleries[-1])


def next_release(
    policy: str,
    previous: Release | None,
    *,
    encoder: EncoderRef,
    segment: SegmentRef,
    id: str,
    run: str,
    task: int,
    merge: str = "standardised",
    compensate: bool | Literal["bridge"] = False,
    both: Sequence[tuple[SegmentRef, EncoderRef]] = (),
    metrics: dict[str, Any] | None = None,
) -> Release:
    """The release that follows a task: which segments it has, and which encoder queries each.

    Args:
        policy: one of POLICIES.
        previous: the release before, whose segments stay or are replaced; None for the first task.
        encoder: the newest encoder, which made the new segment.
        segment: the new one, with what `items_to_embed` says.
        id: `<run>@v<number>`.
        run: name of the run.
        task: the task that was learned.
        merge: one of `retrieval.merging.MERGES`; the learned ones where every vector is queried by its maker.
        compensate: whether the drift of queries is taken off them where they meet old vectors, or a "bridge" turns them; of "keep" only.
        both: the new items again, as older encoders made them: segment and maker; of "versioned" and "backfilling" only.
        metrics: what was measured; an entry "gates" is looked at by promotion.
    """
    _check(policy)
    if merge not in MERGES:
        raise ConfigError("index.merge", [f"no way to merge named '{merge}'; known: {', '.join(MERGES)}"])
    if policy not in _OWN_QUERIES and (merge in LEARNED or both):
        asked = "index.both" if both else f"index.merge={merge}"
        problem = f"{asked} with policy {policy}, where old vectors are not queried by the encoder that made them; choose versioned or "
        raise ConfigError(asked.split("=")[0], [f"{problem}backfilling"])
    if compensate and policy != "keep":
        raise ConfigError("index.compensate", [f"policy {policy} has no query that an old vector's encoder did not make; choose keep"])
    old = previous.segments if previous is not None and policy != "reindex" else ()
    keep = policy == "keep"
    kept = tuple(SegmentUse(use.segment, use.made_by, encoder if keep else use.made_by, compensated=compensate) for use in old)
    return Release(
        id=id,
        run=run,
        task=task,
        policy=policy,
        merge=merge,
        encoder=encoder,
        segments=(*kept, *(SegmentUse(again, maker, maker) for again, maker in both), SegmentUse(segment, encoder, encoder)),
        metrics=dict(metrics or {}),
        parent=previous.id if previous is not None else None,
        edits_through=previous.edits_through if previous is not None and policy != "reindex" else 0,
    )


def _check(policy: str) -> None:
    if policy not in POLICIES:
        raise ConfigError("index.policy", [f"no policy named '{policy}'; known: {', '.join(POLICIES)}"])
