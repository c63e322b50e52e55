"""Configurations: every problem at once, overrides, shorthands, sweeps; and the ready-made files."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.checks import check, resolved
from perdure.config import RunConfig, load, parse
from perdure.errors import ConfigError
from perdure.tuning import load_sweep

ROOT = Path(__file__).resolve().parents[2]
RUNS = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
SWEEPS = sorted((ROOT / "tune_configs").glob("*.yaml"))


def problems_of(raw: Any, overrides: list[str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(raw, overrides)
    return "\n".join(caught.value.problems)


def test_an_empty_config_is_a_whole_run() -> None:
    config = parse({})
    assert config.stream.dataset.name == "scenes"
    assert config.workers.num == 1


def test_all_problems_of_a_config_are_reported_at_once_with_suggestions() -> None:
    said = problems_of({"train": {"batchsize": 3, "epochs": -1}, "strem": {}}, ["index.polcy=keep", "seed"])
    for part in (
        "train.batchsize: no such option. Did you mean 'batch_size'?",
        "train.epochs",
        "strem: no such option. Did you mean 'stream'?",
    ):
        assert part in said
    assert "index.polcy: no such option. Did you mean 'policy'?" in said
    assert "override 'seed': expected key.sub=value" in said


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        ([1], "a run is a mapping"),
        ({1: 2}, "1: "),
        ({"train": {"lr": float("nan")}}, "train.lr"),
        ({"train": {"lr": 0}}, "train.lr"),
        ({"train": None}, "train: "),
        ({"workers": True}, "workers: "),
        ({"workers": -1}, "workers.num"),
        ({"workers": "two"}, "workers: "),
        ({"strategy": {"weight": 3}}, "strategy.name: this option is required"),
        ({"strategy": None}, "strategy: "),
        ({"train": {"batch_size": 10, "per_class": 4}}, "batch_size=10 must be per_class=4 times 2 classes or more"),
        ({"train": {"batch_size": 4, "per_class": 4}}, "batch_size=4 must be"),
        ({"index": {"kind": "tree"}}, "index.kind"),
        ({"name": "../escape"}, "name: "),
    ],
)
def test_bad_values_are_named_by_their_key(raw: Any, part: str) -> None:
    assert part in problems_of(raw)


def test_shorthands_equal_what_they_are_short_for() -> None:
    short = parse({"strategy": "l2", "encoder": "small_resnet", "workers": 2, "stream": {"dataset": "scenes", "kind": "by_group"}})
    long = parse(
        {
            "strategy": {"name": "l2"},
            "encoder": {"name": "small_resnet"},
            "workers": {"num": 2},
            "stream": {"dataset": {"name": "scenes"}, "kind": {"name": "by_group"}},
        }
    )
    assert short == long


def test_overrides_reach_into_shorthands_also_into_those_of_other_overrides() -> None:
    assert parse({"strategy": "l2"}, ["strategy.weight=3"]).strategy.options == {"weight": 3}
    assert parse({}, ["strategy=l2", "strategy.weight=3"]).strategy.options == {"weight": 3}
    assert parse({}, ["workers=3", "workers.cpus=2"]).workers.num == 3
    assert parse({"workers": {"cpus": 2}}, ["workers=0"]).workers.num == 0


def test_override_values_are_yaml_and_the_last_one_wins() -> None:
    config = parse(
        {}, ["train.lr=1e-4", "train.clip_norm=null", "train.flip=false", "strategy.name=x", "strategy.list=[1, 2]", "seed=1", "seed=2"]
    )
    assert (config.train.lr, config.train.clip_norm, config.train.flip, config.seed) == (1e-4, None, False, 2)
    assert config.strategy.options == {"list": [1, 2]}


def test_the_callers_data_is_left_as_it_was() -> None:
    raw = {"strategy": "l2", "train": {"epochs": 1}}
    parse(raw, ["train.epochs=2", "strategy.weight=1"])
    assert raw == {"strategy": "l2", "train": {"epochs": 1}}


def test_a_config_is_frozen_and_its_plain_data_makes_the_same_config() -> None:
    config = parse({"strategy": "l2", "workers": 0})
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    assert parse(config.plain()) == config


DOTTED = ["name", "seed", "stream", "stream.kind", "stream.kind.first", "strategy", "strategy.name", "strategy.a.b", "train"]
MORE = ["train.lr", "train.batch_size", "index.kind", "workers", "workers.num", "registry", "a.b", "..", ""]
TEXTS = ["1", "-1", "null", "true", "[1, 2]", "{a: 1}", ".nan", "1e999", "2001-13-45", "!!timestamp x", "!!int x", "!!python/none"]
TRAPS = ["&a [*a]", "&a {b: *a}", "'", "{", "? x", "!!binary aGk=", "!!set {a}", "[" * 300]
KEYS = st.sampled_from(DOTTED + MORE)
VALUES = st.text(max_size=12) | st.sampled_from(TEXTS + TRAPS)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.builds("{}={}".format, KEYS, VALUES) | st.text(max_size=20), max_size=4))
def test_overrides_give_a_config_or_a_config_error_and_nothing_else(overrides: list[str]) -> None:
    try:
        assert isinstance(parse({}, overrides), RunConfig)
    except ConfigError as error:
        assert error.problems


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"a: [", "not a YAML file"),
        (b"\xff\xfe\x00", "not a YAML file"),
        (b"seed: 2001-13-45", "not a YAML file"),
        (b"- 1", "a run is a mapping"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.yaml") as caught:
        load(path)
    assert part in str(caught.value)


def test_a_missing_file_says_where_ready_made_ones_are() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: 1 problem\n.*jobs/configs/"):
        load("nowhere.yaml")


def test_every_ready_made_run_loads() -> None:
    assert len(RUNS) >= 19, "jobs/configs/ has fewer configs than expected"
    names = [load(path).name for path in RUNS]
    assert len(set(names)) == len(names), f"two configs share a run name: {names}"


def test_every_ready_made_run_names_parts_and_options_that_exist() -> None:
    for path in RUNS:
        config = load(path)
        assert not check(config), path.name
        assert resolved(config).name == config.name


def test_the_lifelong_runs_learn_half_or_the_thesis_numbers_of_classes() -> None:
    small = load(ROOT / "jobs" / "configs" / "lifelong_cifar100_emoji.yaml").stream
    animals, things, emoji = small.dataset.options["parts"]
    assert (len(set(animals["labels"])), len(set(things["labels"])), len(set(emoji["labels"]))) == (45, 30, 7)
    assert animals["dataset"] == things["dataset"] and not set(animals["labels"]) & set(things["labels"])
    assert small.kind.options["unseen"] == {"animals": 0.5, "things": 0.5, "emoji": 7 // 2}
    thesis = load(ROOT / "jobs" / "configs" / "lifelong_birds_dogs_cars.yaml").stream
    assert thesis.kind.options["unseen"] == {"birds": 200 - 150, "dogs": 120 - 100, "cars": 196 - 160}


def test_every_ready_made_run_opens_with_its_command() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for path in RUNS:
        first = path.read_text().splitlines()[0]
        by_job = first.startswith(f"# python jobs/train.py jobs/configs/{path.name}")
        by_make = first in {f"# make {target}" for target in targets}
        assert by_job or by_make, f"{path.name}: the first line is not the command that runs it"


# Sweeps


def test_every_ready_made_sweep_names_parts_and_options_that_exist() -> None:
    names = {path.stem for path in SWEEPS}
    assert names >= {"alignment_temperature", "correlation", "dual", "lwf", "mmd"}
    for path in SWEEPS:
        sweep = load_sweep(path)
        assert sweep.num_trials >= 2
        assert path.read_text().splitlines()[0] == f"# python jobs/sweep.py tune_configs/{path.name}"
        for key, space in sweep.search.items():
            for value in space.examples():
                assert check(sweep.trial({key: value}, "trial")) == [], f"{path.name}: {key}={value!r}"
                assert check(sweep.chosen({key: value}, "best")) == [], f"{path.name}: {key}={value!r}"


def test_no_ready_made_sweep_looks_at_what_it_is_judged_on() -> None:
    assert {load_sweep(path).protocol.name for path in SWEEPS} == {"first_tasks", "current_task_validation", "two_phase"}
