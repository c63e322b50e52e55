"""The quality of a backfill over the fraction moved, read from the releases that it published."""

from collections.abc import Sequence
from typing import Any

from perdure.records import Release
from perdure.retrieval.guard import area

__all__ = ["backfill_curves"]


def backfill_curves(releases: Sequence[Release]) -> list[dict[str, Any]]:
    """Every backfill among some releases: its settings, its points from the start on, and the figures of the whole way.

    Returns:
        for each `{start, order, seed, slice, total, points: [{release, fraction, moved, recall@1, ...}], area, worst, negative_flips}`;
        area: see `BACKFILL_DEFINITIONS`; worst: lowest recall@1 on the way less that of the start; negative_flips: the most at any point.
    """
    by_start: dict[str, list[Release]] = {}
    for release in releases:
        if "backfill" in release.metrics:
            by_start.setdefault(release.metrics["backfill"]["start"], []).append(release)
    return [_curve(start, steps) for start, steps in by_start.items()]


def _curve(start: str, steps: list[Release]) -> dict[str, Any]:
    told = sorted((step.metrics["backfill"] | {"release": step.id} for step in steps), key=lambda each: each["moved"])
    begun: dict[str, Any] = {
        "release": start,
        "fraction": 0.0,
        "moved": 0,
        **told[0]["at_start"],
        "negative_flips": 0.0,
        "positive_flips": 0.0,
    }
    kept = (*begun, "seconds")
    points = [begun, *({name: each[name] for name in kept} for each in told)]
    recalls: list[float] = [point["recall@1"] for point in points]
    return {
        "start": start,
        **told[0]["settings"],
        "total": told[0]["total"],
        "points": points,
        "area": area([point["fraction"] for point in points], recalls),
        "worst": min(recalls) - recalls[0],
        "negative_flips": max(point["negative_flips"] for point in points),
    }
