"""The section of upgrades: which encoder may query whose vectors, and how backfills went."""

from collections.abc import Mapping, Sequence
from typing import Any

from perdure.report.charts import fraction_chart
from perdure.report.markup import chart, escaped, percent, signed, table
from perdure.report.reading import Report

__all__ = ["upgrades"]


def upgrades(report: Report) -> str:
    """The compatibility matrix with AC, and each backfill's curve with its area; empty where there is neither."""
    return _compatibility(report.get("compatibility") or {}) + _backfills(report.get("backfill") or [])


def _compatibility(told: Mapping[str, Any]) -> str:
    matrix: Sequence[Sequence[float | None]] = told.get("matrix") or []
    if len(matrix) < 2:
        return ""
    keep: Sequence[Sequence[bool | None]] = told["keep"]
    words = (
        f"<p>Recall@1 with queries by one encoder (rows) and a gallery by another (columns), over the test items of the tasks that the "
        f"gallery's encoder has learned. Marked: at least as good as the gallery's own encoder, so that policy keep may leave it as it is. "
        f"Average compatibility (AC) {percent(told.get('AC'), ' %')}.</p>"
    )
    rows = [
        [
            f"v{i + 1} asks",
            *(f"<b>{percent(value)}</b>" if keep[i][j] or i == j else percent(value) if j < i else "" for j, value in enumerate(row)),
        ]
        for i, row in enumerate(matrix)
    ]
    return words + table(["", *(f"v{j + 1}'s gallery" for j in range(len(matrix)))], rows, words=(0,))


def _backfills(curves: Sequence[Mapping[str, Any]]) -> str:
    drawn = [curve for curve in curves if len(curve["points"]) > 1]
    if not drawn:
        return ""
    lines = [
        (f"{curve['start']}, {curve['order'].replace('_', ' ')}", [(point["fraction"], point["recall@1"]) for point in curve["points"]])
        for curve in drawn
    ]
    rows = [
        [
            f"<code>{escaped(curve['start'])}</code>",
            escaped(str(curve["order"]).replace("_", " ")),
            percent(curve["points"][-1]["fraction"]),
            percent(curve["points"][0]["recall@1"]),
            percent(curve["points"][-1]["recall@1"]),
            percent(curve["area"]),
            signed(curve["worst"]),
            percent(curve["negative_flips"]),
        ]
        for curve in drawn
    ]
    head = ["Backfill of", "Order", "Moved", "At the start", "Now", "Mean on the way", "Lowest beside the start", "Turned wrong at most"]
    title = "Recall@1 of held-out queries over the fraction of old items moved"
    return f'{table(head, rows, words=(0, 1))}<div class="charts">{chart(title, fraction_chart(lines))}</div>'
