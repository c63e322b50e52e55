"""A trial that is killed in the middle of a task gives back the CPUs that its Train run had reserved (ray#54305)."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray_processes import ray_processes
from sweep_files import BASE, write_sweep

from perdure.cluster.reclaim import free_orphans
from perdure.cluster.sweep import run_sweep
from perdure.progress import SilentProgress
from perdure.tracking import last_step
from perdure.tuning import load_sweep

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]


def kill_the_trial_that_learns_its_second_task(runs: Path, killed: list[dict[str, Any]]) -> None:
    """Wait for the first steps of a trial's second task, then SIGKILL the process of the trial."""
    until = time.monotonic() + 240
    while not killed and time.monotonic() < until:
        time.sleep(0.3)
        learning = [log for log in runs.glob("few-*/log.jsonl") if "reference" not in str(log) and last_step(log, 1) is not None]
        if learning:
            held = ray.available_resources().get("CPU", 0.0)
            (trial,) = ray_processes("ImplicitFunc", of=os.getpid())  # Ray's table of actors does not show all of a long session
            os.kill(trial, signal.SIGKILL)
            killed.append({"run": learning[0].parent.name, "left": held})


def test_the_next_trial_gets_the_cpus_of_one_that_was_killed_in_the_middle_of_a_task(here: Path) -> None:
    cpus = ray.cluster_resources()["CPU"]
    base = {**BASE, "workers": {"num": 1, "cpus": cpus - 1, "max_failures": 0}}  # room for one trial's workers, not for two
    endless_first = {"train.epochs": {"choice": [100_000, 1]}}
    sweep = load_sweep(write_sweep(here, base=base, search=endless_first, best="metric"))
    killed: list[dict[str, Any]] = []
    killer = threading.Thread(target=kill_the_trial_that_learns_its_second_task, args=(here / "runs", killed), daemon=True)
    killer.start()
    out = run_sweep(sweep, SilentProgress())
    killer.join()

    assert killed and killed[0]["left"] < 2, "the trial's Train run held its CPUs when it was killed"
    finished, lost = out["trials"]
    assert (finished["values"]["train.epochs"], finished["error"], finished["learned"]) == (1, None, 2)
    assert lost["name"] == killed[0]["run"] and lost["error"] is not None and lost["learned"] == 1
    until = time.monotonic() + 60
    while ray.available_resources().get("CPU") != cpus and time.monotonic() < until:
        time.sleep(0.5)
    assert ray.available_resources().get("CPU") == cpus
    assert free_orphans() == 0
