"""`jobs/train.py` as a user starts it, in a process of its own that a test may kill; what its log says of the steps that were taken."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["begin", "ended", "steps", "until", "went_on_from_a_checkpoint"]

ROOT = Path(__file__).resolve().parents[2]


def begin(folder: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """Learn `folder/run.yaml`, with runs and cache in that folder; on a Ray of its own unless PERDURE_RAY names one."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PERDURE_RAY")}
    own = {
        "PERDURE_RUNS": str(folder / "runs"),
        "PERDURE_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
    }
    words = [sys.executable, str(ROOT / "jobs/train.py"), "run.yaml", *overrides]
    return subprocess.Popen(
        words,
        cwd=folder,
        env={**inherited, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(driver: subprocess.Popen[str]) -> str:
    """What it said, once it ended well."""
    output = driver.communicate(timeout=400)[0]
    assert driver.returncode == 0, output
    return output


def steps(folder: Path, name: str) -> list[int]:
    """The steps of the first task of a run, in the order in which they were taken."""
    path = folder / "runs" / name / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return [line["step"] for line in lines if line["kind"] == "step" and line["task"] == 0]


def until(what: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    """Wait for something while the driver lives."""
    deadline = time.monotonic() + 240
    while not what():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def went_on_from_a_checkpoint(done: list[int], every: int) -> None:
    """All steps up to the fault; then, from a checkpoint on, all that were left, none twice."""
    restart = next(at for at in range(1, len(done)) if done[at] <= done[at - 1])
    assert done[:restart] == list(range(restart))
    assert done[restart] >= every and done[restart] % every == 0, "it began at a checkpoint, not anew"
    assert done[restart:] == list(range(done[restart], done[-1] + 1))
