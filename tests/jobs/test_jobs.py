"""The jobs as an operator runs them: real processes, real files, exit codes that tell."""

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def job(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PERDURE_RUNS": str(cwd / "runs"), "PERDURE_CACHE": str(cwd / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "jobs" / name), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def png(digit: int, draw: np.random.Generator) -> bytes:
    """A one-channel 12 x 12 picture: a bar at a height that tells the digit."""
    pixels = draw.integers(0, 60, size=(12, 12)).astype(np.uint8)
    pixels[digit * 3 : digit * 3 + 3] = 200
    out = io.BytesIO()
    Image.fromarray(pixels, "L").save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file with column names of its own, one-channel PNGs, integer labels that recur in every group; and a run over it."""
    folder = tmp_path_factory.mktemp("own")
    draw = np.random.default_rng(0)
    digits = [int(digit) for digit in draw.integers(0, 4, size=160)]
    columns = {
        "picture": [png(digit, draw) for digit in digits],
        "digit": digits,
        "writer": [f"writer {'AB'[at % 2]}" for at in range(160)],
        "key": [f"p{at}" for at in range(160)],
    }
    pq.write_table(pa.table(columns), folder / "digits.parquet")
    config = {
        "name": "digits",
        "stream": {
            "dataset": {
                "name": "parquet",
                "train": "digits.parquet",
                "image": "picture",
                "label": "digit",
                "group": "writer",
                "id": "key",
            },
            "kind": {"name": "by_group"},
        },
        "encoder": {"name": "small_resnet", "image_size": 12, "width": 4, "embedding_dim": 8},
        "strategy": {"name": "l2"},
        "train": {"epochs": 2, "batch_size": 16, "per_class": 4, "precision": "fp32"},
        "workers": 0,
    }
    (folder / "digits.yaml").write_text(yaml.safe_dump(config))
    ran = job("train.py", "digits.yaml", cwd=folder)
    assert ran.returncode == 0, ran.stderr
    return folder


def test_ones_own_parquet_with_groups_as_tasks_works_by_configuration_alone(own_data: Path) -> None:
    report = json.loads((own_data / "runs/digits/report.json").read_text())
    assert [task["name"] for task in report["tasks"]] == ["writer A", "writer B"]
    assert all(sorted(task["classes"]) == ["0", "1", "2", "3"] for task in report["tasks"])
    assert all(task["query"] > 0 for task in report["tasks"])
    matrix = report["metrics"]["recall@1"]["matrix"]
    assert all(0.0 <= value <= 1.0 for row in matrix for value in row)
    assert (own_data / "runs/digits/report.html").read_text().startswith("<!doctype html")


def test_a_second_run_of_the_same_command_trains_nothing_and_says_the_same(own_data: Path) -> None:
    before = (own_data / "runs/digits/log.jsonl").read_text()
    again = job("train.py", "digits.yaml", cwd=own_data)
    assert again.returncode == 0, again.stderr
    assert (own_data / "runs/digits/log.jsonl").read_text() == before


def test_runs_are_compared_in_one_table(own_data: Path) -> None:
    for name in ("fine_tune", "joint"):
        ran = job("train.py", "digits.yaml", f"name={name}", f"strategy={name}", cwd=own_data)
        assert ran.returncode == 0, ran.stderr
    compared = job("evaluate.py", "digits", "fine_tune", "joint", cwd=own_data)
    assert compared.returncode == 0, compared.stderr
    for word in ("digits", "fine_tune", "joint", "gap closed"):
        assert word in compared.stdout.lower()
    assert json.loads((own_data / "runs/comparison.json").read_text())


def test_a_learned_run_is_laid_under_another_policy_without_training(own_data: Path) -> None:
    before = (own_data / "runs/digits/log.jsonl").read_text()
    laid = job("index.py", "digits.yaml", "index.policy=versioned", cwd=own_data)
    assert laid.returncode == 0, laid.stderr
    assert "versioned" in laid.stdout and "reindex" in laid.stdout
    assert (own_data / "runs/digits/log.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits.yaml", "train.epoch=3"], ["train.epoch", "did you mean 'epochs'"]),
        (
            ["digits.yaml", "strategy=fine_tuen", "encoder.embeding_dim=3"],
            ["2 problems", "did you mean 'fine_tune'", "did you mean 'embedding_dim'"],
        ),
        (["nothing.yaml"], ["nothing.yaml", "no such file"]),
        (["digits.yaml", "name=x", "stream.dataset.train=nothing.parquet"], ["nothing.parquet"]),
        (["digits.yaml", "name=y", "stream.dataset.label=digits"], ["digits", "did you mean 'digit'"]),
        (["digits.yaml", "seed=9"], ["exists with another configuration", "seed: was 0, now 9"]),
    ],
)
def test_what_a_user_can_mend_is_told_in_a_sentence_and_exit_status_2(own_data: Path, arguments: list[str], words: list[str]) -> None:
    ran = job("train.py", *arguments, cwd=own_data)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    for word in words:
        assert word.lower() in ran.stderr.lower(), ran.stderr


def test_a_truncated_picture_stops_the_run_or_is_counted(own_data: Path) -> None:
    table = pq.read_table(own_data / "digits.parquet").to_pydict()
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(out, "JPEG")
    table["picture"][7] = out.getvalue()[:-400]
    pq.write_table(pa.table(table), own_data / "damaged.parquet")
    damaged = ["digits.yaml", "name=damaged", "stream.dataset.train=damaged.parquet"]
    stopped = job("train.py", *damaged, cwd=own_data)
    assert stopped.returncode == 2
    assert "damaged.parquet" in stopped.stderr and "row 7" in stopped.stderr and "truncated" in stopped.stderr
    counted = job("train.py", *damaged, "stream.on_bad_item=skip", cwd=own_data)
    assert counted.returncode == 0, counted.stderr
    assert [bad["id"] for bad in json.loads((own_data / "runs/damaged/report.json").read_text())["bad_items"]] == ["p7"]
    assert "1 item" in counted.stdout, "a skipped item is told"


MENDABLE = {
    "train.py": ["nothing.yaml"],
    "sweep.py": ["nothing.yaml"],
    "index.py": ["nothing.yaml"],
    "backfill.py": ["nobody@v1"],
    "evaluate.py": ["nobody"],
    "write.py": ["upsert", "nothing.jsonl"],
    "demo.py": ["train.epoch=3"],
}


@pytest.mark.parametrize("name", MENDABLE)
def test_every_job_ends_with_the_same_code_for_what_a_user_can_mend(name: str, tmp_path: Path) -> None:
    ran = job(name, *MENDABLE[name], cwd=tmp_path)
    assert ran.returncode == 2 and ran.stderr.startswith("error: "), ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_jobs_are_the_ones_whose_codes_are_tested() -> None:
    assert {path.name for path in (ROOT / "jobs").glob("*.py")} == MENDABLE.keys()


def test_without_a_cluster_at_the_address_it_says_so_and_ends_with_3(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PERDURE_RAY", f"127.0.0.1:{nobody.getsockname()[1]}")
        ran = job("train.py", "digits.yaml", "name=nowhere", "workers.num=1", cwd=own_data)
    assert ran.returncode == 3, ran.stderr
    assert "no Ray cluster answers at 127.0.0.1:" in ran.stderr and "PERDURE_RAY" in ran.stderr


def test_evaluate_says_which_run_it_did_not_find(own_data: Path) -> None:
    ran = job("evaluate.py", "nobody", cwd=own_data)
    assert ran.returncode == 2
    assert "nobody" in ran.stderr and "jobs/train.py" in ran.stderr
