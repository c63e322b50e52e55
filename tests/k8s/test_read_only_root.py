"""What a pod may write, on real processes: in a mount namespace whose root is read-only, in the environment of the image."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from manifests import ROOT
from ports import free_port

from perdure.records import EncoderRef
from perdure.registry import open_registry

TINY = (
    "stream.dataset.items=240 stream.dataset.classes=12 stream.kind.first=6 stream.kind.step=6 "
    "encoder.width=4 encoder.embedding_dim=16 train.max_steps=5 workers.threads=1"
)
# What the volumes `tmp`, `data` and `cache` are mounted over can be written, and nothing else; the code neither, wherever it lies.
POD = """
set -e
mount --make-rprivate /
mount --bind /tmp /tmp
mount -o remount,bind,ro /
mount --bind "$APP" "$APP"
mount -o remount,bind,ro "$APP"
for place in / "$APP" "$APP/platform"; do
    if touch "$place/probe" 2> /dev/null; then echo "$place can be written"; exit 1; fi
done
exec "$@"
"""


def can_have_mounts_of_its_own() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "mount", "--make-rprivate", "/"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not can_have_mounts_of_its_own(), reason="needs the right to mount (root on Linux)"),
]


def image_environment(folder: Path) -> dict[str, str]:
    """ENV of the Dockerfile, with a pod's places in a folder."""
    said = re.search(r"^ENV ((?:.+\\\n)*.+)$", (ROOT / "k8s/Dockerfile").read_text(), re.MULTILINE)
    assert said
    variables = dict(re.findall(r"(\w+)=(\S+)", said[1]))
    places = {"/app": ROOT, "/data": folder / "data", "/cache": folder / "cache", "/tmp": folder / "tmp"}
    for place in places.values():
        place.mkdir(exist_ok=True)
    return {name: re.sub(r"^/(app|data|cache|tmp)", lambda found: str(places[found[0]]), value) for name, value in variables.items()}


def in_pod(folder: Path, words: Sequence[str]) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PERDURE_", "PYTHON"))}
    environment = {**inherited, **image_environment(folder), "APP": str(ROOT), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    command = ["unshare", "--mount", "bash", "-c", POD, "pod", sys.executable, *words]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pod")


def test_a_job_learns_and_publishes_where_only_the_volumes_can_be_written(folder: Path) -> None:
    job = in_pod(folder, ["jobs/train.py", "jobs/configs/scenes.yaml", "name=pod", *TINY.split()])
    said = job.communicate(timeout=300)[0]
    assert job.returncode == 0, said
    assert open_registry(folder / "data/registry").encoders("pod") == [EncoderRef("pod", 1), EncoderRef("pod", 2)]
    assert (folder / "data/runs/pod/report.html").is_file()


def test_what_it_published_is_served_where_nothing_can_be_written(folder: Path) -> None:
    promoted = in_pod(folder, ["-m", "perdure.cli", "promote", "pod@v2", "--force"])
    assert "pod@v2" in promoted.communicate(timeout=60)[0] and promoted.returncode == 0
    port = free_port()
    service = in_pod(folder, ["serve/run.py", "--port", str(port)])
    try:
        assert service.stdout is not None
        said = []
        while not (said and "Perdure answers at" in said[-1]):
            said.append(service.stdout.readline())
            assert said[-1], "".join(said)
        found = httpx.post(f"http://127.0.0.1:{port}/v1/search", json={"text": "a red circle"}, timeout=60).json()
        assert found["release"] == "pod@v2" and found["hits"]
    finally:
        service.terminate()
        assert service.wait(60) == 0
