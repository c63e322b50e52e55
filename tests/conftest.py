"""What every test runs under: no token file and no statistics of Ray's, small thread pools, and a cache folder of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server

ROOT = Path(__file__).resolve().parents[1]

# Set before any test module imports torch or ray, which read them once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_AUTH_MODE"] = "disabled"  # ray.init() would otherwise write ~/.ray/auth_token and later clusters would ask for it
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves its workers beside anything else that computes
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing a test does may reach the registry, runs or cache of the person who runs it."""
    home = tmp_path_factory.getbasetemp() / "perdure-home"
    monkeypatch.setenv("PERDURE_CACHE", str(home / "cache"))
    monkeypatch.setenv("PERDURE_RUNS", str(home / "runs"))
    for name in ("PERDURE_REGISTRY", "PERDURE_STORAGE", "PERDURE_KEYS", "PERDURE_RAY", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, in which runs and registry lie where a user without any setting finds them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PERDURE_RUNS")
    return tmp_path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 for all tests of a session, with the bucket `tests`."""
    server = S3Server.start()
    server.client().create_bucket(Bucket="tests")
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The same, reached through the environment of the test, and healthy again after it."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    yield s3_server
    s3_server.heal()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all `cluster` tests of a session: 4 logical CPUs, loopback only, no dashboard; stopped at the end.

    Workers import `serve.*` and `jobs.*` from the repository, as the driver does.
    """
    import ray

    for name in ("RAY_ADDRESS", "PERDURE_RAY", "PERDURE_REGISTRY", "PERDURE_KEYS"):
        os.environ.pop(name, None)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "platform")])  # also where the installed package is another checkout's
    environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    ray.init(
        "local",  # never a cluster that runs on this machine already
        num_cpus=4,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        runtime_env={"env_vars": environment},
        object_store_memory=200 * 2**20,
    )
    yield
    ray.shutdown()
