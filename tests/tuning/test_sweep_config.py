"""The configuration of a sweep: base, overrides, protocol, search; wrong ones say what is wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from perdure.errors import ConfigError
from perdure.tuning import FirstTasks, SweepConfig, TwoPhase, load_sweep

TWO_PHASE = {"name": "two_phase", "set": ["stream.dataset.seed=7"]}


def sweep_file(folder: Path, **changes: Any) -> Path:
    (folder / "base.yaml").write_text("strategy: l2\ntrain: {epochs: 2}\n")
    path = folder / "sweep.yaml"
    search = {"train.lr": {"loguniform": [1e-4, 1e-2]}}
    path.write_text(yaml.safe_dump({"base": "base.yaml", "protocol": TWO_PHASE, "search": search, **changes}))
    return path


def test_a_sweeps_base_is_a_path_beside_it_or_inline(tmp_path: Path) -> None:
    beside = load_sweep(sweep_file(tmp_path))
    inline = load_sweep(sweep_file(tmp_path, base={"strategy": "l2", "train": {"epochs": 2}}))
    assert beside == inline


def test_a_trial_is_the_base_then_the_files_overrides_then_the_protocols_then_the_commands_then_the_values(tmp_path: Path) -> None:
    protocol = {"name": "two_phase", "set": ["train.epochs=3", "seed=4", "stream.dataset.seed=7"]}
    path = sweep_file(tmp_path, overrides=["strategy.weight=1", "train.epochs=9"], protocol=protocol)
    sweep = load_sweep(path, ["seed=5", "train.lr=1.0"])
    trial = sweep.trial({"train.lr": 0.01, "strategy.weight": 7}, "sweep-3")
    assert (trial.name, trial.seed, trial.train.epochs, trial.train.lr) == ("sweep-3", 5, 3, 0.01)
    assert trial.strategy.name == "l2" and trial.strategy.options == {"weight": 7}
    assert sweep.trial({}, "again").strategy.options == {"weight": 1}, "a trial must not change the next one's base"


def test_the_chosen_run_has_the_overrides_and_nothing_of_the_protocols(tmp_path: Path) -> None:
    for protocol in (TWO_PHASE, {"name": "first_tasks"}, {"name": "current_task_validation", "tasks": 3}):
        sweep = load_sweep(sweep_file(tmp_path, protocol=protocol, metric="gain", overrides=["strategy=mmd"]), ["seed=5"])
        chosen = sweep.chosen({"train.lr": 0.01}, "sweep-best")
        assert (chosen.strategy.name, chosen.seed, chosen.train.lr) == ("mmd", 5, 0.01)
        assert chosen.stream.validation is None and "seed" not in chosen.stream.dataset.options


def test_a_validating_protocol_holds_train_items_out_of_the_tasks_that_it_takes(tmp_path: Path) -> None:
    first = load_sweep(sweep_file(tmp_path, protocol={"name": "first_tasks", "tasks": 3, "held_out": 0.25}))
    validation = first.trial({}, "trial").stream.validation
    assert isinstance(first.protocol, FirstTasks) and validation is not None
    assert (validation.share, validation.tasks) == (0.25, 3)
    each = load_sweep(sweep_file(tmp_path, protocol={"name": "current_task_validation"}, metric="gain"))
    validation = each.trial({}, "trial").stream.validation
    assert validation is not None and (validation.share, validation.tasks) == (0.2, None)


def test_an_override_of_the_command_reaches_the_tuning_stream_too(tmp_path: Path) -> None:
    protocol = {"name": "two_phase", "set": ["train.epochs=20", "stream.dataset.seed=7"]}
    sweep = load_sweep(sweep_file(tmp_path, protocol=protocol), ["train.epochs=1"])
    assert isinstance(sweep.protocol, TwoPhase)
    assert sweep.trial({}, "trial").train.epochs == sweep.chosen({}, "best").train.epochs == 1


def test_a_sweeps_plain_data_makes_the_same_sweep_so_that_trials_can_be_sent_elsewhere(tmp_path: Path) -> None:
    for protocol in (TWO_PHASE, {"name": "first_tasks"}, {"name": "oracle"}):
        sweep = load_sweep(sweep_file(tmp_path, protocol=protocol), ["seed=5"])
        assert SweepConfig.model_validate(sweep.model_dump(mode="json")) == sweep


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"serch": 1}, "serch: no such option. Did you mean 'search'?"),
        ({"search": {}}, "search"),
        ({"search": {"train.lr": {"loguniform": [0.0, 1.0]}}}, "is no range"),
        ({"search": {"train.lr": {"uniform": [2.0, 1.0]}}}, "the lower end comes first"),
        ({"search": {"train.lr": {"uniform": [1.0, 2.0], "choice": [1]}}}, "exactly one of"),
        ({"search": {"train.lr": {"choice": []}}}, "search.train.lr.choice"),
        ({"search": {"train.lr": {"normal": [0, 1]}}}, "search.train.lr.normal: no such option"),
        ({"search": {"train.lrr": {"choice": [1]}}}, "search.train.lrr = 1: train.lrr: no such option. Did you mean 'lr'?"),
        ({"search": {"train.lr": {"choice": [0.1, -1]}}}, "search.train.lr = -1: train.lr"),
        ({"search": {"train.lr.x": {"choice": [1]}}, "overrides": ["train.lr=1"]}, "'lr' is 1.0, which has no 'x'"),
        ({"overrides": ["train.epoch=1"]}, "train.epoch: no such option. Did you mean 'epochs'?"),
        ({"base": "nowhere.yaml"}, "no such file"),
        ({"mode": "best"}, "mode"),
        ({"trials": 0}, "trials"),
        ({"order": "grid"}, "order=grid needs choices, and train.lr has a range"),
        ({"order": "optuna", "search": {"train.clip_norm": {"choice": [[1], 2]}}}, "order=optuna takes numbers, words and true or false"),
        ({"order": "optuna", "concurrent": 2, "search": {"train.lr": {"choice": [1, 2]}}}, "set concurrent: 1"),
        ({"protocol": None}, "protocol"),
        ({"protocol": {"name": "first_task"}}, "protocol"),
        ({"protocol": {"name": "first_tasks", "tasks": 1}}, "protocol.first_tasks.tasks"),
        ({"protocol": {"name": "first_tasks", "held_out": 1.0}}, "protocol.first_tasks.held_out"),
        ({"protocol": {"name": "two_phase", "set": []}}, "protocol.two_phase.set"),
        (
            {"protocol": {"name": "two_phase", "set": ["seed=1", "stream.on_bad_item=skip"]}},
            "the tuning stream is the very stream that is judged",
        ),
        ({"protocol": {"name": "oracle", "set": ["seed=1"]}}, "protocol.oracle.set: no such option"),
        ({"protocol": {"name": "current_task_validation"}}, "metric=last_average: protocol current_task_validation may not look at"),
        ({"stop_early": {"after": 1}}, "stop_early.after"),
    ],
)
def test_a_wrong_sweep_says_what_is_wrong(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(sweep_file(tmp_path, **changes))
    assert part in str(caught.value)


def test_a_grid_has_a_trial_for_each_combination_and_a_draw_from_choices_no_more_than_there_are(tmp_path: Path) -> None:
    search = {"train.lr": {"choice": [0.1, 0.2, 0.3]}, "strategy.weight": {"choice": [1, 2]}}
    assert load_sweep(sweep_file(tmp_path, search=search, order="grid")).num_trials == 6
    assert load_sweep(sweep_file(tmp_path, search=search, trials=4)).num_trials == 4
    assert load_sweep(sweep_file(tmp_path, search=search, trials=40)).num_trials == 6
