"""Dual distillation in a whole run: pictures are made anew for each task, are shown, and nothing is begun that could not be learned."""

import json
from pathlib import Path

import pytest

from perdure import pipeline
from perdure.config import RunConfig, parse
from perdure.errors import ConfigError
from perdure.progress import Progress
from perdure.registry.registry import open_registry
from perdure.report.pictures import Inversion
from perdure.run import learn_stream

TINY = {
    "name": "tiny",
    "stream": {
        "dataset": {"name": "scenes", "items": 120, "classes": 6, "size": 16},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 16, "width": 4, "embedding_dim": 8},
    "strategy": {"name": "dual", "inversion": {"pictures": 16, "iterations": 3}},
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32", "max_steps": 2},
    "workers": 0,
    "registry": "registry",
}
pytestmark = pytest.mark.usefixtures("here")


def config(*overrides: str) -> RunConfig:
    return parse(TINY, list(overrides))


def learn_elsewhere(config: RunConfig, task_index: int, registry_at: str, run_folder: Path, progress: Progress) -> Path:
    """A learner that leaves the outcome outside the run's folder, as Ray's storage is for the driver."""
    out = Path("elsewhere") / str(task_index)
    out.mkdir(parents=True)
    pipeline.learn_task(config, task_index, registry_at, out=out)
    return out


def test_every_task_but_the_first_leaves_pictures_of_the_classes_before_it_where_the_report_looks() -> None:
    report = learn_stream(config())
    tasks = Path("runs/tiny/tasks")
    assert not (tasks / "000" / pipeline.MADE_UP).exists()
    for task, old in ((1, {0, 1}), (2, {0, 1, 2, 3})):
        shown = Inversion.load(tasks / f"{task:03d}" / pipeline.MADE_UP)
        assert set(shown.labels.tolist()) == old
        assert shown.images.shape == (16, 16, 16, 3) and shown.curve.shape == (3,) and shown.noise is not None
    assert {"kd1", "kd2", "te2_triplet", "te2_cross_entropy"} <= report["train"][2]["terms"].keys()
    assert [task["items_read"] for task in report["tasks"]] == [task["train"] for task in report["tasks"]], "no old picture was read"


def test_pictures_of_clusters_are_not_shown_under_the_names_of_classes() -> None:
    shown = {}
    for name, inversion, cross_entropy in (("clusters", "cluster", 1.0), ("unclassified", "auto", 0.0), ("both", "both", 1.0)):
        strategy = {"name": "dual", "inversion": {"pictures": 8, "iterations": 1, "targets": inversion}}
        strategy["ranking"] = {"cross_entropy": cross_entropy}
        learn_stream(config(f"name={name}", f"strategy={json.dumps(strategy)}", "stream.kind.tasks=2"))
        shown[name] = Inversion.load(Path(f"runs/{name}/tasks/001") / pipeline.MADE_UP).named
    assert shown == {"clusters": False, "unclassified": False, "both": True}


def test_they_are_brought_there_from_wherever_the_task_was_learned() -> None:
    learn_stream(config("stream.dataset.classes=4", "stream.dataset.items=80"), learner=learn_elsewhere)
    assert Inversion.load(Path("runs/tiny/tasks/001") / pipeline.MADE_UP).labels.tolist() == [0] * 8 + [1] * 8


def test_frozen_batch_norm_is_refused_in_the_first_task_before_anything_is_learned() -> None:
    with pytest.raises(ConfigError, match=r"train\.freeze_batch_norm=true"):
        learn_stream(config("train.freeze_batch_norm=true"))
    assert open_registry("registry").releases("tiny") == []
    learn_stream(config("train.freeze_batch_norm=true", "strategy.inversion=null", "name=without"))


def test_no_top1_is_told_of_a_classifier_that_nothing_trains() -> None:
    report = learn_stream(config("strategy.s_weight=0", "strategy.max_share=null", "strategy.inversion=null"))
    told = [[value is not None for value in row] for row in report["metrics"]["top1"]["matrix"]]
    assert any(told[0]) and not any(told[1]) and not any(told[2])
    assert all(value is not None for value in report["metrics"]["top1_ncm"]["matrix"][-1])
