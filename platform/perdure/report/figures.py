"""The figures that share a name in the literature: what was lost and what was carried over, each by its own name and definition."""

from collections.abc import Sequence

from perdure.metrics import continual
from perdure.report.markup import escaped, percent, signed, table
from perdure.report.reading import Report, first_with, intransigence_of, main_metric, summary_of

__all__ = ["figures", "named_figures"]

_NAMED = (
    "forgetting_max",
    "forgetting_first",
    "forgetting_mammoth",
    "forgetting_continuum",
    "backward_transfer",
    "backward_transfer_libcontinual",
    "forward_transfer",
)


def named_figures(runs: Sequence[Report]) -> dict[str, tuple[float, str]]:
    """Name, value on the main metric and definition of what is known of the first run; intransigence where joint training was run beside.

    The definition is the one stored in the report; of a report that was written before there was such a figure, today's.
    """
    report, metric = runs[0], main_metric(runs[0])
    joint = first_with(runs[1:], "joint")
    summary = summary_of(report, metric)
    values = {key: summary.get(key) for key in _NAMED} | {"intransigence": intransigence_of(report, joint, metric)}
    meanings = {**continual.DEFINITIONS, **(report.get("definitions") or {})}
    return {key: (value, meanings[key]) for key, value in values.items() if value is not None}


def figures(runs: Sequence[Report]) -> str:
    """A table of `named_figures`; empty where there is none."""
    rows: list[list[str]] = []
    for key, (value, meaning) in named_figures(runs).items():
        points = percent(value) if key.startswith("forgetting") else signed(value)
        rows.append([f"<code>{escaped(key)}</code>", points, f"<small>{escaped(meaning)}</small>"])
    return f"<h3>By name</h3>{table(['Figure', 'Points', 'Definition'], rows, words=(0, 2))}" if rows else ""
