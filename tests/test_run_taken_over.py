"""A first task that another strategy has learned: what a strategy needs of it is measured, or it says that it cannot be."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from perdure.config import RunConfig, parse
from perdure.errors import ConfigError
from perdure.records import EncoderRef
from perdure.registry import open_registry
from perdure.run import learn_stream

SMALL = {
    "name": "plain",
    "stream": {
        "dataset": {"name": "scenes", "items": 120, "classes": 4, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "strategy": {"name": "fine_tune"},
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32"},
    "workers": 0,
    "registry": "registry",
}
pytestmark = pytest.mark.usefixtures("here")
EWC = "strategy={name: ewc, items: 8, group: 8}"


def config(*overrides: str) -> RunConfig:
    return parse(SMALL, list(overrides))


def files(run: str) -> dict[str, Path]:
    return open_registry("registry").files(EncoderRef(run, 1))


def test_importance_is_measured_on_a_first_task_that_fine_tuning_learned_and_nothing_is_learned_anew(here: Path) -> None:
    learn_stream(config())
    taken = learn_stream(config("name=taken", EWC, "train.start_from=plain"))
    alone = learn_stream(config("name=alone", EWC))
    state, own = (load_file(files(run)["strategy.safetensors"]) for run in ("taken", "alone"))
    assert state.keys() == own.keys() and any(key.startswith("ewc.importance.image.") for key in state)
    assert all((value == own[key]).all() for key, value in state.items())
    assert taken["metrics"] == alone["metrics"]
    assert taken["train"][1]["terms"]["ewc"] > 0


def test_what_is_read_to_measure_importance_stands_beside_what_was_read_to_learn(here: Path) -> None:
    learn_stream(config("train.max_steps=1"))
    taken = learn_stream(config("name=taken", EWC, "train.max_steps=1", "train.start_from=plain"))
    alone = learn_stream(config("name=alone", EWC, "train.max_steps=1"))
    reads = {name: json.loads((here / "runs" / name / "reads/000.json").read_text()) for name in ("plain", "taken", "alone")}
    assert set(reads["plain"]) < set(reads["taken"]) == set(reads["alone"])
    assert taken["tasks"][0]["items_read"] == alone["tasks"][0]["items_read"] == len(reads["taken"])


def test_the_state_of_another_strategy_is_left_behind(here: Path) -> None:
    learn_stream(config("name=ewc", EWC))
    assert "strategy.safetensors" in files("ewc")
    learn_stream(config("name=lwf", "strategy={name: lwf}", "train.start_from=ewc"))
    assert "strategy.safetensors" not in files("lwf")


def test_the_state_of_the_same_strategy_is_taken_as_it_is(here: Path) -> None:
    learn_stream(config("name=first", "strategy={name: alasso}"))
    learn_stream(config("name=second", "strategy={name: alasso, weight: 2.0}", "train.start_from=first"))
    assert files("second")["strategy.safetensors"].read_bytes() == files("first")["strategy.safetensors"].read_bytes()


def test_a_strategy_that_weighs_while_it_learns_says_so(here: Path) -> None:
    learn_stream(config())
    with pytest.raises(ConfigError, match=r"start_from=plain: alasso weighs parameters by the path of training, and saw no step"):
        learn_stream(config("name=late", "strategy={name: alasso}", "train.start_from=plain"))
