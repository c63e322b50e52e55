"""The section of a stream of modalities: how well each finds the classes of each other one, after every task."""

from collections.abc import Mapping
from typing import Any

from perdure.report.markup import escaped, percent, table
from perdure.report.reading import Report, measured, metric_title, shorten, task_names

__all__ = ["modalities"]


def modalities(report: Report) -> str:
    """A table for each metric, a row for each pair, a column for each task; empty for a stream of another kind."""
    told: Mapping[str, Any] = report.get("modalities") or {}
    if not told.get("pairs"):
        return ""
    words = (
        "<p>Test items of one modality ask for those of another, in percent; an item of the same class is right, for no item has a partner "
        "in another modality. Nothing stands where one of the two was still to come.</p>"
    )
    head = [f"after {escaped(shorten(name, 14))}" for name in task_names(report)]
    parts: list[str] = []
    for key, mean in told["mean"].items():
        rows = [[escaped(f"{pair['query']} → {pair['gallery']}"), *map(_cell, pair[key])] for pair in told["pairs"]]
        rows.append(["<b>mean</b>", *map(_cell, mean)])
        parts.append(table([escaped(metric_title(key)), *head], rows, words=(0,)))
    return f'{words}<div class="charts">{"".join(parts)}</div>'


def _cell(value: float | None) -> str:
    known = measured(value)
    return "" if known is None else percent(known)
