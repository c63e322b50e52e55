"""Manifests: what a version consists of, with the sha256 of every file and of the manifest itself; written last.

A version exists from the moment at which its manifest does. The text is canonical JSON closed by its own sha256 ("seal"), so
that a flipped byte anywhere, in the manifest too, is found.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from perdure.errors import Corrupt
from perdure.records import EncoderRef, Release, SegmentRef, SegmentUse
from perdure.registry.store import sha256_of

__all__ = ["FileEntry", "Manifest", "now", "release_from_plain", "release_to_plain", "seal", "unseal"]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a version."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """One version of an encoder, a segment or a release.

    `folder` is the key of the folder that holds the files; `meta` is plain data: parent, made_by, sizes, metrics.
    """

    kind: str  # "encoder", "segment" or "release"
    ref: str  # "encoder/demo@v3"
    folder: str = ""
    files: dict[str, FileEntry] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    created: str = ""  # ISO 8601, UTC

    def plain(self) -> dict[str, Any]:
        """The manifest as plain data."""
        return asdict(self)

    def to_bytes(self) -> bytes:
        """The manifest as it is stored."""
        return seal(self.plain())

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Manifest":
        """Read a stored manifest.

        Raises:
            Corrupt: the bytes are not those that were written; `where` is named.
        """
        plain = unseal(data, where)
        files = {name: FileEntry(entry["sha256"], entry["bytes"]) for name, entry in plain["files"].items()}
        return cls(plain["kind"], plain["ref"], plain["folder"], files, plain["meta"], plain["created"])


def now() -> str:
    """The time in UTC, ISO 8601 with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def seal(body: dict[str, Any]) -> bytes:
    """Plain data as canonical JSON, closed by the sha256 of itself; JSON has no NaN, which is stored as null."""
    body = _finite(body)
    return _canonical({"body": body, "sha256": sha256_of(_canonical(body))})


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """The data of a sealed text.

    Raises:
        Corrupt: the text differs from what `seal` wrote.
    """
    try:
        body: dict[str, Any] = json.loads(data)["body"]
    except (ValueError, KeyError, TypeError):
        raise Corrupt(f"{where} is damaged: it is not the JSON that was written") from None
    if seal(body) != data:
        raise Corrupt(f"{where} is damaged: its sha256 is not the one written in it")
    return body


def release_to_plain(release: Release) -> dict[str, Any]:
    """A release as plain data; references become `encoder/demo@v3`. What it lacks is left out."""
    plain: dict[str, Any] = {
        "id": release.id,
        "run": release.run,
        "task": release.task,
        "policy": release.policy,
        "merge": release.merge,
        "encoder": str(release.encoder),
        "segments": [_use_to_plain(use) for use in release.segments],
        "metrics": release.metrics,
        "parent": release.parent,
        "created": release.created,
    }
    plain |= {} if release.calibration is None else {"calibration": release.calibration}
    return plain | ({"edits_through": release.edits_through} if release.edits_through else {})


def release_from_plain(plain: dict[str, Any]) -> Release:
    """The inverse of `release_to_plain`."""
    segments = tuple(
        SegmentUse(
            SegmentRef.parse(use["segment"]),
            EncoderRef.parse(use["made_by"]),
            EncoderRef.parse(use["queried_by"]),
            use.get("compensated", False),
        )
        for use in plain["segments"]
    )
    return Release(
        id=plain["id"],
        run=plain["run"],
        task=plain["task"],
        policy=plain["policy"],
        merge=plain["merge"],
        encoder=EncoderRef.parse(plain["encoder"]),
        segments=segments,
        metrics=plain["metrics"],
        parent=plain["parent"],
        created=plain["created"],
        calibration=plain.get("calibration"),
        edits_through=plain.get("edits_through", 0),
    )


def _use_to_plain(use: SegmentUse) -> dict[str, Any]:
    """A use that is not compensated is written as before there was such a thing."""
    plain: dict[str, Any] = {"segment": str(use.segment), "made_by": str(use.made_by), "queried_by": str(use.queried_by)}
    return plain | {"compensated": use.compensated} if use.compensated else plain


def _canonical(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    """A copy with string keys in which NaN and infinities are None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
