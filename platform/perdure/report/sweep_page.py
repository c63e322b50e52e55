"""A sweep as a page: what it might look at, every trial between retention and gain, the front and the knee that is proposed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.report.charts import front_chart
from perdure.report.markup import LOGO, chart, escaped, listed, percent, table, write_page
from perdure.report.reading import metric_title

__all__ = ["write_sweep_page"]

Trial = Mapping[str, Any]


def write_sweep_page(path: Path, sweep: Mapping[str, Any]) -> None:
    """Write the page of a finished sweep.

    Args:
        path: of the page.
        sweep: what `sweep.json` holds; see `cluster.sweep.run_sweep`.
    """
    trials: Sequence[Trial] = sweep["trials"]
    numbers = {trial["name"]: str(number) for number, trial in enumerate(trials, start=1)}
    contents = [
        ("Retention and gain", _front(sweep, trials, numbers)),
        ("Trials", _trials(sweep, trials, numbers)),
        ("What the numbers mean", listed([*sweep["definitions"].items(), ("front", _FRONT), ("knee", _KNEE)])),
    ]
    protocol = sweep["protocol"]["name"].replace("_", " ")
    oracle = "<p><b>Oracle.</b> These trials were judged on what the chosen run is measured on: an upper bound, not a way to choose.</p>"
    header = (
        f'<header><p class="brand">{LOGO}Perdure<span>sweep</span></p><h1>{escaped(sweep["name"])}</h1>'
        f'<p class="lead">{len(trials)} trials, protocol {escaped(protocol)}. {escaped(sweep["looks_at"])}</p>'
        f"{oracle if sweep['oracle'] else ''}</header>"
    )
    body = "".join(f"<section><h2>{escaped(title)}</h2>{content}</section>" for title, content in contents if content)
    write_page(path, f"{sweep['name']} · Perdure", header + body)


_FRONT = "The trials that no other one beats: none retains as much and gains as much, and more of one of the two."
_KNEE = (
    "Of the front, with each axis scaled so that the front spans 0 to 1, the trial farthest above the line that joins its two ends; where "
    "none lies above it, the one with the greatest sum of retention and gain."
)


def _front(sweep: Mapping[str, Any], trials: Sequence[Trial], numbers: Mapping[str, str]) -> str:
    """The chart; nothing where retention is not defined."""
    reference = sweep["reference"]
    whole = [trial for trial in trials if _is_whole(trial) and trial["retention"] is not None and trial["gain"] is not None]
    if not whole or reference["retention"] is None:
        return ""
    names = [trial["name"] for trial in whole]
    drawn = front_chart(
        [(trial["retention"], trial["gain"]) for trial in whole],
        [names.index(name) for name in sweep["front"]],
        None if sweep["knee"] is None else names.index(sweep["knee"]),
        (reference["retention"], reference["gain"]),
        [numbers[name] for name in names],
    )
    estimated = "retention is estimated; " if sweep["retention_is"] == "estimated" else ""
    words = f"Of {escaped(metric_title(sweep['of']))}; {estimated}line: the front; ring: its knee; numbers: the trials below"
    return f'<div class="charts">{chart(words, drawn)}</div>'


def _trials(sweep: Mapping[str, Any], trials: Sequence[Trial], numbers: Mapping[str, str]) -> str:
    """Every trial, and fine-tuning above them."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial["values"]))
    shows_metric = sweep["metric"] not in ("retention", "gain")
    head = ["", *(f"<code>{escaped(key)}</code>" for key in keys)]
    head += ["Retention" if sweep["retention_is"] == "measured" else "Retention, estimated", "Gain"]
    head += [*([f"<code>{escaped(sweep['metric'])}</code>"] if shows_metric else []), ""]

    def cells(label: str, values: Mapping[str, Any], judged: Trial, note: str) -> list[str]:
        figures = [percent(judged[key]) for key in ("retention", "gain", *(["metric"] if shows_metric else []))]
        return [label, *(escaped(_told(values.get(key, ""))) for key in keys), *figures, note]

    rows = [cells("fine-tuning", {}, sweep["reference"], "")]
    rows += [cells(numbers[trial["name"]], trial["values"], trial, escaped(_note(sweep, trial))) for trial in trials]
    return table(head, rows, words=(0, len(head) - 1))


def _note(sweep: Mapping[str, Any], trial: Trial) -> str:
    if trial["error"] is not None:
        return f"failed: {trial['error']}"
    if not _is_whole(trial):
        return f"{'stopped' if trial['stopped'] else 'ended'} after {trial['learned']} of {trial['of'] or '?'} tasks"
    words = ["chosen"] if trial["name"] == sweep["best"]["name"] else []
    words += ["knee"] if trial["name"] == sweep["knee"] else []
    return ", ".join([*words, *(["front"] if trial["name"] in sweep["front"] else [])])


def _is_whole(trial: Trial) -> bool:
    return trial["error"] is None and not trial["stopped"] and trial["learned"] == trial["of"]


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
