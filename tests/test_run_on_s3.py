"""A stream learned into a registry on S3: by the config's URL or the environment's, continued, promoted and searched from there."""

import json
from pathlib import Path

import pytest
import yaml
from s3_server import S3Server

from jobs.train import main as train
from perdure.cli import main as perdure
from perdure.registry import open_registry

RUN = {
    "name": "tiny",
    "stream": {
        "dataset": {"name": "scenes", "items": 120, "classes": 4, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32"},
    "workers": 0,
}


@pytest.mark.usefixtures("s3")
def test_learned_into_s3_and_searched_from_there(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"s3://tests/{here.parent.name}/{here.name}"
    monkeypatch.setenv("PERDURE_CACHE", str(here / "cache"))
    (here / "run.yaml").write_text(yaml.safe_dump({**RUN, "registry": url}))
    train(["run.yaml"])
    log = (here / "runs/tiny/log.jsonl").read_text()
    train(["run.yaml"])
    assert (here / "runs/tiny/log.jsonl").read_text() == log, "nothing was learned twice"
    assert json.loads((here / "runs/tiny/report.json").read_text())["releases"] == ["tiny@v1", "tiny@v2"]

    monkeypatch.setenv("PERDURE_REGISTRY", url)
    monkeypatch.setenv("PERDURE_CACHE", str(here / "of another machine"))
    capsys.readouterr()
    assert perdure(["promote", "tiny@v2"]) == 0
    assert perdure(["search", "--text", "a striped circle", "-k", "3"]) == 0
    out = capsys.readouterr().out
    assert "live: nothing -> tiny@v2" in out and "release tiny@v2" in out and out.count("encoder/tiny@v") == 3
    assert not (here / "registry").exists()

    monkeypatch.setenv("PERDURE_REGISTRY", f"{url}-other")
    train(["run.yaml", "name=second"])
    assert [release.id for release in open_registry(f"{url}-other").releases()] == ["second@v1", "second@v2"]
    assert open_registry(url).encoders("second") == []


def test_an_s3_that_is_away_is_one_clean_line(here: Path, s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert perdure(["ls", "--registry", "s3://no-such-bucket"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"{s3.endpoint} has no bucket 'no-such-bucket'; create it" in err
