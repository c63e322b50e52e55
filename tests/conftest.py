"""What every test runs under: no token file and no statistics of Ray's, small thread pools, and a cache folder of its own."""

import os

import pytest

# Set before any test module imports torch or ray, which read them once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_AUTH_MODE"] = "disabled"  # ray.init() would otherwise write ~/.ray/auth_token and later clusters would ask for it
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing a test does may reach the registry, runs or cache of the person who runs it."""
    home = tmp_path_factory.getbasetemp() / "perdure-home"
    monkeypatch.setenv("PERDURE_CACHE", str(home / "cache"))
    monkeypatch.setenv("PERDURE_RUNS", str(home / "runs"))
    for name in ("PERDURE_REGISTRY", "PERDURE_KEYS", "PERDURE_RAY", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
