"""Sweeps on a real local Ray: every protocol, search, early stop, and what is written."""

import html
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sweep_files import BASE, write_sweep

from perdure.checks import check
from perdure.cluster.sweep import run_sweep
from perdure.config import parse
from perdure.errors import ConfigError, DataError, PerdureError
from perdure.pipeline import prepare
from perdure.progress import SilentProgress
from perdure.tuning import load_sweep

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]


def swept(here: Path, **changes: Any) -> dict[str, Any]:
    return run_sweep(load_sweep(write_sweep(here, **changes)), SilentProgress())


def test_the_first_tasks_choose_a_run_that_can_be_learned_and_nothing_else_is_read(here: Path) -> None:
    out = swept(here)
    folder = here / "runs/few"
    assert json.loads((folder / "sweep.json").read_text()) == out
    assert [trial["error"] for trial in out["trials"]] == [None, None] and not out["oracle"]
    assert {trial["values"]["strategy.weight"]: trial["retention"] for trial in out["trials"]}[0.0] == pytest.approx(0, abs=1e-9), (
        "without its term l2 is fine-tuning"
    )
    assert out["knee"] in out["front"] and out["best"]["name"] == out["knee"]
    page = (folder / "sweep.html").read_text()
    assert html.escape(out["looks_at"]) in page and "<svg" in page and "Oracle" not in page

    stream = prepare(parse(BASE))
    allowed = {stream.dataset.items[int(row)].id for task in stream.stream.tasks[:2] for row in task.train}
    reads = [json.loads(path.read_text()) for path in here.glob("runs/few-*/reads/*.json")]
    assert len(reads) == 3 * 2 and all(set(read) < allowed for read in reads)
    firsts = [json.loads(path.read_text())["metrics"]["recall@1"]["matrix"][0] for path in here.glob("runs/few-*/report.json")]
    assert len(firsts) == 3 and all(first == firsts[0] for first in firsts), "the first task is learned once, and taken over"

    best = parse(yaml.safe_load((folder / "best.yaml").read_text()))
    assert check(best) == [] and best.stream.validation is None
    assert best.strategy.options["weight"] == out["best"]["values"]["strategy.weight"]
    command = [sys.executable, str(ROOT / "jobs/train.py"), "runs/few/best.yaml"]
    learned = subprocess.run(command, cwd=here, env={**os.environ}, capture_output=True, text=True, timeout=300)
    assert learned.returncode == 0, learned.stderr
    report = json.loads((here / "runs/few-best/report.json").read_text())
    assert len(report["tasks"]) == 3 and report["config"]["stream"]["validation"] is None


def test_the_current_task_alone_may_judge_and_no_figure_of_an_old_one_is_kept(here: Path) -> None:
    out = swept(here, protocol={"name": "current_task_validation", "tasks": 2, "held_out": 0.3}, metric="gain")
    assert out["definitions"]["retention"].startswith("(m - f) / (1 - f)")
    for trial in [out["reference"], *out["trials"]]:
        assert trial["figures"] == {} and np.isfinite([trial["retention"], trial["gain"]]).all()
    assert out["reference"]["retention"] == pytest.approx(0, abs=1e-9)
    by_weight = {trial["values"]["strategy.weight"]: trial for trial in out["trials"]}
    assert by_weight[100.0]["retention"] > by_weight[0.0]["retention"] == pytest.approx(0, abs=1e-9)


