"""What the processes that Ray starts are told of the driver's place."""

import os
from pathlib import Path

import pytest

from perdure.cluster.place import Place, storage_of
from perdure.errors import ConfigError


def test_checkpoints_lie_in_the_runs_folder_or_where_the_environment_says(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage_of(Path("runs/demo")) == str(here / "runs/demo/ray")
    monkeypatch.setenv("PERDURE_STORAGE", "s3://bucket/prefix/")
    assert storage_of(Path("runs/demo")) == "s3://bucket/prefix/demo"
    monkeypatch.setenv("PERDURE_STORAGE", "stored")
    assert storage_of(Path("runs/demo")) == str(here / "stored/demo")
    monkeypatch.setenv("PERDURE_STORAGE", "s3://AKIAX:hunter2@bucket")
    with pytest.raises(ConfigError, match="credentials belong into the environment") as caught:
        storage_of(Path("runs/demo"))
    assert "hunter2" not in str(caught.value)


def test_a_place_is_the_same_from_another_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_REGISTRY", "s3://bucket/registry")
    monkeypatch.setenv("PERDURE_STORAGE", "stored")
    place = Place.here()
    monkeypatch.chdir(here.parent)
    for name in ("PERDURE_REGISTRY", "PERDURE_STORAGE", "PERDURE_RUNS", "PERDURE_CACHE"):
        monkeypatch.setenv(name, "another")
    place.enter()
    assert Path.cwd() == here and os.environ["PERDURE_RUNS"] == str(here / "runs")
    assert os.environ["PERDURE_REGISTRY"] == "s3://bucket/registry" and os.environ["PERDURE_STORAGE"] == str(here / "stored")
