"""The section of a stream with text: what each index policy finds from pictures to captions and back, and how far both modalities moved."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perdure.report.charts import drift_chart
from perdure.report.markup import chart, escaped, percent
from perdure.report.reading import Report, measured

__all__ = ["cross_modal"]

_POLICIES = {"reindex": "Reindex", "keep": "Keep", "keep_compensated": "Keep, compensated", "versioned": "Versioned"}
_SCOPES = (("known", "Known task"), ("unknown", "Unknown task"))
_MERGES = (("unknown_raw", "raw merge"), ("unknown_routed", "routed"))
_DIRECTIONS = (("i2t", "image to text"), ("t2i", "text to image"))
_KS = (1, 5, 10)
_MODALITIES = (("image", "pictures"), ("text", "captions"))


def cross_modal(report: Report) -> str:
    """Every policy after the last task, and the drift of both modalities task by task; empty for a stream without text."""
    section: Mapping[str, Any] = report.get("cross_modal") or {}
    policies: Mapping[str, Any] = section.get("policies") or {}
    if not policies:
        return ""
    words = (
        "<p>Recall@K in percent after the last task, mean over the tasks: a picture asks the captions, a caption asks the pictures. Known "
        "task: among the items of its own task. Unknown task: among everything so far; what several encoder versions made is merged by "
        "standardised score, or, in the paler rows, by the score as it is, or with the query's task estimated (routed). All policies are "
        "measured on the same encoders, whichever one the run was released under.</p>"
    )
    return f"{words}{_table(policies)}{_drift(section.get('drift') or {})}"


def _table(policies: Mapping[str, Any]) -> str:
    columns = [(scope, direction, k) for scope, _ in _SCOPES for direction, _ in _DIRECTIONS for k in _KS]
    rows: list[tuple[str, bool, list[float | None]]] = []
    for name, by_scope in policies.items():
        title = _POLICIES.get(name, name.replace("_", " "))
        rows.append((title, False, [_last_mean(by_scope, scope, direction, k) for scope, direction, k in columns]))
        for merged, merge in _MERGES:
            if merged in by_scope:
                shown = [_last_mean(by_scope, merged, direction, k) if scope == "unknown" else None for scope, direction, k in columns]
                rows.append((merge, True, shown))
    best = [max((value for _, _, row in rows if (value := row[at]) is not None), default=None) for at in range(len(columns))]
    over = [f"{escaped(scope)},<br>{escaped(direction)}" for _, scope in _SCOPES for _, direction in _DIRECTIONS]
    above = "".join(f'<th class="over" colspan="{len(_KS)}">{title}</th>' for title in over)
    head = "".join(f"<th class=n>@{k}</th>" for _, _, k in columns)
    body = "".join(_row(title, paler, values, best) for title, paler, values in rows)
    return (
        f'<div class="scroll"><table class="plain"><thead><tr><th></th>{above}</tr><tr><th>Index policy</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(title: str, paler: bool, values: Sequence[float | None], best: Sequence[float | None]) -> str:
    """One policy, or a paler row below it that is told where it differs only."""
    cells: list[str] = []
    for value, highest in zip(values, best, strict=True):
        shown = "" if paler and value is None else percent(value)
        marked = value is not None and highest is not None and round(value, 3) == round(highest, 3)
        cells.append(f'<td class="n{" best" if marked else ""}">{f"<small>{shown}</small>" if paler and not marked else shown}</td>')
    name = f"<small>{escaped(title)}</small>" if paler else escaped(title)
    return f"<tr><td>{name}</td>{''.join(cells)}</tr>"


def _last_mean(by_scope: Mapping[str, Any], scope: str, direction: str, k: int) -> float | None:
    """The mean over the tasks that have a number, after the last one."""
    matrix = by_scope.get(scope, {}).get(direction, {}).get(f"recall@{k}", {}).get("matrix") or [[]]
    return _mean(matrix[-1])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in map(measured, values) if value is not None]
    return float(np.mean(known)) if known else None


def _drift(drift: Mapping[str, Any]) -> str:
    """Both figures of drift, a line for each modality; nothing before the second task."""
    drawn: list[str] = []
    for figure, title in (("displacement", "How far test items of earlier tasks moved"), ("cka", "How alike their arrangement is (CKA)")):
        lines = [
            (name, [_mean(row) for row in drift.get(modality, {}).get(figure, {}).get("matrix", [])]) for modality, name in _MODALITIES
        ]
        if any(value is not None for _, values in lines for value in values):
            drawn.append(chart(f"{title} since each was learned, mean over the tasks", drift_chart(lines)))
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""