def test_an_oracle_is_stamped_wherever_its_result_is_seen_and_optuna_searches_both_objectives(here: Path) -> None:
    search = {"strategy.weight": {"loguniform": [0.1, 30.0]}, "strategy.class_ratio": {"choice": [True, False]}}
    out = swept(here, protocol={"name": "oracle"}, search=search, order="optuna", trials=3)
    assert out["oracle"] is True and len(out["trials"]) == 3
    assert len({trial["values"]["strategy.weight"] for trial in out["trials"]}) == 3
    assert all(0.1 <= trial["values"]["strategy.weight"] <= 30 for trial in out["trials"])
    assert "ORACLE" in (here / "runs/few/best.yaml").read_text().splitlines()[2]
    assert "<b>Oracle.</b>" in (here / "runs/few/sweep.html").read_text()
    report = json.loads((here / f"runs/{out['best']['name']}/report.json").read_text())
    assert len(report["tasks"]) == 3 and report["config"]["stream"]["validation"] is None
    more = swept(here, protocol={"name": "oracle"}, search=search, order="optuna", trials=4)
    assert len(more["trials"]) == 4, "it goes on from the three that it has, and proposes another"
    assert {str(trial) for trial in out["trials"]} < {str(trial) for trial in more["trials"]}


def test_two_phases_tune_on_one_stream_and_the_chosen_run_is_for_the_other(here: Path) -> None:
    out = swept(here, protocol={"name": "two_phase", "set": ["stream.dataset.seed=5", "stream.kind.tasks=2"]}, best="metric")
    report = json.loads((here / f"runs/{out['best']['name']}/report.json").read_text())
    assert report["config"]["stream"]["dataset"]["seed"] == 5 and len(report["tasks"]) == 2
    metrics = [trial["metric"] for trial in out["trials"]]
    assert metrics == sorted(metrics, reverse=True) and out["best"]["name"] == out["trials"][0]["name"]
    best = parse(yaml.safe_load((here / "runs/few/best.yaml").read_text()))
    assert best.stream == parse(BASE).stream


def test_a_weak_trial_learns_no_further_task_and_the_same_sweep_again_learns_nothing_at_all(here: Path) -> None:
    changes = {"protocol": {"name": "first_tasks", "tasks": 3, "held_out": 0.3}, "metric": "retention", "stop_early": {"after": 2}}
    out = swept(here, **changes)
    strong, weak = out["trials"]
    assert (strong["values"]["strategy.weight"], strong["learned"], strong["stopped"]) == (100.0, 3, False)
    assert (weak["values"]["strategy.weight"], weak["learned"], weak["stopped"]) == (0.0, 2, True)
    assert not (here / f"runs/{weak['name']}/report.json").exists()
    assert out["best"]["name"] == out["knee"] == strong["name"] and out["front"] == [strong["name"]]
    logs = {path: path.read_text() for path in here.glob("runs/few-*/log.jsonl")}
    assert swept(here, **changes) == out
    assert {path: path.read_text() for path in here.glob("runs/few-*/log.jsonl")} == logs


def test_what_cannot_be_searched_is_told_before_anything_is_learned(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.strategy\.wieght = 1: strategy\.wieght: no such option\. Did you mean 'weight'"):
        swept(here, search={"strategy.wieght": {"choice": [1]}})
    assert not (here / "runs").exists()
    with pytest.raises(DataError, match=r"no figure 'lastaverage'.*last_average"):
        swept(here, metric="lastaverage")
    assert len(list(here.glob("runs/few-*"))) == 1, "the reference, and no trial"


def test_of_one_task_there_is_nothing_to_retain_so_the_knee_is_refused_and_the_best_is_not(here: Path) -> None:
    protocol = {"name": "two_phase", "set": ["stream.dataset.seed=5", "stream.kind={name: class_incremental, first: 8, step: 1, tasks: 1}"]}
    with pytest.raises(ConfigError, match="no retention can be told"):
        swept(here, protocol=protocol)
    out = swept(here, protocol=protocol, name="single", best="metric", search={"train.first_lr": {"choice": [0.01]}})
    assert (out["knee"], out["front"]) == (None, []) and out["trials"][0]["retention"] is None
    assert "<svg class" not in (here / "runs/single/sweep.html").read_text()


def test_a_sweep_of_which_every_trial_fails_says_why(here: Path) -> None:
    with pytest.raises(PerdureError, match=r"all 2 trials failed; the first: .*loss term .* is not finite"):
        swept(here, search={"train.lr": {"choice": [1e20, 1e25]}, "train.first_lr": {"choice": [0.01]}})
