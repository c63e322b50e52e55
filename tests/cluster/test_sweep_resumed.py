"""A sweep whose driver is killed goes on when the same command is given again: no trial that was over is learned again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sweep_files import write_sweep

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.cluster


def records(here: Path) -> dict[str, Any]:
    """Of the trials, by name; one that is being written counts as it was."""
    return {path.stem: json.loads(path.read_text()) for path in (here / "runs/few/trials").glob("*.json")}


def wait_for_the_second_trial_to_learn(here: Path, driver: subprocess.Popen[str]) -> str:
    """The name of the trial that is being learned while another one is over."""
    until = time.monotonic() + 240
    while time.monotonic() < until and driver.poll() is None:
        time.sleep(0.1)
        known = records(here)
        over = [name for name, record in known.items() if record["of"] == len(record["reports"])]
        others = [name for name in known if name not in over and (here / f"runs/{name}/log.jsonl").exists()]
        if over and others:
            return others[0]
    raise AssertionError(f"no second trial began; the driver said: {driver.communicate()}")


def test_a_sweep_goes_on_after_its_driver_was_killed(here: Path) -> None:
    search = {"strategy.weight": {"uniform": [0.0, 100.0]}}
    path = write_sweep(here, search=search, order="random", trials=3)
    command = [sys.executable, str(ROOT / "jobs/sweep.py"), str(path)]
    driver = subprocess.Popen(command, cwd=here, env={**os.environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    interrupted = wait_for_the_second_trial_to_learn(here, driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    log = here / f"runs/{interrupted}/log.jsonl"
    before = -1
    while before != log.stat().st_size:  # its Ray is a child of the driver, and ends with it
        before = log.stat().st_size
        time.sleep(2)
    # The trial outlives its driver for a moment, until Ray takes it down: on a slow machine for as long as it needs to end.
    over = {name: record for name, record in records(here).items() if record["of"] == len(record["reports"])}
    assert 1 <= len(over) <= 2 and not (here / "runs/few/sweep.json").exists()
    learned = {name: (here / f"runs/{name}/log.jsonl").read_text() for name in [*over, "few-reference"]}

    again = subprocess.run(command, cwd=here, env={**os.environ}, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert f"3 trials over strategy.weight, 1 at a time, {len(over)} of them over before" in again.stdout
    out = json.loads((here / "runs/few/sweep.json").read_text())
    assert len(out["trials"]) == 3 and all(trial["learned"] == 2 and trial["error"] is None for trial in out["trials"])
    assert {interrupted, *over} < {trial["name"] for trial in out["trials"]}
    assert {name: (here / f"runs/{name}/log.jsonl").read_text() for name in learned} == learned, "neither was learned again"
    assert {name: records(here)[name] for name in over} == over
    assert sorted(record["number"] for record in records(here).values()) == [0, 1, 2]
