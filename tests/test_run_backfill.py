"""A learned run whose old items move: the job as an operator runs it, the report, and the matrix of who may query whose vectors."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folder import enter

from perdure.config import parse
from perdure.metrics.compatibility import average_compatibility
from perdure.records import EncoderRef
from perdure.report import write_run_html
from perdure.run import StreamRun, learn_stream

SMALL = {
    "name": "moved",
    "stream": {
        "dataset": {"name": "scenes", "items": 180, "classes": 6, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "strategy": {"name": "fine_tune"},
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32", "max_steps": 2},
    "index": {"policy": "backfilling"},
    "workers": 0,
    "registry": "registry",
}
JOB = Path(__file__).resolve().parents[1] / "jobs" / "backfill.py"


def job(*arguments: str) -> int:
    """The job's exit code."""
    main: Any = runpy.run_path(str(JOB))["main"]
    from perdure.console import guarded

    return guarded(main, list(arguments))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("moved")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        return folder, learn_stream(parse(SMALL))


def test_a_paused_backfill_goes_on_and_the_report_shows_it(
    learned: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(learned[0], monkeypatch)
    options = ("--slice", "10", "--order", "by_uncertainty", "--tolerance", "1")
    assert job("moved@v3", *options, "--items", "10", "--promote", "live") == 0
    run = StreamRun.open(parse(SMALL))
    live = run.registry.channel()
    assert live is not None and live.metrics["backfill"]["moved"] == 10
    assert job(live.id, *options) == 0
    newest = run.registry.releases("moved")[-1]
    assert newest.metrics["backfill"]["fraction"] == 1.0 and newest.encoders() == (EncoderRef("moved", 3),)
    told = json.loads((run.folder / "report.json").read_text())
    assert told["backfill"][0]["points"][-1]["release"] == newest.id and "backfill.area" in told["definitions"]
    assert "Recall@1 of held-out queries over the fraction" in (run.folder / "report.html").read_text()
    again = run.report()
    assert again["backfill"] == told["backfill"] and newest.id in again["releases"] and newest.id not in again["search"]
    assert "by_uncertainty" in capsys.readouterr().out
    assert job("moved@v3", "--order", "random") == 2 and "it was begun with" in capsys.readouterr().err


def test_the_matrix_of_encoders_is_that_of_search_by_one_among_what_the_other_made(
    learned: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, report = learned
    enter(folder, monkeypatch)
    run = StreamRun.open(parse(SMALL))
    matrix = report["compatibility"]["matrix"]
    tasks, labels = run.prepared.stream.tasks, run.prepared.stream.labels
    rows = np.concatenate([task.query for task in tasks[:2]])
    asked, made = (run.measures.embeddings(EncoderRef("moved", version)).of(rows).image for version in (3, 2))
    scores = asked @ made.T
    np.fill_diagonal(scores, -np.inf)
    expected = (labels[rows][scores.argmax(axis=1)] == labels[rows]).mean()
    assert matrix[2][1] == pytest.approx(expected, abs=0.02)  # a tie may fall either way
    assert matrix[0][1:] == [None, None] and report["compatibility"]["AC"] == average_compatibility(matrix)
    assert report["compatibility"]["keep"][2][1] == (matrix[2][1] >= matrix[1][1])
    assert "compatibility.AC" in report["definitions"]
    assert "Average compatibility" in write_run_html(run.folder).read_text()
