"""The section of codes: how well bits find across the modalities, beside the numbers that they are the signs of."""

from collections.abc import Mapping, Sequence
from typing import Any

from perdure.report.charts import precision_recall_chart
from perdure.report.markup import chart, percent, table
from perdure.report.reading import Report, measured

__all__ = ["codes"]

_DIRECTIONS = (("i2t", "Captions by picture"), ("t2i", "Pictures by caption"))


def codes(report: Report) -> str:
    """Mean average precision after each task, and the curve of the hash lookup after the last; empty where nothing is hashed."""
    entries: Sequence[Mapping[str, Any]] = report.get("codes") or []
    if not entries:
        return ""
    words = (
        f"<p>Every picture and caption is {entries[-1]['bits']} bits. Over the test items of all tasks so far, mean average precision in "
        "percent of the ranking by Hamming distance, beside the one by the numbers whose signs the bits are.</p>"
    )
    head = ["After task", *(f"{title}, {how}" for _, title in _DIRECTIONS for how in ("bits", "numbers"))]
    shown = [(key, name) for key, _ in _DIRECTIONS for name in ("hamming_map", "real_map")]
    rows = [[str(int(entry["task"]) + 1), *(percent(measured(entry[key][name])) for key, name in shown)] for entry in entries]
    last = entries[-1]
    curves = [(number, title, last[key]["lookup_recall"], last[key]["lookup_precision"]) for number, (key, title) in enumerate(_DIRECTIONS)]
    drawn = chart("Hash lookup, from radius 0 at the left to all bits at the right", precision_recall_chart(curves))
    return f'{words}<div class="charts">{table(head, rows, words=(0,))}{drawn}</div>'
