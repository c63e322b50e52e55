"""The page of a run."""

import json
from collections.abc import Sequence
from pathlib import Path

from perdure.errors import DataError
from perdure.report import sections
from perdure.report.answers import answers
from perdure.report.classes import classes
from perdure.report.classification import classification
from perdure.report.codes import codes
from perdure.report.cross_modal import cross_modal
from perdure.report.datasets import datasets
from perdure.report.inversions import inversions
from perdure.report.markup import LOGO, escaped, percent, signed, write_page
from perdure.report.modalities import modalities
from perdure.report.neighbourhoods import neighbourhoods
from perdure.report.pictures import ReportPictures
from perdure.report.reading import (
    Report,
    first_with,
    gap,
    main_metric,
    matrix_of,
    metric_title,
    part_name,
    policy_of,
    release_id,
    strategy_of,
    summary_of,
    title_of,
)
from perdure.report.upgrades import upgrades

__all__ = ["write_html", "write_run_html"]


def write_run_html(folder: Path, beside: Sequence[Report] = ()) -> Path:
    """Write `report.html` of a run's folder from its `report.json` and the pictures saved there; returns its path.

    Raises:
        DataError: the folder has no report, or the report holds no metric.
    """
    source = folder / "report.json"
    if not source.exists():
        raise DataError(f"{folder}: no report.json in it; it is written when a run ends: python jobs/train.py CONFIG name={folder.name}")
    path = folder / "report.html"
    write_html(json.loads(source.read_text(encoding="utf-8")), ReportPictures.load(folder, beside), path)
    return path


def write_html(report: Report, pictures: ReportPictures, path: Path) -> None:
    """Write one self-contained page: what a run knows, forgets and finds; then how it came about, what was released and what words mean.

    Raises:
        DataError: the report holds no metric that was measured.
    """
    runs = [report, *pictures.beside]
    contents = [
        ("knows", "What it knows", sections.matrices(runs)),
        ("forgets", "What it forgets", sections.over_time(runs)),
        ("datasets", "Seen and unseen classes", datasets(runs)),
        ("modalities", "Across modalities", modalities(report)),
        ("classifies", "How it classifies", classification(runs)),
        ("codes", "What its bits find", codes(report)),
        ("pairs", "Pictures and captions", cross_modal(report)),
        ("finds", "What it finds", answers(report, pictures)),
        ("classes", "Easy and hard classes", classes(report)),
        ("neighbours", "Neighbourhoods", neighbourhoods(pictures)),
        ("learned", "How it learned", sections.training(report)),
        ("imagined", "Pictures it made up", inversions(report, pictures.inversions)),
        ("released", "What was released", sections.releases(report)),
        ("upgrades", "Upgrades", upgrades(report)),
        ("means", "What the numbers mean", sections.definitions(runs)),
        ("again", "How to run it again", sections.configuration(report)),
    ]
    shown = [entry for entry in contents if entry[2]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in shown)
    body = "".join(
        f'<section id="{key}"><h2><span class="number">{number}</span>{title}</h2>{content}</section>'
        for number, (key, title, content) in enumerate(shown, start=1)
    )
    write_page(path, f"{report['name']} · Perdure", f'{_header(runs)}<nav aria-label="Sections">{links}</nav>{body}')


def _header(runs: Sequence[Report]) -> str:
    report, metric = runs[0], main_metric(runs[0])
    facts = [
        ("Strategy", strategy_of(report)),
        ("Data", part_name(report, "stream", "dataset")),
        ("Stream", part_name(report, "stream", "kind").replace("_", " ")),
        ("Encoder", part_name(report, "encoder")),
        ("Index policy", policy_of(report)),
        ("Release", release_id(report["releases"][-1]) if report.get("releases") else ""),
    ]
    shown = "".join(f"<div><dt>{title}</dt><dd>{escaped(value)}</dd></div>" for title, value in facts if value)
    return (
        f'<header><p class="brand">{LOGO}Perdure<span>run report</span></p><h1>{escaped(report["name"])}</h1>'
        f'<p class="lead">{_verdict(runs, metric)}</p><dl class="facts">{shown}</dl>{_tiles(runs, metric)}</header>'
    )


def _verdict(runs: Sequence[Report], metric: str) -> str:
    """The run in two sentences."""
    summary = summary_of(runs[0], metric)
    count = len(matrix_of(runs[0], metric))
    words = (
        f"After {'one task' if count == 1 else f'{count} tasks'}, {escaped(metric_title(metric))} is "
        f"<b>{percent(summary['last_average'], ' %')}</b> on average over everything learned."
    )
    forgotten = summary["forgetting"]
    if forgotten is None:
        return f"{words} There is no earlier task to forget yet."
    lost = f"<b>{percent(forgotten)} points</b> since their best" if round(100 * forgotten, 1) > 0 else "<b>nothing</b>"
    finetune = first_with(runs[1:], "fine_tune")
    other = None if finetune is None else summary_of(finetune, metric).get("forgetting")
    return f"{words} Earlier tasks lost {lost}{'' if other is None else f'; plain fine-tuning loses {percent(other)}'}."


def _tiles(runs: Sequence[Report], metric: str) -> str:
    """The figures of a run, each with its distance from fine-tuning where that was run beside it."""
    summary = summary_of(runs[0], metric)
    finetune, joint = first_with(runs[1:], "fine_tune"), first_with(runs[1:], "joint")
    lower = {} if finetune is None else summary_of(finetune, metric)
    upper = {} if joint is None else summary_of(joint, metric)
    figures = {key: summary.get(key) for key in ("last_average", "old", "new", "forgetting", "average_incremental", "unseen", "H")}
    figures["gap_closed"] = gap(summary.get("old"), lower.get("old"), upper.get("old"))
    notes = {
        "forgetting": "points below best",
        "H": "of seen and unseen",
        "gap_closed": "of the way to joint",
        "average_incremental": "over the run's life",
    }
    tiles: list[str] = []
    for key, value in figures.items():
        if value is None:
            continue
        reference = lower.get(key)
        note = notes.get(key, "") if reference is None else f"{signed(value - reference)} vs fine-tuning"
        unit = "" if key == "forgetting" else "<small>%</small>"
        tiles.append(f'<div class="tile"><p>{title_of(key)}</p><strong>{percent(value)}{unit}</strong><span>{note}</span></div>')
    return f'<div class="tiles">{"".join(tiles)}</div>'
