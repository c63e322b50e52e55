"""What Ray Train left of a run: a list of checkpoints that does not read, or names what is not whole, costs no more than it must."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from perdure.cluster.resume import last_good_state
from perdure.encoders.storage import WEIGHTS
from perdure.pipeline import OUTCOME
from perdure.training.checkpoint import STATE_TENSORS, save_state

SNAPSHOT = "checkpoint_manager_snapshot.json"


def state(folder: Path, step: int) -> Path:
    folder.mkdir(parents=True)
    module = nn.Linear(3, 2)
    save_state(folder, step=step, modules={"encoder": module}, optimizer=torch.optim.SGD(module.parameters()), strategy={}, extra={})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two states and the list that Train makes of them."""
    folder = tmp_path / "task-0-abc"
    names = ["checkpoint_b", "checkpoint_a"]  # in order of steps, not of names
    for step, name in zip((10, 20), names, strict=True):
        state(folder / name, step)
    results = [{"checkpoint_dir_name": name, "metrics": {}} for name in names]
    (folder / SNAPSHOT).write_text(json.dumps({"checkpoint_results": results, "latest_checkpoint_result": results[-1]}))
    return folder


def test_a_whole_run_and_none_at_all_are_left_to_train(run: Path, tmp_path: Path) -> None:
    assert last_good_state(run) is None
    assert last_good_state(tmp_path / "nothing-yet") is None
    assert run.exists()


def outcome(folder: Path) -> Path:
    (folder / "encoder").mkdir(parents=True)
    save_file({"weight": torch.ones(3)}, folder / "encoder" / WEIGHTS)
    (folder / OUTCOME).write_text("{}")
    return folder


@pytest.mark.parametrize("kept", [0, 1, 40, 100])
def test_a_truncated_list_falls_back_to_the_newest_state_and_says_so(run: Path, kept: int, caplog: pytest.LogCaptureFixture) -> None:
    text = (run / SNAPSHOT).read_text()
    (run / SNAPSHOT).write_text(text[:kept])
    with caplog.at_level(logging.WARNING):
        begin = last_good_state(run)
    assert begin == run.with_name("task-0-abc.damaged-1") / "checkpoint_a"
    assert begin.is_dir() and not run.exists()
    assert "begins from checkpoint_a" in caplog.text


def test_a_driver_that_dies_again_before_the_fresh_run_has_a_checkpoint_loses_nothing(run: Path) -> None:
    (run / SNAPSHOT).write_text("{")
    begin = last_good_state(run)
    assert begin is not None
    assert last_good_state(run) == begin, "it died before Train made the folder anew"
    run.mkdir()
    assert last_good_state(run) == begin, "and once more, before Train wrote its list"
    state(run / "checkpoint_c", 30)
    results = [{"checkpoint_dir_name": "checkpoint_c", "metrics": {}}]
    (run / SNAPSHOT).write_text(json.dumps({"checkpoint_results": results, "latest_checkpoint_result": results[0]}))
    assert last_good_state(run) is None, "now it has one, and goes on by itself"


def test_a_state_that_was_cut_short_is_passed_over(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = run / "checkpoint_a" / STATE_TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-5])
    begin = last_good_state(run)
    assert begin is not None and begin.name == "checkpoint_b"
    assert "names checkpoint_a, which is missing or incomplete" in caplog.text


def test_a_finished_outcome_is_behind_every_state(run: Path) -> None:
    outcome(run / "checkpoint_0")
    (run / SNAPSHOT).write_text("{")
    begin = last_good_state(run)
    assert begin is not None and begin.name == "checkpoint_0"


@pytest.mark.parametrize("missing", [f"encoder/{WEIGHTS}", OUTCOME])
def test_an_outcome_of_which_a_part_did_not_arrive_is_none(run: Path, missing: str) -> None:
    (outcome(run / "checkpoint_0") / missing).unlink()
    (run / SNAPSHOT).write_text("{")
    begin = last_good_state(run)
    assert begin is not None and begin.name == "checkpoint_a"


def test_where_no_state_is_whole_the_task_begins_anew(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("checkpoint_a", "checkpoint_b"):
        (run / name / STATE_TENSORS).unlink()
    assert last_good_state(run) is None
    assert not run.exists() and "begins anew" in caplog.text


def test_every_damaged_run_is_kept(run: Path) -> None:
    for number, newest in ((1, "checkpoint_a"), (2, "checkpoint_c")):
        (run / SNAPSHOT).write_text("")
        begin = last_good_state(run)
        assert begin is not None and begin == run.with_name(f"task-0-abc.damaged-{number}") / newest
        state(run / "checkpoint_c", 30)
