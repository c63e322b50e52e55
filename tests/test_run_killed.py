"""Killed with -9 anywhere, again and again, and started again with the same command: the run ends as if nothing had happened.

Every life of the run is a real process, which ends itself by SIGKILL at a drawn point: after a training step, in the middle of writing a
checkpoint, before or after any single write to the registry.
"""

import json
import multiprocessing
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from perdure.encoders import load_encoder
from perdure.records import EncoderRef
from perdure.registry import open_registry

RUN = {
    "name": "mortal",
    "stream": {
        "dataset": {"name": "scenes", "items": 96, "classes": 6, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "strategy": "ewc",  # which carries a state of its own from task to task
    "train": {"epochs": 5, "batch_size": 12, "per_class": 6, "precision": "fp32", "checkpoint_every": 2},
    "workers": {"num": 0, "threads": 1},
    "registry": "registry",
}
LIVES = multiprocessing.get_context("forkserver")
KILLS = 20


def live(folder: str, die: tuple[str, int] | None, told: str) -> None:
    """One life: learn the stream in `folder`, and die at event number n of a kind; the events that there were go to the file `told`."""
    os.chdir(folder)
    os.environ["PERDURE_RUNS"] = "runs"
    os.environ["PERDURE_CACHE"] = str(Path(folder).parent / "cache")

    from perdure import run
    from perdure.config import parse
    from perdure.registry.store import LocalStore
    from perdure.training import checkpoint, loop

    counts: Counter[str] = Counter()

    def around(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Each call is two events: before anything is done, and after all is done."""

        def event() -> None:
            counts[kind] += 1
            Path(told).write_text(json.dumps(counts))
            if die == (kind, counts[kind]):
                os.kill(os.getpid(), signal.SIGKILL)

        def wrapped(*asked: Any, **named: Any) -> Any:
            event()
            answer = function(*asked, **named)
            event()
            return answer

        return wrapped

    LocalStore.create = around("write to the registry", LocalStore.create)
    checkpoint.save_file = around("write of a checkpoint", checkpoint.save_file)
    loop.Meter.add = around("step", loop.Meter.add)
    run.learn_stream(parse(RUN))


def lives(folder: Path, die: tuple[str, int] | None) -> tuple[int | None, dict[str, int]]:
    """How a life ended: the exit code, and how many events of each kind there were."""
    folder.mkdir(exist_ok=True)
    told = folder.parent / f"{folder.name}.events"
    told.write_text("{}")
    process = LIVES.Process(target=live, args=(str(folder), die, str(told)))
    process.start()
    process.join(300)
    return process.exitcode, json.loads(told.read_text())


@pytest.fixture(scope="module", autouse=True)
def _ready_to_fork() -> None:
    """Importing torch takes longer than learning this stream."""
    LIVES.set_forkserver_preload(["perdure.run"])


def test_killed_at_twenty_random_points_equals_never_killed(tmp_path: Path) -> None:
    code, events = lives(tmp_path / "whole", None)
    assert code == 0 and len(events) == 3
    rng, died = random.Random(2026), Counter[str]()
    for number in range(KILLS):
        folder = tmp_path / f"killed-{number}"
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            kind = rng.choice(sorted(events))
            at = (kind, rng.randint(1, events[kind] // 2))
            code, _ = lives(folder, at)
            assert code in (0, -signal.SIGKILL), f"it was to die at {at}, and ended by itself with {code}"
            died[kind] += code != 0
        same(tmp_path / "whole", folder)
        if died.total() >= KILLS:
            break
    assert died.total() >= KILLS and set(died) == set(events)


def same(whole: Path, killed: Path) -> None:
    """Weights to the bit, figures, and no version too many."""
    ours, theirs = open_registry(killed / "registry"), open_registry(whole / "registry")
    assert ours.encoders("mortal") == theirs.encoders("mortal") == [EncoderRef("mortal", version) for version in (1, 2, 3)]
    for ref in theirs.encoders("mortal"):
        mine, other = (load_encoder(registry.folder(ref)).state_dict() for registry in (ours, theirs))
        assert all(torch.equal(mine[key], value) for key, value in other.items()), ref
    assert [release.id for release in ours.releases("mortal")] == [release.id for release in theirs.releases("mortal")]
    named = {use.segment for release in ours.releases("mortal") for use in release.segments}
    assert set(ours.segments("mortal")) == named, "no segment that no release names"
    reports = [json.loads((folder / "runs/mortal/report.json").read_text()) for folder in (whole, killed)]
    assert reports[0]["metrics"] == reports[1]["metrics"] and reports[0]["summary"] == reports[1]["summary"]
    assert [task["items_read"] for task in reports[0]["tasks"]] == [task["items_read"] for task in reports[1]["tasks"]]
