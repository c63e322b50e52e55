"""A sweep on a real local Ray: trials, a table, the best as a run config that can be learned."""

import json
from pathlib import Path

import pytest
import yaml

from perdure.cluster.sweep import run_sweep
from perdure.config import load_sweep, parse
from perdure.pipeline import check
from perdure.progress import SilentProgress

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]


def test_the_best_of_a_few_trials_is_written_as_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERDURE_RUNS", str(tmp_path / "runs"))
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "few",
                "base": {
                    "stream": {
                        "dataset": {"name": "scenes", "items": 96, "classes": 4, "size": 24},
                        "kind": {"name": "class_incremental", "first": 2, "step": 2},
                    },
                    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 8, "text": "none"},
                    "train": {"epochs": 1, "batch_size": 16, "per_class": 4, "precision": "fp32"},
                    "strategy": "correlation",
                    "workers": 0,
                },
                "set": ["stream.dataset.seed=5"],
                "search": {"strategy.weight": {"choice": [0.5, 5.0]}, "strategy.temperature": {"loguniform": [0.05, 0.5]}},
                "trials": 2,
                "metric": "by_metric.recall@1.last_average",
                "seed": 3,
            }
        )
    )
    out = run_sweep(load_sweep(tmp_path / "sweep.yaml"), SilentProgress())
    assert len(out["trials"]) == 2 and all(trial["error"] is None for trial in out["trials"])
    metrics = [trial["metric"] for trial in out["trials"]]
    assert metrics == sorted(metrics, reverse=True)
    assert json.loads((tmp_path / "runs/few/sweep.json").read_text()) == out
    best = parse(yaml.safe_load((tmp_path / "runs/few/best.yaml").read_text()))
    assert check(best) == []
    assert best.strategy.options["weight"] == out["best"]["strategy.weight"]
    assert best.stream.dataset.options.get("seed", 0) == 0, "tuned on another stream than the one the best run is for"
    shared = [json.loads(line) for path in sorted((tmp_path / "runs").glob("few-*/report.json")) for line in [path.read_text()]]
    firsts = [report["metrics"]["recall@1"]["matrix"][0] for report in shared]
    assert len(firsts) == 3 and all(first == firsts[0] for first in firsts), "the first task is learned once, and taken over"
