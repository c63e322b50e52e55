"""The whole path on a real local Ray: learned by Ray Train, indexed, released, promoted, served by Ray Serve, searched over HTTP."""

import json
from pathlib import Path

import httpx
import pytest
import torch
from ports import free_port

from perdure.cluster.train import learn_with_ray
from perdure.config import RunConfig, parse
from perdure.encoders import load_encoder
from perdure.records import EncoderRef
from perdure.registry import open_registry
from perdure.run import learn_stream
from serve.run import start, stop
from serve.schemas import ServeArgs

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]

SMALL = {
    "stream": {
        "dataset": {"name": "scenes", "items": 120, "classes": 4, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "train": {"epochs": 2, "batch_size": 24, "per_class": 6, "precision": "fp32", "checkpoint_every": 3},
    "registry": "registry",
}


def config(name: str, workers: int, *overrides: str) -> RunConfig:
    return parse({**SMALL, "name": name, "workers": {"num": workers, "threads": 1}}, list(overrides))


def test_learned_on_ray_equals_learned_here_and_is_found_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERDURE_RUNS", str(tmp_path / "runs"))
    torch.set_num_threads(1)
    here = learn_stream(config("here", 0))
    there = learn_stream(config("there", 1), learner=learn_with_ray)
    assert there["metrics"] == here["metrics"]
    registry = open_registry("registry")
    for version in (1, 2):
        ours, theirs = (load_encoder(registry.folder(EncoderRef(name, version))).state_dict() for name in ("here", "there"))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    lines = [json.loads(line) for line in (tmp_path / "runs/there/log.jsonl").read_text().splitlines()]
    assert {"data_s", "compute_s", "images_per_s", "l2"} <= lines[-1].keys()

    registry.promote("there@v2", by="test")
    running = start(ServeArgs(registry="registry", topology="fused", poll_s=0.2), free_port())
    try:
        by_text = httpx.post(f"{running.url}/v1/search", json={"text": "a striped circle", "k": 4}, timeout=60)
        assert by_text.status_code == 200, by_text.text
        answer = by_text.json()
        assert answer["release"] == "there@v2" and len(answer["hits"]) == 4
        first = answer["hits"][0]["id"]
        picture = httpx.get(f"{running.url}/v1/items/{first}/image", timeout=60).content
        by_image = httpx.post(f"{running.url}/v1/search", files={"image": ("a.png", picture)}, data={"k": "3"}, timeout=60).json()
        assert by_image["hits"][0]["id"] == first
    finally:
        stop(running)


def test_two_ray_workers_learn_what_one_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BatchNorm frozen, as its batch statistics are each worker's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERDURE_RUNS", str(tmp_path / "runs"))
    plain = ("train.freeze_batch_norm=true", "train.optimizer=sgd", "train.lr=0.01", "train.max_steps=4")
    one = learn_stream(config("one", 0, *plain))
    two = learn_stream(config("two", 2, *plain), learner=learn_with_ray)
    registry = open_registry("registry")
    for version in (1, 2):
        ours, theirs = (load_encoder(registry.folder(EncoderRef(name, version))).state_dict() for name in ("one", "two"))
        for key, value in ours.items():
            torch.testing.assert_close(theirs[key], value, rtol=1e-4, atol=1e-5)
    assert [task["items_read"] for task in two["tasks"]] == [task["items_read"] for task in one["tasks"]]
