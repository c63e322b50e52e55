"""Benchmarks are programs, not tests; that each of them runs is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
SHORT = {
    "training_speed": ["--steps", "1", "--rounds", "1", "--threads", "1"],
    "hamming_search": ["--items", "5000", "--queries", "5", "--rounds", "1"],
    "encode": ["--items", "128", "--rounds", "1", "--threads", "2"],
    "scaling": ["--steps", "2", "--rounds", "1", "--threads", "2"],
    "strategy_cost": ["--steps", "1", "--rounds", "1", "--threads", "1", "--strategies", "l2", "correlation"],
    "serving": [
        *("--vectors", "2000", "--rounds", "1", "--seconds", "0.5", "--rate", "10"),
        *("--clients", "2", "--callers", "4", "--out", os.devnull),
    ],
}


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_runs_to_its_end(path: Path) -> None:
    done = subprocess.run([sys.executable, str(path), *SHORT[path.stem]], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert " x " in done.stdout
