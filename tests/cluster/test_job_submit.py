"""Jobs as `ray job submit` runs them, through the dashboard of a cluster of this machine, in the runtime environment that we ship."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ports import free_port
from ray.job_submission import JobStatus, JobSubmissionClient

from perdure.console import EXIT_CODES
from perdure.records import EncoderRef
from perdure.registry import open_registry

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]

TINY = (
    "jobs/configs/scenes.yaml name=submitted stream.dataset.items=240 stream.dataset.classes=12 stream.kind.first=6 stream.kind.step=6 "
    "encoder.width=4 encoder.embedding_dim=16 train.max_steps=20 workers.threads=1"
)


class Jobs:
    """What is submitted to a cluster, with registry and runs in a folder of this test."""

    def __init__(self, dashboard: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(ROOT)  # the paths of a runtime environment are those of where the command is given
        self.client = JobSubmissionClient(dashboard)
        self.environment: dict[str, Any] = yaml.safe_load((ROOT / "jobs/runtime_env.yaml").read_text())
        places = {"PERDURE_REGISTRY": folder / "registry", "PERDURE_RUNS": folder / "runs", "PERDURE_CACHE": folder / "cache"}
        assert set(places) == set(self.environment["env_vars"]), "the example names what a job needs, and this test sets no more"
        self.environment["env_vars"] = {name: str(path) for name, path in places.items()}

    def submit(self, command: str, *without: str) -> str:
        """Start a job; some variables may be left out of its environment."""
        variables = {name: value for name, value in self.environment["env_vars"].items() if name not in without}
        return self.client.submit_job(entrypoint=command, runtime_env={**self.environment, "env_vars": variables})

    def ended(self, job: str, status: JobStatus, code: int) -> str:
        """The log of a job that has ended, as it should."""
        deadline = time.monotonic() + 300
        while not self.client.get_job_status(job).is_terminal():
            assert time.monotonic() < deadline, self.client.get_job_logs(job)
            time.sleep(0.3)
        log, told = self.client.get_job_logs(job), self.client.get_job_info(job)
        assert (told.status, told.driver_exit_code) == (status, code), log
        return log


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """The dashboard of a cluster of one node with one CPU, as `ray start` makes it, in folders and on ports of its own."""
    folder = tempfile.mkdtemp(prefix="ray-")  # a short path, for Ray's sockets
    ports = [f"--{name}-port={free_port()}" for name in ("dashboard-agent-listen", "metrics-export", "ray-client-server")]
    url = f"127.0.0.1:{free_port()}"
    of_dashboard = ["--dashboard-host=127.0.0.1", f"--dashboard-port={url.partition(':')[2]}"]
    size = ["--num-cpus=1", f"--object-store-memory={100 * 2**20}"]
    words = ["start", "--head", "--block", "--port=0", f"--temp-dir={folder}", "--disable-usage-stats", *of_dashboard, *ports, *size]
    commands = Path(sys.executable).parent
    entered = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}  # as in an image: `python` is the one that has perdure
    cluster = subprocess.Popen([commands / "ray", *words], env=entered, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not answers(f"http://{url}/api/version"):
        assert cluster.poll() is None and time.monotonic() < deadline, "no dashboard"
        time.sleep(0.3)
    yield f"http://{url}"
    cluster.terminate()
    cluster.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("submitted")


@pytest.fixture
def jobs(dashboard: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    return Jobs(dashboard, place, monkeypatch)


def test_a_submitted_run_is_followed_in_its_log_and_submitted_again_does_nothing_twice(jobs: Jobs, place: Path) -> None:
    job = jobs.submit(f"ls -a . platform/perdure > {place}/brought; exec python jobs/train.py {TINY}")
    seen: set[str] = set()
    while not jobs.client.get_job_status(job).is_terminal():
        seen |= {line.partition("] ")[2] for line in jobs.client.get_job_logs(job).splitlines() if "] " in line}
        time.sleep(0.2)
    log = jobs.ended(job, JobStatus.SUCCEEDED, 0)
    assert any(line.startswith("task 1/2 ") for line in seen), "while it runs"
    assert any(line.startswith("training, loss ") for line in seen)
    for words in ("decoding: 240/240", "task 2 learned: recall@1", "release submitted@v2", f"report: {place}/runs/submitted/report.html"):
        assert words in log
    brought = (place / "brought").read_text().split()
    assert {"jobs", "platform", "tune_configs", "registry", "cluster"} <= set(brought), "packages that are called as a folder of runs is"
    assert not {"tests", "docs", ".git", ".venv"} & set(brought)

    registry, steps = open_registry(place / "registry"), (place / "runs/submitted/log.jsonl").read_text()
    again = jobs.ended(jobs.submit(f"python jobs/train.py {TINY}"), JobStatus.SUCCEEDED, 0)
    assert "training" not in again and "release submitted@v2" in again
    assert (place / "runs/submitted/log.jsonl").read_text() == steps
    assert registry.encoders("submitted") == [EncoderRef("submitted", 1), EncoderRef("submitted", 2)]
    assert [release.id for release in registry.releases("submitted")] == ["submitted@v1", "submitted@v2"]


def test_a_job_that_cannot_be_done_fails_with_the_code_and_the_words_that_tell_what_to_do(jobs: Jobs, place: Path) -> None:
    wrong = jobs.submit(f"python jobs/train.py {TINY} train.epoch=3")
    fleeting = jobs.submit(f"python jobs/train.py {TINY}", "PERDURE_REGISTRY")
    nowhere = jobs.submit(f"python jobs/train.py {TINY}", "PERDURE_RUNS")
    crowded = jobs.submit(f"python jobs/train.py {TINY} name=crowded workers.num=2 workers.start_timeout_s=2")
    log = jobs.ended(wrong, JobStatus.FAILED, 2)
    assert "Did you mean 'epochs'?" in log and "Traceback" not in log
    assert "Did you mean 'epochs'?" in (jobs.client.get_job_info(wrong).message or ""), "what `ray job status` shows"
    assert "set PERDURE_REGISTRY to storage that stays" in jobs.ended(fleeting, JobStatus.FAILED, 2)
    assert "set PERDURE_RUNS to storage that stays" in jobs.ended(nowhere, JobStatus.FAILED, 2)
    assert "no room for the workers in 2 s: asked for 2 x 1 CPU" in jobs.ended(crowded, JobStatus.FAILED, 3)
    assert {2, 3} <= set(EXIT_CODES)
