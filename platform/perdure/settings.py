"""Where we run, from the environment; what we run is in the config. The same YAML runs on a laptop and on Kubernetes.

PERDURE_REGISTRY   registry URL or folder, over the config's `registry`
PERDURE_RUNS       folder of run outputs (default: runs)
PERDURE_CACHE      folder of the decoded-image cache (default: ~/.cache/perdure)
PERDURE_KEYS       file with API keys; with it every route but health needs `Authorization: Bearer`
PERDURE_RAY        address of the Ray cluster (default: RAY_ADDRESS, else a local one)
"""

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Settings", "settings"]


@dataclass(frozen=True)
class Settings:
    """One reading of the environment."""

    registry: str | None
    runs: Path
    cache: Path
    keys: Path | None
    ray_address: str | None


def settings() -> Settings:
    """Read the environment now (never at import, so tests and jobs may set it)."""
    environment = os.environ
    keys = environment.get("PERDURE_KEYS")
    return Settings(
        registry=environment.get("PERDURE_REGISTRY"),
        runs=Path(environment.get("PERDURE_RUNS", "runs")),
        cache=Path(environment.get("PERDURE_CACHE", str(Path.home() / ".cache" / "perdure"))),
        keys=Path(keys) if keys else None,
        ray_address=environment.get("PERDURE_RAY") or environment.get("RAY_ADDRESS"),
    )
