"""Faults that are hard to meet by chance: a worker that hangs, deaths while a checkpoint is on its way to storage or between two writes to
the registry. Whoever is to die is stopped first (SIGSTOP), looked at, and killed only when it is where it should be."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from driver import begin, ended, steps, until, went_on_from_a_checkpoint
from several import Nodes

from perdure.cluster.resume import is_whole
from perdure.encoders import load_encoder
from perdure.records import EncoderRef
from perdure.registry import open_registry

pytestmark = pytest.mark.cluster

RUN = {
    "stream": {
        "dataset": {"name": "scenes", "items": 120, "classes": 4, "size": 24},
        "kind": {"name": "class_incremental", "first": 4, "step": 1, "tasks": 1},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16, "text": "none"},
    "train": {"epochs": 12, "batch_size": 24, "per_class": 6, "precision": "fp32", "checkpoint_every": 10, "freeze_batch_norm": True},
    "workers": {"num": 2, "threads": 1, "collective_timeout_s": 5},
}
HEAVY = (  # states of twenty megabytes, which are on their way for a while
    *("encoder.width=32", "encoder.embedding_dim=8192", "train.batch_size=8", "train.per_class=2"),
    *("train.checkpoint_every=4", "train.max_steps=44", "workers.num=1", "workers.max_failures=3"),
)
CUTS = 2  # of a worker, in one run


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cluster = Nodes()
    for name in ("a", "b"):
        cluster.tell("add", name)
    yield cluster
    cluster.close()


def run(folder: Path, nodes: Nodes, name: str, *overrides: str) -> subprocess.Popen[str]:
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
    return begin(folder, f"name={name}", *overrides, PERDURE_RAY=nodes.address)


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Of the version, of which there is one."""
    registry = open_registry(folder / "registry")
    assert registry.encoders(name) == [EncoderRef(name, 1)]
    return load_encoder(registry.folder(EncoderRef(name, 1))).state_dict()


def test_a_worker_that_hangs_is_noticed_by_the_other_and_both_are_replaced(tmp_path: Path, nodes: Nodes) -> None:
    driver = run(tmp_path, nodes, "hung")
    until(lambda: any(step >= 24 for step in steps(tmp_path, "hung")), driver)
    before = nodes.train_workers()
    os.kill(before[1], signal.SIGSTOP)
    until(lambda: len(set(nodes.train_workers()) - set(before)) == 2, driver)
    ended(driver)
    assert not set(before) & set(nodes.train_workers()), "a stopped process is ended, too"
    went_on_from_a_checkpoint(steps(tmp_path, "hung"), every=10)
    ended(run(tmp_path, nodes, "whole"))
    for key, value in weights(tmp_path, "whole").items():
        torch.testing.assert_close(weights(tmp_path, "hung")[key], value, rtol=1e-6, atol=1e-6)


def test_a_worker_that_dies_while_a_checkpoint_is_copied_to_storage_costs_nothing_but_its_steps(tmp_path: Path, nodes: Nodes) -> None:
    driver = run(tmp_path, nodes, "cut", *HEAVY)
    draw, cut = random.Random(2026), list[Path]()
    while len(cut) < CUTS:
        worker, half = stop_in_a_copy(driver, nodes, tmp_path / "runs/cut/ray", draw, cut)
        os.kill(worker, signal.SIGKILL)
        cut.append(half)
    ended(driver)
    assert all(half.is_dir() and not is_whole(half) for half in cut)
    back = [after for before, after in pairwise(steps(tmp_path, "cut")) if after <= before]
    assert len(back) == CUTS and all(step >= 4 and step % 4 == 0 for step in back), "so often it went back to a checkpoint"
    same_as_in_one_process(tmp_path, "cut")


def test_a_driver_that_dies_while_a_checkpoint_is_copied_goes_on_from_an_earlier_one(tmp_path: Path, nodes: Nodes) -> None:
    driver = run(tmp_path, nodes, "left", *HEAVY)
    _, half = stop_in_a_copy(driver, nodes, tmp_path / "runs/left/ray", random.Random(7), [])
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert half.is_dir() and not is_whole(half)
    ended(run(tmp_path, nodes, "left", *HEAVY))
    went_on_from_a_checkpoint(steps(tmp_path, "left"), every=4)
    same_as_in_one_process(tmp_path, "left")


def stop_in_a_copy(driver: subprocess.Popen[str], nodes: Nodes, storage: Path, draw: random.Random, known: list[Path]) -> tuple[int, Path]:
    """Stop the one worker in the middle of a copy to storage, at a drawn moment: its pid, and the folder that is not whole.

    Args:
        known: what was cut before.
    """
    deadline, wait_s = time.monotonic() + 240, draw.uniform(0, 0.005)
    seen = {*known, *checkpoints(storage)}
    worker, skipped, skip = 0, 0, draw.randint(2, 3)  # checkpoints that pass: Ray Train has heard of the one before the last
    while True:
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        for folder in checkpoints(storage) - seen:
            seen.add(folder)
            skipped += 1
            if skipped <= skip:
                (worker,) = nodes.train_workers()  # now, for then there is no time
                continue
            time.sleep(wait_s)
            os.kill(worker, signal.SIGSTOP)
            if not is_whole(folder):
                return worker, folder
            os.kill(worker, signal.SIGCONT)  # it was faster
            wait_s /= 2
        time.sleep(0.0005)


def checkpoints(storage: Path) -> set[Path]:
    """Folders of states, complete or not; Ray Train's list of them begins with the same word."""
    return {path for path in storage.glob("task-*/checkpoint_*") if path.is_dir()}


def same_as_in_one_process(folder: Path, name: str) -> None:
    """Weights equal to the bit those of a run that nothing happens to."""
    ended(begin(folder, "name=whole", *HEAVY, "workers.num=0"))
    whole = weights(folder, "whole")
    assert all(torch.equal(value, whole[key]) for key, value in weights(folder, name).items())


def test_a_driver_that_dies_between_encoder_and_segment_leaves_nothing_half_done_and_publishes_nothing_twice(
    tmp_path: Path, nodes: Nodes
) -> None:
    stream = ("stream.kind.first=2", "stream.kind.step=2", "stream.kind.tasks=2", "train.epochs=1", "workers.num=1")
    registry = open_registry(tmp_path / "registry")
    for task in (1, 2):
        driver = run(tmp_path, nodes, "torn", *stream)
        until(lambda task=task: (tmp_path / f"registry/encoders/torn/v{task}/manifest.json").exists(), driver)
        os.kill(driver.pid, signal.SIGSTOP)
        assert len(registry.segments("torn")) == len(registry.releases("torn")) == task - 1, "it was stopped in between"
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    ended(run(tmp_path, nodes, "torn", *stream))
    assert registry.encoders("torn") == [EncoderRef("torn", 1), EncoderRef("torn", 2)]
    assert [release.task for release in registry.releases("torn")] == [0, 1]
    assert set(registry.segments("torn")) == {use.segment for release in registry.releases("torn") for use in release.segments}
    assert len(registry.segments("torn")) == 2
