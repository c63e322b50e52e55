"""What was measured of a release, for the page: the accuracy of every task after each, encoders beside older galleries, its backfill."""

import json
from pathlib import Path
from typing import Any

from perdure.errors import RegistryError
from perdure.records import EncoderRef, Release
from perdure.registry import Registry
from perdure.retrieval.backfill_curve import backfill_curves
from serve.schemas import MatrixOut, MeasuredOut

__all__ = ["measured"]

_MAIN = ("recall@1", "t2i_recall@10")
_MAX_REPORT_BYTES = 256 * 2**20


def measured(registry: Registry, release_id: str, runs: Path) -> MeasuredOut:
    """Read it from the registry, and the compatibility of encoders from the run's report where that is at hand.

    Args:
        registry: with the release.
        release_id: of it.
        runs: the folder of the runs' reports.
    Raises:
        NotFound: there is no such release.
    """
    release = registry.release(release_id)
    compatibility, why = _compatibility(runs / release.run / "report.json")
    curves = backfill_curves(registry.releases(release.run))
    own = [curve for curve in curves if any(point["release"] == release.id for point in curve["points"])]
    return MeasuredOut(
        release=release.id,
        run=release.run,
        accuracy=_accuracy(registry, release),
        compatibility=compatibility,
        no_compatibility=why,
        backfill=own[-1] if own else None,
        gates=release.metrics.get("gates") or [],
    )


def _accuracy(registry: Registry, release: Release) -> MatrixOut | None:
    """Row t: every task after task t was learned, as it was measured when the encoders up to this release's were published."""
    rows: list[dict[str, list[float | None]]] = []
    for version in range(1, release.encoder.version + 1):
        try:
            row = registry.manifest(EncoderRef(release.encoder.run, version)).meta.get("metrics", {}).get("row")
        except RegistryError:
            return None
        if not isinstance(row, dict):
            return None
        rows.append(row)
    for metric in _MAIN:
        if all(isinstance(row.get(metric), list) for row in rows):
            return MatrixOut(metric=metric, matrix=[row[metric] for row in rows])
    return None


def _compatibility(report: Path) -> tuple[dict[str, Any] | None, str | None]:
    """(what the report says, why it says nothing)."""
    try:
        if report.stat().st_size > _MAX_REPORT_BYTES:
            return None, f"{report.name} is too large to be read here"
        told = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, "the run's report is not at hand here (PERDURE_RUNS)"
    found = told.get("compatibility") if isinstance(told, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("matrix"), list):
        return None, "the run's report has no compatibility matrix: that needs two encoder versions"
    return found, None
