"""A run that validates: which rows it reads, and that its numbers are of held-out train items."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from perdure.checks import resolved
from perdure.config import parse
from perdure.identity import fingerprint, first_task_fingerprint
from perdure.pipeline import learn_here, prepare
from perdure.run import StreamRun, learn_stream

BASE = {
    "stream": {
        "dataset": {"name": "scenes", "items": 240, "classes": 6, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 8, "text": "none"},
    "train": {"epochs": 1, "batch_size": 16, "per_class": 4, "precision": "fp32"},
    "strategy": "lwf",
    "workers": 0,
}
VALIDATION = ["stream.validation={share: 0.2, tasks: 2}"]


def test_neither_training_nor_measuring_reads_a_test_item_or_one_of_a_later_task(here: Path) -> None:
    whole = prepare(parse(BASE)).stream.tasks
    allowed = np.concatenate([task.train for task in whole[:2]])
    run = StreamRun.open(parse(BASE, [*VALIDATION, "name=validating"]))
    for task in run.prepared.stream.tasks:
        run.learn(task, learn_here)
    report = run.report()
    ids = {item.id: row for row, item in enumerate(run.prepared.dataset.items)}
    trained = {ids[key] for path in Path("runs/validating/reads").glob("*.json") for key in json.loads(path.read_text())}
    measured = set(np.flatnonzero(run.prepared.pixels.read).tolist())
    assert trained and measured and not {*trained, *measured} - set(allowed.tolist())
    held_out = {int(row) for task in run.prepared.stream.tasks for row in task.query}
    assert measured >= held_out and not held_out & trained, "what measures was not learned"
    assert [task["classes"] for task in report["tasks"]] == [list(task.classes) for task in whole[:2]]


def test_the_report_tells_what_parent_and_child_agree_on(here: Path) -> None:
    parts: list[dict[str, Any]] = []
    config = parse(BASE, ["name=agreeing", "strategy=feature_extraction"])
    report = learn_stream(config, on_task=parts.append)
    assert report["agreement"] == [None, 1.0, 1.0], "an encoder that stays as it is agrees with itself"
    assert "agreement" in report["definitions"]
    assert [len(part["agreement"]) for part in parts] == [1, 2, 3]
    last = parts[-1]
    assert all(last["metrics"][name]["matrix"] == report["metrics"][name]["matrix"] for name in last["metrics"])
    assert (last["num_tasks"], last["main"]) == (3, report["summary"]["metric"])


def test_a_run_without_validation_is_the_run_that_it_was_before_there_was_such_a_thing() -> None:
    config = resolved(parse(BASE))
    before = config.plain()
    del before["stream"]["validation"]
    assert fingerprint(parse(before)) == fingerprint(config)
    shorter, longer = (resolved(parse(BASE, [f"stream.validation={{share: 0.2, tasks: {count}}}"])) for count in (1, 2))
    assert len({fingerprint(each) for each in (config, shorter, longer)}) == 3
    assert first_task_fingerprint(shorter) == first_task_fingerprint(longer) != first_task_fingerprint(config)
